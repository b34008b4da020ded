"""Figures, and how a command puts one in place; no window is opened and no global state of matplotlib is touched."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from rmtrl.errors import DataError
from rmtrl.io import replacing
from rmtrl.metrics import ReliabilityCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rmtrl.evaluation.overoptimization import Part
    from rmtrl.metrics.lengths import LengthCurve

Rows = Sequence[Mapping[str, Any]]

# of a PPO run: heading of the panel, key of the updates, key of the evaluations
_PANELS = [
    ("reward", "objective/scores", "reward"),
    ("KL to the reference (nats a response)", "objective/kl_k1", "kl"),
    ("length of the response (tokens)", "objective/response_length_tokens", "length_tokens"),
    ("entropy (nats a token)", "policy/entropy_avg", None),
]


def save_figure(figure: "Figure", path: Path, *, dpi: float | str = "figure") -> None:
    """Saves a figure beside and renames it, so that the file is the old one or the new one; its folder is made."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=dpi, format=path.suffix[1:])


def reliability_diagram(curves: Mapping[str, ReliabilityCurve], *, title: str = "") -> "Figure":
    """Returns a figure of reliability curves against the 45° line, with the interval of each bin.

    Args:
        curves (`Mapping[str, ReliabilityCurve]`): Curves by label, such as before and after calibration.
        title (`str`): Title of the figure.

    Example:

    ```python
    >>> from rmtrl.metrics import reliability_curve
    >>> figure = reliability_diagram({"raw": reliability_curve([0.9, 0.8, 0.2])})
    >>> figure.savefig("reliability.png")
    ```
    """
    figure, axes = _new(5, 5)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="calibrated")
    for index, (label, curve) in enumerate(curves.items()):
        _draw_bars(axes, curve.probability, curve.frequency, curve.low, curve.high, number=index, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title)
    axes.set(xlabel="probability given", ylabel="share preferred")
    _legend(axes, loc="upper left")
    return figure


def overoptimization_plot(part: "Part", *, title: str = "") -> "Figure":
    """Returns a figure of best-of-n curves against √KL, with their 95 % bands, their fits and the peak of gold.

    The proxy's own curve has an axis of its own, on the right: its unit is not that of gold.

    Args:
        part ([`~rmtrl.evaluation.overoptimization.Part`]): What was measured.
        title (`str`): Title of the figure.

    Example:

    ```python
    >>> figure = overoptimization_plot(measure_overoptimization(samples).whole)
    >>> figure.savefig("overoptimization.png")
    ```
    """
    figure, left = _new(7, 5)
    right = left.twinx()
    x = np.sqrt(part.kl)
    smooth = np.linspace(0, part.k, 100)
    for index, (name, points) in enumerate(part.gains.items()):
        axes = right if name.startswith("proxy") else left
        axes.plot(x, [point.value for point in points], color=f"C{index}", linewidth=1.5, label=name)
        bands = [point.low for point in points], [point.high for point in points]
        axes.fill_between(x, *bands, color=f"C{index}", alpha=0.2, linewidth=0)
        axes.plot(smooth, part.fits[name](smooth), color=f"C{index}", linewidth=1, linestyle="--")
    if part.turned_over:
        at = np.interp(np.log(part.peak_n.value), np.log(part.ns), x)  # as the peak's n was read from the fit
        left.axvline(float(at), color="grey", linewidth=1, label="peak (fit)")
    ticks = np.unique([np.abs(x - at).argmin() for at in np.linspace(0, part.k, 7)])
    left.set_xticks(x[ticks], [f"{value:.2f}\nn={n:,}" for value, n in zip(x[ticks], part.ns[ticks], strict=True)])
    left.set(xlabel="√KL from the policy (√nats)", ylabel="gain in gold score over one sample", title=title)
    right.set_ylabel("gain in proxy score over one sample")
    _legend(left, right, loc="upper left")
    return figure


def reward_against_length(
    curve: "LengthCurve", scores: ArrayLike, lengths: ArrayLike, *, unit: str = "tokens", title: str = ""
) -> "Figure":
    """Returns a figure of every response's reward against its length, with the mean reward of each bin of lengths.

    Args:
        curve ([`~rmtrl.metrics.lengths.LengthCurve`]): Reward by length.
        scores, lengths (`(N,)` arrays): Reward and length of each response.
        unit (`str`): Unit of the lengths.
        title (`str`): Title of the figure.

    Example:

    ```python
    >>> from rmtrl.metrics.lengths import length_curve
    >>> figure = reward_against_length(length_curve(scores, lengths), scores, lengths)
    >>> figure.savefig("reward_against_length.png")
    ```
    """
    figure, axes = _new(6, 4)
    axes.scatter(np.asarray(lengths), np.asarray(scores), s=8, alpha=0.4, color="grey", linewidths=0)
    label = "mean of a bin, 95 % interval by prompt"
    _draw_bars(axes, curve.length, curve.reward, curve.low, curve.high, label=label)
    axes.set(title=title, xlabel=f"length of the response in {unit}", ylabel="reward")
    _legend(axes)
    return figure


