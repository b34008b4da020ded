"""Coefficients of agreement against published values, other implementations and what must hold for any data."""

import json
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from rmtrl.data.annotations.aggregation import aggregate
from rmtrl.data.annotations.agreement import (
    SCALES,
    agreement,
    agreement_coefficients,
    below_target,
    cohen_kappas,
    count_values,
    interpret,
)
from rmtrl.data.annotations.reading import read_annotations
from rmtrl.errors import UsageError

EXAMPLE = Path(__file__).parents[3] / "examples" / "annotations.jsonl"


def table(*rows):
    """Judgments by annotator and unit; letters and digits, a dot for none."""
    return np.array([[np.nan if c == "." else ord(c) - ord("0") for c in row.replace(" ", "")] for row in rows])


# K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011
EXAMPLE_A = table("0100000010", "1110010000")
EXAMPLE_B = table("aabbdcccedda", "babbbccceddd")
EXAMPLE_C = table("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .",
                  "1 2 3 3 2 4 4 1 2 5 1 .")  # fmt: skip
WIKIPEDIA = table(". . . . . 3 4 1 2 1 1 3 3 . 3", "1 . 2 1 3 3 4 3 . . . . . . .", ". . 2 1 3 4 4 . 2 1 1 3 3 . 4")

# Fleiss' kappa on Wikipedia: 10 subjects, 14 raters, 5 categories
FLEISS_WIKIPEDIA = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
                    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
# Fleiss 1971, table 1: 30 patients, 6 diagnoses each
FLEISS_1971 = ["444444", "222555", "233335", "555555", "222444", "113333", "333355", "113334", "114444", "555555",
               "144444", "124444", "222333", "144444", "224445", "333335", "111455", "111112", "224444", "133555",
               "555555", "244444", "224555", "114444", "144445", "222224", "111155", "224444", "133333",
               "555555"]  # fmt: skip


def long(judgments):
    """Unit, annotator and value of each judgment."""
    annotator, unit = np.nonzero(np.isfinite(judgments))
    return unit, annotator, judgments[annotator, unit]


def values(counts, categories=None, **options):
    found = agreement_coefficients(counts, categories, n_resamples=20, **options)
    return {name: estimate and estimate.value for name, estimate in found.items()}


def counted(judgments):
    unit, _, value = long(judgments)
    return count_values(unit, value)


@pytest.mark.parametrize(
    ("judgments", "scale", "alpha"),
    [
        (EXAMPLE_A, "nominal", 0.095238),
        (EXAMPLE_B, "nominal", 0.691964),
        (EXAMPLE_C, "nominal", 0.743421),
        (EXAMPLE_C, "ordinal", 0.815388),
        (EXAMPLE_C, "interval", 0.849107),
        (WIKIPEDIA, "nominal", 0.691358),
        (WIKIPEDIA, "ordinal", 0.806721),
        (WIKIPEDIA, "interval", 0.810845),
    ],
)
def test_alpha_is_as_published(judgments, scale, alpha):
    assert values(*counted(judgments), scale=scale)["alpha"] == pytest.approx(alpha, abs=5e-7)


def test_fleiss_is_as_published():
    diagnoses, _ = counted(np.array([[int(c) for c in row] for row in FLEISS_1971]).T.astype(float))
    assert diagnoses.sum(0).tolist() == [26, 26, 30, 55, 43]
    assert values(FLEISS_WIKIPEDIA)["fleiss"] == pytest.approx(0.209931, abs=5e-7)
    assert values(diagnoses)["fleiss"] == pytest.approx(0.430245, abs=5e-7)


def test_coefficients_with_missing_judgments_are_those_of_irrcac():
    found = values(*counted(EXAMPLE_C))
    expected = {"ac1": 0.775444, "raw": 0.818182, "fleiss": 0.761169, "brennan_prediger": 0.772727}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("cells", "kappa"),
    [([[20, 5], [10, 15]], 0.4), ([[45, 15], [25, 15]], 0.130435), ([[25, 35], [5, 35]], 0.259259)],
)
def test_cohen_is_as_published(cells, kappa):
    first, second = (np.repeat(index.ravel(), np.ravel(cells)) for index in np.indices((2, 2)))
    unit, annotator, value = long(np.stack([first, second]).astype(float))
    mean, pairs = cohen_kappas(unit, annotator, value, n_resamples=20)
    assert mean.value == pairs[0, 1].value == pytest.approx(kappa, abs=5e-7)
    assert pairs[0, 1].n == np.sum(cells)


