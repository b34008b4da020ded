"""The length audit: does a reward model pay for length? [`audit_length`] says it from scores and lengths alone.

A preference for the longer answer is no fault where people share it. What counts is how the reward model errs: one
that pays for length is right where the better answer is the longer one and wrong where it is the shorter one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

from rmtrl.data.messages import conversation_text
from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.probes import Probe, probe, probe_end_token
from rmtrl.evaluation.scoring import SIDES, ScoredPairs, TokenScorer
from rmtrl.metrics import (
    Floats,
    bootstrap_estimate,
    bootstrap_estimates,
    clustered_covariance,
    combined_estimate,
    correlation_estimate,
    domain_accuracy,
    mean_estimate,
    pair_wins,
    reweighted_estimate,
    spearman,
)  # fmt: skip
from rmtrl.types import Chat, Estimate, json_ready

LEAST_PROMPTS = 30
"""No verdict on fewer prompts whose chosen side is longer, or on fewer whose chosen side is shorter."""
CONVICTS = 0.1
"""Convicted where the length gap surely exceeds this; acquitted where twice as much is ruled out."""

CONVICTED: Final = "convicted"
ACQUITTED: Final = "acquitted"
UNDECIDED: Final = "not enough evidence"
BUILD_MATCHED = "build length-matched pairs"

MATCHED = 0.1
"""Sides of a matched pair differ in length by at most this share of the longer one."""
Groups = NDArray[np.int64]

_RANK_RESAMPLES = 200  # each resample is ranked anew


@dataclass(frozen=True)
class LengthCurve:
    """Mean reward by response length, in bins of about equally many responses.

    Args:
        length (`(B,)` array): Mean length of the responses in the bin.
        reward, low, high (`(B,)` arrays): Their mean reward and its interval by prompt.
        count (`(B,)` array): Responses in the bin.
    """

    length: Floats
    reward: Floats
    low: Floats
    high: Floats
    count: NDArray[np.int64]

    def as_dict(self) -> dict[str, list[float]]:
        """Returns the columns as plain lists, ready for JSON."""
        return {name: column.tolist() for name, column in vars(self).items()}


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
        | _correlations(reward, length, group, worth, **settings)
        | length_regressions(margin, longer, group, None if worth is None else worth[0] - worth[1])
    )
    curve = length_curve(reward.ravel(), length.ravel(), np.tile(group, 2))
    longer_prompts, shorter_prompts = (len(np.unique(group[rows])) for rows in (longer > 0, longer < 0))
    verdict = length_verdict(figures, longer_prompts=longer_prompts, shorter_prompts=shorter_prompts)
    return LengthAudit(n, int(group.max()) + 1, unit, figures, curve, verdict)


@dataclass(frozen=True)
class PairAudit:
    """The result of [`audit_pairs`].

    Args:
        length (`LengthAudit`): Of the N pairs that have scores and a better side.
        scores, lengths (`(2, N)` arrays): Of chosen and rejected.
        domains (`dict[str, Estimate]`): Accuracy by domain.
        target_mix (`dict[str, float]`, *optional*): Weight of each domain.
        reweighted (`Estimate`, *optional*): Accuracy under that mix.
        probes (`tuple[Probe, ...]`): What edits did.
        without_scores, ties_left_out (`int`): Pairs left out.
    """

    length: LengthAudit
    scores: Floats
    lengths: NDArray[np.int64]
    domains: dict[str, Estimate]
    target_mix: Mapping[str, float] | None
    reweighted: Estimate | None
    probes: tuple[Probe, ...]
    without_scores: int
    ties_left_out: int

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of `audit.json`, without what says whose audit it is."""
        reweighted = self.reweighted and {"target_mix": self.target_mix, "accuracy": self.reweighted}
        own = {name: getattr(self, name) for name in ("without_scores", "ties_left_out", "domains", "probes")}
        return dict(json_ready({**self.length.as_dict(), **own, "reweighted": reweighted}))

    @property
    def words(self) -> dict[str, Any]:
        """The values that people read."""
        found, mixed = self.length, {"accuracy, target mix": self.reweighted} if self.reweighted else {}
        return {
            "pairs": found.n, "prompts": found.prompts, "lengths in": found.unit,
            "without scores": self.without_scores, "ties left out": self.ties_left_out,
            "figures": found.figures | mixed,
            "accuracy by domain": self.domains if len(self.domains) > 1 else {},
            "edits, changes in standard deviations of the rewards": [
                {"edit": one.name, "change": one.effect, "raised": one.raised and one.raised.value,
                 "verdict": one.verdict} for one in self.probes
            ],
            f"length: {found.verdict.verdict}": found.verdict.reasons,
        }  # fmt: skip


