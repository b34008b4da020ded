"""The length audit against worked numbers, other implementations and models whose fault is planted."""

import json

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn.linear_model import LinearRegression

from rmtrl.errors import DataError
from rmtrl.evaluation.audit import (
    ACQUITTED,
    BUILD_MATCHED,
    CONVICTED,
    UNDECIDED,
    audit_length,
    length_verdict,
)
from rmtrl.metrics import length_bias
from rmtrl.metrics.lengths import length_curve, length_regressions, length_shares, partial_spearman
from rmtrl.types import Estimate, json_ready


def world(n=600, *, paid=0.0, noise=0.7, worth=0.0, taste=0.0, seed=0):
    """Scores and lengths of n pairs, one in two prompts twice, and the true quality.

    `paid`: what the model pays a unit of length; `worth`: what length is truly worth; `taste`: liking of the labels.
    """
    rng = np.random.default_rng(seed)
    length = rng.normal(0, 1, (n, 2))
    quality = rng.normal(0, 1, (n, 2)) + worth * length
    score = quality + paid * length + rng.normal(0, noise, (n, 2))
    liking = quality + taste * length
    order = np.where(liking[:, :1] >= liking[:, 1:], [[0, 1]], [[1, 0]])
    score, length, quality = (np.take_along_axis(v, order, 1) for v in (score, 30 * length + 200, quality))
    return score, length, quality, np.arange(n) // 3 * 2 + (np.arange(n) % 3 == 0)


def audited(*, quality=False, **settings):
    score, length, worth, prompts = world(**settings)
    more = {"chosen_quality": worth[:, 0], "rejected_quality": worth[:, 1]} if quality else {}
    return audit_length(*score.T, *length.T, prompts, n_resamples=300, **more)


def test_three_pairs_whose_chosen_side_is_always_longer_ask_for_matched_pairs():
    audit = audit_length([1.8, 2.4, 1.6], [0.7, 1.1, 0.3], [36, 58, 33], [19, 22, 14])
    figures = audit.figures
    assert figures["accuracy"].value == figures["length_only_accuracy"].value == 1.0
    assert figures["mean_margin"].value == pytest.approx(1.2333, abs=1e-4)
    assert figures["longer_wins"].value == figures["longer_preferred"].value == 1.0
    assert figures["longer_excess"].value == 0.0
    assert audit.verdict == UNDECIDED and audit.reasons[-1] == BUILD_MATCHED
    assert "always longer" in audit.reasons[0]
    missing = {"length_gap", "balanced_accuracy", "accuracy_chosen_shorter", "accuracy_matched", "logit_length"}
    assert not missing & figures.keys()


def test_figures_by_hand():
    # the longer side is chosen in 0, 1, 4 (won 0, 1), the shorter in 2, 3 (won 3); 4 is matched and a tie
    audit = audit_length([3, 2, 0, 1, 1], [1, 1, 1, 0, 1], [40, 30, 10, 20, 100], [10, 20, 20, 40, 95])
    values = {name: estimate.value for name, estimate in audit.figures.items()}
    assert values["accuracy"] == pytest.approx(3.5 / 5)
    assert values["accuracy_chosen_longer"] == pytest.approx(2.5 / 3) and values["accuracy_chosen_shorter"] == 0.5
    assert values["length_gap"] == pytest.approx(1 / 3) and values["balanced_accuracy"] == pytest.approx(2 / 3)
    assert values["longer_wins"] == pytest.approx(3.5 / 5) and values["longer_preferred"] == pytest.approx(3 / 5)
    assert values["longer_excess"] == pytest.approx(0.1)
    assert (values["accuracy_matched"], audit.figures["accuracy_matched"].n) == (0.5, 1)


def test_figures_agree_with_those_logged_in_training():
    score, length, _, prompts = world(200, paid=1.0)
    figures = audit_length(*score.T, *length.T, prompts, n_resamples=20).figures
    logged = length_bias(*score.T, *length.T)
    names = {"length_spearman": "margin_spearman", "length_accuracy": "length_only_accuracy",
             "chosen_longer": "longer_preferred"}  # fmt: skip
    for name, value in logged.items():
        assert figures[names.get(name, name)].value == pytest.approx(value), name


