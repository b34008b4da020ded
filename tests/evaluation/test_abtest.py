"""A/B tests: a plan that cannot change, an assignment at random, looks that err as often as they say."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.abtest import (
    ARMS,
    Outcome,
    Plan,
    analyse,
    assign,
    assignment_rows,
    make_plan,
    read_assignments,
)
from rmtrl.metrics import binomial_estimate, combined_estimate
from rmtrl.metrics.trials import critical_values, inflation, two_proportion_z
from rmtrl.types import json_ready

# plan and assignment


def test_plan_has_the_size_its_looks_need():
    assert make_plan(0.5, 0.05).n == 1565
    assert make_plan(0.5, 0.05, looks=5).n == int(np.ceil(1564.672 * inflation(5)))
    plan = make_plan(0.5, 0.25, power=0.9, looks=3)
    assert plan.look_sizes == (26, 52, 78)
    assert make_plan(0.5, 0.1, paired=True, discordant=0.4).n == 312
    assert make_plan(0.5, 0.1, paired=True).discordant == pytest.approx(0.5)


def test_a_plan_comes_back_from_json_and_a_changed_one_does_not():
    stored = json.loads(json.dumps(json_ready(make_plan(0.5, 0.1, looks=2, safety_maximum=0.01))))
    assert Plan.from_dict(stored) == make_plan(0.5, 0.1, looks=2, safety_maximum=0.01)
    with pytest.raises(DataError, match="was changed after it was made"):
        Plan.from_dict(stored | {"safety_maximum": 0.05})
    with pytest.raises(DataError, match="lacks or adds alpha"):
        Plan.from_dict({name: value for name, value in stored.items() if name != "alpha"})
    with pytest.raises(DataError, match="schema"):
        Plan.from_dict({})


@pytest.mark.parametrize(
    "settings",
    [{"effect": -0.1}, {"effect": 1e-200, "paired": True}, {"safety_maximum": 1.0}, {"safety_alpha": 0.0},
     {"block": 3}, {"discordant": 0.3}],
)  # fmt: skip
def test_plans_that_cannot_work_are_refused(settings):
    with pytest.raises(UsageError, match="got .*;"):
        make_plan(**({"baseline": 0.5, "effect": 0.1} | settings))


UNITS = [f"user-{i}" for i in range(200)]


def test_assignment_is_balanced_in_every_block_and_random():
    plan = make_plan(0.5, 0.1, block=10)
    arms = list(assign(UNITS, plan).values())
    assert all(arms[start : start + 10].count("treatment") == 5 for start in range(0, 200, 10))
    blocks = {tuple(arms[start : start + 10]) for start in range(0, 200, 10)}
    assert len(blocks) > 15
    assert list(assign(UNITS, dataclasses.replace(plan, seed=1)).values()) != arms


def test_a_unit_keeps_its_arm():
    plan = make_plan(0.5, 0.1)
    first = assign(UNITS[:33], plan)
    assert assign([*UNITS[:33], *UNITS[:33]][::-1], plan) == first
    both = assign(UNITS, plan, first)
    assert list(both)[:33] == list(first) and all(both[unit] == arm for unit, arm in first.items())
    assert list(both.values()).count("treatment") == 100


def test_the_order_of_units_does_not_decide():
    plan = make_plan(0.5, 0.1)
    shuffled = np.random.default_rng(0).permutation(UNITS).tolist()
    assert assign(shuffled, plan) == assign(UNITS, plan)


def sealed(assigned, plan):
    return list(assignment_rows(assigned, plan))


def test_assignments_as_they_were_made_pass_however_often_they_grow():
    plan = make_plan(0.5, 0.1)
    found = assign(UNITS, plan, assign(UNITS[:33], plan))
    assert read_assignments(sealed(found, plan), plan, source="rows") == found


@pytest.mark.parametrize("sealed_again", [False, True])
def test_an_arm_set_after_the_fact_is_an_error(sealed_again):
    plan = make_plan(0.5, 0.1)
    found = assign(UNITS[:20], plan)
    rows, unit = sealed(found, plan), list(found)[7]
    found[unit] = rows[7]["arm"] = ARMS[1 - ARMS.index(found[unit])]
    with pytest.raises(DataError, match=f"changed after they were made, from line 8 on .unit '{unit}'"):
        read_assignments(sealed(found, plan) if sealed_again else rows, plan, source="rows")


def test_units_exchanged_or_taken_out_are_an_error():
    plan = make_plan(0.5, 0.1)
    rows = sealed(assign(UNITS[:20], plan), plan)
    arms = [row["arm"] for row in rows]
    one, other = rows[arms.index("control")], rows[arms.index("treatment")]
    swapped = [{**row, "unit": {one["unit"]: other["unit"], other["unit"]: one["unit"]}.get(row["unit"], row["unit"])}
               for row in rows]  # fmt: skip
    with pytest.raises(DataError, match="changed after they were made"):
        read_assignments(swapped, plan, source="rows")
    for changed in (rows[1:], [{**row, "seal": None} for row in rows]):
        with pytest.raises(DataError, match="from line 1 on"):
            read_assignments(changed, plan, source="rows")


# analysis


def run(plan, success, violation=None):
    """Outcomes of as many units of each arm as `success` has rows; columns are control and treatment."""
    units = [f"u{i}" for i in range(len(success) * (1 if plan.paired else 2))]
    assigned = {unit: ARMS[i % 2] for i, unit in enumerate(units)}
    waiting = {arm: iter(success[:, i].tolist()) for i, arm in enumerate(ARMS)}
    unsafe = {arm: iter(violation[:, i].tolist()) for i, arm in enumerate(ARMS)} if violation is not None else None
    outcomes = [
        Outcome(unit, bool(next(waiting[arm])), bool(next(unsafe[arm])) if unsafe else None, arm)
        for unit in assigned
        for arm in (ARMS if plan.paired else (assigned[unit],))
    ]
    return assigned, outcomes


def outcomes_with(n, control, treatment):
    """n rows with so many successes of control and treatment, at the start."""
    place = np.arange(n)[:, None]
    return place < np.array([control, treatment])


def test_analysis_of_one_look_by_hand():
    plan = make_plan(0.5, 0.25, power=0.9)
    assigned, outcomes = run(plan, outcomes_with(plan.n, 40, 58))
    found = analyse(plan, assigned, outcomes)
    (look,) = found.looks
    assert look.z == pytest.approx(two_proportion_z(58, 77, 40, 77))
    rates = [binomial_estimate(k, 77, level=look.difference.level, kind="wilson") for k in (58, 40)]
    assert look.difference.low == pytest.approx(combined_estimate(rates, (1, -1)).low)
    assert found.decision == "success" and found.rates["treatment"].value == 58 / 77
    assert found.balance_p == 1 and found.counts["outcomes control"] == 77


def test_looks_are_those_of_the_plan_however_often_one_looks():
    plan = make_plan(0.5, 0.2, looks=4, bounds="pocock")
    rng = np.random.default_rng(3)
    assigned, outcomes = run(plan, rng.random((plan.n, 2)) < [0.5, 0.75])
    seen = [analyse(plan, assigned, outcomes[:n]) for n in range(2, len(outcomes) + 1, 7)]
    assert seen[0].decision == "go on" and f"due at {plan.look_sizes[0]}" in seen[0].reason
    last = seen[-1]
    assert last.decision == "success" and last.looks[-1].look < 4  # it stopped early, and says the same ever after
    assert all(one.looks == last.looks[: len(one.looks)] for one in seen)


def test_a_worse_treatment_is_no_success_and_an_equal_one_no_difference():
    plan = make_plan(0.5, 0.25, power=0.9)
    for control, treatment, decision in [(58, 40, "no success"), (40, 41, "no difference shown")]:
        assert analyse(plan, *run(plan, outcomes_with(plan.n, control, treatment))).decision == decision


def test_paired_analysis_is_mcnemar():
    plan = make_plan(0.5, 0.1, paired=True, discordant=0.4)
    success = np.zeros((plan.n, 2), bool)
    success[:80, 1] = success[80:120, 0] = success[120:200] = True
    assigned, outcomes = run(plan, success)
    found = analyse(plan, assigned, outcomes)
    assert found.looks[0].z == pytest.approx(40 / np.sqrt(120))
    assert found.decision == "success" and found.balance_p is None
    half = analyse(plan, assigned, outcomes[:-1])
    assert half.counts["pending"] == 1 and half.decision == "go on"


def test_a_pair_takes_its_place_when_it_is_complete():
    plan = make_plan(0.2, 0.6, paired=True, looks=2)
    n = plan.look_sizes[0]
    units = [f"u{i}" for i in range(plan.n)]
    assigned = dict.fromkeys(units, "control")
    early = [Outcome(u, True, None, "treatment") for u in units]  # all treatments first, then controls backwards
    controls = [Outcome(u, i < n, None, "control") for i, u in enumerate(units)][::-1]
    found = analyse(plan, assigned, [*early, *controls[:n]])
    assert found.looks[0].difference.value == pytest.approx((plan.n - n) / n if plan.n < 2 * n else 1.0)


@pytest.mark.parametrize("kind", ["pocock", "obrien-fleming"])
def test_looks_err_as_often_as_planned(kind):
    # 4,000 experiments without a difference: standard error of the share is 0.0035; five looks at 1.96 err in 0.14
    rng = np.random.default_rng(0)
    runs, n, looks = 4000, 500, 5
    bounds = critical_values(looks, kind=kind)
    sizes = n * np.arange(1, looks + 1) // looks
    both = (rng.random((2, runs, n)) < 0.4).cumsum(axis=2)[:, :, sizes - 1]
    pooled = both.sum(axis=0) / (2 * sizes)
    z = (both[0] - both[1]) / sizes / np.sqrt(2 * pooled * (1 - pooled) / sizes)
    assert np.mean((np.abs(z) >= bounds).any(axis=1)) == pytest.approx(0.05, abs=0.0105)
    assert np.mean((np.abs(z) >= 1.96).any(axis=1)) > 0.1


def test_whole_experiments_without_a_difference_end_in_one_as_often_as_planned():
    rng = np.random.default_rng(1)
    plan = make_plan(0.4, 0.25, looks=3, bounds="pocock", alpha=0.2)
    assigned, outcomes = run(plan, np.zeros((plan.n, 2), bool))
    errs = 0
    for _ in range(400):
        hits = rng.random(len(outcomes)) < 0.4
        made = [dataclasses.replace(o, success=bool(hit)) for o, hit in zip(outcomes, hits, strict=True)]
        errs += analyse(plan, assigned, made).decision in ("success", "no success")
    assert errs / 400 == pytest.approx(0.2, abs=0.06)


def test_planned_power_is_reached():
    rng = np.random.default_rng(2)
    plan = make_plan(0.5, 0.15, looks=3)
    runs, sizes = 4000, np.array(plan.look_sizes)
    hits = (rng.random((2, runs, plan.n)) < np.array([0.65, 0.5])[:, None, None]).cumsum(axis=2)[:, :, sizes - 1]
    pooled = hits.sum(axis=0) / (2 * sizes)
    z = (hits[0] - hits[1]) / sizes / np.sqrt(2 * pooled * (1 - pooled) / sizes)
    assert np.mean((z >= plan.critical_values).any(axis=1)) == pytest.approx(0.8, abs=0.02)


def test_violations_stop_at_once_and_forbid_success():
    plan = make_plan(0.5, 0.25, power=0.9, safety_maximum=0.02)
    violation = np.zeros((plan.n, 2), bool)
    violation[:6, 1] = True  # 6 of 77 where 1.5 are tolerated
    assigned, outcomes = run(plan, outcomes_with(plan.n, 40, 58), violation)
    found = analyse(plan, assigned, outcomes)
    assert found.decision == "stop: safety" and "6 violations in 77" in found.reason
    assert stats.binomtest(6, 77, 0.02, alternative="greater").pvalue < 0.05
    assert analyse(plan, assigned, outcomes[:20]).decision == "stop: safety"  # before any look is due
    violation[2:6] = False  # 2 of 77: above the limit, not surely
    assert analyse(plan, *run(plan, outcomes_with(plan.n, 40, 58), violation)).decision == "no success"
    violation[1] = False
    assert analyse(plan, *run(plan, outcomes_with(plan.n, 40, 58), violation)).decision == "success"


def test_no_violation_is_tolerated_where_the_limit_is_zero():
    plan = make_plan(0.5, 0.25, safety_maximum=0.0)
    violation = np.zeros((plan.n, 2), bool)
    assert analyse(plan, *run(plan, outcomes_with(plan.n, 20, 50), violation)).decision == "success"
    violation[0] = True
    assert analyse(plan, *run(plan, outcomes_with(plan.n, 20, 50), violation)).decision == "stop: safety"


def test_lost_outcomes_show_as_imbalance():
    plan = make_plan(0.5, 0.1)
    assigned, outcomes = run(plan, np.ones((plan.n, 2), bool))
    lost = [o for i, o in enumerate(outcomes) if o.arm == "control" or i % 3]
    found = analyse(plan, assigned, lost)
    counts = [found.counts[f"outcomes {arm}"] for arm in ARMS]
    assert found.balance_p == pytest.approx(stats.chisquare(counts).pvalue) and found.balance_p < 0.001


def test_criteria_may_not_change_after_data_exist():
    plan = make_plan(0.5, 0.25)
    rows = list(assignment_rows(assign(UNITS, plan), plan))
    assert read_assignments(rows, plan, source="rows") == assign(UNITS, plan)
    with pytest.raises(DataError, match="criteria may not change after data exist"):
        read_assignments(rows, make_plan(0.5, 0.25, alpha=0.2), source="rows")


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (Outcome("stranger", True, False), "was not assigned"),
        (Outcome("u0", True, None), "lacks violation"),
        (Outcome("u0", True, False, "placebo"), "wanted control or treatment"),
        (Outcome("u0", True, False, ["x"]), "wanted control or treatment"),
        (Outcome("u0", True, False, "treatment"), "was assigned to control"),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(outcome, message):
    plan = make_plan(0.5, 0.25, safety_maximum=0.1)
    with pytest.raises(DataError, match=message):
        analyse(plan, {"u0": "control"}, [outcome])


def test_repeated_and_absent_outcomes_are_refused():
    plan = make_plan(0.5, 0.25)
    with pytest.raises(DataError, match="two outcomes"):
        analyse(plan, {"u0": "control"}, [Outcome("u0", True), Outcome("u0", False)])
    with pytest.raises(DataError, match="no outcomes"):
        analyse(plan, {"u0": "control"}, [])
    with pytest.raises(DataError, match="arm None"):
        analyse(make_plan(0.5, 0.25, paired=True), {"u0": "control"}, [Outcome("u0", True)])