def audit_pairs(
    scored: ScoredPairs,
    n: int,
    *,
    scorer: Any = None,
    target_mix: Mapping[str, float] | None = None,
    probe_rows: int = 200,
    seed: int = 0,
) -> PairAudit:
    """Returns the length audit of pairs, their accuracy by domain, and what edits do to the rewards of the scorer.

    Args:
        scored ([`ScoredPairs`]): The pairs; ties and those without scores are left out and counted.
        n (`int`): Pairs in all, of which a file of scores may have some.
        scorer ([`TokenScorer`], *optional*): The model: lengths are in its tokens, without it in characters.
        target_mix (`Mapping[str, float]`, *optional*): Weight of each domain, to report accuracy for.
        probe_rows (`int`): Chosen answers to edit, drawn at random; 0: none. Edits need the scorer.
        seed (`int`): Seed of the draws.

    Raises:
        DataError: If no pair is left, or as [`audit_length`].
        UsageError: If the mix cannot be.
    """
    ties = np.array(scored.column("preference") or [1.0] * len(scored)) == 0.5
    without, tied = n - int(scored.whole.sum()), int((scored.whole & ties).sum())
    kept = scored.where(scored.whole & ~ties)
    if not len(kept):
        raise DataError(f"none of the {n:,} pairs can be audited: {without:,} have no scores, {tied:,} are ties")
    scores, unit = kept.scores.T, "characters" if scorer is None else "tokens"
    lengths = np.array([_lengths(kept.pairs[side], scorer) for side in SIDES])
    prompts, wins = list(kept.pairs["prompt_id"]), pair_wins(*scores)
    length = audit_length(scores[0], scores[1], lengths[0], lengths[1], prompts, unit=unit, seed=seed)
    domains, reweighted = list(kept.pairs["domain"]), None
    if target_mix is not None:
        reweighted = _reweighted(wins, domains, target_mix, prompts, seed)
    by_domain = domain_accuracy(wins, domains, prompts, seed=seed)
    probes = () if scorer is None or not probe_rows else _probed(scorer, kept.pairs, probe_rows, seed)
    return PairAudit(length, scores, lengths, by_domain, target_mix, reweighted, probes, without, tied)


def _lengths(responses: Iterable[Any], scorer: TokenScorer | None) -> list[int]:
    """Returns the length of each response alone: in the model's tokens, without a model in characters."""
    texts = [conversation_text(response) for response in responses]
    if scorer is None:
        return [len(text) for text in texts]
    return [len(ids) for ids in scorer.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _reweighted(wins: Floats, domains: Any, mix: Mapping[str, float], prompts: Any, seed: int) -> Estimate:
    for name, weight in mix.items():
        if type(weight) not in (int, float) or not 0 <= weight < np.inf:
            raise UsageError(f"--target-mix: {name} has the weight {weight!r}; wanted a number of 0 or more")
    try:
        return reweighted_estimate(wins, domains, mix, prompts, seed=seed)
    except ValueError as error:
        raise UsageError(f"--target-mix: {error}") from error


def _probed(scorer: Any, pairs: Dataset, n: int, seed: int) -> tuple[Probe, ...]:
    drawn = pairs.shuffle(seed=seed).select(range(min(n, len(pairs))))
    sides = ([Chat.of(row["prompt"], row) for row in drawn], list(drawn["chosen"]))
    settings: dict[str, Any] = {"prompt_ids": list(drawn["prompt_id"]), "seed": seed}
    return (*probe(scorer, *sides, **settings), probe_end_token(scorer, *sides, **settings))


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


# ---- the figures


def length_shares(
    margin: Floats, longer: Floats, length: Floats, group: Groups, **settings: Any
) -> dict[str, Estimate]:
    """Returns accuracies by length and how often the longer side wins and is preferred; see [`audit_length`]."""
    wins, prefers = (pair_wins(values, np.zeros(len(values))) for values in (margin, longer))
    under = np.where(longer > 0, wins, 1 - wins)
    longest = length.reshape(2, -1).max(axis=0)
    shares = {
        "accuracy": (wins, longer == longer),
        "length_only_accuracy": (prefers, longer == longer),
        "accuracy_chosen_longer": (wins, longer > 0),
        "accuracy_chosen_shorter": (wins, longer < 0),
        "accuracy_matched": (wins, np.abs(longer) <= MATCHED * longest),
        "longer_wins": (under, longer != 0),
        "longer_preferred": (prefers, longer != 0),
    }
    figures = {
        name: mean_estimate(values[rows], group[rows], **settings)
        for name, (values, rows) in shares.items()
        if rows.any()
    }
    if (rows := longer != 0).any():
        excess = mean_estimate((under - prefers)[rows], group[rows], proportion=False, **settings)
        figures["longer_excess"] = excess
    return figures | _between(wins, longer, group, figures, **settings)


def _between(
    wins: Floats, longer: Floats, group: Groups, known: Mapping[str, Estimate], **settings: Any
) -> dict[str, Estimate]:
    """Returns gap and mean of the two accuracies; where one has no spread, intervals are added up instead."""
    sides = [known[name] for name in ("accuracy_chosen_longer", "accuracy_chosen_shorter") if name in known]
    factors = {"length_gap": (1.0, -1.0), "balanced_accuracy": (0.5, 0.5)}
    if len(sides) < 2:
        return {}
    if not all("bootstrap" in side.method for side in sides):
        options: dict[str, Any] = {"independent": False, "method": "ends of the intervals of the two accuracies"}
        return {name: combined_estimate(sides, pair, **options) for name, pair in factors.items()}

    def statistics(weights: Floats) -> dict[str, Floats]:  # NaN where a resample has no pairs of a kind
        means = [weights[:, rows] @ wins[rows] / weights[:, rows].sum(1) for rows in (longer > 0, longer < 0)]
        return {name: one * means[0] + other * means[1] for name, (one, other) in factors.items()}

    found = bootstrap_estimates(statistics, len(wins), group, bounds=(-1.0, 1.0), **settings)
    return {name: replace(estimate, n=sides[0].n + sides[1].n) for name, estimate in found.items()}


def _correlations(
    reward: Floats, length: Floats, group: Groups, worth: Floats | None, *, n_resamples: int, seed: int
) -> dict[str, Estimate]:
    """Returns the rank correlations of reward and length, `(2, N)`, chosen first."""
    both = np.tile(group, 2)
    settings: dict[str, Any] = {"n_resamples": min(n_resamples, _RANK_RESAMPLES), "seed": seed}
    own_reward, own_length = (_centred(values.ravel(), both) for values in (reward, length))
    margin, longer = (np.concatenate([values[0] - values[1], values[1] - values[0]]) for values in (reward, length))
    found = {
        "within_spearman": correlation_estimate(own_reward, own_length, both, **settings),
        "pooled_spearman": correlation_estimate(reward.ravel(), length.ravel(), both, **settings),
        "margin_spearman": replace(correlation_estimate(margin, longer, both, **settings), n=len(group)),
    }
    figures = {name: estimate for name, estimate in found.items() if np.isfinite(estimate.value)}
    if worth is None:
        return figures

    def statistic(weights: Floats) -> Floats:
        drawn = (np.repeat(np.arange(len(both)), row.astype(np.int64)) for row in weights)
        return np.array([partial_spearman(*(values.ravel()[i] for values in (reward, length, worth))) for i in drawn])

    return figures | {"partial_spearman": bootstrap_estimate(statistic, len(both), both, bounds=(-1, 1), **settings)}


def _centred(values: Floats, group: Groups) -> Floats:
    """Returns the values less their group's mean, on a scale of their own; ties stay ties whatever the rounding."""
    means = np.bincount(group, weights=values) / np.bincount(group)
    return np.round((values - means[group]) / max(np.abs(values).max(), 1e-300), 12)


def length_regressions(
    margin: Floats, longer: Floats, group: Groups, quality_gap: Floats | None = None
) -> dict[str, Estimate]:
    """Returns the two readings of the length-controlled model: labels on margin and length, margin on length."""
    if np.std(longer) == 0 or np.std(margin) == 0:
        return {}
    scaled, bent = margin / np.std(margin), np.tanh(longer / np.std(longer))
    x = np.column_stack([scaled, bent])
    held = np.column_stack([np.ones(len(margin)), *([] if quality_gap is None else [quality_gap]), bent])
    figures: dict[str, Estimate] = {}
    if (slopes := _label_model(x, group)) is not None:
        figures |= dict(zip(("logit_margin", "logit_length"), slopes, strict=True))
    if (slopes := _margin_model(held, scaled, group)) is not None:
        figures["margin_length"] = slopes[-1]
    return figures


def _label_model(x: Floats, group: Groups) -> list[Estimate] | None:
    """Returns the coefficients of P(first preferred) = σ(x·β) on pairs in both orders; None where they have no end."""
    symmetric = np.concatenate([x, -x])
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8, max_iter=1000)
    if _separated(x) or np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    beta = model.fit(symmetric, np.repeat([1, 0], len(x))).coef_[0]
    p = special.expit(x @ beta)
    return _wald(beta, x * (1 - p)[:, None], (x * (p * (1 - p))[:, None]).T @ x, group)