def test_within_prompt_correlations_take_the_prompts_means_off():
    rng = np.random.default_rng(1)
    level = 10 * rng.normal(0, 1, 200)  # long prompts with high rewards: pooled, length seems paid
    score = level[:, None] + rng.normal(0, 1, (200, 2))
    length = 100 + level[:, None] + rng.normal(0, 1, (200, 2))
    figures = audit_length(*score.T, *length.T, n_resamples=50).figures
    assert figures["pooled_spearman"].value == pytest.approx(stats.spearmanr(score.T.ravel(), length.T.ravel())[0])
    own = [(v - v.mean(1, keepdims=True)).T.ravel() for v in (score, length)]
    assert figures["within_spearman"].value == pytest.approx(stats.spearmanr(*own)[0])
    assert abs(figures["within_spearman"].value) < 0.2 < 0.8 < figures["pooled_spearman"].value


def test_the_controlled_models_are_those_of_statsmodels_with_errors_by_prompt():
    score, length, quality, prompts = world(300, paid=0.8)
    figures = audit_length(
        *score.T, *length.T, prompts, chosen_quality=quality[:, 0], rejected_quality=quality[:, 1], n_resamples=20
    ).figures
    m, longer = score[:, 0] - score[:, 1], length[:, 0] - length[:, 1]
    x = np.column_stack([m / m.std(), np.tanh(longer / longer.std())])
    first = np.random.default_rng(0).random(300) < 0.5  # an antisymmetric model does not care which side is first
    signed = np.where(first, 1, -1)[:, None] * x
    logit = sm.Logit(first, signed).fit(disp=0, cov_type="cluster", cov_kwds={"groups": prompts, "df_correction": 0})
    groups = len(np.unique(prompts))
    scale = np.sqrt(groups / (groups - 1) * (groups - 1) / groups)  # theirs has the factor too
    for k, name in enumerate(("logit_margin", "logit_length")):
        assert figures[name].value == pytest.approx(logit.params[k], rel=1e-4)
        half = (figures[name].high - figures[name].low) / 2
        assert half == pytest.approx(1.959964 * logit.bse[k] * scale, rel=0.01)
    held = np.column_stack([quality[:, 0] - quality[:, 1], x[:, 1]])
    assert figures["margin_length"].value == pytest.approx(LinearRegression().fit(held, x[:, 0]).coef_[1])


def test_the_length_coefficient_is_below_zero_exactly_where_length_is_overpaid():
    over, fair, under = (audited(n=1500, paid=paid, worth=0.5, noise=0.3) for paid in (1.0, 0.0, -0.5))
    assert over.figures["logit_length"].high < 0 < under.figures["logit_length"].low
    assert fair.figures["logit_length"].low < 0.5
    assert over.figures["margin_length"].low > under.figures["margin_length"].high


def test_separated_pairs_have_no_controlled_model():
    score, length, _, prompts = world(200, noise=0.0)
    assert "logit_length" not in audit_length(*score.T, *length.T, prompts, n_resamples=20).figures


def test_partial_spearman_is_the_correlation_of_residual_ranks():
    rng = np.random.default_rng(2)
    z = rng.normal(size=200)
    x, y = z + rng.normal(size=200), z + rng.normal(size=200)
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    left = [r - sm.OLS(r, sm.add_constant(ranks[2])).fit().fittedvalues for r in ranks[:2]]
    assert partial_spearman(x, y, z) == pytest.approx(stats.pearsonr(*left)[0])
    assert abs(partial_spearman(x, y, z)) < 0.2 < stats.spearmanr(x, y)[0]
    assert partial_spearman(x, y, np.ones(200)) == pytest.approx(stats.spearmanr(x, y)[0])
    assert np.isnan(partial_spearman(x, y, x))


def test_with_quality_held_only_what_is_paid_for_length_remains():
    fair, paid = (audited(quality=True, worth=1.0, paid=p).figures["partial_spearman"] for p in (0.0, 1.0))
    assert fair.low < 0.05 and abs(fair.value) < 0.1 and paid.low > 0.3


def test_a_model_that_pays_for_length_is_convicted_and_a_noisy_fair_one_acquitted():
    guilty, fair = audited(paid=1.5), audited(n=1500)
    assert (guilty.verdict, fair.verdict) == (CONVICTED, ACQUITTED)
    assert "more often than people prefer it" in " ".join(guilty.reasons)
    assert "shorter side: length coefficient" in " ".join(guilty.reasons)


def test_a_model_that_pays_for_brevity_is_convicted_too():
    audit = audited(paid=-1.5)
    assert audit.verdict == CONVICTED and any(r.startswith("the shorter side wins") for r in audit.reasons)


def verdicts(seeds, **settings):
    """Verdicts on several worlds, without the figures that no verdict asks for."""
    return [judged(*(world(800, seed=seed, **settings)[i] for i in (0, 1, 3))) for seed in range(seeds)]


def judged(score, length, prompts):
    margin, longer = score[:, 0] - score[:, 1], length[:, 0] - length[:, 1]
    index = np.unique(prompts, return_inverse=True)[1]
    figures = length_shares(margin, longer, length.T.ravel(), index, n_resamples=300, seed=0)
    figures |= length_regressions(margin, longer, index, None)
    return length_verdict(figures, longer_prompts=200, shorter_prompts=200)[0]


def drawn(seed, *, quality=1.0, worth=0.0, paid=0.0, noise=0.0, n=600):
    """Scores and lengths of pairs whose labels are drawn: P = σ(Δw), w = quality·q + worth·z.

    z is the standardised log length. The score is w + paid·z + noise; without the last two
    nothing could rank the pairs better.
    """
    rng = np.random.default_rng(seed)
    length = rng.lognormal(4, 0.5, (n, 2))
    z = (np.log(length) - 4) / 0.5
    utility = quality * rng.normal(size=(n, 2)) + worth * z
    score = utility + paid * z + noise * rng.normal(size=(n, 2))
    first = rng.random(n) < 1 / (1 + np.exp(utility[:, 1] - utility[:, 0]))
    order = np.where(first[:, None], [[0, 1]], [[1, 0]])
    return *(np.take_along_axis(v, order, 1) for v in (score, length)), np.arange(n)


@pytest.mark.parametrize(("quality", "worth"), [(1.0, 0.6), (0.7, 0.5), (1.0, -0.6)])
def test_the_very_utility_that_drew_the_labels_is_convicted_no_more_often_than_its_interval_allows(quality, worth):
    """The score has no noise and the labels have, so it follows length more closely than they do."""
    found = [judged(*drawn(seed, quality=quality, worth=worth)) for seed in range(12)]
    assert found.count(CONVICTED) <= 1


def test_drawn_labels_hide_no_lover_of_length_and_accuse_no_fair_model():
    cases = (({}, ACQUITTED), ({"noise": 2.0}, ACQUITTED), ({"paid": 1.0}, CONVICTED), ({"paid": -1.0}, CONVICTED))
    for settings, verdict in cases:
        assert [judged(*drawn(seed, **settings)) for seed in range(12)].count(verdict) >= 11, settings


def test_where_no_controlled_model_exists_the_excess_alone_convicts():
    figures = audited(paid=1.5).figures
    counts = {"longer_prompts": 200, "shorter_prompts": 200}
    assert figures["longer_excess"].low > 0 and length_verdict(figures, **counts)[0] == CONVICTED
    unsure = {**figures, "logit_length": Estimate(-0.1, -0.3, 0.1, 600)}
    assert length_verdict(unsure, **counts)[0] == UNDECIDED
    blind = unsure | {"logit_margin": Estimate(0.05, -0.1, 0.2, 600)}  # the score of a length meter
    assert length_verdict(blind, **counts)[0] == CONVICTED
    del unsure["logit_length"]
    assert length_verdict(unsure, **counts)[0] == CONVICTED
    unsure["longer_excess"] = Estimate(0.02, -0.01, 0.05, 600)
    assert length_verdict(unsure, **counts)[0] == UNDECIDED


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_fair_but_noisy_model_is_not_convicted_where_people_have_a_taste_for_length(sign):
    assert CONVICTED not in verdicts(10, noise=1.2, taste=0.7 * sign)  # a taste that the model does not share
    assert CONVICTED not in verdicts(10, noise=1.2, worth=0.7 * sign)  # and one that it does


def test_verdicts_over_many_worlds():
    assert verdicts(20, paid=1.0).count(CONVICTED) >= 19
    assert verdicts(20).count(ACQUITTED) >= 19


def test_few_prompts_are_no_evidence_however_clear_the_figures():
    score, length, _, prompts = world(600, paid=3.0)
    audit = audit_length(*score[:40].T, *length[:40].T, prompts[:40])
    assert audit.figures["length_gap"].low > 0.1 and audit.verdict == UNDECIDED


def test_the_verdict_does_not_depend_on_unit_or_scale():
    score, length, _, prompts = world(paid=1.5)
    one, other = (audit_length(*(a * score + b).T, *(c * length).T, prompts, n_resamples=50) for a, b, c in
                  ((1, 0, 1), (0.01, -7, 4.2)))  # fmt: skip
    for name in one.figures.keys() - {"mean_margin"}:
        assert one.figures[name].value == pytest.approx(other.figures[name].value, abs=1e-6), name
    assert one.verdict == other.verdict


def test_pairs_of_a_prompt_widen_the_interval():
    score, length, _, _ = world(300, paid=1.0)
    alone = audit_length(*score.T, *length.T).figures["length_gap"]
    score, length = np.repeat(score, 4, 0), np.repeat(length, 4, 0)
    together = audit_length(*score.T, *length.T, np.repeat(np.arange(300), 4)).figures["length_gap"]
    naive = audit_length(*score.T, *length.T).figures["length_gap"]
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert naive.high - naive.low < 0.7 * (together.high - together.low)


def test_a_model_without_errors_has_a_gap_interval_of_some_width():
    score, length, _, prompts = world(150, noise=0.0)
    gap = audit_length(*score.T, *length.T, prompts).figures["length_gap"]
    assert gap.value == 0 and gap.low < -0.02 and gap.high > 0.02


def test_the_curve_follows_a_bent_line_and_counts_every_response():
    length = np.arange(1, 1001)
    reward = np.minimum(length, 300) / 100
    curve = length_curve(reward, length, bins=10)
    np.testing.assert_array_equal(curve.count, 100)
    np.testing.assert_allclose(curve.length, np.arange(10) * 100 + 50.5)
    np.testing.assert_allclose(curve.reward[4:], 3.0)
    assert curve.reward[0] == pytest.approx(0.505) and (curve.low <= curve.reward).all()
    assert len(length_curve(reward, np.ones(1000)).count) == 1


def test_the_result_is_json_without_nan_and_says_its_schema():
    found = json.loads(json.dumps(json_ready(audited(n=60)), allow_nan=False))
    assert found["schema"] == "rmtrl/audit/1" and found["unit"] == "tokens"
    assert {"value", "low", "high", "n", "level", "method"} == set(found["figures"]["accuracy"])
    assert found["verdict"] in (CONVICTED, ACQUITTED, UNDECIDED)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": []}, "one value a pair"),
        ({"chosen": [1.0, np.nan, 2.0]}, "the chosen of pair 1 is nan"),
        ({"rejected_length": [1, np.inf, 2]}, "the rejected length of pair 1 is inf"),
        ({"chosen": [1, 1, 1], "rejected": [1, 1, 1]}, "all 6 scores are 1"),
        ({"prompts": ["a", "a", "a"]}, "3 pairs and 1 prompt"),
        ({"chosen_quality": [1, 2, 3]}, "quality of one side"),
    ],
)
def test_input_that_cannot_be_audited_is_named(change, said):
    given = {"chosen": [1.0, 2.0, 3.0], "rejected": [0.0, 1.0, 4.0], "chosen_length": [3, 2, 1],
             "rejected_length": [1, 2, 3], "prompts": ["a", "b", "c"]}  # fmt: skip
    with pytest.raises(DataError, match=said):
        audit_length(**(given | change))
