"""`rmtrl abtest`: plan, assign, analyse, and input they cannot use."""

import json
import re

import pytest

from rmtrl.evaluation.abtest import Plan


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def plan(rmtrl, tmp_path):
    """A plan of 77 units an arm, as a file."""
    path = tmp_path / "plan.json"
    code, *_ = rmtrl("abtest", "plan", "--baseline", 0.5, "--effect", 0.25, "--power", 0.9, "--safety-maximum", 0.02,
                     "--out", path)  # fmt: skip
    assert code == 0
    return path


@pytest.fixture
def assignments(rmtrl, plan, tmp_path):
    path = tmp_path / "assignments.jsonl"
    write(tmp_path / "units.jsonl", [{"unit": f"u{i}"} for i in range(160)])
    assert rmtrl("abtest", "assign", plan, tmp_path / "units.jsonl", "--out", path)[0] == 0
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcomes(path, assignments, successes, violations=0):
    """80 outcomes of each arm; the first so many are successes, the first so many of treatment violations."""
    seen = {"control": 0, "treatment": 0}
    made = []
    for row in rows(assignments):
        place = seen[row["arm"]]
        seen[row["arm"]] += 1
        unsafe = row["arm"] == "treatment" and place < violations
        made.append({"unit": row["unit"], "success": int(place < successes[row["arm"]]), "violation": unsafe})
    return write(path, made)


def test_a_plan_says_how_many_units_and_when_to_look(rmtrl):
    code, out, _ = rmtrl("abtest", "plan", "--baseline", 0.5, "--effect", 0.05, "--json")
    found = json.loads(out)
    assert code == 0 and found["schema"] == "rmtrl/abtest-plan/1" and found["n"] == 1565
    assert Plan.from_dict(found).hash == found["hash"]
    code, out, _ = rmtrl("abtest", "plan", "--baseline", 0.5, "--effect", 0.05, "--looks", 2, "--bounds", "pocock")
    assert code == 0 and "units of each arm  1,738" in out and "869 (|z| 2.178), 1,738 (|z| 2.178)" in out


def test_a_plan_is_not_replaced(rmtrl, plan):
    arguments = ("abtest", "plan", "--baseline", 0.5, "--effect", 0.25, "--power", 0.9, "--out", plan)
    assert rmtrl(*arguments, "--safety-maximum", 0.02)[0] == 0  # the same plan
    code, _, err = rmtrl(*arguments, "--safety-maximum", 0.05)
    assert (
        code == 2 and "is another plan" in err and Plan.from_dict(json.loads(plan.read_text())).safety_maximum == 0.02
    )


def test_units_are_assigned_in_balance_and_keep_their_arm(rmtrl, plan, assignments, tmp_path):
    before = {row["unit"]: row["arm"] for row in rows(assignments)}
    assert sorted(before.values()).count("control") == 80
    more = tmp_path / "more.txt"
    more.write_text("u3\nnew-1\nnew-2\nnew-1\n")
    code, out, _ = rmtrl("abtest", "assign", plan, more, "--out", assignments, "--json")
    found = json.loads(out)
    assert code == 0 and (found["units"], found["new"], found["repeated_ids"]) == (162, 2, 1)
    after = {row["unit"]: row["arm"] for row in rows(assignments)}
    assert {unit: after[unit] for unit in before} == before and set(after) - set(before) == {"new-1", "new-2"}
    assert {row["plan"] for row in rows(assignments)} == {found["plan"]}


def test_a_success(rmtrl, plan, assignments, tmp_path):
    given = outcomes(tmp_path / "o.jsonl", assignments, {"control": 40, "treatment": 60})
    code, out, err = rmtrl("abtest", "analyse", plan, assignments, given, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "") and found["schema"] == "rmtrl/abtest/1" and found["decision"] == "success"
    assert found["looks"][0]["n_per_arm"] == 77 and found["rates"]["treatment"]["value"] == 0.75
    code, out, _ = rmtrl("abtest", "analyse", plan, assignments, given)
    assert code == 0 and re.search(r"^decision +success\nreason +look 1: z = ", out, re.M) and "\nviolations\n" in out


def test_too_few_outcomes_go_on(rmtrl, plan, assignments, tmp_path):
    given = outcomes(tmp_path / "o.jsonl", assignments, {"control": 40, "treatment": 60})
    write(given, rows(given)[:100])
    _, out, _ = rmtrl("abtest", "analyse", plan, assignments, given)
    assert "go on\n" in out and "the next look is due at 77 outcomes of each arm" in out


def test_violations_stop_with_exit_code_1(rmtrl, plan, assignments, tmp_path):
    given = outcomes(tmp_path / "o.jsonl", assignments, {"control": 40, "treatment": 60}, violations=8)
    code, out, _ = rmtrl("abtest", "analyse", plan, assignments, given, "--json")
    assert code == 1 and json.loads(out)["decision"] == "stop: safety"


def test_unequal_loss_of_outcomes_is_warned_of(rmtrl, plan, assignments, tmp_path):
    given = outcomes(tmp_path / "o.jsonl", assignments, {"control": 40, "treatment": 60})
    arm = {row["unit"]: row["arm"] for row in rows(assignments)}
    write(given, [row for i, row in enumerate(rows(given)) if arm[row["unit"]] == "control" or i % 3 == 0])
    code, _, err = rmtrl("abtest", "analyse", plan, assignments, given)
    assert code == 0 and "missing unequally" in err


def test_paired_arms(rmtrl, tmp_path):
    plan, assignments = tmp_path / "plan.json", tmp_path / "assignments.jsonl"
    rmtrl("abtest", "plan", "--baseline", 0.5, "--effect", 0.2, "--paired", "--discordant", 0.4, "--out", plan)
    n = json.loads(plan.read_text())["n"]
    units = tmp_path / "units.txt"
    units.write_text("\n".join(f"prompt {i}" for i in range(n)))
    rmtrl("abtest", "assign", plan, units, "--out", assignments)
    assert {row["first"] for row in rows(assignments)} == {"control", "treatment"}
    made = [{"unit": f"prompt {i}", "arm": arm, "success": int(arm == "treatment" or i % 3 > 0)}
            for i in range(n) for arm in ("control", "treatment")]  # fmt: skip
    code, out, _ = rmtrl("abtest", "analyse", plan, assignments, write(tmp_path / "o.jsonl", made), "--json")
    found = json.loads(out)
    assert code == 0 and found["decision"] == "success" and found["balance_p"] is None
    assert found["looks"][0]["z"] == pytest.approx(((n + 2) // 3) ** 0.5)


def test_a_changed_plan_is_an_error(rmtrl, plan, assignments, tmp_path):
    given = outcomes(tmp_path / "o.jsonl", assignments, {"control": 40, "treatment": 60})
    stored = json.loads(plan.read_text())
    plan.write_text(json.dumps(stored | {"alpha": 0.2}))
    code, _, err = rmtrl("abtest", "analyse", plan, assignments, given)
    assert code == 2 and "was changed after it was made" in err
    other = tmp_path / "other.json"
    rmtrl("abtest", "plan", "--baseline", 0.5, "--effect", 0.25, "--power", 0.9, "--out", other)
    code, _, err = rmtrl("abtest", "analyse", other, assignments, given)
    assert code == 2 and "criteria may not change after data exist" in err
    write(assignments, [row | {"plan": stored["hash"]} for row in rows(assignments)])
    code, _, err = rmtrl("abtest", "assign", other, tmp_path / "units.jsonl", "--out", assignments)
    assert code == 2 and "was assigned under the plan" in err


def test_arms_set_by_the_outcome_are_an_error(rmtrl, plan, assignments, tmp_path):
    given = outcomes(tmp_path / "o.jsonl", assignments, {"control": 40, "treatment": 60})
    success = {row["unit"]: row["success"] for row in rows(given)}
    write(assignments, [r | {"arm": "treatment" if success[r["unit"]] else "control"} for r in rows(assignments)])
    for arguments in (("analyse", plan, assignments, given), ("assign", plan, given, "--out", assignments)):
        code, out, err = rmtrl("abtest", *arguments)
        assert (code, out) == (2, "") and "were changed after they were made" in err and err.count("\n") == 1


def test_plans_that_cannot_work_are_one_line(rmtrl, tmp_path):
    for more, message in [
        (("--effect", 0.6), "rates between 0 and 1"),
        (("--effect", -0.1), "a gain above 0"),
        (("--effect", "nan"), "wanted"),
        (("--effect", 1e-200), "an effect of 1e-06 or more"),
        (("--effect", 0.1, "--alpha", 1e-300), "1e-06 <= alpha"),
        (("--effect", 0.1, "--looks", 0), "1 to 20"),
        (("--effect", 0.1, "--bounds", "wald"), "pocock or obrien-fleming"),
        (("--effect", 0.1, "--power", 1), "alpha < power < 1"),
        (("--effect", 0.1, "--discordant", 0.2), "unpaired"),
        (("--effect", 0.3, "--discordant", 0.2, "--paired"), "effect <= discordant"),
        (("--effect", 0.1, "--out", tmp_path), "another plan"),
    ]:
        code, out, err = rmtrl("abtest", "plan", "--baseline", 0.5, *more)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, more


def test_input_that_cannot_be_used_is_one_line(rmtrl, plan, assignments, tmp_path):
    good = outcomes(tmp_path / "o.jsonl", assignments, {"control": 40, "treatment": 60})
    empty = write(tmp_path / "empty.jsonl", [])
    no_unit = write(tmp_path / "no_unit.jsonl", [{"id": 1}])
    maybe = write(tmp_path / "maybe.jsonl", [{"unit": "u0", "success": "maybe"}])
    twice = write(tmp_path / "twice.jsonl", rows(assignments)[:1] * 2)
    mixed = tmp_path / "mixed.txt"
    mixed.write_text('{"unit": 1}\nu2\n')
    listed = write(tmp_path / "listed.jsonl", [["u1"], ["u2"]])
    flag = write(tmp_path / "flag.jsonl", [{"unit": True}])
    armed = write(tmp_path / "armed.jsonl", [rows(good)[0] | {"arm": ["x"]}])
    typed = write(tmp_path / "typed.json", [json.loads(plan.read_text()) | {"alpha": "small"}])
    for arguments, message in [
        (("assign", plan, empty, "--out", tmp_path / "x"), "is empty"),
        (("assign", plan, no_unit, "--out", tmp_path / "x"), "row 1 has no unit"),
        (("assign", plan, no_unit, "--out", no_unit), "is read as input"),
        (("assign", tmp_path / "none", no_unit, "--out", tmp_path / "x"), "cannot be read"),
        (("assign", good, no_unit, "--out", tmp_path / "x"), "not JSON"),
        (("assign", plan, mixed, "--out", tmp_path / "x"), "among ids"),
        (("assign", plan, listed, "--out", tmp_path / "x"), "among ids"),
        (("assign", plan, flag, "--out", tmp_path / "x"), "row 1 has no unit"),
        (("analyse", plan, assignments, armed), "has the arm ['x']"),
        (("analyse", plan, assignments, empty), "is empty"),
        (("analyse", plan, assignments, maybe), "success (0 or 1)"),
        (("analyse", plan, assignments, no_unit), "wanted unit"),
        (("analyse", plan, good, good), "wanted assignments"),
        (("analyse", plan, twice, good), "twice"),
        (("analyse", typed, assignments, good), "changed after"),
    ]:
        code, out, err = rmtrl("abtest", *arguments)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, arguments
    assert not (tmp_path / "x").exists()
