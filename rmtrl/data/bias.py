"""What is preferred: rates by domain, language and source, and annotators who judge by length or by position."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from rmtrl.data.messages import conversation_text
from rmtrl.metrics import mean_estimate
from rmtrl.types import Estimate

NOTABLE = 0.1
"""A rate that is surely (by its whole interval) ten points from the others' is reported; smaller ones are habits."""


@dataclass(frozen=True)
class AnnotatorBias:
    """How one annotator votes, beside the others on the same pairs.

    Args:
        annotator (`str`): Name.
        votes (`int`): Votes on pairs whose sides differ in length.
        longer (`Estimate`): Share of them for the longer side, a tie counting half.
        longer_excess (`Estimate`, *optional*): How far that share is above the median of the others' votes on the same
            pairs, on average; None where nobody else judged them.
        first (`Estimate`): Share of all votes for the side shown first, a tie counting half.
        ties (`Estimate`): Share of ties.
        agreement (`Estimate`, *optional*): Mean agreement with each other vote on the same pair.
        flags (`tuple[str, ...]`): `prefers_longer`, `prefers_shorter`, `prefers_first`, `prefers_second`.
    """

    annotator: str
    votes: int
    longer: Estimate | None
    longer_excess: Estimate | None
    first: Estimate
    ties: Estimate
    agreement: Estimate | None
    flags: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dictionary, ready for JSON."""
        return asdict(self)


def annotator_bias(
    annotators: Sequence[str],
    pairs: ArrayLike,
    prompts: ArrayLike,
    wins: ArrayLike,
    longer: ArrayLike,
    swapped: ArrayLike | None = None,
) -> list[AnnotatorBias]:
    """Returns how each annotator votes; one who always prefers the longer answer is flagged.

    Length is not held against an annotator for itself: better answers may be longer. What counts is the excess over
    the other annotators on the same pairs, so a habit that all share cannot be seen here; the pairs' own rates
    ([`preference_rates`]) show it.

    Args:
        annotators (`(N,)` sequence of `str`): Who voted.
        pairs (`(N,)` array): Which pair, whatever the order of its sides.
        prompts (`(N,)` array): Prompt of the pair; intervals resample prompts.
        wins (`(N,)` array): 1: the first side was chosen, 0: the second, ½: a tie.
        longer (`(N,)` array): Length of the first side less that of the second; NaN where it is not known.
        swapped (`(N,)` bool array, *optional*): Whether the vote saw the pair's sides exchanged; never by default.

    Example:

    ```python
    >>> [b.annotator for b in annotator_bias(names, pairs, prompts, wins, longer) if "prefers_longer" in b.flags]
    ['long-winded']
    ```
    """
    names, who = np.unique(np.asarray(annotators, str), return_inverse=True)
    pair = np.unique(np.asarray(pairs), return_inverse=True)[1]
    prompt = np.unique(np.asarray(prompts), return_inverse=True)[1]
    wins, longer = np.asarray(wins, float), np.asarray(longer, float)
    for_longer = np.where(longer > 0, wins, 1 - wins)
    known = np.isfinite(longer) & (longer != 0)
    others = _others_median(for_longer, pair, known)
    # who agrees with whom is seen where the sides of a pair stand alike
    agreement = _agreement(wins if swapped is None else np.where(swapped, 1 - wins, wins), pair)
    return [
        _bias(str(name), who == k, prompt, wins, for_longer, known, others, agreement) for k, name in enumerate(names)
    ]


def _bias(
    name: str,
    own: NDArray[np.bool_],
    prompt: NDArray[np.int64],
    wins: NDArray[np.float64],
    for_longer: NDArray[np.float64],
    known: NDArray[np.bool_],
    others: NDArray[np.float64],
    agreement: NDArray[np.float64],
) -> AnnotatorBias:
    compared = own & known & np.isfinite(others)
    excess = _estimate(for_longer - others, compared, prompt, proportion=False)
    longer = _estimate(for_longer, own & known, prompt)
    first = _estimate(wins, own, prompt)
    assert first is not None  # an annotator is one who voted
    flags = []
    if excess is not None:
        flags += ["prefers_longer"] * (excess.low > NOTABLE) + ["prefers_shorter"] * (excess.high < -NOTABLE)
    flags += ["prefers_first"] * (first.low > 0.5 + NOTABLE) + ["prefers_second"] * (first.high < 0.5 - NOTABLE)
    ties = _estimate((wins == 0.5).astype(float), own, prompt)
    agreed = _estimate(agreement, own & np.isfinite(agreement), prompt)
    return AnnotatorBias(name, int((own & known).sum()), longer, excess, first, ties or first, agreed, tuple(flags))


def _estimate(
    values: NDArray[np.float64], rows: NDArray[np.bool_], prompt: NDArray[np.int64], *, proportion: bool = True
) -> Estimate | None:
    return mean_estimate(values[rows], prompt[rows], proportion=proportion) if rows.any() else None


def _others_median(
    values: NDArray[np.float64], pair: NDArray[np.int64], rows: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Returns the median of the other votes on the same pair, NaN where there is none.

    The median, because one annotator with a habit would pull the others' mean and make the rest look odd.
    """
    size = int(pair.max(initial=-1)) + 1
    # how many of the others voted 0 and ½; the rest voted 1
    zeros, halves, all_ = (
        np.bincount(pair[rows & own], minlength=size)[pair] - (rows & own)
        for own in (values == 0, values == 0.5, np.ones(len(values), bool))
    )
    middle = [
        np.where(index < zeros, 0.0, np.where(index < zeros + halves, 0.5, 1.0))
        for index in ((all_ - 1) // 2, all_ // 2)
    ]
    return np.where(all_ > 0, (middle[0] + middle[1]) / 2, np.nan)


def _agreement(wins: NDArray[np.float64], pair: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the share of the other votes on the same pair that are equal to each vote, NaN where there is none."""
    n = int(pair.max(initial=-1)) + 1
    counts = np.bincount(pair, minlength=n)[pair]
    equal = np.zeros(len(wins))
    for value in (0.0, 0.5, 1.0):
        same = np.bincount(pair[wins == value], minlength=n)[pair]
        equal = np.where(wins == value, same - 1.0, equal)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 1, equal / (counts - 1), np.nan)


def preference_rates(pairs: Dataset, columns: Sequence[str] = ("domain", "language", "source")) -> dict[str, Any]:
    """Returns, for each value of each column, how often the longer response is chosen and how often there is a tie.

    Args:
        pairs (`Dataset`): Pairs in the normal form; columns that it has not are left out.
        columns (`Sequence[str]`): What to group by.

    Returns:
        `dict`: `{column: {value: {"n", "longer_chosen": Estimate, "ties": Estimate}}}`; lengths are characters of the
        response, pairs of equal length count half.

    Example:

    ```python
    >>> preference_rates(pairs)["domain"]["geography"]["longer_chosen"].value
    0.57
    ```
    """
    names = [column for column in columns if column in pairs.column_names]
    rows: dict[str, list[Any]] = {name: [] for name in (*names, "prompt_id", "longer", "tie")}
    for batch in pairs.iter(1000):
        for name in (*names, "prompt_id"):
            rows[name] += [str(value) for value in batch[name]]
        gaps = [
            len(conversation_text(c)) - len(conversation_text(r))
            for c, r in zip(batch["chosen"], batch["rejected"], strict=True)
        ]
        rows["longer"] += [(np.sign(gap) + 1) / 2 for gap in gaps]
        rows["tie"] += [float(p == 0.5) for p in batch.get("preference", [1.0] * len(gaps))]
    prompt, longer, tie = np.array(rows["prompt_id"]), np.array(rows["longer"]), np.array(rows["tie"])
    rates: dict[str, Any] = {}
    for name in names:
        values = np.array(rows[name])
        rates[name] = {str(value): _rates(values == value, prompt, longer, tie) for value in np.unique(values)}
    return rates


def _rates(
    own: NDArray[np.bool_], prompt: NDArray[Any], longer: NDArray[np.float64], tie: NDArray[np.float64]
) -> Mapping[str, Any]:
    decided = own & (tie == 0)
    return {
        "n": int(own.sum()),
        "longer_chosen": mean_estimate(longer[decided], prompt[decided]) if decided.any() else None,
        "ties": mean_estimate(tie[own], prompt[own]),
    }
