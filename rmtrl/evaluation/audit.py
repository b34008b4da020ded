"""The length audit: does a reward model pay for length? From scores and lengths alone; no model, no text.

A preference for the longer answer is no fault where people share it. What counts is how the reward model errs: one
that pays for length is right where the better answer is the longer one and wrong where it is the shorter one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from rmtrl.errors import DataError
from rmtrl.metrics import Floats, mean_estimate
from rmtrl.metrics.lengths import LengthCurve, length_correlations, length_curve, length_regressions, length_shares
from rmtrl.types import Estimate, json_ready

LEAST_PROMPTS = 30
"""No verdict on fewer prompts whose chosen side is longer, or on fewer whose chosen side is shorter."""
CONVICTS = 0.1
"""Convicted where the length gap surely exceeds this; acquitted where twice as much is ruled out."""

CONVICTED: Final = "convicted"
ACQUITTED: Final = "acquitted"
UNDECIDED: Final = "not enough evidence"
BUILD_MATCHED = "build length-matched pairs"


@dataclass(frozen=True)
class Verdict:
    """What the audit says: `verdict` is `convicted`, `acquitted` or `not enough evidence`; see [`length_verdict`]."""

    verdict: Literal["convicted", "acquitted", "not enough evidence"]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class LengthAudit:
    """The result of [`audit_length`].

    Args:
        n (`int`): Pairs.
        prompts (`int`): Distinct prompts.
        unit (`str`): Unit of the lengths.
        figures (`dict[str, Estimate]`): By name; what has no pairs to stand on is left out.
        curve (`LengthCurve`): Reward by length.
        verdict (`Verdict`): What follows from the figures.
    """

    n: int
    prompts: int
    unit: str
    figures: dict[str, Estimate]
    curve: LengthCurve
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """Returns the audit as a plain dictionary, ready for JSON; what is undefined is null."""
        head = {"schema": "rmtrl/audit/1", "n": self.n, "prompts": self.prompts, "unit": self.unit}
        return dict(
            json_ready(head | {"figures": self.figures, "curve": self.curve.as_dict(), **asdict(self.verdict)})
        )


def audit_length(
    chosen: ArrayLike,
    rejected: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    prompts: ArrayLike | None = None,
    *,
    chosen_quality: ArrayLike | None = None,
    rejected_quality: ArrayLike | None = None,
    unit: str = "tokens",
    n_resamples: int = 1000,
    seed: int = 0,
) -> LengthAudit:
    """Returns how far rewards follow response length, against what the labels do, with a verdict.

    The figures, m the margin, ΔL the length of chosen less that of rejected, r and L reward and length of a response:

    - `accuracy`, `mean_margin`, and `length_only_accuracy`: that of "the longer one is better", equal lengths ½.
    - `within_spearman`, `pooled_spearman`: correlation of r and L over all responses, with and without each prompt's
      means taken off; `margin_spearman`: of m and ΔL, each pair in both orders.
    - `longer_wins`, `longer_preferred`, `longer_excess`: how often the longer side wins under the reward model, under
      the labels, and the difference.
    - `accuracy_chosen_longer`, `accuracy_chosen_shorter`, their difference `length_gap` and mean `balanced_accuracy`.
    - `accuracy_matched`: on pairs with |ΔL| ≤ 0.1 max(L).
    - `logit_margin` a and `logit_length` b of P(chosen preferred) = σ(a·m/sd(m) + b·tanh(ΔL/sd(ΔL))), after Dubois et
      al. 2024 (https://huggingface.co/papers/2404.04475): what length says beyond the margin. Below 0, people prefer
      shorter answers than the margins imply: the reward model overpays length. Absent where pairs are separated.
    - `margin_length`: slope of m/sd(m) on tanh(ΔL/sd(ΔL)), with the label, and quality where it is given, held.
    - `partial_spearman`: of r and L with quality held, where it is given.

    Args:
        chosen, rejected (`(N,)` arrays): Scores.
        chosen_length, rejected_length (`(N,)` arrays): Response lengths, in any one unit.
        prompts (`(N,)` array, *optional*): Prompt of each pair; every pair its own prompt when absent.
        chosen_quality, rejected_quality (`(N,)` arrays, *optional*): A gold score or rating of each response.
        unit (`str`): Unit of the lengths.
        n_resamples (`int`): Bootstrap resamples; 200 at most for rank correlations.
        seed (`int`): Seed of the resampling.

    Raises:
        DataError: If there are no pairs, columns differ in length, a value is not finite, all scores are equal, or all
            pairs are of one prompt.

    Example:

    ```python
    >>> audit = audit_length([1.8, 2.4, 1.6], [0.7, 1.1, 0.3], [36, 58, 33], [19, 22, 14])
    >>> audit.figures["length_only_accuracy"].value, audit.verdict.verdict
    (1.0, 'not enough evidence')
    ```
    """
    if (chosen_quality is None) != (rejected_quality is None):
        raise DataError("got the quality of one side; wanted that of both or of none")
    given = {
        "chosen": chosen, "rejected": rejected, "chosen_length": chosen_length, "rejected_length": rejected_length,
        "chosen_quality": chosen_quality, "rejected_quality": rejected_quality,
    }  # fmt: skip
    columns = _checked({name: values for name, values in given.items() if values is not None})
    n = len(columns["chosen"])
    group = np.unique(np.arange(n) if prompts is None else np.asarray(prompts), return_inverse=True)[1]
    if len(group) != n or group.max() == 0:
        raise DataError(f"got {n} pairs and {group.max() + 1} prompt; wanted a prompt a pair, and two or more in all")
    reward, length = (np.stack([columns[f"chosen{end}"], columns[f"rejected{end}"]]) for end in ("", "_length"))
    worth = None if chosen_quality is None else np.stack([columns["chosen_quality"], columns["rejected_quality"]])
    settings: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    margin, longer = reward[0] - reward[1], length[0] - length[1]
    figures = (
        {"mean_margin": mean_estimate(margin, group, proportion=False, **settings)}
        | length_shares(margin, longer, length.ravel(), group, **settings)
        | length_correlations(reward, length, group, worth, **settings)
        | length_regressions(margin, longer, group, None if worth is None else worth[0] - worth[1])
    )
    curve = length_curve(reward.ravel(), length.ravel(), np.tile(group, 2))
    longer_prompts, shorter_prompts = (len(np.unique(group[rows])) for rows in (longer > 0, longer < 0))
    verdict = length_verdict(figures, longer_prompts=longer_prompts, shorter_prompts=shorter_prompts)
    return LengthAudit(n, int(group.max()) + 1, unit, figures, curve, verdict)


def length_verdict(figures: Mapping[str, Estimate], *, longer_prompts: int, shorter_prompts: int) -> Verdict:
    """Returns what the figures of an audit amount to.

    - `convicted`: the accuracy is surely (by the whole interval) more than 0.1 lower where the chosen side is shorter;
      the longer side surely wins more than half of the pairs; and the labels cannot explain it: the margin held,
      people surely prefer the shorter side (`logit_length` below 0). The same the other way round convicts of
      preferring brevity. A fair model that is noisy, or misses people's own taste for length, can meet one of the
      conditions but not all. That the longer side surely wins more often than it is preferred convicts only where
      that reading has nothing to hold: where it does not exist, or the margin, the length held, says nothing sure of
      what people prefer (`logit_margin` not above 0), as of a score that is length alone. Else it is no evidence:
      labels are noisy and a score is not, so the very utility that people judge by follows length more closely than
      their labels do.
    - `acquitted`: the two accuracies surely differ by less than 0.2.
    - `not enough evidence`: else, and always with fewer than 30 prompts of either kind.

    Args:
        figures (`Mapping[str, Estimate]`): Those of [`audit_length`].
        longer_prompts, shorter_prompts (`int`): Prompts with a pair whose chosen side is longer; shorter.

    Example:

    ```python
    >>> length_verdict(audit.figures, longer_prompts=400, shorter_prompts=380).verdict
    'convicted'
    ```
    """
    found = figures.get("length_gap")
    if found is None or min(longer_prompts, shorter_prompts) < LEAST_PROMPTS:
        return Verdict(UNDECIDED, _too_few(figures, longer_prompts, shorter_prompts))
    sides = (
        f"accuracy {figures['accuracy_chosen_longer']} where chosen is longer, "
        f"{figures['accuracy_chosen_shorter']} where it is shorter, gap {_short(found)}"
    )
    for sign, likes in ((1, "longer"), (-1, "shorter")):
        if _ends(found, sign)[0] > CONVICTS:
            why = _beyond_labels(figures, sign, likes)
            if why:
                return Verdict(CONVICTED, (sides, *why))
            other = "shorter" if sign > 0 else "longer"
            taste = f"yet, given the margin, people do not surely prefer the {other} side: their taste may explain it"
            return Verdict(UNDECIDED, (sides, taste, BUILD_MATCHED))
    if max(found.high, -found.low) < 2 * CONVICTS:
        return Verdict(ACQUITTED, (sides, f"the gap is surely smaller than {2 * CONVICTS:.2f}"))
    unsure = f"the gap may be under {CONVICTS:.2f} or over {2 * CONVICTS:.2f}; audit more pairs"
    return Verdict(UNDECIDED, (sides, unsure))


def _too_few(figures: Mapping[str, Estimate], longer: int, shorter: int) -> tuple[str, ...]:
    reasons = [
        f"chosen is longer under {longer} prompts and shorter under {shorter}; wanted {LEAST_PROMPTS} or more of each"
    ]
    if longer and not shorter:
        reasons[0] = f"chosen is always longer ({longer} prompts), so length alone explains every label"
    if shorter and not longer:
        reasons[0] = f"chosen is always shorter ({shorter} prompts), so length alone explains every label"
    if figures["length_only_accuracy"].value >= figures["accuracy"].value:
        alone = f"{figures['length_only_accuracy'].value:.2f}"
        reasons.append(f"length alone has accuracy {alone}, the reward model {figures['accuracy'].value:.2f}")
    return (*reasons, BUILD_MATCHED)


def _beyond_labels(figures: Mapping[str, Estimate], sign: int, likes: str) -> tuple[str, ...]:
    wins, excess, slope = figures["longer_wins"], figures["longer_excess"], figures.get("logit_length")
    if not (wins.low > 0.5 if sign > 0 else wins.high < 0.5):
        return ()
    more = _ends(excess, sign)[0] > 0
    reasons = [f"the {likes} side wins more often than people prefer it, by {_short(excess, sign)}"] if more else []
    if slope is not None and _ends(slope, -sign)[0] > 0:
        other = "shorter" if sign > 0 else "longer"
        return (*reasons, f"given the margin people prefer the {other} side: length coefficient {_short(slope)}")
    if slope is None:
        return tuple(reasons)
    known = figures["logit_margin"]
    blind = f"given the length the margin says nothing sure of what people prefer: coefficient {_short(known)}"
    return (*reasons, blind) if more and known.low <= 0 else ()


def _ends(estimate: Estimate, sign: int) -> tuple[float, float]:
    return (estimate.low, estimate.high) if sign > 0 else (-estimate.high, -estimate.low)


def _short(estimate: Estimate, sign: int = 1) -> str:
    low, high = _ends(estimate, sign)
    return f"{sign * estimate.value:.3f} [{low:.3f}, {high:.3f}]"


def _checked(given: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    columns = {name: np.asarray(values, float) for name, values in given.items()}
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1 or not sizes["chosen"]:
        raise DataError(f"got columns of {sizes} values; wanted one value a pair in each, and at least one pair")
    for name, values in columns.items():
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values))[0]
            raise DataError(
                f"the {name.replace('_', ' ')} of pair {bad} is {values[bad]}; leave pairs without one out"
            )
    scores = np.concatenate([columns["chosen"], columns["rejected"]])
    if np.ptp(scores) == 0:
        raise DataError(f"all {len(scores):,} scores are {scores[0]:g}; a constant score cannot be audited")
    return columns
