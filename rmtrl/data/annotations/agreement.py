"""How far annotators agree, by criterion and domain, with what that means in plain words.

Every coefficient is computed from weighted units, so the value (all weights 1) and its bootstrap (weights: how often a
unit was drawn) come from one formula and a thousand resamples cost little more than one. The values equal those of
the packages krippendorff, statsmodels, scikit-learn and irrCAC.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from tqdm.auto import tqdm

from rmtrl.data.annotations.reading import ITEM, Annotations
from rmtrl.errors import UsageError
from rmtrl.metrics import Floats, binomial_estimate, bootstrap_estimates, defined
from rmtrl.types import Estimate, json_ready

Scale = Literal["nominal", "ordinal", "interval"]

SCALES = ("nominal", "ordinal", "interval")
TARGET = 0.6
FEWEST = 10
"""Items judged twice or more below which no level of agreement is named."""
PREVALENT = 0.9
"""Raw agreement from which an alpha below target comes from one choice holding nearly all judgments."""
UNBALANCED = 0.8
"""Share of the votes on one side from which chance-corrected figures suffer."""


@dataclass(frozen=True)
class Agreement:
    """Agreement on one criterion (or on votes), over all domains or in one. A coefficient is None where undefined.

    Args:
        criterion (`str`): Name of the criterion, "vote" for votes.
        domain (`str` or `None`): The domain, None for all together.
        scale (`str`): Scale of alpha and weights of Cohen's kappa; the other coefficients are nominal.
        units (`int`): Items (or pairs) judged at all.
        paired_units (`int`): Those judged by two or more annotators, which alone tell of agreement.
        judgments (`int`): Judgments.
        coefficients (`dict[str, Estimate | None]`): `alpha`, `fleiss`, `cohen` (mean over pairs of annotators), `ac1`,
            `brennan_prediger` and `raw`.
        cohen_pairs (`dict[tuple[str, str], Estimate | None]`): Cohen's kappa of each pair of annotators.
    """

    criterion: str
    domain: str | None
    scale: str
    units: int
    paired_units: int
    judgments: int
    coefficients: dict[str, Estimate | None]
    cohen_pairs: dict[tuple[str, str], Estimate | None]

    @property
    def alpha(self) -> float | None:
        """Krippendorff's alpha, None where undefined."""
        estimate = self.coefficients["alpha"]
        return None if estimate is None else estimate.value

    @property
    def interpretation(self) -> str:
        """What alpha means, in plain words; no level where there are too few items to tell."""
        estimate, raw = self.coefficients["alpha"], self.coefficients["raw"]
        if estimate is None:
            return interpret(None)
        if estimate.n < FEWEST:
            return f"too few items to tell ({estimate.n}; wanted {FEWEST})"
        if estimate.low == estimate.high:
            return "no two items differ in agreement, so the interval says nothing; read the raw agreement"
        prevails = raw is not None and raw.value >= PREVALENT and estimate.value < TARGET
        return interpret(estimate.value, estimate.low) + (" (one choice prevails: see AC1)" if prevails else "")

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dictionary, ready for JSON."""
        names = ("criterion", "domain", "scale", "units", "paired_units", "judgments", "interpretation")
        pairs = [{"annotators": pair, "kappa": kappa} for pair, kappa in self.cohen_pairs.items()]
        own = {name: getattr(self, name) for name in names}
        return dict(json_ready({**own, **self.coefficients, "cohen_pairs": pairs}))


def agreement(
    annotations: Annotations,
    *,
    scale: Scale = "ordinal",
    by: Sequence[str] = ("criterion",),
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[Agreement]:
    """Returns the agreement on every criterion and on the votes, and in every domain where asked.

    Args:
        annotations ([`Annotations`]): The judgments.
        scale (`str`): "nominal", "ordinal" or "interval", for ratings; votes are always nominal.
        by (`Sequence[str]`): "criterion", always done, and "domain" for each domain as well.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.

    Raises:
        UsageError: If `scale` or `by` holds an unknown name or the seed is negative.

    Example:

    ```python
    >>> print(agreement(read_annotations(["examples/annotations.jsonl"]))[0].coefficients["raw"])
    0.667 [0.444, 0.889] (n = 6)
    ```
    """
    if scale not in SCALES:
        raise UsageError(f"got scale {scale!r}; wanted one of {', '.join(SCALES)}")
    if seed < 0:
        raise UsageError(f"seed is {seed}; wanted 0 or more")
    unknown = set(by) - {"criterion", "domain"}
    if unknown:
        raise UsageError(f"cannot report by {', '.join(sorted(unknown))}; wanted criterion, domain or both")
    slices = [
        (name, domain, judged)
        for name, whole in _judgments(annotations)
        for domain, judged in [(None, whole), *(whole.groupby("domain") if "domain" in by else ())]
    ]
    return [
        _agreement(name, domain, "nominal" if name == "vote" else scale, judged, n_resamples=n_resamples, seed=seed)
        for name, domain, judged in tqdm(slices, desc="Agreement", unit="slice", delay=2)
    ]


def _judgments(annotations: Annotations) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields each criterion, and the votes, with domain, annotator, unit and value of its judgments."""
    ratings, votes = annotations.ratings, annotations.votes
    tables = [(name, ratings, ratings.groupby(ITEM).ngroup(), ratings[name]) for name in annotations.criteria]
    tables += [("vote", votes, votes.pair, votes.choice)] if len(votes) else []
    for name, table, unit, value in tables:
        judged = table[["annotator"]].assign(domain=table.prompt_id.map(annotations.domains), unit=unit, value=value)
        yield name, judged.dropna(subset="value")


def _agreement(criterion: str, domain: str | None, scale: Scale, judged: pd.DataFrame, **options: Any) -> Agreement:
    counts, values = count_values(judged.unit, judged.value)
    found = agreement_coefficients(counts, values, scale=scale, **options)
    mean, pairs = cohen_kappas(judged.unit, judged.annotator, judged.value, scale=scale, **options)
    return Agreement(
        criterion=criterion,
        domain=domain,
        scale=scale,
        units=len(counts),
        paired_units=int((counts.sum(1) > 1).sum()),
        judgments=len(judged),
        coefficients={"alpha": found["alpha"], "fleiss": found["fleiss"], "cohen": mean} | found,
        cohen_pairs=pairs,
    )


def below_target(results: Sequence[Agreement], target: float = TARGET) -> list[Agreement]:
    """Returns the results whose alpha is under the target; an undefined alpha is not."""
    return [result for result in results if result.alpha is not None and result.alpha < target]


def side_warnings(annotations: Annotations) -> list[str]:
    """Returns a line where nearly all votes are for the item that sorts first, or for the one that sorts last."""
    shares = annotations.votes.choice.value_counts(normalize=True)
    return [
        f"sides are unbalanced: {shares[code] * 100:.0f} % of the votes are for the item whose id sorts {side}; "
        "chance-corrected figures are low for that reason"
        for code, side in enumerate(("first", "last"))
        if shares.get(code, 0) > UNBALANCED
    ]


def interpret(alpha: float | None, low: float | None = None) -> str:
    """Returns what an alpha means, in plain words, and whether the lower end of its interval means less.

    The bounds 0.8 and 0.667 are Krippendorff's (Content Analysis, 2004, chapter 11); human preferences over model
    answers usually lie between 0.3 and 0.5.

    Example:

    ```python
    >>> interpret(0.7)
    'good enough for tentative conclusions'
    ```
    """
    if low is not None and interpret(low) != interpret(alpha):
        return f"{interpret(alpha)}; uncertain, the interval begins at {low:.2f}"
    if alpha is None:
        return "undefined: too few judgments to compare, or all of them equal; read the raw agreement"
    if alpha >= 0.8:
        return "reliable"
    if alpha >= 0.667:
        return "good enough for tentative conclusions"
    if alpha > 0.5:
        return "not reliable enough for conclusions, though above what preference data usually reach (0.3 to 0.5)"
    if alpha >= 0.3:
        return "not reliable, but as usual for preference data (0.3 to 0.5); weigh or review disputed judgments"
    if alpha > 0:
        return "poor: below what preference data usually reach (0.3 to 0.5); revise guidelines or annotators"
    return "no better than chance"


# ---- coefficients


def count_values(unit: ArrayLike, value: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """Returns how often each value was given to each unit, `(U, V)`, and the values, `(V,)` ascending.

    Args:
        unit (`(N,)` array): Unit of each judgment, any integers.
        value (`(N,)` array): What was judged.

    Example:

    ```python
    >>> count_values([0, 0, 1], [1, 3, 3])[0].tolist()
    [[1, 1], [0, 1]]
    ```
    """
    judged = pd.DataFrame({"unit": np.asarray(unit), "value": np.asarray(value, float)})
    table = judged.groupby(["unit", "value"]).size().unstack(fill_value=0)
    return table.to_numpy(), table.columns.to_numpy()


def agreement_coefficients(
    counts: ArrayLike, values: ArrayLike | None = None, *, scale: Scale = "nominal", **options: Any
) -> dict[str, Estimate | None]:
    """Returns alpha, Fleiss' kappa, AC1, Brennan-Prediger and raw agreement, None where undefined.

    Units may have any number of judgments. With c_uk judgments of value k among the m_u of unit u:
    `raw` = mean over units with m_u ≥ 2 of Σ_k c_uk (c_uk − 1) / (m_u (m_u − 1)); a kappa is (raw − e) / (1 − e) with
    π_k = mean over all units of c_uk / m_u and e = Σ π_k² (Fleiss), Σ π_k (1 − π_k) / (V − 1) (Gwet's AC1) or 1 / V
    (Brennan and Prediger), as in Gwet, Handbook of Inter-Rater Reliability, 2014. With equal m_u that is Fleiss' own
    kappa. alpha = 1 − D_o / D_e after Krippendorff 2011 (https://repository.upenn.edu/asc_papers/43). The interval is
    a percentile bootstrap over units.

    Args:
        counts (`(U, V)` array): Judgments of each value by unit.
        values (`(V,)` array, *optional*): What the columns stand for, ascending; 0, 1, 2 … when absent.
        scale (`str`): Scale of alpha: "nominal", "ordinal" or "interval".
        options: `n_resamples`, `seed` and `level` of [`~rmtrl.metrics.bootstrap_estimates`].

    Example:

    ```python
    >>> agreement_coefficients([[2, 0], [0, 2], [1, 1], [2, 0]], n_resamples=100)["raw"].value
    0.75
    ```
    """
    counts = np.asarray(counts, np.float64)
    positions = np.arange(counts.shape[1], dtype=float) if values is None else np.asarray(values, float)
    paired = int((counts.sum(1) > 1).sum())
    # units with equal counts behave alike, so only the distinct ones are kept, with their number
    patterns, number = np.unique(counts, axis=0, return_counts=True)
    estimates = _estimates(_coefficients_of(patterns, positions, scale), number, paired, patterns.size, **options)
    raw = estimates["raw"]
    if raw is not None and raw.value in (0.0, 1.0):  # every resample agrees, which says nothing of the population
        estimates["raw"] = binomial_estimate(raw.value * paired, paired, level=raw.level)
    return estimates


def _coefficients_of(counts: Floats, values: Floats, scale: str) -> Callable[[Floats], dict[str, Floats]]:
    """Returns the function from weights of units `(B, U)` to coefficients `(B,)` each."""
    judgments = counts.sum(1)
    paired = judgments > 1
    others = np.where(paired, judgments - 1, 1.0)
    agreeing = np.where(paired, (counts * (counts - 1)).sum(1) / (np.maximum(judgments, 1) * others), 0.0)
    shares = counts / np.maximum(judgments, 1)[:, None]

    def coefficients(weights: Floats) -> dict[str, Floats]:
        raw = weights @ agreeing / (weights @ paired)
        pi = weights @ shares / weights.sum(1, keepdims=True)
        chance = {
            "fleiss": (pi**2).sum(1),
            "ac1": (pi * (1 - pi)).sum(1) / (len(values) - 1),
            "brennan_prediger": np.full(len(pi), 1 / max(len(values), 1)),
        }
        # chance agreement of 1 up to rounding: one value only, and nothing to correct for
        kappas = {name: (raw - e) / np.where(e > 1 - 1e-12, np.nan, 1 - e) for name, e in chance.items()}
        return {"alpha": _alpha(counts, weights * paired, others, values, scale), **kappas, "raw": raw}

    return coefficients


def _alpha(counts: Floats, weights: Floats, others: Floats, values: Floats, scale: str) -> Floats:
    """Returns Krippendorff's alpha of each row of weights, `(B,)`, without the matrix of coincidences.

    Interval: δ² = (x_v − x_w)², whose double sums come from first and second moments. Ordinal: the same with x_v the
    mid-rank Σ_{k<v} n_k + n_v / 2. Nominal: δ² = 1 for v ≠ w.
    """
    judgments = others + 1
    scaled = weights / others
    totals = weights @ counts
    n = totals.sum(1)
    if scale == "nominal":
        observed = scaled @ (judgments**2 - (counts**2).sum(1))
        expected = n**2 - (totals**2).sum(1)
    else:
        ranks = np.cumsum(totals, 1) - totals / 2
        x = ranks if scale == "ordinal" else np.broadcast_to(values - values.mean(), totals.shape)
        squares = (((scaled * judgments) @ counts) * x**2).sum(1)
        observed = 2 * (squares - (scaled * (x @ counts.T) ** 2).sum(1))
        expected = 2 * (n * (totals * x**2).sum(1) - (totals * x).sum(1) ** 2)
        expected = np.where((totals > 0).sum(1) > 1, expected, 0.0)
    return 1 - (n - 1) * observed / expected


def cohen_kappas(
    unit: ArrayLike, annotator: ArrayLike, value: ArrayLike, *, scale: Scale = "nominal", **options: Any
) -> tuple[Estimate | None, dict[tuple[Any, Any], Estimate | None]]:
    """Returns the mean of Cohen's kappa over pairs of annotators, and each pair's, None where undefined.

    A pair counts with the units both have judged. The weights of disagreement are none (nominal), |i − j| (ordinal) or
    (i − j)² (interval) in positions among the values the two gave there, as in scikit-learn's
    `cohen_kappa_score(a, b, weights=None | "linear" | "quadratic")`.

    Args:
        unit, annotator, value (`(N,)` arrays): Unit, annotator and value of each judgment.
        scale (`str`): "nominal", "ordinal" or "interval".
        options: As in [`agreement_coefficients`].

    Example:

    ```python
    >>> mean, pairs = cohen_kappas([0, 0, 1, 1, 2, 2], [7, 8] * 3, [1, 1, 0, 0, 1, 0])
    >>> round(pairs[7, 8].value, 3)
    0.4
    ```
    """
    judged = pd.DataFrame({"unit": np.asarray(unit), "annotator": np.asarray(annotator), "value": np.asarray(value)})
    both = judged.merge(judged, on="unit", suffixes=("", "_other"))
    both = both[both.annotator < both.annotator_other]
    if both.empty:
        return None, {}
    both = both.assign(unit=both.groupby("unit").ngroup())
    pairs, n_units = dict(iter(both.groupby(["annotator", "annotator_other"]))), both.unit.nunique()
    statistics = [_kappa_of(pair, n_units, scale) for pair in pairs.values()]

    def kappas(weights: Floats) -> dict[str, Floats]:
        each = np.stack([statistic(weights) for statistic in statistics])
        known = np.isfinite(each)
        mean = np.where(known, each, 0).sum(0) / known.sum(0)
        return {"mean": mean} | {str(k): kappa for k, kappa in enumerate(each)}

    found = _estimates(kappas, np.ones(n_units), n_units, both.value.nunique() ** 2 * len(pairs), **options)
    mean, *each = found.values()
    return mean, {
        names: estimate and replace(estimate, n=len(pair))
        for (names, pair), estimate in zip(pairs.items(), each, strict=True)
    }


def _kappa_of(pair: pd.DataFrame, n_units: int, scale: Scale) -> Callable[[Floats], Floats]:
    """Returns the function from weights of units `(B, U)` to the kappa `(B,)` of two annotators."""
    values, codes = np.unique([pair.value, pair.value_other], return_inverse=True)
    size = len(values)
    cell = [size, 1] @ codes.reshape(2, -1)
    cells = sparse.csr_array((np.ones(len(pair)), (cell, pair.unit)), shape=(size**2, n_units))
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    penalty = distance ** {"nominal": 0, "ordinal": 1, "interval": 2}[scale] * (distance > 0)

    def kappa(weights: Floats) -> Floats:
        tables = (cells @ weights.T).T.reshape(-1, size, size)
        chance = np.einsum("bi,bj,ij->b", tables.sum(2), tables.sum(1), penalty) / tables.sum((1, 2))
        return 1 - (tables * penalty).sum((1, 2)) / chance

    return kappa


def _estimates(
    statistic: Callable[[Floats], Mapping[str, Floats]], number: ArrayLike, n: int, width: int, **options: Any
) -> dict[str, Estimate | None]:
    """Returns each statistic with a percentile interval over resampled units; `number` of them per pattern."""
    found = bootstrap_estimates(statistic, len(np.asarray(number)), counts=number, width=width, by="unit", **options)
    estimates: dict[str, Estimate | None] = {}
    for name, estimate in found.items():
        one = np.isinf(estimate.low)  # a single unit, so no interval
        low, high = (estimate.value, estimate.value) if one else (estimate.low, estimate.high)
        method = "all resamples equal" if low == high else estimate.method.replace("by unit", "over units")
        estimates[name] = defined(replace(estimate, low=low, high=high, n=n, method=method))
    return estimates