def _separated(x: Floats) -> bool:
    """Whether some direction ranks every pair rightly, so that the likelihood has no maximum.

    With two columns: the pairs, as directions in the plane, lie within a half circle.
    """
    angles = np.sort(np.arctan2(x[:, 1], x[:, 0])[(x != 0).any(axis=1)])
    gaps = np.diff(angles, append=angles[:1] + 2 * np.pi)
    return len(angles) == 0 or bool(gaps.max() >= np.pi)


def _margin_model(x: Floats, y: Floats, group: Groups) -> list[Estimate] | None:
    """Returns the least-squares coefficients of y on x, None where they are not determined."""
    if len(x) <= x.shape[1] or np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    beta: Floats = np.linalg.lstsq(x, y, rcond=None)[0].astype(np.float64)
    return _wald(beta, x * (y - x @ beta)[:, None], x.T @ x, group)


def _wald(beta: Floats, scores: Floats, information: Floats, group: Groups) -> list[Estimate]:
    """Returns the coefficients with intervals of standard errors by prompt; see [`clustered_covariance`]."""
    half = stats.norm.ppf(0.975) * np.sqrt(np.diag(clustered_covariance(scores, information, group)))
    method = "Wald, standard error clustered by prompt"
    return [
        Estimate(float(b), float(b - h), float(b + h), len(scores), method=method)
        for b, h in zip(beta, half, strict=True)
    ]


def partial_spearman(x: ArrayLike, y: ArrayLike, held: ArrayLike) -> float:
    """Returns Spearman's correlation of x and y with a third held: (ρ_xy − ρ_xz ρ_yz) / √((1 − ρ_xz²)(1 − ρ_yz²)).

    The same as ranking all three, taking the regression on `held` off the other two and correlating what is left.
    Where `held` is constant there is nothing to hold; NaN where it determines x or y.

    Example:

    ```python
    >>> round(partial_spearman([1, 2, 3, 4], [1, 3, 2, 4], [2, 1, 4, 3]), 6)
    1.0
    ```
    """
    xy, xz, yz = spearman(x, y), spearman(x, held), spearman(y, held)
    xz, yz = (0.0, 0.0) if np.ptp(np.asarray(held, float)) == 0 else (xz, yz)
    scale = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / np.sqrt(scale)) if scale > 1e-12 else float("nan")


def length_curve(
    scores: ArrayLike, lengths: ArrayLike, prompts: ArrayLike | None = None, *, bins: int = 10, seed: int = 0
) -> LengthCurve:
    """Returns the mean reward by length, with an interval by prompt for each bin.

    Args:
        scores, lengths (`(N,)` arrays): Reward and length of each response.
        prompts (`(N,)` array, *optional*): Prompt of each response; every response its own when absent.
        bins (`int`): Bins of about equally many responses; fewer where lengths are equal.
        seed (`int`): Seed of the resampling.

    Example:

    ```python
    >>> length_curve([0.0, 1.0, 2.0, 3.0], [5, 6, 50, 60], bins=2).reward.tolist()
    [0.5, 2.5]
    ```
    """
    scores, lengths = np.asarray(scores, float), np.asarray(lengths, float)
    prompts = np.arange(len(scores)) if prompts is None else np.asarray(prompts)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    index = np.searchsorted(edges, lengths, side="left")
    members = [index == b for b in np.unique(index)]
    found = [mean_estimate(scores[rows], prompts[rows], proportion=False, seed=seed) for rows in members]
    reward, low, high = (np.array([getattr(e, end) for e in found]) for end in ("value", "low", "high"))
    count = np.array([rows.sum() for rows in members], dtype=np.int64)
    return LengthCurve(np.array([lengths[rows].mean() for rows in members]), reward, low, high, count)
