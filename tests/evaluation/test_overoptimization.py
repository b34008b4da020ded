"""Best-of-n curves, scaling forms, γ, peak and drawdown, against closed forms, brute force and published numbers."""

import json
from itertools import combinations

import numpy as np
import pytest
from scipy import integrate, stats

from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.overoptimization import (
    ScalingFit,
    degrees,
    fit_scaling,
    measure_overoptimization,
    n_grid,
    scored_samples,
)
from rmtrl.evaluation.overoptimization.curves import (
    GOLD_BY_GOLD,
    GOLD_BY_PROXY,
    PROXY_BY_PROXY,
    fit_coefficients,
    fitted_peak,
)
from rmtrl.evaluation.overoptimization.measure import report, verdict
from rmtrl.metrics import best_of_n_curve, best_of_n_curves, best_of_n_kl, best_of_n_weights
from rmtrl.types import json_ready


def samples_of(proxy, gold, **columns):
    """Samples from matrices of prompts and samples; further columns are one value a prompt."""
    prompts, n = proxy.shape
    more = {name: np.repeat(np.asarray(column), n) for name, column in columns.items()}
    return scored_samples(np.repeat(np.arange(prompts), n), proxy.ravel(), gold.ravel(), **more)


def normal_scores(rho, prompts=100, n=256, seed=0):
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(prompts, n))
    return rho * gold + np.sqrt(1 - rho**2) * rng.normal(size=(prompts, n)), gold


def heavy_scores(c=0.6, prompts=100, n=512, seed=0):
    """A proxy that adds heavy-tailed noise to gold: its highest scores are noise."""
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(prompts, n))
    return gold + c * rng.standard_t(3, size=(prompts, n)), gold


def test_kl_of_best_of_n():
    kl = {1: 0, 2: 0.193147, 4: 0.636294, 16: 1.835089, 64: 3.174508, 256: 4.549084, 1000: 5.908755,
          1024: 5.932448, 60000: 10.002117}  # fmt: skip
    np.testing.assert_allclose(best_of_n_kl(list(kl)), list(kl.values()), atol=5e-7)
    assert np.sqrt(best_of_n_kl(1024)) == pytest.approx(2.4357, abs=5e-5)


def test_estimator_of_ranks_is_that_of_the_closed_form():
    for n_samples, n, wanted in [(10, 3, 8.25), (64, 16, 61.1764706), (10, 1, 5.5), (10, 10, 10)]:
        values = np.arange(1.0, n_samples + 1)[None]
        (got,) = best_of_n_curve(values, values, [n])
        assert got[0] == pytest.approx(wanted, abs=1e-7)


def test_estimator_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=8), rng.normal(size=8)
    chosen = [gold[max(subset, key=proxy.__getitem__)] for subset in combinations(range(8), 3)]
    assert best_of_n_curve(proxy, gold, [3])[0, 0] == pytest.approx(np.mean(chosen), abs=1e-12)


def test_ties_are_chosen_with_equal_chance():
    proxy, gold = np.array([1.0, 1, 2, 2, 2, 3, 3, 3]), np.arange(8.0) ** 2

    def choice(subset):
        best = [i for i in subset if proxy[i] == max(proxy[list(subset)])]
        return gold[best].mean()

    wanted = np.mean([choice(subset) for subset in combinations(range(8), 3)])
    order = np.random.default_rng(1).permutation(8)
    assert best_of_n_curve(proxy, gold, [3])[0, 0] == pytest.approx(wanted, abs=1e-12)
    assert best_of_n_curve(proxy[order], gold[order], [3])[0, 0] == pytest.approx(wanted, abs=1e-12)


def test_a_tie_does_not_reach_into_the_next_prompt():
    got = best_of_n_curve([[1, 2], [2, 3]], [[0.0, 10.0], [100.0, 0.0]], [2])
    assert got.ravel().tolist() == [10.0, 0.0]


def test_weights_sum_to_one_at_any_size():
    for n_samples in (3, 1024, 60_000):
        ns = np.unique(np.geomspace(1, n_samples, 9).round().astype(int))
        np.testing.assert_allclose(best_of_n_weights(n_samples, ns).sum(1), 1, atol=1e-6)
    with pytest.raises(UsageError, match="got n from 1 to 5 with 4 samples"):
        best_of_n_weights(4, [1, 5])
    with pytest.raises(UsageError, match="got n from 0"):
        best_of_n_weights(4, [0])


def test_expected_maxima_of_normals():
    wanted = {2: 0.56419, 3: 0.84628, 4: 1.02938, 5: 1.16296, 10: 1.53875, 16: 1.76599, 64: 2.34373, 100: 2.50759,
              256: 2.82686, 1000: 3.24144}  # fmt: skip
    gold = np.random.default_rng(0).normal(size=(800, 1000))
    curves = best_of_n_curve(gold, gold, list(wanted))
    error = curves.std(0) / np.sqrt(len(curves))
    assert (np.abs(curves.mean(0) - list(wanted.values())) < 4 * error).all()
    assert error.max() < 0.015


def test_every_prompt_uses_all_of_its_own_samples():
    rng = np.random.default_rng(0)
    sizes = [5, 9, 5, 12]
    proxies, golds = [[rng.normal(size=n) for n in sizes] for _ in range(2)]
    curves = best_of_n_curves(proxies, golds, [1, 2, 5])
    for curve, proxy, gold in zip(curves, proxies, golds, strict=True):
        np.testing.assert_allclose(curve, best_of_n_curve(proxy, gold, [1, 2, 5])[0])
        assert curve[0] == pytest.approx(gold.mean())
    with pytest.raises(DataError, match="no prompts"):
        best_of_n_curves([], [], [1])


@pytest.mark.parametrize(
    ("f", "g", "k", "wanted"),
    [
        ((1, 0.2), (1, 0), 2, 0.3636364),
        ((0.5, 0.1), (0.8, 0.05), 2.43, 1.1272189),
        ((0.8, 0.3), (0.6, 0.1), 2.43, 0.4668157),  # the curves cross
        ((0.8, 0.1), (0.8, 0.1), 2.43, 0),
        ((0.8, 0.1), (0, 0), 2.43, 1),
    ],
)
def test_degree_in_closed_form_and_by_quadrature(f, g, k, wanted):
    gold, proxy = ScalingFit("best-of-n", *f), ScalingFit("best-of-n", *g)
    assert degrees(f, g, k) == pytest.approx(wanted, abs=5e-8)
    kinks = [z for z in [np.divide(f[0] - g[0], f[1] - g[1]) if f[1] != g[1] else 0.0] if 0 < z < k]
    between, _ = integrate.quad(lambda x: abs(gold(x) - proxy(x)), 0, k, points=kinks or None)
    under, _ = integrate.quad(gold, 0, k)
    assert degrees(f, g, k) == pytest.approx(between / under, abs=1e-9)


def test_there_is_no_degree_where_gold_does_not_rise():
    assert np.isnan(degrees([[0.1, 1.0], [0, 0]], [[0.1, 0.0], [0, 0]], 2.0)).all()


@pytest.mark.parametrize(("alpha", "beta", "peak_kl", "peak"), [(0.49, 0.12, 4.17, 0.5), (0.662, 0.09, 13.5, 1.217)])
def test_peaks_of_curves_of_3_million_and_3_billion_parameters(alpha, beta, peak_kl, peak):
    fit = ScalingFit("best-of-n", alpha, beta)
    assert fit.peak_d**2 == pytest.approx(peak_kl, abs=0.05)
    assert fit.peak == pytest.approx(peak, abs=1e-3) == fit(fit.peak_d)
    grid = np.linspace(0, 3 * fit.peak_d, 10_001)
    assert fit(grid).max() <= fit.peak + 1e-12


def test_peak_of_the_reinforcement_learning_form():
    fit = ScalingFit("rl", 0.35, 0.175)
    assert fit.peak_d == pytest.approx(np.exp(1)) and fit.peak == pytest.approx(0.175 * np.exp(1))
    assert fit(0) == 0 and fit(np.exp(2)) == pytest.approx(0, abs=1e-12)
    assert fit(np.linspace(0, 8, 10_001)).max() == pytest.approx(fit.peak, abs=1e-6)


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_a_fit_finds_the_curve_it_is_given_and_agrees_with_least_squares(form):
    d = np.sqrt(best_of_n_kl(n_grid(1024)))
    true = ScalingFit(form, 0.6, 0.15)
    fit = fit_scaling(d, true(d), form)
    assert (fit.alpha, fit.beta, fit.r_squared) == pytest.approx((0.6, 0.15, 1))
    noisy = true(d) + np.random.default_rng(0).normal(0, 0.05, len(d))
    columns = np.stack([d, -(d**2) if form == "best-of-n" else -d * np.log(np.where(d > 0, d, 1))], 1)
    again = fit_scaling(d, noisy, form)
    assert [again.alpha, again.beta] == pytest.approx(np.linalg.lstsq(columns, noisy, rcond=None)[0])
    with pytest.raises(DataError, match="1 different distances above 0"):
        fit_scaling([0, 0.4], [0, 1], form)


def test_a_curve_without_peak_says_so_and_json_knows_no_nan():
    for fit in (ScalingFit("best-of-n", 1, -0.1), ScalingFit("best-of-n", -1, 0.1), ScalingFit("rl", 1, 0)):
        assert np.isnan(fit.peak_d) and np.isnan(fit.peak)
        assert json_ready(fit)["peak"] is None and json_ready(fit)["r_squared"] is None


def test_the_peak_within_the_data_is_the_highest_point_of_the_grid():
    coefficients, k = np.random.default_rng(0).normal(size=(200, 2)), 2.4
    x = np.linspace(0, k, 20_001)
    values = x * (coefficients[:, :1] - coefficients[:, 1:] * x)
    top, height, lost = fitted_peak(coefficients, k)
    np.testing.assert_allclose(height, values.max(1), atol=1e-6)
    rises = values.max(1) > 1e-2
    highest, last = values[rises].max(1), values[rises, -1]
    np.testing.assert_allclose(top[rises], x[values[rises].argmax(1)], atol=1e-3)
    np.testing.assert_allclose(lost[rises], (highest - last) / highest, atol=1e-6, rtol=1e-4)
    assert np.isnan(lost[values.max(1) == 0]).all() and (values.max(1) == 0).sum() > 10 and rises.sum() > 100


@pytest.mark.parametrize("rho", [0.8, 0.5, 0.2])
def test_gamma_of_a_noisy_proxy_is_one_minus_its_correlation(rho):
    part = measure_overoptimization(samples_of(*normal_scores(rho, prompts=300, n=512))).whole
    assert part.gamma.low <= 1 - rho <= part.gamma.high
    assert part.gamma.value == pytest.approx(1 - rho, abs=0.02)
    assert part.gamma.n == 300 and part.n_max == 512 and part.k == pytest.approx(np.sqrt(best_of_n_kl(512)))
    assert not part.turned_over and part.drawdown.value == 0 and part.peak_n.value == pytest.approx(512)


def test_gamma_is_0_for_gold_itself_and_1_for_noise():
    proxy, gold = normal_scores(0, prompts=200)
    assert measure_overoptimization(samples_of(gold, gold)).whole.gamma.value == pytest.approx(0, abs=1e-12)
    part = measure_overoptimization(samples_of(proxy, gold)).whole
    assert part.gamma.value == pytest.approx(1, abs=0.03) and not part.turned_over


def test_gamma_knows_no_scale_and_no_order():
    proxy, gold = normal_scores(0.6)
    gamma = measure_overoptimization(samples_of(proxy, gold)).whole.gamma
    rng = np.random.default_rng(3)
    moved = [measure_overoptimization(s).whole.gamma for s in (
        samples_of(np.exp(3 * proxy), gold),  # any rising function of the proxy
        samples_of(proxy, 7 * gold - 5),
        samples_of(proxy + rng.normal(size=(100, 1)), gold + rng.normal(size=(100, 1))),  # prompts differ in level
    )]  # fmt: skip
    flat = samples_of(proxy, gold)
    order = rng.permutation(len(flat))
    moved.append(
        measure_overoptimization(
            scored_samples(*(c[order] for c in (flat.prompt_id, flat.proxy, flat.gold)))
        ).whole.gamma
    )
    for other in moved:
        assert (other.value, other.low, other.high) == pytest.approx((gamma.value, gamma.low, gamma.high), abs=1e-9)


def test_the_interval_of_gamma_is_that_of_refitted_resamples():
    proxy, gold = normal_scores(0.5, prompts=40, n=64)
    part = measure_overoptimization(samples_of(proxy, gold), n_resamples=2000).whole
    x = np.sqrt(best_of_n_kl(part.ns))
    f, g = best_of_n_curve(gold, gold, part.ns), best_of_n_curve(proxy, gold, part.ns)

    def gamma(rows):
        means = [curve[rows].mean(0) - curve[rows, 0].mean() for curve in (f, g)]
        return degrees(*(fit_coefficients(x, mean) for mean in means), x[-1])

    interval = stats.bootstrap((np.arange(40),), gamma, vectorized=False, n_resamples=2000, method="percentile",
                               rng=np.random.default_rng(0)).confidence_interval  # fmt: skip
    assert part.gamma.value == pytest.approx(gamma(np.arange(40)))
    assert [part.gamma.low, part.gamma.high] == pytest.approx([*interval], abs=0.004)


def test_a_heavy_tailed_proxy_turns_over_and_is_told_so():
    part = measure_overoptimization(samples_of(*heavy_scores(prompts=200))).whole
    assert part.turned_over and part.drawdown.low > 0.1 and part.drawdown_data.low > 0.1
    assert 10 < part.peak_n_data.value < 100 and 10 < part.peak_n.value < 100
    assert part.fits[GOLD_BY_PROXY].beta > 0 and part.fits[GOLD_BY_PROXY].peak_d < part.k
    curve = [point.value for point in part.gains[GOLD_BY_PROXY]]
    assert part.drawdown_data.value == pytest.approx(1 - curve[-1] / max(curve))
    assert part.gap.low > 1
    text = verdict(part)
    assert f"Gold turned over at n = {part.peak_n_data.value:.0f}" in text and "lost" in text
    better = verdict(measure_overoptimization(samples_of(*normal_scores(0.8))).whole)
    assert "has not turned over up to n = 256" in better and "about 79 % of the gain is kept" in better


def test_a_saturating_gold_score_has_not_turned_over():
    """A parabola through a curve that levels off has a peak that the data does not have."""
    gold = np.random.default_rng(0).uniform(size=(200, 256)) < 0.5
    proxy = gold + np.random.default_rng(1).normal(0, 0.1, gold.shape)
    part = measure_overoptimization(samples_of(proxy, gold.astype(float))).whole
    assert part.drawdown.low > 0 and part.drawdown_data.low == 0 and not part.turned_over


def test_a_flat_curve_is_rarely_said_to_turn_over():
    turned = [
        measure_overoptimization(samples_of(*normal_scores(0, 40, 64, seed)), n_resamples=200).whole.turned_over
        for seed in range(25)
    ]
    assert sum(turned) <= 3


def test_a_harmful_proxy_is_said_to_be_one():
    gold = np.random.default_rng(0).normal(size=(50, 64))
    part = measure_overoptimization(samples_of(-gold, gold)).whole
    assert part.gamma.value > 1 and part.drawdown is None and "the lower gold" in verdict(part)
    json.dumps(json_ready(part), allow_nan=False)


def test_curves_are_recentred_with_their_bands():
    proxy, gold = normal_scores(0.5)
    part = measure_overoptimization(samples_of(proxy + 100, gold - 40)).whole
    assert part.start["gold"].value == pytest.approx(gold.mean() - 40)
    assert part.start["proxy"].value == pytest.approx(proxy.mean() + 100)
    for points in part.gains.values():
        assert points[0].value == pytest.approx(0, abs=1e-9)
        assert all(point.low <= point.value <= point.high for point in points)
    direct = best_of_n_curve(proxy, gold, part.ns).mean(0) - gold.mean()
    assert [point.value for point in part.gains[GOLD_BY_PROXY]] == pytest.approx(direct)


