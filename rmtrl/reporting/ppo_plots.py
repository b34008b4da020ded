"""Figures of a PPO run, read from its log history; saved with [`~rmtrl.reporting.plots.save_figure`]."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtrl.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

# heading of the panel, key of the updates, key of the evaluations
_PANELS = [
    ("reward", "objective/scores", "reward"),
    ("KL to the reference (nats a response)", "objective/kl_k1", "kl"),
    ("length of the response (tokens)", "objective/response_length_tokens", "length_tokens"),
    ("entropy (nats a token)", "policy/entropy_avg", None),
]


def training_curves(history: Rows, *, prefix: str = "eval", title: str = "") -> "Figure":
    """Returns a figure of a PPO run: reward, judges, KL, length and entropy over updates, and gains against √KL.

    Updates are drawn as grey lines, evaluations in colour with 95 % bands. The last panel is the overoptimization
    view: the gain of each scorer since the first evaluation against √KL, in the order of evaluations, with paired 95 %
    intervals; the reward that is trained on has an axis of its own, on the right: its unit is not that of a judge.

    Args:
        history (`list[dict]`): `trainer.state.log_history`.
        prefix (`str`): Opens the keys of the evaluations.
        title (`str`): Title of the figure.

    Raises:
        DataError: If no update and no evaluation is in the history.

    Example:

    ```python
    >>> save_figure(training_curves(trainer.state.log_history), Path("training.png"))
    ```
    """
    from matplotlib.figure import Figure

    updates = [row for row in history if "objective/scores" in row]
    evaluations = [row for row in history if f"{prefix}_reward" in row]
    if not updates and not evaluations:
        raise DataError(f"got {len(history)} log rows, none of a PPO update or of {prefix!r}; give state.log_history")
    judges = _judges(evaluations, prefix)
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = list(figure.subplots(2, 3).flat)
    for axes, (heading, training, evaluated) in zip([panels[0], *panels[2:5]], _PANELS, strict=True):
        _draw_line(axes, updates, training, color="grey", label="updates")
        if evaluated is not None:
            _draw_band(axes, evaluations, f"{prefix}_{evaluated}", color="C0", label=prefix)
        axes.set(title=heading, xlabel="updates")
    for number, name in enumerate(judges, 1):
        _draw_band(panels[1], evaluations, f"{prefix}_{name}", color=f"C{number}", label=name)
    panels[1].set(title="judges, not trained on" if judges else "no judge", xlabel="updates")
    _draw_gains(panels[5], evaluations, prefix, judges)
    for axes in panels[:5]:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", frameon=False)
    figure.suptitle(title)
    return figure


def _judges(evaluations: Rows, prefix: str) -> list[str]:
    keys = dict.fromkeys(key for row in evaluations for key in row)
    gains = [
        key[len(prefix) + 1 : -len("_gain")] for key in keys if key.startswith(f"{prefix}_") and key.endswith("_gain")
    ]
    return [name for name in gains if name not in ("reward", "length_tokens")]


def _draw_line(axes: "Axes", rows: Rows, key: str, *, color: str, label: str) -> None:
    rows = [row for row in rows if key in row]
    if rows:
        axes.plot([row["step"] for row in rows], [row[key] for row in rows], color=color, linewidth=1, label=label)


def _draw_band(axes: "Axes", rows: Rows, key: str, *, color: str, label: str) -> None:
    rows = [row for row in rows if key in row]
    if not rows:
        return
    steps = [row["step"] for row in rows]
    low, high = ([row[f"{key}_{end}"] for row in rows] for end in ("low", "high"))
    axes.plot(steps, [row[key] for row in rows], color=color, linewidth=1.5, marker="o", markersize=3, label=label)
    axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def _draw_gains(left: "Axes", rows: Rows, prefix: str, judges: list[str]) -> None:
    """Draws each gain against √KL; a KL that was estimated below 0 counts as 0."""
    right = left.twinx()
    x = np.sqrt([max(row[f"{prefix}_kl"], 0.0) for row in rows])
    for number, name in enumerate(["reward", *judges]):
        key = f"{prefix}_{name}_gain"
        value, low, high = (np.array([row.get(key + end, np.nan) for row in rows]) for end in ("", "_low", "_high"))
        axes = right if name == "reward" else left
        axes.errorbar(
            x, value, yerr=np.maximum([value - low, high - value], 0), color=f"C{number}", marker="os^v"[number % 4],
            markersize=4, linewidth=1, elinewidth=1, capsize=2, label=name,
        )  # fmt: skip
    left.axhline(0, color="grey", linewidth=1, linestyle="--")
    left.set(title="gain since the first evaluation", xlabel="√KL to the reference (√nats)", ylabel="gain of judges")
    right.set_ylabel("gain of the reward")
    handles, labels = left.get_legend_handles_labels()
    more, more_labels = right.get_legend_handles_labels()
    left.legend(handles + more, labels + more_labels, loc="best", frameon=False)
