"""Two arms of an experiment: tests of no difference, the sizes that find one, and bounds for several looks.

Unpaired arms: the pooled z test, and Newcombe's interval from [`~rmtrl.metrics.combined_estimate`]. Paired arms (both
answer the same prompts): McNemar's test and Agresti and Min's interval. Sample sizes are those of the normal
approximation, as in R's `power.prop.test`.

Looks are equally spaced: look k of K has k/K of the units. Under no difference the z statistics of the looks are
normal with correlation √(j/k), so the chance to cross is an integral, computed look by look on a grid (Armitage,
McPherson and Rowe 1969); together the looks err as often as one test would.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from rmtrl.errors import UsageError
from rmtrl.types import Estimate

SMALLEST = 1e-6  # effect or alpha; below, samples of 10^12 and more, and quantiles that double precision blurs

Bounds = Literal["pocock", "obrien-fleming"]
MOST_LOOKS = 20
_NODES = 128


def two_proportion_z(successes: int, n: int, other_successes: int, other_n: int) -> float:
    """Returns the pooled z of two independent success rates, first minus other.

    z = (p₁ − p₂) / √(p(1 − p)(1/n₁ + 1/n₂)), p the rate of both together; 0 where all units are alike.

    Args:
        successes, n (`int`): Successes and units of the first arm.
        other_successes, other_n (`int`): The same of the other arm.

    Example:

    ```python
    >>> round(two_proportion_z(5, 83, 12, 99), 5)
    -1.40783
    ```
    """
    pooled = (successes + other_successes) / (n + other_n)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / other_n))
    return float((successes / n - other_successes / other_n) / deviation) if deviation else 0.0


def mcnemar_z(only_first: int, only_other: int) -> float:
    """Returns McNemar's z of two paired success rates, (b − c) / √(b + c); 0 where no pair differs.

    Args:
        only_first (`int`): Pairs b in which the first arm alone succeeds.
        only_other (`int`): Pairs c in which the other arm alone succeeds.

    Example:

    ```python
    >>> round(mcnemar_z(121, 59) ** 2, 4)
    21.3556
    ```
    """
    differing = only_first + only_other
    return float((only_first - only_other) / np.sqrt(differing)) if differing else 0.0


def paired_difference(only_first: float, only_other: float, n: float, *, level: float = 0.95) -> Estimate:
    """Returns the difference of two paired success rates, (b − c) / n, with Agresti and Min's interval (2005).

    The interval is Wald's after half a pair is added to each of the four cells; it is cut at −1 and 1, and holds the
    value.

    Args:
        only_first, only_other (`float`): Pairs b and c, as in [`mcnemar_z`].
        n (`float`): All pairs, or what they are worth by [`~rmtrl.metrics.effective_n`]; b and c are of these.
        level (`float`): Coverage of the interval.

    Example:

    ```python
    >>> print(paired_difference(150, 86, 1600))
    0.040 [0.021, 0.059] (n = 1,600)
    ```
    """
    value, total = (only_first - only_other) / n, n + 2
    b, c = (only_first + 0.5) / total, (only_other + 0.5) / total
    half = float(special.ndtri((1 + level) / 2) * np.sqrt((b + c - (b - c) ** 2) / total))
    low, high = max(-1.0, b - c - half), min(1.0, b - c + half)
    return Estimate(value, min(low, value), max(high, value), int(n), level, "Agresti and Min")


def paired_p(changes: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Returns the two-sided exact p-value of no change, by exchange of both arms within each group.

    Every pattern of exchanges counts. Where each row is a group of its own it is McNemar's exact test.

    Args:
        changes (`(N,)` array of `int`): First arm minus other: −1, 0 or 1 a pair.
        groups (`(N,)` array, *optional*): Pairs that belong together and change together, such as one request in
            several wordings.

    Example:

    ```python
    >>> paired_p([1, 1, 1, 1, 1, 1])
    0.03125
    ```
    """
    from scipy.stats import binom

    changes = np.asarray(changes, np.int64)
    index = np.arange(len(changes)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(index, weights=changes).astype(np.int64)
    chances = np.ones(1)  # of each total from −Σ|s| to Σ|s|
    for size, n in zip(*np.unique(np.abs(sums[sums != 0]), return_counts=True), strict=True):
        own = np.zeros(2 * size * n + 1)
        own[:: 2 * size] = binom.pmf(np.arange(n + 1), n, 0.5)
        chances = np.convolve(chances, own)
    totals = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(totals) >= abs(int(sums.sum()))].sum()))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Returns the p-values of K tests adjusted so that all together err as often as one does, `(K,)` (Holm 1979).

    Example:

    ```python
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    ```
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(adjusted, 1.0)


