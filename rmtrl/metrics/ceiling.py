"""The highest accuracy that any model could reach against labels on which people differ, from several votes a pair.

A vote is for a, for b, or a tie. A pair is a tie with probability π; else one side is better, by θ. Annotator j votes
for a tie with odds e^(τ_j − γ |θ|), on a pair that is one e^(τ_j + δ), and else for a with probability Φ(a_j θ), a_j
his skill: he hears θ through noise of his own (Thurstone 1927). A pair that is a tie has θ = 0. What is taken for
granted is the family of θ on the others, of which naming the sides the other way round changes nothing:

- `"shares"`, θ ~ N(0, 1): pairs differ in how clear they are, so each has its own share of people for a.
- `"sides"`, θ = ±1, γ = 0: all are equally clear, and annotators err by their skill alone, which is the model of Dawid
  and Skene (1979) with a rate of errors and of ties an annotator. Of one agreement between two votes it makes the
  highest ceiling against a vote that any family does, for √ is concave; three votes a pair hardly tell the two apart.

A model that knew θ would choose its sign. How often a vote, or the majority of the votes of a pair, agrees with that
is the ceiling; what comes out a tie is no label. Parameters are those of the highest posterior: normal priors keep
finite what votes leave open, as the skills of two annotators, who have but one agreement.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rmtrl.metrics.estimates import Floats, clustered_covariance, combined_estimate, ratio_estimate
from rmtrl.types import Estimate

Family = Literal["shares", "sides"]
Ints = NDArray[np.int64]

ASSUMED: Mapping[Family, str] = {
    "shares": "pairs differ in how clear they are, and annotators in skill",
    "sides": "all pairs are equally clear, and annotators differ in skill (Dawid and Skene)",
}
"""What each family takes for granted, in words."""
NO_EVIDENCE = "no evidence: a ceiling shows only where a pair has the votes of two annotators or more"

_LEAST_VOTES, _MOST_SKILLS = 50, 12  # of and among annotators with a skill of their own; the others share one
_SPREAD, _LEVEL = 1.0, 2.0  # standard deviations of the prior: of log skills and of their mean
_TIE, _SD_TIE = -3.0, 2.0  # the prior of τ
_TIED, _SD_TIED = (3.0, -4.0, 0.5), (1.0, 1.5, 1.0)  # the prior of δ, the logit of π and γ: ties by nature are rare
_FARTHEST, _NODES = 6.0, 32  # of θ, on each side of 0
_STEP, _FLAT = 1e-5, 0.01
_LEAST = -700.0  # of a log chance that only a count of 0 goes with
_CODES = {1.0: 0, 0.0: 1, 0.5: 2}
_COIN = Estimate(0.5, 0.5, 0.5, 0)


@dataclass(frozen=True)
class Votes:
    """Votes on N pairs as P distinct patterns; annotators of one kind are exchangeable.

    Args:
        counts (`(P, 3, G)` array): Votes for a, for b and ties in each pattern, by kind of annotator.
        pattern (`(N,)` array): Pattern of each pair.
    """

    counts: Ints
    pattern: Ints

    @classmethod
    def of(cls, pairs: ArrayLike, annotators: ArrayLike, choices: ArrayLike, *, n: int | None = None) -> "Votes":
        """Returns V votes as patterns; annotators of 50 votes or more, 12 at most, have a skill of their own.

        Args:
            pairs (`(V,)` array of `int`): Number of the pair, from 0 on.
            annotators (`(V,)` array): Annotator.
            choices (`(V,)` array of `int`): 0 for a, 1 for b, 2 for a tie.
            n (`int`, *optional*): Pairs; as many as the highest number says when absent.

        Example:

        ```python
        >>> Votes.of([0, 0, 1, 1, 2], ["ann", "bo", "ann", "bo", "ann"], [0, 0, 1, 0, 2]).per_pair
        {1: 1, 2: 2}
        ```
        """
        pair = np.asarray(pairs, np.int64)
        _, who, n_votes = np.unique(np.asarray(annotators), return_inverse=True, return_counts=True)
        own = np.argsort(-n_votes, kind="stable")[:_MOST_SKILLS]
        own = own[n_votes[own] >= _LEAST_VOTES]
        kind = np.full(len(n_votes), len(own))
        kind[own] = np.arange(len(own))
        kinds, of_vote = np.unique(kind[who], return_inverse=True)
        counts = np.zeros((int(pair.max(initial=-1)) + 1 if n is None else n, 3, len(kinds)), np.int64)
        np.add.at(counts, (pair, np.asarray(choices, np.int64), of_vote), 1)
        lead = counts[:, 0] - counts[:, 1]
        turned = (lead * (np.cumsum(lead != 0, axis=1) == 1)).sum(axis=1) < 0
        counts[turned] = counts[turned][:, [1, 0, 2]]
        patterns, pattern = np.unique(counts.reshape(len(counts), -1), axis=0, return_inverse=True)
        return cls(patterns.reshape(-1, *counts.shape[1:]), pattern)

    @property
    def per_pair(self) -> dict[int, int]:
        """Pairs by their number of votes."""
        totals = self.counts.sum(axis=(1, 2))[self.pattern]
        return {int(k): int(n) for k, n in zip(*np.unique(totals, return_counts=True), strict=True)}


@dataclass(frozen=True)
class Ceiling:
    """The highest accuracy any model could reach against labels made of votes; ties are no labels.

    Args:
        n (`int`): Pairs.
        votes_a_pair (`dict[int, int]`): Pairs by their number of votes.
        one_vote (`Estimate`, *optional*): Against one vote of an annotator; None where there is no evidence.
        majority (`Estimate`, *optional*): Against the majority of the votes that each pair has.
        log_likelihood (`float`, *optional*): Of the votes, in nats: two families compare by it.
        assumed (`str`): What is taken for granted, or why nothing can be said.
    """

    n: int
    votes_a_pair: dict[int, int]
    one_vote: Estimate | None = None
    majority: Estimate | None = None
    log_likelihood: float | None = None
    assumed: str = NO_EVIDENCE

    def __str__(self) -> str:
        if self.majority is None:
            return self.assumed
        numbers = [number for number in self.votes_a_pair if number]
        votes = " to ".join(map(str, sorted({min(numbers), max(numbers)})))
        return f"{self.majority:.3f} against the majority of {votes} votes, {self.one_vote:.3f} against one"

    def closed_by(self, accuracy: Estimate) -> Estimate | None:
        """Returns the share of the way from a coin to the majority's ceiling that a model has gone, (a − ½) / (c − ½).

        Both count as independent, which they are where they come from different pairs.
        """
        if self.majority is None:
            return None
        return ratio_estimate(*(combined_estimate([own, _COIN], (1, -1)) for own in (accuracy, self.majority)))


def accuracy_ceiling(
    votes: Votes, groups: ArrayLike | None = None, *, family: Family = "shares", level: float = 0.95
) -> Ceiling:
    """Returns the ceiling behind votes, with intervals by the observed information (delta method, logit of 2c − 1).

    Args:
        votes ([`Votes`]): Of N pairs.
        groups (`(N,)` array, *optional*): Prompt of each pair, for intervals by prompt; each its own when absent.
        family (`str`): `"shares"` or `"sides"`, see the head of this module.
        level (`float`): Coverage of the intervals.

    Example:

    ```python
    >>> pairs, annotators = np.repeat(np.arange(100), 3), ["ann", "bo", "cy"] * 100
    >>> votes = Votes.of(pairs, annotators, [0, 0, 0] * 70 + [0, 1, 0] * 10 + [1, 0, 0] * 10 + [0, 0, 1] * 10)
    >>> print(accuracy_ceiling(votes))
    0.899 [0.862, 0.929] against the majority of 3 votes, 0.855 [0.807, 0.896] against one
    ```
    """
    n, per_pair = len(votes.pattern), votes.per_pair
    if max(per_pair, default=0) < 2:
        return Ceiling(n, per_pair)
    fit = _Fit(votes, family)
    best = fit.best()
    information, slopes = fit.information(best), _differences(fit.logits, best)
    if groups is None or len(np.unique(np.asarray(groups))) in (1, n):
        covariance, by = np.linalg.inv(information), ""
    else:
        covariance, by = clustered_covariance(fit.scores(best)[0][votes.pattern], information, groups), ", by prompt"
    half = special.ndtri((1 + level) / 2) * np.sqrt(np.einsum("ck,kl,cl->c", slopes, covariance, slopes))
    ends = (1 + special.expit(fit.logits(best) + np.array([[0.0], [-1.0], [1.0]]) * half)) / 2
    method = f"maximum posterior, delta method on a logit scale{by}"
    one, most = (Estimate(value, low, high, n, level, method) for value, low, high in ends.T.tolist())
    return Ceiling(n, per_pair, one, most, float(fit.number @ fit.scores(best)[1]), ASSUMED[family])


def ceiling_of_cells(cells: Sequence[str | Mapping[str, float] | None] | None, groups: ArrayLike) -> Ceiling:
    """Returns the ceiling of pairs with a column `votes_by_annotator`; it has no evidence where a cell is no votes.

    Args:
        cells (`Sequence`, *optional*): What each annotator gave one side of the pair, 1, 0 or ½, as a JSON object or
            its text; None where votes are not known.
        groups (`(N,)` array): Prompt of each pair.

    Example:

    ```python
    >>> print(ceiling_of_cells(['{"ann": 1}', None], ["p", "q"]))
    no evidence: a ceiling shows only where a pair has the votes of two annotators or more
    ```
    """
    cells, votes = cells or (), []
    for index, cell in enumerate(cells):
        try:
            given = cell if isinstance(cell, Mapping) else json.loads(cell or "{}")
            votes += [(index, name, _CODES[value]) for name, value in given.items()]
        except (ValueError, TypeError, KeyError, AttributeError):
            wanted = '{"ann": 1, "bo": 0.5}'
            return Ceiling(len(cells), {}, assumed=f"no evidence: pair {index} has {cell!r} as votes; wanted {wanted}")
    if not votes:
        return Ceiling(len(cells), {})
    return accuracy_ceiling(Votes.of(*zip(*votes, strict=True), n=len(cells)), groups)


def better_family(found: Ceiling, other: Ceiling) -> list[str]:
    """Returns a line where votes speak for the other family, by 3 nats or more."""
    if found.log_likelihood is None or other.log_likelihood is None:
        return []
    nats = other.log_likelihood - found.log_likelihood
    return [f"these votes speak, by {nats:.1f} nats, for the other ceiling: {other}, if {other.assumed}"] * (nats >= 3)


class _Fit:
    """The likelihood of votes under one family; see the head of this module for the K parameters that are free.

    All are log a_j and τ_j of G kinds, then δ, the logit of π and γ. A kind without ties has τ = −∞, and without any
    ties the last three are no parameters.
    """

    def __init__(self, votes: Votes, family: Family) -> None:
        self.counts, self.number = votes.counts, np.bincount(votes.pattern).astype(np.float64)
        self.panels, kinds = self.counts.sum(axis=1), self.counts.shape[2]
        tying = self.counts[:, 2].any(axis=0)
        last = tying.any() & np.array([True, True, family == "shares"])
        self.free = np.flatnonzero(np.concatenate([np.ones(kinds, np.bool_), tying, last]))
        mean = np.full((kinds, kinds), 1 / kinds)
        self.prior = np.diag(np.append(np.zeros(kinds), 1 / np.append(_SD_TIE * np.ones(kinds), _SD_TIED) ** 2))
        self.prior[:kinds, :kinds] = (np.eye(kinds) - mean) / _SPREAD**2 + mean / kinds / _LEVEL**2
        self.prior = self.prior[np.ix_(self.free, self.free)]
        self.middle = np.concatenate([np.zeros(kinds), _TIE * np.ones(kinds), _TIED])[self.free]
        nodes, weight = np.polynomial.legendre.leggauss(_NODES if family == "shares" else 1)
        half = (nodes + 1) * _FARTHEST / 2 if family == "shares" else np.ones(1)
        weight = weight * np.exp(-(half**2) / 2)
        self.theta, self.weight = np.concatenate([-half, half, [0]]), np.tile(weight / weight.sum() / 2, 2)

    def chances(self, free: Floats) -> tuple[Floats, Floats, Floats]:
        """Returns log chances of a, b, tie by θ `(3, G, Q)`, log weights of θ `(Q,)`, slopes of a, b `(2, G, Q)`."""
        whole = np.append(np.full(2 * self.counts.shape[2] + 2, -np.inf), 0.0)
        whole[self.free] = free
        log_skill, tie = whole[:-3].reshape(2, -1, 1)
        tied, share, clear = whole[-3:]
        odds = tie + np.where(self.theta == 0, tied, -clear * np.abs(self.theta))
        heard = np.exp(log_skill) * self.theta * np.array([[[1]], [[-1]]])
        sides = special.log_ndtr(heard)
        slopes = heard * np.exp(-(heard**2 + np.log(2 * np.pi)) / 2 - sides)
        logs = np.append(sides + special.log_expit(-odds), np.maximum(special.log_expit(odds), _LEAST)[None], axis=0)
        weights = np.append(np.log(self.weight) + special.log_expit(-share), special.log_expit(share))
        return logs, weights, slopes

    def scores(self, free: Floats) -> tuple[Floats, Floats]:
        """Returns each pattern's part of the gradient, `(P, K)`, and its log-likelihood, `(P,)`."""
        logs, weights, slopes = self.chances(free)
        terms = self.counts.reshape(len(self.counts), -1) @ logs.reshape(-1, len(weights)) + weights
        highest = terms.max(axis=1, keepdims=True)
        terms = np.exp(terms - highest)
        total = terms.sum(axis=1, keepdims=True)
        terms /= total
        for_a, for_b, ties = np.moveaxis(self.counts, 1, 0)
        surplus = ties.sum(axis=1)[:, None] - self.panels @ np.exp(logs[2])  # ties more than expected at each θ
        parts = np.column_stack([
            for_a * (terms @ slopes[0].T) + for_b * (terms @ slopes[1].T),
            ties - self.panels * (terms @ np.exp(logs[2]).T),
            terms[:, -1] * surplus[:, -1],
            terms[:, -1] - np.exp(weights[-1]),
            -(terms * surplus) @ np.abs(self.theta),
        ])  # fmt: skip
        return parts[:, self.free], (np.log(total) + highest)[:, 0]

    def loss(self, free: Floats) -> tuple[float, Floats]:
        """Returns minus the penalised log-likelihood a pair, and its gradient, `(K,)`."""
        scores, logs = self.scores(free)
        n, away = self.number.sum(), free - self.middle
        pull = self.prior @ away
        return float(away @ pull / 2 - self.number @ logs) / n, (pull - self.number @ scores) / n

    def best(self) -> Floats:
        """Returns the parameters of the highest posterior, `(K,)`."""
        from scipy.optimize import minimize

        return minimize(self.loss, self.middle, jac=True, method="BFGS", options={"gtol": 1e-6}).x

    def information(self, free: Floats) -> Floats:
        """Returns the Hessian of the whole loss, `(K, K)`; where it is no hill's, as at a saddle, nearly flat."""
        hessian = _differences(lambda at: self.loss(at)[1], free) * self.number.sum()
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
        return vectors * np.maximum(values, _FLAT) @ vectors.T

    def logits(self, free: Floats) -> Floats:
        """Returns logit(2c − 1) of the ceiling c against one vote and against the majority, `(2,)`."""
        kinds = np.eye(self.panels.shape[1], dtype=np.int64)
        panels, index = np.unique(self.panels, axis=0, return_inverse=True)
        one = self._right(free, kinds, self.number @ self.panels)
        most = self._right(free, panels, np.bincount(index, weights=self.number).astype(np.float64))
        return special.logit(np.clip([2 * one - 1, 2 * most - 1], 1e-9, 1 - 1e-9))

    def _right(self, free: Floats, panels: Ints, number: Floats) -> float:
        """Returns how often the majority of panels `(M, G)`, of which there are `number`, is for the better side."""
        logs, weights, _ = self.chances(free)
        half = len(weights) // 2
        chances, weights = np.exp(logs[..., half:]), np.exp(weights[half:])
        weights[:-1] *= 2  # below 0, θ is the mirror of what is above
        size = int(panels.sum(axis=1).max())
        lead = np.zeros((len(panels), len(weights), 2 * size + 1))  # chance of each a − b
        lead[..., size] = 1
        for place in range(size):
            kind = np.minimum((panels.cumsum(axis=1) <= place).sum(axis=1), panels.shape[1] - 1)
            votes = (panels.sum(axis=1) > place)[:, None, None]
            a, b, tie = chances[:, kind][..., None]
            moved = tie * lead
            moved[..., 1:] += a * lead[..., :-1]
            moved[..., :-1] += b * lead[..., 1:]
            lead = np.where(votes, moved, lead)
        right, tied = lead[..., size + 1 :].sum(axis=-1) @ weights, lead[..., size] @ weights
        return float(number @ right / (number @ (1 - tied)))


def _differences(function: Callable[[Floats], Floats], at: Floats) -> Floats:
    """Returns the slopes of a function `(K,) -> (C,)` by differences, `(C, K)`."""
    here = function(at)
    return np.stack([function(at + step) - here for step in _STEP * np.eye(len(at))], axis=-1) / _STEP