def random_judgments(seed, missing=0.3, annotators=4, units=60):
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 6, units)
    judgments = np.clip(truth + rng.integers(-1, 2, (annotators, units)), 1, 5).astype(float)
    judgments[rng.random(judgments.shape) < missing] = np.nan
    return judgments


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", SCALES)
def test_values_equal_those_of_the_libraries(seed, scale):
    judgments = random_judgments(seed)
    counts, categories = counted(judgments)
    alpha = krippendorff.alpha(judgments, level_of_measurement=scale)
    assert values(counts, categories, scale=scale)["alpha"] == pytest.approx(alpha, abs=1e-9)

    weights = {"nominal": None, "ordinal": "linear", "interval": "quadratic"}[scale]
    mean, pairs = cohen_kappas(*long(judgments), scale=scale, n_resamples=20)
    expected = {}
    for a, b in pairs:
        both = np.isfinite(judgments[[a, b]]).all(0)
        sides = judgments[a, both].astype(int), judgments[b, both].astype(int)
        expected[a, b] = cohen_kappa_score(*sides, weights=weights)
        assert pairs[a, b].n == both.sum()
    assert len(pairs) == 6
    assert {names: estimate.value for names, estimate in pairs.items()} == pytest.approx(expected, abs=1e-9)
    assert mean.value == pytest.approx(np.mean(list(expected.values())), abs=1e-9)

    complete, _ = counted(random_judgments(seed, missing=0))
    assert values(complete)["fleiss"] == pytest.approx(fleiss_kappa(complete), abs=1e-9)


@pytest.mark.parametrize("scale", ["ordinal", "interval"])
def test_cohen_equals_the_library_where_two_annotators_leave_values_out(scale):
    rng = np.random.default_rng(0)
    judgments = np.stack([rng.choice(used, 40) for used in ([1, 2, 5], [1, 5], [1, 2, 3, 4, 5])]).astype(float)
    _, pairs = cohen_kappas(*long(judgments), scale=scale, n_resamples=20)
    weights = {"ordinal": "linear", "interval": "quadratic"}[scale]
    for (a, b), estimate in pairs.items():
        expected = cohen_kappa_score(judgments[a].astype(int), judgments[b].astype(int), weights=weights)
        assert estimate.value == pytest.approx(expected, abs=1e-9)


def test_alpha_equals_the_library_on_a_fine_scale():
    judgments = np.random.default_rng(0).normal(size=(3, 50)).round(2)
    for scale in SCALES:
        alpha = krippendorff.alpha(judgments, level_of_measurement=scale)
        assert values(*counted(judgments), scale=scale)["alpha"] == pytest.approx(alpha, abs=1e-9)


def test_the_interval_is_that_of_resampled_units():
    counts, categories = counted(random_judgments(3))
    found = agreement_coefficients(counts, categories, scale="ordinal", n_resamples=4000)["alpha"]
    rng = np.random.default_rng(1)
    drawn = [
        krippendorff.alpha(value_counts=counts[rng.integers(0, len(counts), len(counts))], value_domain=categories,
                           level_of_measurement="ordinal")
        for _ in range(1500)
    ]  # fmt: skip
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert found.n == (counts.sum(1) > 1).sum() and found.level == 0.95


