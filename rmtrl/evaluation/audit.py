"""The length audit: does a reward model pay for length? [`audit_length`] says it from scores and lengths alone.

A preference for the longer answer is no fault where people share it. What counts is how the reward model errs: one
that pays for length is right where the better answer is the longer one and wrong where it is the shorter one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike

from rmtrl.data.messages import conversation_text
from rmtrl.data.preferences import read_preferences, to_normal_form
from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.probes import Probe, probe
from rmtrl.evaluation.scoring import SIDES, ScoredPairs
from rmtrl.metrics import Floats, mean_estimate, mean_estimates, pair_wins, reweighted_estimate, scaled
from rmtrl.metrics.ceiling import Ceiling, ceiling_of_cells
from rmtrl.metrics.lengths import (
    MATCHED,
    LengthCurve,
    length_correlations,
    length_curve,
    length_regressions,
    length_shares,
)
from rmtrl.types import Chat, Estimate

LEAST_PROMPTS = 30
"""No verdict on fewer prompts whose chosen side is longer, or on fewer whose chosen side is shorter."""
CONVICTS = 0.1
"""Convicted where the length gap surely exceeds this; acquitted where twice as much is ruled out."""

CONVICTED = "convicted"
ACQUITTED = "acquitted"
UNDECIDED = "not enough evidence"
BUILD_MATCHED = f"build length-matched pairs: have answers judged that differ by at most {MATCHED:.0%} in length"

NO_MATCHED = f"{UNDECIDED}: no pair has answers of like length; {BUILD_MATCHED}"

UNSCORED = {
    "too_long": "longer than the model takes: shorten them, or audit them with a model of longer context",
    "null_in_file": "null in the file of scores, as pairs longer than the model are: shorten them and score anew",
    "not_in_file": "not in the file of scores: score them too, with rmtrl score",
}
"""Why pairs have no scores, and what gives them some."""

Verdict = tuple[str, tuple[str, ...]]
"""Convicted, acquitted or undecided, and why, in words."""


@dataclass(frozen=True)
class Audit:
    """The result of [`audit_length`] and, with what is known of pairs alone, of [`audit_pairs`].

    Args:
        n (`int`): Pairs that have scores and a better side.
        prompts (`int`): Distinct prompts.
        unit (`str`): Unit of the lengths.
        figures (`dict[str, Estimate]`): By name; what has no pairs to stand on is left out.
        curve (`LengthCurve`): Reward by length.
        verdict (`str`): `convicted`, `acquitted` or `not enough evidence`; see [`length_verdict`].
        reasons (`tuple[str, ...]`): Why, in words.
        scores, lengths (`(2, n)` arrays): Of chosen and rejected.
        without_scores, ties_left_out (`int`): Pairs left out.
        unscored (`dict[str, int]`): Those without scores by reason, as [`UNSCORED`] has them.
        domains (`dict[str, Estimate]`): Accuracy by domain.
        reweighted (`dict`, *optional*): The `target_mix` of domains, and the `accuracy` under it.
        probes (`tuple[Probe, ...]`): What edits did.
        ceiling (`Ceiling`, *optional*): The highest accuracy any model could reach, where votes are known.
    """

    schema: ClassVar = "rmtrl/audit/1"

    n: int
    prompts: int
    unit: str
    figures: dict[str, Estimate]
    curve: LengthCurve
    verdict: str
    reasons: tuple[str, ...]
    scores: Floats = field(repr=False)
    lengths: Floats = field(repr=False)
    without_scores: int = 0
    unscored: dict[str, int] = field(default_factory=dict)
    ties_left_out: int = 0
    domains: dict[str, Estimate] = field(default_factory=dict)
    reweighted: dict[str, Any] | None = None
    probes: tuple[Probe, ...] = ()
    ceiling: Ceiling | None = None

    @property
    def why_unscored(self) -> str:
        """Why pairs have no scores, and what gives them some."""
        return "; ".join(f"{n:,} {UNSCORED[why]}" for why, n in self.unscored.items())

    @property
    def words(self) -> dict[str, Any]:
        """The values that people read."""
        more = {"accuracy, target mix": self.reweighted["accuracy"]} if self.reweighted else {}
        if "accuracy_matched" not in self.figures:
            more["accuracy_matched"] = NO_MATCHED
        return {
            "pairs": self.n, "prompts": self.prompts, "lengths in": self.unit,
            "without scores": self.why_unscored or 0, "ties left out": self.ties_left_out,
            "figures": self.figures | more, "ceiling": self.ceiling and str(self.ceiling),
            "accuracy by domain": self.domains if len(self.domains) > 1 else {},
            "edits, changes in standard deviations of the rewards": [
                {"edit": one.name, "change": one.effect, "raised": one.raised and one.raised.value,
                 "verdict": one.verdict} for one in self.probes
            ],
            f"length: {self.verdict}": self.reasons,
            "edits: not as they should": [f"{one.name}: {one.verdict}" for one in self.probes if one.sound is False],
        }  # fmt: skip


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
) -> Audit:
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
    >>> audit.figures["length_only_accuracy"].value, audit.verdict
    (1.0, 'not enough evidence')
    ```
    """
    if (chosen_quality is None) != (rejected_quality is None):
        raise DataError("got the quality of one side; wanted that of both or of none")
    given = {
        "chosen": chosen, "rejected": rejected, "chosen_length": chosen_length, "rejected_length": rejected_length,
        "chosen_quality": chosen_quality, "rejected_quality": rejected_quality,
    }  # fmt: skip
    columns = {name: np.asarray(values, float) for name, values in given.items() if values is not None}
    _check(columns)
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
    kinds = {"longer_prompts": longer > 0, "shorter_prompts": longer < 0}
    said = length_verdict(figures, **{kind: len(np.unique(group[rows])) for kind, rows in kinds.items()})
    return Audit(n, int(group.max()) + 1, unit, figures, curve, *said, scores=reward, lengths=length)


