"""What the audit's figures show, read back from them."""

import numpy as np

from rmtrl.metrics.lengths import length_curve
from rmtrl.reporting.plots import margin_against_length, reward_against_length


def test_reward_against_length_shows_every_response_and_the_bins_with_their_intervals(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 90, 300)
    scores = lengths / 50 + rng.normal(0, 1, 300)
    curve = length_curve(scores, lengths, bins=5)
    figure = reward_against_length(curve, scores, lengths, unit="words")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack([lengths, scores], axis=1))
    drawn, _, (bars,) = axes.containers[0]
    np.testing.assert_allclose(drawn.get_xdata(), curve.length)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, np.stack([curve.low, curve.high], axis=1))
    assert axes.get_xlabel() == "length of the response in words"
    figure.savefig(tmp_path / "reward.png")
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_margin_against_length_says_how_many_are_right_on_each_side():
    figure = margin_against_length([1.0, 2.0, -1.0, 1.0, -2.0, -3.0, 1.0], [5, 6, 7, 8, -5, -6, 0])
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "chosen longer: 75 % of 4 right",
        "chosen shorter: 0 % of 2 right",
        "chosen as long: 100 % of 1 right",
    ]
    assert [len(points.get_offsets()) for points in axes.collections] == [4, 2, 1]