def margin_against_length(margins: ArrayLike, longer: ArrayLike, *, unit: str = "tokens", title: str = "") -> "Figure":
    """Returns a figure of margins against how much longer the chosen side is; right pairs lie above the line.

    Args:
        margins (`(N,)` array): Score of chosen minus score of rejected.
        longer (`(N,)` array): Length of chosen minus length of rejected.
        unit (`str`): Unit of the lengths.
        title (`str`): Title of the figure.

    Example:

    ```python
    >>> figure = margin_against_length([1.1, 1.3, -0.2], [17, 36, -19])
    >>> figure.savefig("margin_against_length.png")
    ```
    """
    margins, longer = np.asarray(margins, float), np.asarray(longer, float)
    figure, axes = _new(6, 4)
    for rows, color, name in ((longer > 0, "C0", "longer"), (longer < 0, "C1", "shorter"), (longer == 0, "grey", "")):
        if rows.any():
            right = f"{np.mean(margins[rows] > 0):.0%}".replace("%", " %")
            label = f"chosen {name or 'as long'}: {right} of {rows.sum():,} right"
            axes.scatter(longer[rows], margins[rows], s=9, alpha=0.6, color=color, linewidths=0, label=label)
    axes.axhline(0, color="grey", linewidth=1, linestyle="--")
    axes.axvline(0, color="grey", linewidth=1, linestyle=":")
    axes.set(title=title, xlabel=f"chosen longer than rejected by, in {unit}", ylabel="margin")
    _legend(axes)
    return figure


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
    updates = [row for row in history if "objective/scores" in row]
    evaluations = [row for row in history if f"{prefix}_reward" in row]
    if not updates and not evaluations:
        raise DataError(f"got {len(history)} log rows, none of a PPO update or of {prefix!r}; give state.log_history")
    opening = f"{prefix}_"
    gains = [key.removeprefix(opening).removesuffix("_gain") for row in evaluations for key in row
             if key.startswith(opening) and key.endswith("_gain")]  # fmt: skip
    judges = [name for name in dict.fromkeys(gains) if name not in ("reward", "length_tokens")]
    figure, grid = _new(12, 7, rows=2, columns=3)
    panels = list(grid.flat)
    for axes, (heading, training, evaluated) in zip([panels[0], *panels[2:5]], _PANELS, strict=True):
        _draw_series(axes, updates, training, color="grey", label="updates")
        if evaluated is not None:
            _draw_series(axes, evaluations, opening + evaluated, color="C0", label=prefix, band=True)
        axes.set(title=heading, xlabel="updates")
    for number, name in enumerate(judges, 1):
        _draw_series(panels[1], evaluations, opening + name, color=f"C{number}", label=name, band=True)
    panels[1].set(title="judges, not trained on" if judges else "no judge", xlabel="updates")
    _draw_gains(panels[5], evaluations, opening, judges)
    for axes in panels[:5]:
        _legend(axes)
    figure.suptitle(title)
    return figure


def _new(width: float, height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, Any]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def _legend(*axes: "Axes", loc: Any = "best") -> None:
    """Draws one legend of all that is labelled on axes that share a panel, if anything is."""
    handles, labels = zip(*(own.get_legend_handles_labels() for own in axes), strict=True)
    if any(labels):
        axes[0].legend(sum(handles, []), sum(labels, []), loc=loc, frameon=False)


def _draw_bars(
    axes: "Axes", x: ArrayLike, value: Any, low: Any, high: Any, *, label: str, number: int = 0
) -> None:  # fmt: skip
    # an interval may lie beside its value by rounding; a bar has no negative length
    axes.errorbar(
        x, value, yerr=np.maximum([value - low, high - value], 0), label=label, marker="os^v"[number % 4],
        markersize=4, linewidth=1, elinewidth=1, capsize=2, color=f"C{number}",
    )  # fmt: skip


def _draw_series(axes: "Axes", rows: Rows, key: str, *, color: str, label: str, band: bool = False) -> None:
    """Draws a key of the log against the step, a thin line; with its band a thicker one with marks."""
    rows = [row for row in rows if key in row]
    if not rows:
        return
    steps, values = [row["step"] for row in rows], [row[key] for row in rows]
    if not band:
        axes.plot(steps, values, color=color, linewidth=1, label=label)
        return
    axes.plot(steps, values, color=color, linewidth=1.5, marker="o", markersize=3, label=label)
    low, high = ([row[f"{key}_{end}"] for row in rows] for end in ("low", "high"))
    axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def _draw_gains(left: "Axes", rows: Rows, opening: str, judges: list[str]) -> None:
    """Draws each gain against √KL; a KL that was estimated below 0 counts as 0."""
    right = left.twinx()
    x = np.sqrt([max(row[f"{opening}kl"], 0.0) for row in rows])
    for number, name in enumerate(["reward", *judges]):
        key = f"{opening}{name}_gain"
        value, low, high = (np.array([row.get(key + end, np.nan) for row in rows]) for end in ("", "_low", "_high"))
        _draw_bars(right if name == "reward" else left, x, value, low, high, number=number, label=name)
    left.axhline(0, color="grey", linewidth=1, linestyle="--")
    left.set(title="gain since the first evaluation", xlabel="√KL to the reference (√nats)", ylabel="gain of judges")
    right.set_ylabel("gain of the reward")
    _legend(left, right)