def audit(
    model: Any,
    pairs: "str | Path | Dataset",
    *,
    split: str = "test",
    target_mix: Mapping[str, float] | None = None,
    probe_rows: int = 200,
    seed: int = 0,
) -> Audit:
    """Returns the audit of a reward model on pairs: whether it pays for length, and what edits do to its rewards.

    Args:
        model (`str`, `Path` or [`~rmtrl.reward.scorer.ModelScorer`]): A reward model, its folder, hub id or URL.
        pairs (`str`, `Path` or `Dataset`): File, folder, hub id or data set of preference pairs it has not seen.
        split (`str`): Split to read, where the data has several.
        target_mix, probe_rows, seed: As in [`audit_pairs`].

    Raises:
        DataError: If no pair can be audited.

    Example:

    ```python
    >>> audit("outputs/tiny/rm", "examples/pairs.jsonl").verdict
    'not enough evidence'
    ```
    """
    from rmtrl.reward.remote import load_scorer

    scorer = load_scorer(model, progress=False) if isinstance(model, str | Path) else model
    name = str(pairs) if isinstance(pairs, str | Path) else "pairs"
    rows = read_preferences(pairs, split=split) if isinstance(pairs, str | Path) else to_normal_form(pairs)
    settings: dict[str, Any] = {"target_mix": target_mix, "probe_rows": probe_rows, "seed": seed}
    return audit_pairs(ScoredPairs.of_model(scorer, rows, name), len(rows), scorer=scorer, **settings)


def audit_pairs(
    scored: ScoredPairs,
    n: int,
    *,
    scorer: Any = None,
    target_mix: Mapping[str, float] | None = None,
    probe_rows: int = 200,
    seed: int = 0,
) -> Audit:
    """Returns the length audit of pairs, their accuracy by domain, and what edits do to the rewards of the scorer.

    Args:
        scored ([`ScoredPairs`]): The pairs; ties and those without scores are left out and counted.
        n (`int`): Pairs in all, of which a file of scores may have some.
        scorer ([`~rmtrl.reward.scorer.ModelScorer`], *optional*): Lengths are in its tokens, else in characters.
        target_mix (`Mapping[str, float]`, *optional*): Weight of each domain, to report accuracy for.
        probe_rows (`int`): Chosen answers to edit, drawn at random; 0: none. Edits need the scorer.
        seed (`int`): Seed of the draws.

    Raises:
        DataError: If no pair is left, or as [`audit_length`].
        UsageError: If the mix cannot be.
    """
    absent, null = n - len(scored), len(scored) - int(scored.whole.sum())
    unscored = {"not_in_file": absent, "null_in_file" if scorer is None else "too_long": null}
    unscored = {why: count for why, count in unscored.items() if count}
    ties = np.array(scored.column("preference") or [1.0] * len(scored)) == 0.5
    cells = scored.column("votes_by_annotator")
    without, tied = absent + null, int((scored.whole & ties).sum())
    kept = scored.where(scored.whole & ~ties)
    if not len(kept):
        why = [f"{count:,} {UNSCORED[why]}" for why, count in unscored.items()]
        raise DataError(f"none of the {n:,} pairs can be audited: {'; '.join([*why, f'{tied:,} are ties'])}")
    (chosen, rejected), (first, second) = kept.scores.T, (_lengths(kept.pairs[side], scorer) for side in SIDES)
    prompts, domains, wins = list(kept.pairs["prompt_id"]), list(kept.pairs["domain"]), pair_wins(chosen, rejected)
    try:
        mixed = None if target_mix is None else reweighted_estimate(wins, domains, target_mix, prompts, seed=seed)
    except ValueError as error:
        raise UsageError(f"--target-mix: {error}") from error
    unit = "characters" if scorer is None else "tokens"
    return replace(
        audit_length(chosen, rejected, first, second, prompts, unit=unit, seed=seed),
        without_scores=without, unscored=unscored, ties_left_out=tied,
        domains=mean_estimates(wins, np.array(domains, str), prompts, seed=seed),
        reweighted={"target_mix": target_mix, "accuracy": mixed} if mixed else None,
        ceiling=ceiling_of_cells(cells, scored.pairs["prompt_id"]) if cells else None,
        probes=_probed(scorer, kept.pairs, probe_rows, seed) if scorer is not None and probe_rows else (),
    )  # fmt: skip


