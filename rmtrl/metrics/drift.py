"""Two samples compared: how far apart they are, and one corrected test of whether that is more than chance.

Rows of one prompt are alike, so the prompt is what is exchanged. Under no change a prompt of one side could as well
stand on the other, and of a prompt that both sides have the two parts could change places. Each such rearrangement is
a column of flips; D, cells by prompts, holds the weight that a prompt moves when it flips, so that one sparse product
D · flips gives the counts of all rearrangements, and means, distributions and shares are sums of counts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special

from rmtrl.errors import UsageError
from rmtrl.metrics.estimates import Floats, bootstrap_estimate
from rmtrl.types import Estimate

_CELLS = 256  # values that a distribution is told apart by; more distinct ones are put together, equally many a cell
_FLIPS = 4_000_000  # held at a time: 32 MB
_NOISE = 1e-9  # under which a standardised statistic varies by rounding alone


def psi(reference: ArrayLike, current: ArrayLike, *, eps: float = 1e-6) -> float:
    """Returns the population stability index of two distributions, Σ (q − p) ln(q / p).

    Fixed cut-offs such as 0.1 and 0.25 do not know n: use [`psi_threshold`].

    Args:
        reference, current (`(B,)` arrays): Counts or shares of the same bins.
        eps (`float`): Least share that a bin is given.

    Example:

    ```python
    >>> round(psi([0.25] * 4, [0.4, 0.3, 0.2, 0.1]), 6)
    0.228217
    ```
    """
    p, q = (np.maximum(np.asarray(own, float) / np.sum(own), eps) for own in (reference, current))
    return float(((q - p) * np.log(q / p)).sum())


def psi_threshold(n: float, m: float, bins: int = 10, *, level: float = 0.95) -> float:
    """Returns the quantile of the PSI of two equal distributions, χ²_{B−1}(1/n + 1/m) (Yurdakul and Naranjo 2020).

    Args:
        n, m (`float`): Independent units of each side: prompts, where rows of one prompt are alike.
        bins (`int`): B.
        level (`float`): Share of samples without change that stay below.

    Example:

    ```python
    >>> round(psi_threshold(100, 100), 3)
    0.338
    ```
    """
    return float(2 * special.gammaincinv(max(bins - 1, 1) / 2, level) * (1 / n + 1 / m))


def decile_counts(reference: ArrayLike, current: ArrayLike, bins: int = 10) -> NDArray[np.int64]:
    """Returns how many values of each side lie between the deciles of the reference, `(2, B)`; equal deciles are one.

    Where there are no more distinct values than `bins`, each has a cell; a constant reference has one of its own.

    Example:

    ```python
    >>> decile_counts(range(100), [-1, 200]).tolist()[1]
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    ```
    """
    sides = np.asarray(reference, float), np.asarray(current, float)
    edges, top = np.unique(np.concatenate(sides)), sides[0].max()
    if len(edges) > bins:
        edges = np.unique(np.quantile(sides[0], np.arange(1, bins) / bins, method="inverted_cdf"))
        edges = edges[edges < top] if edges[0] < top else np.array([np.nextafter(top, -np.inf), top])
    cells = [np.searchsorted(edges, own) for own in sides]  # an edge is the largest value of its cell
    counts = np.stack([np.bincount(own, minlength=len(edges) + 1) for own in cells])
    return counts[:, counts.any(axis=0)]


def distances_of(
    x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, other_weights: ArrayLike | None = None
) -> dict[str, float]:
    """Returns how far two samples are apart: KS, energy and Wasserstein distance, as scipy has them.

    Args:
        x, y (`(n,)`, `(m,)` arrays): Values; true and false are 1 and 0.
        weights, other_weights (`(n,)`, `(m,)` arrays, *optional*): Of the values of each side; all equal when absent.

    Example:

    ```python
    >>> {name: round(value, 6) for name, value in distances_of([0, 1, 3], [5, 6, 8]).items()}
    {'KS': 1.0, 'energy': 3.162278, 'Wasserstein': 5.0}
    ```
    """
    sides = [np.asarray(own, np.float64) for own in (x, y)]
    at, cell = np.unique(np.concatenate(sides), return_inverse=True)
    parts = zip(np.split(cell, [len(sides[0])]), (weights, other_weights), strict=True)
    counts = [np.bincount(own, w, len(at))[:, None].astype(np.float64) for own, w in parts]
    return {name: float(value[0]) for name, value in _distances(at, counts[0], counts[1]).items()}


def _distances(at: Floats, reference: Floats, current: Floats) -> dict[str, Floats]:
    """Returns the distances, `(R,)` each, of R pairs of weights `(K, R)` on the sorted values `(K,)`."""
    gap = np.cumsum(current / current.sum(axis=0) - reference / reference.sum(axis=0), axis=0)
    widths, size = np.diff(at), np.abs(gap)
    energy = np.sqrt(2 * widths @ gap[:-1] ** 2)
    return {"KS": size.max(axis=0), "energy": energy, "Wasserstein": widths @ size[:-1]}


def row_weights(prompts: ArrayLike, current: ArrayLike) -> Floats:
    """Returns the weight of each row, `(N,)`: 1, and such that a prompt of both sides weighs the same on each.

    A row of a prompt with a and b rows on the two sides weighs 2ab / (a + b) over the rows of its own side; so what
    the prompt itself does to its rows cancels, whatever a and b are.

    Example:

    ```python
    >>> row_weights(["a", "a", "a", "b"], [False, False, True, True]).round(3).tolist()
    [0.667, 0.667, 1.333, 1.0]
    ```
    """
    side = np.asarray(current, bool)
    index = np.unique(np.asarray(prompts), return_inverse=True)[1]
    counts = np.stack([np.bincount(index[side == own], minlength=index.max(initial=-1) + 1) for own in (0, 1)])
    a, b = counts
    weights: Floats = np.where(a * b > 0, 2 * a * b / np.maximum(a + b, 1), np.maximum(a, b))
    return weights[index] / counts[side.astype(int), index]


def effect_estimate(values: ArrayLike, prompts: ArrayLike, current: ArrayLike) -> Estimate:
    """Returns how far current is from reference, with an interval that resamples prompts.

    Of numbers Cohen's d, the difference of means over the standard deviation within sides; of text Cohen's
    w = √(Σ (q − p)² / pooled share), which noise can only raise. Rows weigh as in [`row_weights`]. NaN, not defined,
    where each side is constant and they differ: any difference is infinitely many deviations of 0.

    Args:
        values (`(N,)` array): As a column of [`drift_test`], without missing ones; of both sides.
        prompts, current (`(N,)` arrays): As there.

    Example:

    ```python
    >>> effect_estimate([1.0, 3.0, 2.0, 4.0], range(4), [False, False, True, True]).value
    1.0
    ```
    """
    x, side = np.asarray(values), np.asarray(current, bool)
    w = row_weights(prompts, side)
    if is_text := x.dtype.kind in "USO":
        parts = np.unique(x, return_inverse=True)[1][:, None] == np.arange(len(np.unique(x)))
    else:
        x = x - np.average(x, weights=w)
        parts = np.stack([np.ones(len(x)), x, x**2], axis=1)
    sides = [parts * (w * own)[:, None] for own in (~side, side)]

    def statistic(drawn: Floats) -> Floats:
        p, q = (drawn @ own for own in sides)
        if is_text:
            pooled, p, q = (own / own.sum(axis=1, keepdims=True) for own in (p + q, p, q))
            return np.asarray(np.sqrt(np.divide((q - p) ** 2, pooled, where=pooled > 0, out=0 * p).sum(axis=1)))
        (mean, square), (other, other_square) = ((own[:, 1:] / own[:, :1]).T for own in (p, q))
        variance = (square - mean**2 + other_square - other**2) / 2
        gap, scale = other - mean, square + other_square
        without = np.where(gap**2 > _NOISE * scale, np.nan, 0.0)
        return np.asarray(np.divide(gap, np.sqrt(np.abs(variance)), where=variance > _NOISE * scale, out=without))

    kind, least = ("basic", 0.0) if is_text else ("percentile", -np.inf)
    return bootstrap_estimate(statistic, len(x), prompts, kind=kind, bounds=(least, np.inf))


def exchanges(prompts: ArrayLike, current: ArrayLike, n: int, *, seed: int = 0) -> Iterator[Floats]:
    """Yields which prompts change sides in each rearrangement, blocks of `(P, R)` of 0 and 1; the first is none.

    Prompts in sorted order. One that both sides have changes with probability ½; the others are dealt out anew, as
    many to each side as there were.

    Args:
        prompts (`(N,)` array): Prompt of each row.
        current (`(N,)` array of `bool`): Whether the row is of the current side.
        n (`int`): Rearrangements, beside what was observed.
        seed (`int`): Of the draw.

    Example:

    ```python
    >>> [block.shape for block in exchanges(["a", "a", "b"], [False, True, True], 10)]
    [(2, 11)]
    ```
    """
    shared, on_current = _sides(prompts, current)
    rng, alone = np.random.default_rng(seed), on_current[~shared]
    block = max(1, _FLIPS // len(shared))
    for start in range(0, n + 1, block):
        drawn = np.zeros((len(shared), min(block, n + 1 - start)))
        drawn[shared] = rng.integers(2, size=(int(shared.sum()), drawn.shape[1]))
        dealt = rng.permuted(np.tile(alone, (drawn.shape[1], 1)), axis=1)
        drawn[~shared] = (dealt != alone).T
        if start == 0:
            drawn[:, 0] = 0
        yield drawn


def _sides(prompts: ArrayLike, current: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which prompts, sorted, both sides have, and which the current side has, `(P,)` each."""
    side = np.asarray(current, bool)
    index = np.unique(np.asarray(prompts), return_inverse=True)[1]
    has = [np.bincount(index[side == own], minlength=index.max() + 1) > 0 for own in (False, True)]
    return has[0] & has[1], has[1]


