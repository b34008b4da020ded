"""How far annotators agree, by criterion and domain, with what that means in plain words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from rmtrl.data.annotations.coefficients import (
    SCALES,
    Floats,
    Ints,
    Scale,
    agreement_coefficients,
    cohen_kappas,
    count_values,
)
from rmtrl.data.annotations.tables import Annotations
from rmtrl.errors import UsageError
from rmtrl.types import Estimate

TARGET = 0.6
FEWEST = 10
"""Items judged twice or more below which no level of agreement is named."""
PREVALENT = 0.9
"""Raw agreement from which an alpha below target comes from one choice holding nearly all judgments."""


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

        def plain(estimate: Estimate | None) -> dict[str, Any] | None:
            return None if estimate is None else estimate.as_dict()

        return {
            **{name: getattr(self, name) for name in ("criterion", "domain", "scale", "units", "paired_units")},
            "judgments": self.judgments,
            **{name: plain(estimate) for name, estimate in self.coefficients.items()},
            "cohen_pairs": [
                {"annotators": list(names), "kappa": plain(estimate)} for names, estimate in self.cohen_pairs.items()
            ],
            "interpretation": self.interpretation,
        }


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
    slices = list(_slices(annotations, scale, "domain" in by))
    return [
        _agreement(name, domain, used, judged, annotations.annotators, n_resamples, seed)
        for (name, domain, used), judged in tqdm(slices, desc="Agreement", unit="slice", delay=2)
    ]


def _agreement(
    criterion: str,
    domain: str | None,
    scale: Scale,
    judged: tuple[Ints, Ints, Floats],
    annotators: Sequence[str],
    n_resamples: int,
    seed: int,
) -> Agreement:
    unit, _, value = judged
    counts, values = count_values(unit, value)
    found = agreement_coefficients(counts, values, scale=scale, n_resamples=n_resamples, seed=seed)
    mean, pairs = cohen_kappas(*judged, scale=scale, n_resamples=n_resamples, seed=seed)
    return Agreement(
        criterion=criterion,
        domain=domain,
        scale=scale,
        units=len(counts),
        paired_units=int((counts.sum(1) > 1).sum()),
        judgments=len(value),
        coefficients={"alpha": found["alpha"], "fleiss": found["fleiss"], "cohen": mean} | found,
        cohen_pairs={(annotators[a], annotators[b]): estimate for (a, b), estimate in pairs.items()},
    )


def below_target(results: Sequence[Agreement], target: float = TARGET) -> list[Agreement]:
    """Returns the results whose alpha is under the target; an undefined alpha is not."""
    return [result for result in results if result.alpha is not None and result.alpha < target]


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


def _slices(
    annotations: Annotations, scale: Scale, by_domain: bool
) -> Iterator[tuple[tuple[str, str | None, Scale], tuple[Ints, Ints, Floats]]]:
    """Yields name, domain and scale of each slice with unit, annotator and value of its judgments."""
    ratings, votes = annotations.ratings, annotations.votes
    item_domains = annotations.item_domains
    tables = [
        (name, scale, ratings.item[known], ratings.annotator[known], score[known], item_domains[ratings.item[known]])
        for name, score in zip(ratings.criteria, ratings.scores.T, strict=True)
        for known in [np.isfinite(score)]
    ]
    if len(votes.pair):
        domain = item_domains[votes.first[votes.pair]]
        tables.append(("vote", "nominal", votes.pair, votes.annotator, votes.choice.astype(float), domain))
    for name, used_scale, unit, annotator, value, domains in tables:
        yield (name, None, used_scale), (unit, annotator, value)
        for domain in np.unique(domains) if by_domain else ():
            rows = domains == domain
            yield (name, str(domain), used_scale), (unit[rows], annotator[rows], value[rows])
