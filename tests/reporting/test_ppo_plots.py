"""What the figure of a PPO run shows, read back from it."""

import numpy as np
import pytest

from rmtrl.errors import DataError
from rmtrl.reporting.plots import save_figure, training_curves


def history(judges=("gold",)):
    """Four updates, and an evaluation before, amid and after them in which the reward rises and a judge falls."""
    updates = [
        {"step": step, "objective/scores": float(step), "objective/kl_k1": 0.5 * step,
         "policy/entropy_avg": 3.0 - step, "objective/response_length_tokens": 10.0 + step}
        for step in (1, 2, 3, 4)
    ]  # fmt: skip
    evaluations = []
    for step, kl in ((0, -0.1), (2, 1.0), (4, 4.0)):
        figures = {
            "reward": step,
            "reward_gain": step,
            "kl": kl,
            "length_tokens": 10 + step,
            "length_tokens_gain": step,
        }
        for place, name in enumerate(judges, 1):
            figures |= {name: 1.0 - place * step, f"{name}_gain": -place * float(step)}
        row = {"step": step, "eval_runtime": 1.0}
        for name, value in figures.items():
            row |= {f"eval_{name}": value, f"eval_{name}_low": value - 0.5, f"eval_{name}_high": value + 0.25}
        evaluations.append(row)
    return (
        evaluations[:1]
        + updates[:2]
        + evaluations[1:2]
        + updates[2:]
        + evaluations[2:]
        + [{"train_loss": 0.1, "step": 4}]
    )


def panel(figure, heading):
    return next(axes for axes in figure.axes if axes.get_title() == heading)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_updates_and_evaluations_stand_in_their_panels_with_their_bands(tmp_path):
    figure = training_curves(history(), title="a run")
    reward = panel(figure, "reward")
    assert [list(line.get_ydata()) for line in reward.lines] == [[1, 2, 3, 4], [0, 2, 4]]
    assert list(reward.lines[1].get_xdata()) == [0, 2, 4]
    corners = reward.collections[0].get_paths()[0].vertices
    assert {(0.0, -0.5), (0.0, 0.25), (4.0, 3.5), (4.0, 4.25)} <= {tuple(corner) for corner in corners.tolist()}
    assert list(panel(figure, "entropy (nats a token)").lines[0].get_ydata()) == [2, 1, 0, -1]
    assert list(panel(figure, "length of the response (tokens)").lines[1].get_ydata()) == [10, 12, 14]
    assert list(panel(figure, "KL to the reference (nats a response)").lines[0].get_ydata()) == [0.5, 1, 1.5, 2]
    save_figure(figure, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_gains_stand_against_the_root_of_kl_with_the_reward_on_its_own_axis():
    figure = training_curves(history(("gold", "held_out")))
    gains = panel(figure, "gain since the first evaluation")
    assert legend(gains) == ["gold", "held_out", "reward"]
    for container, slope in zip(gains.containers, (-1, -2), strict=True):
        line, _, (bars,) = container
        np.testing.assert_allclose(line.get_xdata(), [0, 1, 2])  # an estimate of KL below 0 counts as 0
        np.testing.assert_allclose(line.get_ydata(), [0, 2 * slope, 4 * slope])
        np.testing.assert_allclose(bars.get_segments()[2][:, 1], [4 * slope - 0.5, 4 * slope + 0.25])
    right = next(axes for axes in figure.axes if axes.get_ylabel() == "gain of the reward")
    np.testing.assert_allclose(right.containers[0][0].get_ydata(), [0, 2, 4])
    assert legend(panel(figure, "judges, not trained on")) == ["gold", "held_out"]


def test_without_a_judge_the_rest_is_drawn():
    figure = training_curves(history(judges=()))
    assert not panel(figure, "no judge").lines
    assert legend(panel(figure, "gain since the first evaluation")) == ["reward"]


def test_updates_alone_or_evaluations_alone_are_enough():
    rows = history()
    figure = training_curves([row for row in rows if "objective/scores" in row])
    assert len(panel(figure, "reward").lines) == 1
    figure = training_curves([row for row in rows if "eval_reward" in row])
    assert len(panel(figure, "reward").lines) == 1
    with pytest.raises(DataError, match="none of a PPO update or of 'eval'"):
        training_curves([{"loss": 1.0, "step": 1}])
