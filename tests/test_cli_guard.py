"""`rmtrl guard`: what was found where, fitted thresholds written and read again, the limit, unusable input."""

import json

import pytest
import yaml

TOKEN = "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"


@pytest.fixture
def files(tmp_path):
    """A file of 40 answers, two of which tell a secret, and a policy."""
    rows = [{"id": f"a{i}", "prompt": f"Question {i}?", "response": "Yes.", "domain": "ab"[i % 2]} for i in range(40)]
    rows[3]["response"] = f"Use {TOKEN} here."
    rows[5]["response"] = "Your password is Xk9!mm2q."
    responses, policy = tmp_path / "rows.jsonl", tmp_path / "policy.yaml"
    responses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy.write_text("schema: rmtrl/guard-policy/1\nguards: {secrets: {}, personal data: {}}\n")
    return responses, policy


def labelled(path, n):
    rows = [{"prompt": f"Other {i}?", "response": f"Well {i}.", "label": 0} for i in range(n)]
    rows += [{"prompt": f"Key {i}?", "response": f"It is {TOKEN}{i}.", "labels": {"secrets": 1}} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_findings_and_rates_are_shown_and_written(rmtrl, files, tmp_path):
    code, out, err = rmtrl("guard", files[0], "--rules", files[1], "--out", tmp_path / "found.jsonl")
    assert (code, err) == (0, "")
    assert "0.050 [0.006, 0.169] (n = 40)" in out and "rate by domain" in out
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [(own["id"], own["guard"], own["start"]) for own in found] == [("a3", "secrets", 4), ("a5", "secrets", 17)]
    assert TOKEN not in (tmp_path / "found.jsonl").read_text() and TOKEN not in out


def test_without_a_file_the_findings_are_shown(rmtrl, files):
    _, out, _ = rmtrl("guard", files[0], "--rules", files[1])
    assert "rows.jsonl row 4: secrets, characters 4–44: GitHub Token" in out


def test_rows_that_are_skipped_are_named_and_counted(rmtrl, files):
    with files[0].open("a") as file:
        file.write('{"prompt": "Hi", "response": null}\n5\n')
    code, out, err = rmtrl("guard", files[0], "--rules", files[1], "--json")
    found = json.loads(out)
    assert code == 0 and found["n"] == 40 and [own["place"][-6:] for own in found["skipped"]] == ["row 41", "row 42"]
    assert "2 rows were skipped, first" in err and "row 41: no answer" in err
    code, _, err = rmtrl("guard", files[0], "--rules", files[1], "--map", "response=mispelt")
    assert code == 2 and "no row of" in err and len(err.splitlines()) == 1


def test_above_the_limit_exits_with_1_and_json_is_whole(rmtrl, files):
    code, out, _ = rmtrl("guard", files[0], "--rules", files[1], "--limit", 0.01, "--json")
    found = json.loads(out)
    assert code == 1 and found["schema"] == "rmtrl/guard/1" and found["passed"] is False
    assert found["guards"]["secrets"]["above_limit"] and not found["guards"]["personal data"]["above_limit"]
    assert found["guards"]["secrets"]["by_domain"]["b"]["value"] == 0.1 and len(found["findings"]) == 2
    assert rmtrl("guard", files[0], "--rules", files[1], "--limit", 0.05)[0] == 0


def test_fitted_thresholds_are_written_and_read_again(rmtrl, files, tmp_path):
    rows, fitted = labelled(tmp_path / "labelled.jsonl", 60), tmp_path / "fitted.yaml"
    code, out, err = rmtrl("guard", files[0], "--rules", files[1], "--fit", rows, "--false-positive-rate", 0.02,
                           "--fitted", fitted, "--json")  # fmt: skip
    fits = json.loads(out)["fits"]
    assert code == 0 and fits["secrets"]["sensitivity"]["value"] == 1 and fits["secrets"]["threshold"] == 0
    assert fits["personal data"]["sensitivity"] is None and "personal data catches is not measured" in err
    assert yaml.safe_load(fitted.read_text())["guards"]["secrets"]["threshold"] == 0
    code, out, _ = rmtrl("guard", files[0], "--rules", fitted, "--json")
    assert code == 0 and json.loads(out)["guards"]["secrets"]["threshold"] == 0


def test_prompts_that_thresholds_were_fitted_on_are_counted(rmtrl, files, tmp_path):
    rows = labelled(tmp_path / "labelled.jsonl", 60)
    with rows.open("a") as file:
        file.write(json.dumps({"prompt": "Question 1?", "response": "Yes.", "labels": {"secrets": 0}}) + "\n")
    code, _, err = rmtrl("guard", files[0], "--rules", files[1], "--fit", rows, "--false-positive-rate", 0.02)
    assert code == 0 and "1 answers have prompts of" in err


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--fit", "x.jsonl"], "--fit and --false-positive-rate together"),
     (["--false-positive-rate", 0.02], "--fit and --false-positive-rate together"),
     (["--fitted", "x.yaml"], "got --fitted without --fit"), (["--limit", 2], "--limit")],
)  # fmt: skip
def test_options_that_do_not_go_together_are_one_line(rmtrl, files, more, said):
    code, out, err = rmtrl("guard", files[0], "--rules", files[1], *more)
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1


def test_unusable_input_is_one_line_and_nothing_is_written(rmtrl, files, tmp_path):
    rows, out = labelled(tmp_path / "labelled.jsonl", 30), tmp_path / "found.jsonl"
    fit = ["--fit", rows, "--false-positive-rate", 0.02, "--out", out]
    code, _, err = rmtrl("guard", files[0], "--rules", files[1], *fit)
    assert code == 2 and "the guard secrets: 30 harmless prompts cannot hold" in err and not out.exists()
    code, _, err = rmtrl("guard", files[0], "--rules", tmp_path / "none.yaml")
    assert code == 2 and "none.yaml cannot be read" in err
    code, _, err = rmtrl("guard", files[0], "--rules", files[1], "--out", files[0])
    assert code == 2 and "read as input" in err
    files[0].write_text('{"prompt": "Hi"}\n')
    code, _, err = rmtrl("guard", files[0], "--rules", files[1])
    assert code == 2 and "row 1: no answer" in err and len(err.splitlines()) == 1