def test_domains_held_out_domains_and_unequal_samples():
    good, good_gold = normal_scores(0.9, prompts=60, n=32)
    bad, bad_gold = normal_scores(0.1, prompts=60, n=48, seed=1)
    both = scored_samples(
        np.concatenate([np.repeat(np.arange(60), 32), np.repeat(np.arange(60, 120), 48), [999] * 32]),
        np.concatenate([good.ravel(), bad.ravel(), good[0]]),
        np.concatenate([good_gold.ravel(), bad_gold.ravel(), good_gold[0]]),
        domain=np.array(["maths"] * 60 * 32 + ["chat"] * 60 * 48 + ["odd"] * 32),
    )
    result = measure_overoptimization(both, held_out=["chat"])
    assert result.samples_per_prompt == (32, 48) and result.whole.n_max == 32 and result.n_samples == 60 * 80 + 32
    assert list(result.domains) == ["chat", "maths"]
    assert result.domains["maths"].gamma.high < 0.3 < 0.7 < result.domains["chat"].gamma.low
    assert result.held_out["held out"].gamma == result.domains["chat"].gamma
    assert result.held_out["in domain"].n_prompts == 61
    assert any("odd is left out: fewer than two prompts" in note for note in result.notes)
    assert any("32 to 48 samples" in note for note in result.notes)
    assert "chat" in report(result)["domain"] and "held out" in report(result)["domains"]
    with pytest.raises(UsageError, match="held-out domain physics; the domains are"):
        measure_overoptimization(both, held_out=["physics"])
    with pytest.raises(UsageError, match=r"n_max 40, and 61 of 121 prompts have fewer samples"):
        measure_overoptimization(both, n_max=40)
    assert measure_overoptimization(both, n_max=8).whole.n_max == 8


def test_steps_are_measured_each_and_the_last_is_the_whole():
    scores = [normal_scores(rho, prompts=50, n=32, seed=step) for step, rho in enumerate((0.9, 0.6, 0.3))]
    kl = np.array([0.0, 1.0, 4.0])
    true = ScalingFit("rl", 0.4, 0.1)
    samples = scored_samples(
        np.tile(np.repeat(np.arange(50), 32), 3),
        np.concatenate([proxy.ravel() for proxy, _ in scores]),
        np.concatenate([(gold - gold.mean() + 3 + true(np.sqrt(own))).ravel()
                        for (_, gold), own in zip(scores, kl, strict=True)]),
        step=np.repeat([100, 20, 300], 50 * 32)[np.argsort(np.repeat([1, 0, 2], 50 * 32), kind="stable")],
        kl=np.repeat(kl, 50 * 32),
    )  # fmt: skip
    result = measure_overoptimization(samples)
    assert list(result.steps) == ["20", "100", "300"]
    gammas = [part.gamma.value for part in result.steps.values()]
    assert gammas == sorted(gammas) and result.whole.gamma == result.steps["300"].gamma
    assert (result.rl.form, result.rl.alpha, result.rl.beta) == ("rl", pytest.approx(0.4), pytest.approx(0.1))
    assert "over training" in report(result)["fits"]


def test_every_gamma_is_stored_with_its_convention_and_reach():
    result = measure_overoptimization(samples_of(*heavy_scores(), domain=[f"d{i % 2}" for i in range(100)]))
    whole = json.loads(json.dumps(json_ready(result), allow_nan=False))
    assert whole["schema"] == "rmtrl/overoptimization/1"
    for part in (whole["whole"], *whole["domains"].values()):
        gamma = part["gamma"]
        assert gamma["n_max"] == 512 and gamma["k"] == pytest.approx(2.28917, abs=1e-5)
        assert "gold chosen by gold" in gamma["convention"] and gamma["low"] < gamma["value"] < gamma["high"]
        assert set(part["gains"]) == {GOLD_BY_PROXY, PROXY_BY_PROXY, GOLD_BY_GOLD}


def test_input_that_cannot_be_used_is_refused():
    proxy, gold = normal_scores(0.5, prompts=4, n=8)
    for name, mend in [("proxy", np.nan), ("gold", np.inf)]:
        broken = {"proxy": proxy.copy(), "gold": gold.copy()}
        broken[name][1, 2] = mend
        with pytest.raises(DataError, match=f"1 of 32 samples have no finite {name} .*sample 10"):
            samples_of(**broken)
    with pytest.raises(DataError, match="all 32 proxy scores are 1.0"):
        samples_of(np.ones((4, 8)), gold)
    with pytest.raises(DataError, match="all 32 gold scores are 0.0"):
        samples_of(proxy, np.zeros((4, 8)))
    with pytest.raises(DataError, match="samples of 1 prompt"):
        samples_of(proxy[:1], gold[:1])
    with pytest.raises(DataError, match="samples of 0 prompt"):
        samples_of(proxy[:0], gold[:0])
    with pytest.raises(DataError, match="differ in length"):
        scored_samples(np.arange(3), np.arange(4.0), np.arange(3.0))
    with pytest.raises(DataError, match="two domains"):
        scored_samples(np.array([0, 0, 1]), np.arange(3.0), np.arange(3.0), domain=np.array(["a", "b", "a"]))
    with pytest.raises(DataError, match="has 2 samples; wanted 3 or more"):
        measure_overoptimization(samples_of(proxy[:, :2], gold[:, :2]))
    with pytest.raises(UsageError, match="got n up to 2"):
        measure_overoptimization(samples_of(proxy, gold), n_max=2)


def test_the_gap_counts_in_the_deviations_of_few_samples_as_of_many():
    """Standard deviations within a prompt have N − 1 below, so that few samples do not seem to gain more."""
    proxy, gold = np.array([[0.0, 1, 5], [2, 0, 3]]), np.array([[1.0, 0, 2], [4, 1, 0]])
    part = measure_overoptimization(samples_of(proxy, gold)).whole
    scale = [np.sqrt(np.mean(np.var(scores, axis=1, ddof=1))) for scores in (proxy, gold)]
    gain = (proxy.max(1) - proxy.mean(1)).mean(), (gold[[0, 1], [2, 2]] - gold.mean(1)).mean()
    assert part.gap.value == pytest.approx(gain[0] / scale[0] - gain[1] / scale[1])


@pytest.mark.parametrize("factor", [1e300, 1e-200, 1e306])
@pytest.mark.parametrize("name", ["proxy", "gold"])
def test_scores_beyond_the_arithmetic_are_refused(name, factor):
    proxy, gold = normal_scores(0.5, prompts=4, n=8)
    scaled = {"proxy": proxy, "gold": gold} | {name: {"proxy": proxy, "gold": gold}[name] * factor}
    with pytest.raises(DataError, match=f"{name} scores .*: rescale them"):
        samples_of(**scaled)


def test_prompts_whose_proxy_is_constant_are_counted():
    proxy, gold = normal_scores(0.5, prompts=20, n=8)
    proxy[:3] = 1.0
    notes = measure_overoptimization(samples_of(proxy, gold)).notes
    assert any("alike in 3 of 20 prompts" in note for note in notes)


def test_gold_that_differs_between_prompts_only_has_no_gamma():
    proxy, gold = normal_scores(0.5, prompts=20, n=8)
    level = np.repeat(np.linspace(0, 0.7, 20)[:, None], 8, axis=1)
    with pytest.raises(DataError, match="gold scores that are equal within every prompt"):
        measure_overoptimization(samples_of(proxy, level))
    with pytest.raises(DataError, match="proxy scores that are equal within every prompt"):
        measure_overoptimization(samples_of(level, gold))


PUBLISHED = {  # γ from correctness, best of 64 on MATH500, PPO (arXiv 2505.12763, tables 10 to 12)
    "Skywork-o1-PRM": (0.416, 56.2, 29.4), "Qwen2.5-Math-PRM": (0.457, 52.8, 30.2),
    "internlm2-7b": (0.598, 46.0, 29.4),
    "internlm2-20b": (0.661, 41.6, None), "Skywork-Llama-8B-v0.2": (0.752, 39.4, 28.8),
    "GRM-llama3-8B": (0.736, 39.6, 28.0), "ArmoRM": (0.782, 37.8, 27.2), "Eurus-RM": (0.801, 35.6, 29.2),
    "Shepherd": (0.757, 37.4, None), "ReasonEval": (0.772, 37.0, None), "llemma-prm": (0.888, 32.2, 27.4),
    "GRM-Gemma-2B": (0.924, 29.6, None), "beaver": (0.970, 29.6, 26.8), "oasst-pythia1.4b": (0.994, 26.2, 26.0),
}  # fmt: skip


def test_published_gammas_foretell_published_results():
    gamma, best, ppo = zip(*PUBLISHED.values(), strict=True)
    assert stats.linregress(gamma, best).rvalue ** 2 == pytest.approx(0.990, abs=1e-3)
    known = [(g, p) for g, p in zip(gamma, ppo, strict=True) if p is not None]
    assert len(known) == 10 and stats.linregress(*zip(*known, strict=True)).rvalue ** 2 == pytest.approx(
        0.752, abs=1e-3
    )