@dataclass(frozen=True)
class ColumnTest:
    """What the rearrangements say of one column.

    Args:
        statistic (`float`): The largest of its statistics, in standard deviations from its mean over rearrangements.
        name (`str`): Which one that was: `"mean"`, `"KS"`, `"energy"`, or `"mix"` of categories.
        p (`float`): Share of rearrangements in which the column's largest statistic is as large.
        adjusted_p (`float`): The same corrected for all columns (Westfall and Young's step-down).
    """

    statistic: float
    name: str
    p: float
    adjusted_p: float


@dataclass(frozen=True)
class DriftTest:
    """The test of no change in any column.

    Args:
        p (`float`): Share of rearrangements, the observed one included, in which the largest statistic of all columns
            is as large as observed: corrected for their number.
        tests (`dict[str, ColumnTest]`): By column.
    """

    p: float
    tests: dict[str, ColumnTest]


def known_values(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which values of a column are not missing, `(N,)`: text that is not "", numbers that are not NaN.

    Example:

    ```python
    >>> known_values(np.array([0.5, np.nan])).tolist(), known_values(np.array(["", "a"])).tolist()
    ([True, False], [False, True])
    ```
    """
    return np.asarray(values != "" if values.dtype.kind in "USO" else ~np.isnan(values.astype(float)))


def drift_test(
    columns: Mapping[str, ArrayLike], prompts: ArrayLike, current: ArrayLike, *, n_permutations: int = 999,
    alpha: float = 0.05, seed: int = 0,
) -> DriftTest:  # fmt: skip
    """Returns a test of whether any column differs between two sides, that exchanges prompts and not rows.

    A column of numbers has three statistics: the difference of means, and KS and energy distance (on at most 256 cells
    of equally many rows); one of two values that of the means alone; one of text √(Σ (q − p)² / pooled share). Each is
    standardised by its mean and deviation over all rearrangements, and the largest of all columns is compared with
    what it is in the others: exact whatever the columns' dependence, and at what sizes soever (max-statistic
    permutation; Westfall and Young 1993).

    Args:
        columns (`Mapping[str, (N,) array]`): Numbers, of which NaN is missing; true and false; or text, of which ""
            is missing. Rows of both sides.
        prompts (`(N,)` array): Prompt of each row.
        current (`(N,)` array of `bool`): Whether the row is of the current side.
        n_permutations (`int`): Rearrangements to draw. For an exact level (n + 1) alpha is a whole number.
        alpha (`float`): Level at which the test is to be judged.
        seed (`int`): Of the draw.

    Raises:
        UsageError: If a side is empty, or there are too few prompts or rearrangements to reach `alpha`.

    Example:

    ```python
    >>> rng = np.random.default_rng(0)
    >>> side = np.repeat([False, True], 200)
    >>> drift_test({"score": rng.normal(size=400) + side}, np.arange(400), side).p
    0.001
    ```
    """
    side = np.asarray(current, bool)
    index = np.unique(np.asarray(prompts), return_inverse=True)[1]
    _check_reach(index, side, n_permutations, alpha)
    if endless := [name for name, own in columns.items() if np.isin(own, (np.inf, -np.inf)).any()]:
        raise UsageError(
            f"the column {endless[0]} has infinite values; wanted finite ones, NaN where they are missing"
        )
    counted = {name: _Counted.of(np.asarray(values), index, side) for name, values in columns.items()}
    blocks: dict[str, list[Floats]] = {name: [] for name in columns}
    for flips in exchanges(index, side, n_permutations, seed=seed):
        for name, own in counted.items():
            blocks[name].append(own.statistics(flips))
    z = {name: _standardised(np.concatenate(own, axis=1)) for name, own in blocks.items()}
    largest = np.array([own.max(axis=0) for own in z.values()])
    adjusted = _step_down(largest)
    tests = {
        name: ColumnTest(float(top[0]), counted[name].names[int(z[name][:, 0].argmax())], _share(top), float(p))
        for name, top, p in zip(z, largest, adjusted, strict=True)
    }
    return DriftTest(float(adjusted.min()), tests)


def _check_reach(index: NDArray[np.int64], side: NDArray[np.bool_], n_permutations: int, alpha: float) -> None:
    """Raises where no data could reach alpha: a test that cannot alarm must not be taken for one that did not."""
    if side.all() or not side.any():
        raise UsageError("got rows of one side alone; wanted rows on both sides, reference and current")
    if (n_permutations + 1) * alpha < 1:
        raise UsageError(
            f"{n_permutations} rearrangements cannot reach a level of {alpha:g}; wanted {int(np.ceil(1 / alpha)) - 1} "
            "or more"
        )
    shared, on_current = _sides(index, side)
    alone = on_current[~shared]
    least = 1 / (2 ** max(int(shared.sum()) - 1, 0) * comb(len(alone), int(alone.sum())))
    if least > alpha:
        raise UsageError(
            f"no arrangement of {len(shared)} prompts has a p under {least:.3g}, and so none reaches {alpha:g}; "
            "wanted more prompts"
        )


@dataclass(frozen=True)
class _Counted:
    """A column as weights: of the reference by cell `(K,)`, of both sides, and what a prompt moves `(K + 1, P)`."""

    names: tuple[str, ...]
    at: Floats
    reference: Floats
    whole: Floats
    moved: sparse.csr_array

    @classmethod
    def of(cls, values: NDArray[Any], index: NDArray[np.int64], side: NDArray[np.bool_]) -> "_Counted":
        is_text = values.dtype.kind in "USO"
        known = known_values(values)
        prompt, own_side = index[known], side[known]
        w = row_weights(prompt, own_side)
        distinct, cell, number = np.unique(values[known], return_inverse=True, return_counts=True)
        names: tuple[str, ...] = ("mix",) if is_text else ("mean", "KS", "energy")[: 1 if len(distinct) <= 2 else 3]
        x, at = np.zeros(len(w)), np.zeros(len(distinct))
        if not is_text and len(distinct) > 1:
            at = distinct - np.average(values[known].astype(float), weights=w)
            at /= np.sqrt(np.average(at[cell] ** 2, weights=w))
            x = at[cell]
            cell, at = _cells(at, cell, number)
        # the last row is Σ w x, for means of the values themselves
        rows = np.concatenate([cell, np.full(len(w), len(at))])
        data = np.concatenate([w, w * x])
        signs, places = np.tile(np.where(own_side, 1.0, -1.0), 2), np.tile(prompt, 2)
        whole, reference = (np.bincount(rows, d, len(at) + 1).astype(np.float64) for d in (data, data * (signs < 0)))
        shape = (len(at) + 1, int(index.max()) + 1)
        return cls(names, at, reference, whole, sparse.csr_array((data * signs, (rows, places)), shape=shape))

    def statistics(self, flips: Floats) -> Floats:
        """Returns the statistics of R rearrangements `(P, R)`, `(S, R)`."""
        reference = self.reference[:, None] + self.moved @ flips
        current = self.whole[:, None] - reference
        with np.errstate(divide="ignore", invalid="ignore"):
            totals = [own[:-1].sum(axis=0) for own in (reference, current)]
            p, q = reference / totals[0], current / totals[1]
            if self.names == ("mix",):
                pooled = self.whole[:-1, None] / self.whole[:-1].sum()
                found = np.sqrt(((q - p)[:-1] ** 2 / pooled).sum(axis=0))[None]
            else:
                apart = _distances(self.at, reference[:-1], current[:-1]) if len(self.names) > 1 else {}
                found = np.stack([np.abs(q - p)[-1], *(apart[name] for name in self.names[1:])])
        return np.where(np.minimum(*totals) > _NOISE, found, 0.0)  # a side without a value of it says nothing


def _cells(distinct: Floats, cell: NDArray[np.int64], number: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """Returns the cell of each row and the largest value of each cell; no more than 256, of equally many rows."""
    if len(distinct) <= _CELLS:
        return cell, distinct
    before = np.cumsum(number) - number
    joined = np.unique(before * _CELLS // number.sum(), return_inverse=True)[1]
    last = np.flatnonzero(np.append(np.diff(joined) > 0, True))
    return joined[cell], distinct[last]


def _standardised(statistics: Floats) -> Floats:
    """Returns each statistic `(S, R)` less its mean, in standard deviations; 0 where it does not vary."""
    deviation = statistics.std(axis=1, keepdims=True)
    centred = statistics - statistics.mean(axis=1, keepdims=True)
    return np.where(deviation > _NOISE, centred / np.maximum(deviation, _NOISE), 0.0)


def _share(values: Floats) -> float:
    """Returns the share of rearrangements `(R,)` that reach the first, which is the observed one."""
    return float((values >= values[0] - _NOISE).mean())


def _step_down(largest: Floats) -> Floats:
    """Returns adjusted p-values `(Q,)`: each against the maximum over itself and all smaller, `(Q, R)`."""
    order = np.argsort(-largest[:, 0], kind="stable")
    over_rest = np.maximum.accumulate(largest[order][::-1], axis=0)[::-1]
    steps = [(over >= own[0] - _NOISE).mean() for over, own in zip(over_rest, largest[order], strict=True)]
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted
