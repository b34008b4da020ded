"""Figures, and how a command puts one in place; no window is opened and no global state of matplotlib is touched."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from rmtrl.metrics import ReliabilityCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rmtrl.evaluation.audit import LengthCurve
    from rmtrl.evaluation.overoptimization import Part


def save_figure(figure: "Figure", path: Path, *, dpi: float | str = "figure") -> None:
    """Saves a figure beside and renames it, so that the file is the old one or the new one; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.new{path.suffix}")
    figure.savefig(beside, dpi=dpi)
    beside.replace(path)


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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="calibrated")
    for index, (label, curve) in enumerate(curves.items()):
        # an interval may lie beside its value by rounding; a bar has no negative length
        below, above = np.maximum(curve.frequency - curve.low, 0), np.maximum(curve.high - curve.frequency, 0)
        axes.errorbar(
            curve.probability, curve.frequency, yerr=np.stack([below, above]), label=label, marker="os^v"[index % 4],
            markersize=4, linewidth=1, elinewidth=1, capsize=2, color=f"C{index}",
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title)
    axes.set_xlabel("probability given")
    axes.set_ylabel("share preferred")
    axes.legend(loc="upper left", frameon=False)
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    left = figure.add_subplot()
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
    handles, labels = left.get_legend_handles_labels()
    more, more_labels = right.get_legend_handles_labels()
    left.legend(handles + more, labels + more_labels, loc="upper left", frameon=False)
    return figure


def reward_against_length(
    curve: "LengthCurve", scores: ArrayLike, lengths: ArrayLike, *, unit: str = "tokens", title: str = ""
) -> "Figure":
    """Returns a figure of every response's reward against its length, with the mean reward of each bin of lengths.

    Args:
        curve ([`~rmtrl.evaluation.audit.LengthCurve`]): Reward by length.
        scores, lengths (`(N,)` arrays): Reward and length of each response.
        unit (`str`): Unit of the lengths.
        title (`str`): Title of the figure.

    Example:

    ```python
    >>> from rmtrl.evaluation.audit import length_curve
    >>> figure = reward_against_length(length_curve(scores, lengths), scores, lengths)
    >>> figure.savefig("reward_against_length.png")
    ```
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(np.asarray(lengths), np.asarray(scores), s=8, alpha=0.4, color="grey", linewidths=0)
    below, above = np.maximum(curve.reward - curve.low, 0), np.maximum(curve.high - curve.reward, 0)
    axes.errorbar(
        curve.length, curve.reward, yerr=np.stack([below, above]), marker="o", markersize=4, linewidth=1,
        elinewidth=1, capsize=2, color="C0", label="mean of a bin, 95 % interval by prompt",
    )  # fmt: skip
    axes.set(title=title, xlabel=f"length of the response in {unit}", ylabel="reward")
    axes.legend(loc="best", frameon=False)
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
    from matplotlib.figure import Figure

    margins, longer = np.asarray(margins, float), np.asarray(longer, float)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for rows, color, name in ((longer > 0, "C0", "longer"), (longer < 0, "C1", "shorter"), (longer == 0, "grey", "")):
        if rows.any():
            right = f"{np.mean(margins[rows] > 0):.0%}".replace("%", " %")
            label = f"chosen {name or 'as long'}: {right} of {rows.sum():,} right"
            axes.scatter(longer[rows], margins[rows], s=9, alpha=0.6, color=color, linewidths=0, label=label)
    axes.axhline(0, color="grey", linewidth=1, linestyle="--")
    axes.axvline(0, color="grey", linewidth=1, linestyle=":")
    axes.set(title=title, xlabel=f"chosen longer than rejected by, in {unit}", ylabel="margin")
    axes.legend(loc="best", frameon=False)
    return figure
