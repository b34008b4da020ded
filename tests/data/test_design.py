import pytest

from rmtrl.data.design import Design, coverage, read_design
from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import UsageError


def by_name(result):
    return {check["name"]: check for check in result.checks}


def test_presets_hold_their_designs():
    blueprint, benchmark = read_design("blueprint"), read_design("benchmark")
    assert (blueprint.prompts, blueprint.annotators_per_item, blueprint.domains) == (15000, 5, 20)
    assert blueprint.criteria == ["usefulness", "factuality", "safety", "alignment"]
    assert blueprint.sources == {"human": 0.6, "generated": 0.4}
    assert (benchmark.prompts, benchmark.responses, benchmark.domains) == (12000, 9000, 28)


def test_what_is_met_and_what_is_missing_is_said():
    pairs = make_preferences(500, clean=True)
    result = coverage(pairs, read_design("blueprint"), judgments_per_item=[5, 5, 4], criteria=["safety"])
    checks = by_name(result)
    assert checks["prompts"] == {"name": "prompts", "got": 500, "wanted": 15000, "met": False}
    assert checks["domains"]["met"] and checks["source human"]["met"] and checks["source generated"]["met"]
    assert checks["annotators per item"]["got"] == 4 and not checks["annotators per item"]["met"]
    assert checks["annotators per item"]["share_with_enough"] == pytest.approx(2 / 3)
    assert checks["criteria"]["got"] == ["safety"] and not checks["criteria"]["met"]
    assert not result.met


def test_a_data_set_that_meets_its_design_says_so():
    result = coverage(
        make_preferences(60, clean=True),
        Design(prompts=60, domains=20, annotators_per_item=2),
        judgments_per_item=[2, 3],
    )
    assert result.met
    assert sum(result.counts["domain"].values()) == sum(result.counts["source"].values())


def test_absent_domains_are_named():
    result = coverage(make_preferences(20, clean=True), Design(domains=["geography", "sports of kings"]))
    assert by_name(result)["domains"]["absent"] == ["sports of kings"]


def test_shares_have_intervals_and_balance_is_one_for_equal_domains():
    pairs = make_preferences(40, clean=True)
    shares = coverage(pairs, Design()).shares["source"]
    assert sum(share.value for share in shares.values()) == pytest.approx(1)
    assert all(share.low <= share.value <= share.high for share in shares.values())
    one_each = pairs.select([pairs["domain"].index(domain) for domain in sorted(set(pairs["domain"]))])
    assert coverage(one_each, Design()).balance == 1.0
    assert coverage(pairs.select([0] * 9 + [list(pairs["domain"]).index("physics")]), Design()).balance < 0.6


def test_a_design_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="give benchmark, blueprint or a YAML file"):
        read_design("nothing")
    (tmp_path / "mine.yaml").write_text("colours: 3\n")
    with pytest.raises(UsageError, match="is not a design"):
        read_design(tmp_path / "mine.yaml")
    for wrong in ("prompts: many", "sources: [a, b]", "domains: 0.5", "sources: {human: most}"):
        (tmp_path / "mine.yaml").write_text(wrong)
        with pytest.raises(UsageError, match="is not a design"):
            read_design(tmp_path / "mine.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(UsageError, match="is not a design"):
        read_design(tmp_path / "empty.yaml")