def test_the_interval_of_cohens_kappa_is_that_of_resampled_units():
    judgments = random_judgments(4, missing=0, annotators=2)
    mean, _ = cohen_kappas(*long(judgments), n_resamples=4000)
    rng = np.random.default_rng(1)
    draws = [judgments[:, rng.integers(0, 60, 60)].astype(int) for _ in range(1000)]
    drawn = [cohen_kappa_score(*draw) for draw in draws]
    assert [mean.low, mean.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_the_seed_fixes_the_interval():
    counts, _ = counted(random_judgments(0))
    assert agreement_coefficients(counts, seed=1) == agreement_coefficients(counts, seed=1)
    assert agreement_coefficients(counts, seed=1) != agreement_coefficients(counts, seed=2)


def test_order_of_units_annotators_and_categories_does_not_matter():
    judgments = random_judgments(1)
    rng = np.random.default_rng(0)
    shuffled = judgments[rng.permutation(4)][:, rng.permutation(60)]
    assert values(*counted(judgments)) == pytest.approx(values(*counted(shuffled)), abs=1e-12)
    assert values(*counted(judgments)) == pytest.approx(values(*counted(6 - judgments)), abs=1e-12)


def test_full_agreement_is_one_and_its_raw_share_has_an_exact_interval():
    found = agreement_coefficients([[3, 0], [0, 3], [3, 0], [0, 3]], n_resamples=100)
    assert all(estimate.value == 1 for estimate in found.values())
    assert found["raw"].low == pytest.approx(0.3976, abs=1e-4) and found["raw"].high == 1  # 0.025 ** (1 / 4)


def test_what_is_undefined_is_none():
    one_value = agreement_coefficients([[2], [3]])
    assert one_value["raw"].value == 1
    assert all(one_value[name] is None for name in ("alpha", "fleiss", "ac1", "brennan_prediger"))
    assert set(agreement_coefficients([[1, 0], [0, 1]]).values()) == {None}  # nobody to agree with
    assert cohen_kappas([0, 1], [0, 1], [1, 2]) == (None, {})
    assert cohen_kappas([0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]) == (None, {(0, 1): None})


def test_slices_are_those_of_criteria_and_domains():
    annotations = read_annotations([EXAMPLE])
    results = agreement(annotations, by=("domain", "criterion"), n_resamples=50)
    names = ["factuality", "usefulness", "vote"]
    assert [(r.criterion, r.domain) for r in results] == [
        (name, domain) for name in names for domain in (None, "cooking", "geography")
    ]
    whole = {r.criterion: r for r in agreement(annotations, n_resamples=50)}
    assert set(whole) == set(names) and whole["vote"].scale == "nominal" and whole["usefulness"].scale == "ordinal"
    for name in names:
        assert sum(r.judgments for r in results if r.criterion == name and r.domain) == whole[name].judgments
    assert set(whole["vote"].cohen_pairs) == {("ann", "bo"), ("ann", "chi"), ("bo", "chi")}
    assert json.loads(json.dumps(whole["vote"].as_dict(), allow_nan=False))["raw"]["n"] == 4


@pytest.mark.parametrize("name", ["unit", "value", "domain_", "pair", "points", "size", "split"])
def test_a_criterion_may_have_any_name(tmp_path, name):
    rows = [
        {"item_id": str(k), "prompt_id": "p", "annotator": who, name: score}
        for k, scores in enumerate(([1, 1], [5, 5], [2, 2], [4, 5]))
        for who, score in zip("xy", scores, strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    annotations = read_annotations([tmp_path / "rows.jsonl"])
    (result,) = agreement(annotations, n_resamples=20)
    assert result.criterion == name and result.coefficients["raw"].value == 0.75
    assert aggregate(annotations).table.criterion.tolist() == [0, 1, 0.25, 0.875]


def test_what_is_below_target_is_listed():
    results = agreement(read_annotations([EXAMPLE]), n_resamples=50)
    assert [r.criterion for r in below_target(results)] == ["vote"]
    assert below_target(results, target=-1) == []


def test_unknown_scale_and_grouping_raise():
    annotations = read_annotations([EXAMPLE])
    with pytest.raises(UsageError, match="nominal, ordinal, interval"):
        agreement(annotations, scale="ratio")
    with pytest.raises(UsageError, match="by language"):
        agreement(annotations, by=("language",))


def test_interpretation_follows_krippendorffs_bounds():
    assert interpret(0.8) == "reliable" and "tentative" in interpret(0.79) and "tentative" in interpret(0.667)
    assert "usual for preference data" in interpret(0.4) and interpret(-0.1) == interpret(0) == "no better than chance"
    assert "poor" in interpret(0.1) and "undefined" in interpret(None)
    assert "uncertain" in interpret(0.9, 0.2) and interpret(0.9, 0.85) == "reliable"


@pytest.fixture
def agree(tmp_path):
    """The agreement on votes, given as choices by pair and annotator."""

    def run(*pairs):
        rows = [
            {"prompt_id": f"p{k}", "annotator": f"n{who}", "a": "x", "b": "y", "choice": choice}
            for k, choices in enumerate(pairs)
            for who, choice in enumerate(choices)
        ]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return agreement(read_annotations([tmp_path / "rows.jsonl"]), n_resamples=200)[0]

    return run


def test_a_few_items_get_numbers_but_no_level(agree):
    few = agree("aa", "bb")
    assert few.alpha == 1 and few.interpretation == "too few items to tell (2; wanted 10)"
    assert agree(*["aa", "bb"] * 4, "aa").interpretation.startswith("too few items to tell (9")
    assert not agree(*["aa", "bb"] * 5).interpretation.startswith("too few")


def test_an_interval_of_no_width_gives_no_level(agree):
    assert agree(*["aa", "bb"] * 10).interpretation == (
        "no two items differ in agreement, so the interval says nothing; read the raw agreement")  # fmt: skip


def test_high_raw_agreement_with_a_low_alpha_is_explained(agree):
    result = agree(*["aa"] * 95, *["ab"] * 5)
    assert result.coefficients["raw"].value == 0.95 and result.alpha < 0.1
    assert result.interpretation.endswith("(one choice prevails: see AC1)")
    assert "prevails" not in agree(*["aa", "bb", "ab", "ba"] * 5).interpretation


def test_a_negative_seed_raises():
    with pytest.raises(UsageError, match="seed is -1"):
        agreement(read_annotations([EXAMPLE]), seed=-1)


def test_pandalm_agreement_equals_the_libraries(real_data):
    path = real_data / "pandalm" / "testset-v1-first500.json"
    annotations = read_annotations([path])
    assert (annotations.n, annotations.kept, annotations.votes.pair.nunique()) == (1500, 1500, 500)
    (result,) = agreement(annotations)
    rows = json.loads(path.read_text())
    labels = np.array([[row[f"annotator{k}"] for row in rows] for k in (1, 2, 3)])
    counts = np.stack([(labels == label).sum(0) for label in (0, 1, 2)], 1)
    found = {name: estimate.value for name, estimate in result.coefficients.items()}
    kappas = [cohen_kappa_score(labels[a], labels[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    expected = {
        "alpha": krippendorff.alpha(labels.astype(float), level_of_measurement="nominal"),
        "fleiss": fleiss_kappa(counts),
        "cohen": np.mean(kappas),
        "raw": (counts * (counts - 1)).sum() / (6 * 500),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert [estimate.value for estimate in result.cohen_pairs.values()] == pytest.approx(kappas, abs=1e-9)