def two_proportion_n(baseline: float, effect: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns the units that each of two arms needs to find `baseline + effect` against `baseline`, two-sided.

    n = (z_{α/2} √(2 p̄ q̄) + z_β √(p₁q₁ + p₂q₂))² / δ² with p̄ the mean of both rates (Fleiss 1981), as
    `power.prop.test`.

    Args:
        baseline (`float`): Success rate of the control.
        effect (`float`): Difference to find.
        alpha (`float`): Chance of finding a difference where there is none.
        power (`float`): Chance of finding this one.

    Raises:
        UsageError: If a rate, alpha or power is not between 0 and 1, or the effect or alpha is below 1e-6.

    Example:

    ```python
    >>> round(two_proportion_n(0.5, 0.25, power=0.9), 3)
    76.707
    ```
    """
    other, mean = baseline + effect, baseline + effect / 2
    if not (0 < baseline < 1 and 0 < other < 1) or abs(effect) < SMALLEST:
        raise UsageError(
            f"got the rate {baseline:g} and the effect {effect:g}; wanted rates between 0 and 1, before and after, "
            f"and an effect of {SMALLEST:g} or more"
        )
    under_null = np.sqrt(2 * mean * (1 - mean))
    under_effect = np.sqrt(baseline * (1 - baseline) + other * (1 - other))
    found, missed = _quantiles(alpha, power)
    return float(((found * under_null + missed * under_effect) / effect) ** 2)


def paired_n(discordant: float, effect: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns the pairs that McNemar's test needs to find a difference of rates.

    n = (z_{α/2} √ψ + z_β √(ψ − δ²))² / δ² with ψ the share of pairs on which the arms differ (Connor 1987).

    Args:
        discordant (`float`): Share ψ of pairs on which the arms differ; see [`independent_discordance`].
        effect (`float`): Difference δ of the rates; no larger than ψ.
        alpha, power: As in [`two_proportion_n`].

    Raises:
        UsageError: If the effect is below 1e-6 or larger than the share of pairs that differ.

    Example:

    ```python
    >>> round(paired_n(0.4, 0.1), 1)
    311.6
    ```
    """
    if not SMALLEST <= abs(effect) <= discordant <= 1:
        raise UsageError(
            f"got the effect {effect:g} and {discordant:g} discordant pairs; wanted {SMALLEST:g} <= effect <= "
            "discordant <= 1"
        )
    found, missed = _quantiles(alpha, power)
    return float(((found * np.sqrt(discordant) + missed * np.sqrt(discordant - effect**2)) / effect) ** 2)


def independent_discordance(baseline: float, effect: float) -> float:
    """Returns the share of pairs on which two arms differ if they succeed independently of one another.

    Arms that answer the same prompts mostly succeed on the same ones, so the share is smaller, and a sample size from
    this one is on the safe side.

    Example:

    ```python
    >>> independent_discordance(0.5, 0.25)
    0.5
    ```
    """
    other = baseline + effect
    return baseline * (1 - other) + other * (1 - baseline)


def _quantiles(alpha: float, power: float) -> tuple[float, float]:
    if not SMALLEST <= alpha < power < 1:
        raise UsageError(f"got alpha {alpha:g} and power {power:g}; wanted {SMALLEST:g} <= alpha < power < 1")
    return float(special.ndtri(1 - alpha / 2)), float(special.ndtri(power))


def critical_values(looks: int, *, kind: Bounds = "obrien-fleming", alpha: float = 0.05) -> NDArray[np.float64]:
    """Returns the value that |z| must reach at each look to stop, `(looks,)`.

    Pocock (1977): the same c at every look. O'Brien and Fleming (1979): c √(K/k), hard to cross early, near the single
    test's value at the end.

    Args:
        looks (`int`): Number K of looks, 1 to 20.
        kind (`str`): `"pocock"` or `"obrien-fleming"`.
        alpha (`float`): Chance that any look crosses where there is no difference, both sides together.

    Raises:
        UsageError: If the number of looks, the kind or alpha cannot be used.

    Example:

    ```python
    >>> critical_values(5, kind="pocock").round(4).tolist()
    [2.4132, 2.4132, 2.4132, 2.4132, 2.4132]
    ```
    """
    if not 1 <= looks <= MOST_LOOKS:
        raise UsageError(f"got {looks} looks; wanted 1 to {MOST_LOOKS}")
    if kind not in get_args(Bounds):
        raise UsageError(f"got the bounds {kind!r}; wanted {' or '.join(get_args(Bounds))}")
    if not SMALLEST <= alpha < 1:
        raise UsageError(f"got alpha {alpha:g}; wanted a number from {SMALLEST:g} to below 1")
    shape = np.ones(looks) if kind == "pocock" else np.sqrt(looks / np.arange(1, looks + 1))
    single = float(special.ndtri(1 - alpha / 2))
    if looks == 1:
        return np.array([single])

    def excess(c: float) -> float:
        return float(crossing_probabilities(c * shape).sum()) - alpha

    # Bonferroni's bound is too wide for all looks together, the single test's too narrow
    widest = float(special.ndtri(1 - alpha / (2 * looks)))
    return np.asarray(optimize.brentq(excess, 0.99 * single, 1.01 * widest, xtol=1e-10) * shape, dtype=np.float64)


def crossing_probabilities(bounds: Sequence[float] | NDArray[np.float64], drift: float = 0.0) -> NDArray[np.float64]:
    """Returns the chance that each look is the first at which |z| reaches its bound, `(K,)`.

    Args:
        bounds (`(K,)` array): Bounds of |z|, all above 0.
        drift (`float`): Expected z of the last look; 0 where there is no difference.

    Example:

    ```python
    >>> crossing_probabilities([1.959964]).round(4).tolist()
    [0.05]
    ```
    """
    # with S_k the sum of k steps N(drift / √K, 1), z_k is S_k / √k, and S_k given S_{k-1} needs the last step only
    bounds = np.asarray(bounds, float)
    step = drift / np.sqrt(len(bounds))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    at, mass = np.zeros(1), np.ones(1)
    left, crossed = 1.0, []
    for k, bound in enumerate(bounds, 1):
        edge = float(bound * np.sqrt(k))
        stays = float(mass @ (special.ndtr(edge - at - step) - special.ndtr(-edge - at - step)))
        crossed.append(left - stays)
        left = stays
        density = np.exp(-0.5 * (edge * nodes[:, None] - at - step) ** 2) / np.sqrt(2 * np.pi)
        at, mass = edge * nodes, edge * weights * (density @ mass)
    return np.array(crossed)


def inflation(looks: int, *, kind: Bounds = "obrien-fleming", alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns by what the sample of one look must be multiplied so that several looks keep its power.

    Args:
        looks, kind, alpha: As in [`critical_values`].
        power (`float`): Chance of finding the difference the single look was planned for.

    Raises:
        UsageError: If power is not above alpha and below 1.

    Example:

    ```python
    >>> round(inflation(5, kind="pocock"), 3)
    1.228
    ```
    """
    bounds, single = critical_values(looks, kind=kind, alpha=alpha), sum(_quantiles(alpha, power))

    def lacking(drift: float) -> float:
        return float(crossing_probabilities(bounds, drift).sum()) - power

    drift = float(optimize.brentq(lacking, 0.0, 2 * single + 3, xtol=1e-10))
    return (drift / single) ** 2 if looks > 1 else 1.0