def _lengths(responses: Iterable[Any], scorer: Any) -> list[int]:
    """Returns the length of each response alone: in the model's tokens, without a model in characters."""
    texts = [conversation_text(response) for response in responses]
    if scorer is None:
        return [len(text) for text in texts]
    return [len(ids) for ids in scorer.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _probed(scorer: Any, pairs: Dataset, n: int, seed: int) -> tuple[Probe, ...]:
    drawn = pairs.shuffle(seed=seed).select(range(min(n, len(pairs))))
    sides = ([Chat.of(row["prompt"], row) for row in drawn], list(drawn["chosen"]))
    settings: dict[str, Any] = {"prompt_ids": list(drawn["prompt_id"]), "seed": seed}
    return tuple(probe(scorer, *sides, end_token=True, **settings))


def length_verdict(figures: Mapping[str, Estimate], *, longer_prompts: int, shorter_prompts: int) -> Verdict:
    """Returns what the figures of an audit amount to, and why.

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
    >>> length_verdict(audit.figures, longer_prompts=400, shorter_prompts=380)[0]
    'convicted'
    ```
    """
    gap = figures.get("length_gap")
    if gap is None or min(longer_prompts, shorter_prompts) < LEAST_PROMPTS:
        return UNDECIDED, _too_few(figures, longer_prompts, shorter_prompts)
    longer, shorter = figures["accuracy_chosen_longer"], figures["accuracy_chosen_shorter"]
    sides = f"accuracy {longer} where chosen is longer, {shorter} where it is shorter, gap {gap:.3f}"
    sign = 1 if gap.value > 0 else -1
    if scaled(gap, sign).low > CONVICTS:
        likes, other = ("longer", "shorter") if sign > 0 else ("shorter", "longer")
        if why := _beyond_labels(figures, sign, likes, other):
            return CONVICTED, (sides, *why)
        taste = f"yet, given the margin, people do not surely prefer the {other} side: their taste may explain it"
        return UNDECIDED, (sides, taste, BUILD_MATCHED)
    if max(gap.high, -gap.low) < 2 * CONVICTS:
        return ACQUITTED, (sides, f"the gap is surely smaller than {2 * CONVICTS:.2f}")
    return UNDECIDED, (sides, f"the gap may be under {CONVICTS:.2f} or over {2 * CONVICTS:.2f}; audit more pairs")


def _too_few(figures: Mapping[str, Estimate], longer: int, shorter: int) -> tuple[str, ...]:
    said = (
        f"chosen is longer under {longer} prompts and shorter under {shorter}; wanted {LEAST_PROMPTS} or more of each"
    )
    if bool(longer) != bool(shorter):
        kind = "longer" if longer else "shorter"
        said = f"chosen is always {kind} ({longer or shorter} prompts), so length alone explains every label"
    alone, own = figures["length_only_accuracy"].value, figures["accuracy"].value
    as_good = (f"length alone has accuracy {alone:.2f}, the reward model {own:.2f}",) if alone >= own else ()
    return (said, *as_good, BUILD_MATCHED)


def _beyond_labels(figures: Mapping[str, Estimate], sign: int, likes: str, other: str) -> tuple[str, ...]:
    """Returns why labels cannot explain that the reward model likes one side; empty where they may."""
    wins, excess, slope = figures["longer_wins"], scaled(figures["longer_excess"], sign), figures.get("logit_length")
    if not (wins.low > 0.5 if sign > 0 else wins.high < 0.5):
        return ()
    oftener = f"the {likes} side wins more often than people prefer it, by {excess:.3f}"
    reasons = (oftener,) if excess.low > 0 else ()
    if slope is None:
        return reasons
    if scaled(slope, -sign).low > 0:
        return (*reasons, f"given the margin people prefer the {other} side: length coefficient {slope:.3f}")
    known = figures["logit_margin"]
    blind = f"given the length the margin says nothing sure of what people prefer: coefficient {known:.3f}"
    return (*reasons, blind) if reasons and known.low <= 0 else ()


def _check(columns: Mapping[str, Floats]) -> None:
    """Raises where columns of pairs cannot be audited."""
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1 or not sizes["chosen"]:
        raise DataError(f"got columns of {sizes} values; wanted one value a pair in each, and at least one pair")
    for name, values in columns.items():
        for bad in np.flatnonzero(~np.isfinite(values))[:1]:
            said = f"the {name.replace('_', ' ')} of pair {bad} is {values[bad]}"
            raise DataError(f"{said}; leave pairs without one out")
    scores = np.concatenate([columns["chosen"], columns["rejected"]])
    if np.ptp(scores) == 0:
        raise DataError(f"all {len(scores):,} scores are {scores[0]:g}; a constant score cannot be audited")
