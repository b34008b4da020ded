"""What choosing by a proxy does to gold on one set of prompts: curves, fits, γ, peak and drawdown, with intervals.

Convention of γ everywhere here: f is gold chosen by gold, g is gold chosen by the proxy, x = √KL(n), the integrals go
to k = √KL(n_max). So a γ belongs to its n_max.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtrl.errors import DataError, UsageError
from rmtrl.metrics import Floats, best_of_n_curves, best_of_n_kl, bootstrap_estimate, bootstrap_estimates, defined
from rmtrl.types import Estimate

Form = Literal["best-of-n", "rl"]

CONVENTION = "f: gold chosen by gold; g: gold chosen by proxy; R(x) = x (a - b x), x = sqrt(KL); integrals from 0 to k"
GOLD_BY_PROXY, PROXY_BY_PROXY, GOLD_BY_GOLD = "gold chosen by proxy", "proxy chosen by proxy", "gold chosen by gold"


def n_grid(n_max: int, points: int = 32) -> NDArray[np.int64]:
    """Returns the values of n at which curves are read: up to `points` of them, evenly spread in log n.

    Raises:
        UsageError: If `n_max` is below 3: two coefficients need two values of n above 1.

    Example:

    ```python
    >>> n_grid(16, 5).tolist()
    [1, 2, 4, 8, 16]
    ```
    """
    if n_max < 3:
        raise UsageError(f"got n up to {n_max}; wanted 3 or more: a curve of two coefficients needs two n above 1")
    return np.unique(np.round(np.geomspace(1, n_max, points)).astype(np.int64))


@dataclass(frozen=True)
class ScalingFit:
    """A fitted curve R(d) of Gao, Schulman and Hilton 2023 (https://huggingface.co/papers/2210.10760).

    d is √KL from the first policy, KL in nats, and R is recentred: R(0) = 0. Best-of-n: R = d (α − β d). Reinforcement
    learning: R = d (α − β log d). The two spend KL at different rates; never compare them at equal d.

    Args:
        form (`str`): `"best-of-n"` or `"rl"`.
        alpha (`float`): α, how fast the reward grows at first.
        beta (`float`): β, how soon it turns over; 0 or less: it never does.
        r_squared (`float`): 1 − Σ(y − R)² / Σ(y − mean y)²; low: the form does not describe the data.

    Example:

    ```python
    >>> fit = fit_scaling([0.5, 1.0, 2.0], [0.45, 0.8, 1.2])
    >>> round(fit.alpha, 6), round(fit.beta, 6), round(fit.peak_d, 6), round(fit.peak, 6)
    (1.0, 0.2, 2.5, 1.25)
    ```
    """

    json_also: ClassVar = ("peak_d", "peak")

    form: Form
    alpha: float
    beta: float
    r_squared: float = float("nan")

    def __call__(self, d: ArrayLike) -> Floats:
        """Returns R(d), shape as `d`."""
        return np.asarray(_columns(np.asarray(d, float), self.form) @ [self.alpha, self.beta], dtype=np.float64)

    @property
    def peak_d(self) -> float:
        """The d of the highest R, NaN where the curve has none: α/(2β), or exp(α/β − 1) for reinforcement learning."""
        if self.beta <= 0 or (self.form == "best-of-n" and self.alpha <= 0):
            return float("nan")
        if self.form == "rl":
            return float(np.exp(self.alpha / self.beta - 1))
        return self.alpha / (2 * self.beta)

    @property
    def peak(self) -> float:
        """The highest R, NaN where the curve has none: α²/(4β), or β·d* for reinforcement learning."""
        return self.beta * self.peak_d ** (1 if self.form == "rl" else 2)


def _columns(d: Floats, form: Form) -> Floats:
    """Returns the two columns that α and β multiply, `(…, 2)`."""
    if form == "rl":
        return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=-1)
    return np.stack([d, -(d**2)], axis=-1)


def fit_coefficients(d: ArrayLike, rewards: ArrayLike, form: Form = "best-of-n") -> Floats:
    """Returns α and β of each curve by least squares without intercept, `(…, 2)`.

    Args:
        d (`(G,)` array): √KL, in √nats.
        rewards (`(…, G)` array): Recentred rewards, one curve a row.
        form (`str`): `"best-of-n"` or `"rl"`.

    Raises:
        DataError: If fewer than two values of d are above 0.

    Example:

    ```python
    >>> fit_coefficients([0.5, 1.0, 2.0], [[0.45, 0.8, 1.2]]).round(6).tolist()
    [[1.0, 0.2]]
    ```
    """
    columns = _columns(np.asarray(d, float), form)
    if np.linalg.matrix_rank(columns) < 2:
        n = len(np.unique(np.asarray(d)[np.asarray(d) > 0]))
        raise DataError(f"got {n} different distances above 0; two coefficients need two (n_max of 3 or more)")
    return np.asarray(rewards, float) @ np.linalg.pinv(columns).T


def fit_scaling(d: ArrayLike, rewards: ArrayLike, form: Form = "best-of-n") -> ScalingFit:
    """Returns the curve fitted to one series of recentred rewards; see [`ScalingFit`] and [`fit_coefficients`].

    Args:
        d (`(G,)` array): √KL, in √nats.
        rewards (`(G,)` array): Rewards minus the reward at d = 0.
        form (`str`): `"best-of-n"` or `"rl"`.

    Raises:
        DataError: If fewer than two values of d are above 0.
    """
    y = np.asarray(rewards, float)
    fit = ScalingFit(form, *map(float, fit_coefficients(d, y, form)))
    spread = float(((y - y.mean()) ** 2).sum())
    share = 1 - float(((y - fit(d)) ** 2).sum()) / spread if spread else float("nan")
    return ScalingFit(form, fit.alpha, fit.beta, share)


def degrees(gold: ArrayLike, proxy: ArrayLike, k: float) -> Floats:
    """Returns the degree of overoptimization γ = ∫₀ᵏ |f − g| / ∫₀ᵏ f (Kim et al. 2025,
    https://huggingface.co/papers/2505.12763), in closed form, `(…,)`; NaN where ∫f is not above 0.

    f is the gold reward of the samples that the gold scores choose, g that of the samples the proxy chooses. 0: the
    proxy chooses as well as gold; 1: no better than chance. The paper leaves open which two curves are meant; with
    these γ does not depend on the scale of the proxy, and its table agrees.

    Args:
        gold (`(…, 2)` array): α and β of f, of the best-of-n form.
        proxy (`(…, 2)` array): α and β of g.
        k (`float`): Largest observed √KL, in √nats: γ belongs to its n.

    Example:

    ```python
    >>> degrees([1, 0.2], [1, 0], k=2).round(7).item()
    0.3636364
    ```
    """
    f, g = np.asarray(gold, float), np.asarray(proxy, float)
    alpha, beta = (f - g)[..., 0], (f - g)[..., 1]

    crossing = np.clip(np.divide(alpha, beta, out=np.zeros_like(alpha), where=beta != 0), 0, k)
    whole, part = _area(k, alpha, beta), _area(crossing, alpha, beta)
    between = np.abs(part) + np.abs(whole - part)
    under = _area(k, f[..., 0], f[..., 1])
    return np.divide(between, under, out=np.full_like(between, np.nan), where=under > 0)


def _area(x: Floats | float, alpha: Floats | float, beta: Floats | float) -> Floats:
    """Returns the integral of a curve from 0 to x."""
    return np.asarray(alpha * np.square(x) / 2 - beta * np.power(x, 3) / 3)


def _why_no_degree(gold: ScalingFit, k: float) -> str:
    """Returns why there is no γ; empty where there is one."""
    area = float(_area(k, gold.alpha, gold.beta))
    if area > 0:
        return ""
    return (
        f"the area under the gold curve is {area:.4g}, and γ is a share of it; wanted more than 0: choosing by gold "
        "must raise the gold score (are the gold scores constant, or k beyond the data?)"
    )


def fitted_peak(coefficients: ArrayLike, k: float) -> tuple[Floats, Floats, Floats]:
    """Returns where R(x) = x (α − β x) is highest on [0, k], how high, and the share of it lost at k; `(R,)` each.

    The share is NaN where R is nowhere above 0.

    Args:
        coefficients (`(R, 2)` array): α and β.
        k (`float`): Largest √KL of the data.

    Example:

    ```python
    >>> [part.round(4).tolist() for part in fitted_peak([[1.0, 0.25], [1.0, 0.0]], k=3.0)]
    [[2.0, 3.0], [1.0, 3.0], [0.25, 0.0]]
    ```
    """
    alpha, beta = np.asarray(coefficients, float).T
    end = k * (alpha - beta * k)
    top = np.divide(alpha, 2 * beta, out=np.where(end > 0, k, 0.0), where=beta > 0)
    top = np.clip(top, 0, k)
    height = top * (alpha - beta * top)
    return top, height, _share_lost(height, end)


def _share_lost(height: Floats, end: Floats) -> Floats:
    return np.divide(height - end, height, out=np.full_like(end, np.nan), where=height > 0)


@dataclass(frozen=True)
class Degree(Estimate):
    """γ, with what it means: a γ belongs to its convention and its n."""

    convention: str = CONVENTION
    n_max: int = 0
    k: float = 0.0


@dataclass(frozen=True)
class Part:
    """What was measured on some of the prompts: all, one domain, one training step. Arrays go over the G values of n.

    Args:
        n_prompts (`int`): Prompts, P.
        ns (`(G,)` int64): Values of n.
        kl (`(G,)` float64): KL of each, in nats.
        start (`dict`): Mean gold and mean proxy score of one sample.
        gains (`dict`): For each of the three curves the gain over one sample at each n, with intervals.
        fits (`dict`): The fitted best-of-n form of each curve.
        gamma (`Degree`, *optional*): Degree of overoptimization; `None` where it does not exist, `why_no_gamma` says
            why.
        peak_n, peak (`Estimate`): Where gold chosen by proxy is highest within the data, and its gain there, by fit.
        drawdown (`Estimate`, *optional*): Share of that gain lost at n_max, by fit; `None` where gold never rises.
        peak_n_data, drawdown_data: The same read from the curve itself, without a fit.
        gap (`Estimate`): Gain of the proxy minus gain of gold at n_max, each in standard deviations within a prompt.
        undefined_resamples (`int`): Resamples in which γ does not exist; its interval leaves them out.
    """

    json_also: ClassVar = ("n_max", "k", "turned_over")

    n_prompts: int
    ns: NDArray[np.int64]
    kl: Floats
    start: dict[str, Estimate]
    gains: dict[str, list[Estimate]]
    fits: dict[str, ScalingFit]
    gamma: Degree | None
    why_no_gamma: str
    peak_n: Estimate
    peak: Estimate
    drawdown: Estimate | None
    peak_n_data: Estimate
    drawdown_data: Estimate | None
    gap: Estimate
    undefined_resamples: int

    @property
    def n_max(self) -> int:
        """The largest n."""
        return int(self.ns[-1])

    @property
    def k(self) -> float:
        """√KL at the largest n, in √nats."""
        return float(np.sqrt(self.kl[-1]))

    @property
    def turned_over(self) -> bool:
        """Whether gold fell after its peak, beyond doubt: the fit and the data say so, each with its interval."""
        return all(fall is not None and fall.low > 0 for fall in (self.drawdown, self.drawdown_data))


def why_not(proxies: Sequence[Any], golds: Sequence[Any]) -> str:
    """Returns why prompts, by their samples' scores, cannot be measured; empty where they can."""
    if len(golds) < 2:
        return "fewer than two prompts"
    equal = [name for name, side in (("gold", golds), ("proxy", proxies)) if not any(map(np.ptp, side))]
    return f"{equal[0]} scores that are equal within every prompt" if equal else ""


def measure_part(
    proxies: Sequence[Any], golds: Sequence[Any], ns: NDArray[np.int64], *, n_resamples: int = 1000, seed: int = 0
) -> Part:
    """Returns curves, fits, γ, peak and drawdown over some prompts; every interval resamples prompts.

    The fits are linear in the curves and the curves are means over prompts, so all resamples are a few products of
    matrices.

    Args:
        proxies, golds (`Sequence` of `(N_p,)` arrays): Scores of each prompt's samples, of two prompts or more.
        ns (`(G,)` int64): Values of n.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.
    """
    kl = best_of_n_kl(ns)
    x, k, n_prompts = np.sqrt(kl), float(np.sqrt(kl[-1])), len(golds)
    sides = {GOLD_BY_PROXY: (proxies, golds), PROXY_BY_PROXY: (proxies, proxies), GOLD_BY_GOLD: (golds, golds)}
    curves = {name: best_of_n_curves(*side, ns) for name, side in sides.items()}
    gains = {name: own - own[:, :1] for name, own in curves.items()}  # recentred: R(0) = 0
    fits = {name: fit_scaling(x, own.mean(0)) for name, own in gains.items()}
    starts = {"gold": curves[GOLD_BY_GOLD][:, 0], "proxy": curves[PROXY_BY_PROXY][:, 0]}
    spreads = (np.sqrt(np.mean([np.var(own, ddof=1) for own in side])) for side in (proxies, golds))
    ahead, behind = (
        gains[name][:, -1] / own for name, own in zip((PROXY_BY_PROXY, GOLD_BY_PROXY), spreads, strict=True)
    )
    undefined: list[int] = []

    def figures(weights: Floats) -> dict[str, Floats]:
        shares = weights / weights.sum(1, keepdims=True)
        means = {name: shares @ own for name, own in gains.items()}
        gold, proxy = (fit_coefficients(x, means[name]) for name in (GOLD_BY_GOLD, GOLD_BY_PROXY))
        top, height, lost = fitted_peak(proxy, k)
        gamma = degrees(gold, proxy, k)
        undefined.append(int(np.isnan(gamma).sum()))
        return {
            "gamma": gamma, "peak": height, "drawdown": lost, "gap": shares @ (ahead - behind),
            "peak_n": np.exp(np.interp(top, x, np.log(ns))),
            "peak_n_data": ns[means[GOLD_BY_PROXY].argmax(1)].astype(np.float64),
            **{f"start {name}": shares @ own for name, own in starts.items()},
            **{f"{name} {i}": own[:, i] for name, own in means.items() for i in range(len(x))},
        }  # fmt: skip

    def fall(weights: Floats) -> Floats:
        means = (weights / weights.sum(1, keepdims=True)) @ gains[GOLD_BY_PROXY]
        return _share_lost(means.max(1), means[:, -1])

    options: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    found = bootstrap_estimates(figures, n_prompts, **options)
    # noise can only raise the drop from the highest of many points
    drawdown = bootstrap_estimate(fall, n_prompts, kind="basic", bounds=(0, np.inf), **options)
    why = _why_no_degree(fits[GOLD_BY_GOLD], k)
    gamma = None if why else Degree(**vars(found["gamma"]), n_max=int(ns[-1]), k=k)
    return Part(
        n_prompts=n_prompts, ns=ns, kl=kl, fits=fits, start={name: found[f"start {name}"] for name in starts},
        gains={name: [found[f"{name} {i}"] for i in range(len(x))] for name in gains},
        gamma=gamma, why_no_gamma=why, undefined_resamples=sum(undefined[1:]),
        peak_n=found["peak_n"], peak=found["peak"], drawdown=defined(found["drawdown"]),
        peak_n_data=found["peak_n_data"], drawdown_data=defined(drawdown), gap=found["gap"],
    )  # fmt: skip
