"""Scorers that know how far their scores can be trusted, and the pessimistic rewards made from that."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtrl.errors import DataError, UsageError
from rmtrl.types import Conversation, Scorer

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

AGGREGATIONS = ("mean", "min", "lower", "variance")


@dataclass(frozen=True)
class ScoreDistribution:
    """Scores of N conversations, or margins of N pairs, with their uncertainty.

    Args:
        mean (`(N,)` float64): The score.
        std (`(N,)` float64): Its standard deviation, in the units of the score.
        k (`float`): Standard deviations from the mean to either bound.
    """

    mean: Floats
    std: Floats
    k: float = 1.0

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def lower(self) -> Floats:
        """Mean − k·std, `(N,)`."""
        return self.mean - self.k * self.std

    @property
    def upper(self) -> Floats:
        """Mean + k·std, `(N,)`."""
        return self.mean + self.k * self.std


class UncertainScorer(Scorer):
    """
    A scorer whose scores come with a spread, which may lower them.

    A policy seeks out the answers that its reward model overrates. Where the model is unsure it overrates more, so a
    reward lowered by the spread is harder to exploit (Coste et al. 2024, https://huggingface.co/papers/2310.02743);
    what all members get wrong in the same way it does not see (Eisenstein et al. 2024,
    https://huggingface.co/papers/2312.09244). Subclasses define `distribution` and `margins`.

    Args:
        aggregation (`str`, *optional*, defaults to `"mean"`):
            What `score` returns: `"mean"`; `"min"`, the lowest member; `"lower"`, mean − k·std; `"variance"`,
            mean − λ·std².
        k (`float`, *optional*, defaults to `1.0`):
            Standard deviations from the mean to a bound; 1.96 is 95 % of a normal distribution.
        variance_weight (`float`, *optional*, defaults to `0.5`):
            λ of `"variance"`. It has the unit 1/score: double the scores and λ must be halved.

    Raises:
        UsageError: If a setting cannot be used, or `"min"` is asked of a scorer without members.
    """

    _has_members = False
    scorers: Sequence[Scorer] = ()
    """What it scores with."""

    def __init__(self, *, aggregation: str = "mean", k: float = 1.0, variance_weight: float = 0.5) -> None:
        if aggregation not in AGGREGATIONS:
            raise UsageError(f"got aggregation={aggregation!r}; wanted one of {', '.join(map(repr, AGGREGATIONS))}")
        if aggregation == "min" and not self._has_members:
            raise UsageError(f"aggregation='min' needs members, which {type(self).__name__} has not; take 'lower'")
        for name, value in (("k", k), ("variance_weight", variance_weight)):
            if not (np.isfinite(value) and value >= 0):
                raise UsageError(f"got {name}={value}; wanted a finite number from 0")
        self.aggregation = aggregation
        self.k = k
        self.variance_weight = variance_weight

    def distribution(self, conversations: Sequence[Conversation]) -> ScoreDistribution:
        """Returns mean and spread of the score of each conversation."""
        raise NotImplementedError

    def margins(self, chosen: Sequence[Conversation], rejected: Sequence[Conversation]) -> ScoreDistribution:
        """Returns mean and spread of the margin of each pair, score of chosen minus score of rejected.

        The spread is that of the margin itself: what moves both scores of a pair alike is no doubt about their order.
        [`~rmtrl.metrics.probit_probability`] makes a probability of the two.

        Raises:
            DataError: If the two lists are not of one length.
        """
        raise NotImplementedError

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the aggregated score of each conversation, `(N,)` float32."""
        distribution = self.distribution(conversations)
        if self.aggregation == "variance":
            return (distribution.mean - self.variance_weight * distribution.std**2).astype(np.float32)
        return (distribution.lower if self.aggregation == "lower" else distribution.mean).astype(np.float32)

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations everything that it scores with can score whole, `(N,)`."""
        held: NDArray[np.bool_] = np.all([scorer.holds(conversations) for scorer in self.scorers], axis=0)
        return held


class MemberScorer(UncertainScorer):
    """
    A scorer that is several: their mean is the score, their standard deviation (divisor K − 1) its uncertainty.

    Bradley–Terry fixes no zero, so members differ by constants that mean nothing and yet enter the spread of a score
    and the choice of the lowest member. [`MemberScorer.fit`] takes them off; margins need no fitting. Subclasses
    define `members`.

    After `fit`, `offsets_`, `(K,)`, is each member's mean on the reference conversations.
    """

    _has_members = True
    offsets_: Floats | None = None
    _said_offsets = False

    def members(self, conversations: Sequence[Conversation]) -> Floats:
        """Returns the score of each member before centring, `(N, K)`."""
        raise NotImplementedError

    def fit(self, conversations: Sequence[Conversation]) -> "MemberScorer":
        """Returns the scorer itself, its members centred to mean 0 on `conversations`: a few hundred are enough.

        Take average answers, such as those of the reference policy. Not needed where training centred the rewards.

        Raises:
            DataError: If there are no conversations.
        """
        if not len(conversations):
            raise DataError("got no conversations to centre the members on; give some hundred average ones")
        self.offsets_ = self.members(conversations).mean(axis=0)
        return self

    def distribution(self, conversations: Sequence[Conversation]) -> ScoreDistribution:
        """Returns mean and standard deviation of the members' scores, centred if fitted."""
        return self._spread(self._centred(conversations))

    def margins(self, chosen: Sequence[Conversation], rejected: Sequence[Conversation]) -> ScoreDistribution:
        """Returns mean and standard deviation of the members' margins; offsets cancel."""
        check_pairs(chosen, rejected)
        first, second = np.split(self.members([*chosen, *rejected]), [len(chosen)])
        return self._spread(first - second)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the aggregated score of each conversation, `(N,)` float32."""
        if self.aggregation != "min":
            return super().score(conversations)
        return self._centred(conversations).min(axis=1).astype(np.float32)

    def _centred(self, conversations: Sequence[Conversation]) -> Floats:
        members = self.members(conversations)
        if self.offsets_ is not None:
            return members - self.offsets_
        if not self._said_offsets and len(members) > 1:
            means = members.mean(axis=0)
            apart, disagreement = means.std(ddof=1), (members - means).std(axis=1, ddof=1).mean()
            if apart > disagreement:
                self._said_offsets = True
                logger.warning(
                    "the members' mean scores differ by a standard deviation of %.3g, their judgements beyond that by "
                    "%.3g: most of the spread is offsets that mean nothing; centre them with fit(conversations)",
                    apart, disagreement,
                )  # fmt: skip
        return members

    def _spread(self, members: Floats) -> ScoreDistribution:
        return ScoreDistribution(members.mean(axis=1), members.std(axis=1, ddof=1), self.k)


def check_pairs(chosen: Sequence[Conversation], rejected: Sequence[Conversation]) -> None:
    """Raises where two sides do not make pairs.

    Raises:
        DataError: If they are not of one length.
    """
    if len(chosen) != len(rejected):
        raise DataError(
            f"got {len(chosen)} chosen and {len(rejected)} rejected conversations; wanted one of each a pair"
        )
