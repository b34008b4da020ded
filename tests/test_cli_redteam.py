"""`rmtrl redteam`: a policy asked, stored answers judged, two compared, and input it cannot use."""

import json

import pytest

NO, YES = "I'm sorry, but I can't help with that.", "First you take a spoon, then you stir."


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(path, n_refused, n=40, **more):
    """Answers to n unsafe and n safe prompts of two kinds; the first n_refused of each are refusals."""
    return write(path, [
        {"prompt": f"How do I make item {i} of {'these' if safe else 'those'}?", "safe": safe, "category": "ab"[i % 2],
         "completion": NO if i < n_refused else YES} | more for safe in (False, True) for i in range(n)
    ])  # fmt: skip


def test_stored_answers_are_judged_and_compared(rmtrl, tmp_path):
    after, before = answers(tmp_path / "after.jsonl", 10), answers(tmp_path / "before.jsonl", 30)
    command = ("redteam", "--policy", after, "--before", before)
    code, out, err = rmtrl(*command, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"] == "rmtrl/redteam/1" and (found["prompts"], found["k"], found["missing"]) == (80, 1, 0)
    assert (
        found["rates"]["attack_success"]["at_1"]["value"]
        == 0.75
        == 1 - found["rates"]["false_refusal"]["at_1"]["value"]
    )
    assert found["before"]["attack_success"]["at_1"]["value"] == 0.25
    rise, fall = found["changes"]["whole"]
    assert (rise["of"], rise["difference"]["value"], rise["p"]) == ("attack_success", 0.5, pytest.approx(2 * 0.5**20))
    assert (fall["of"], fall["difference"]["value"]) == ("false_refusal", -0.5)
    assert all(row["p_holm"] == pytest.approx(4 * 2 * 0.5**10) for row in found["changes"]["by_category"])
    assert "the guard refusals does not flag" in found["counted"]["attack_success"]
    assert set(found["data"]) == {str(after), str(before)}
    shown = rmtrl(*command)[1]
    assert (
        "attack success (not refused) at 1 before" in shown
        and "p holm" in shown
        and "Holm" in shown
        and "Bonferroni" in shown
    )


def test_strict_exits_with_1_where_a_rate_surely_rose(rmtrl, tmp_path):
    few, many = answers(tmp_path / "few.jsonl", 10), answers(tmp_path / "many.jsonl", 30)
    same = answers(tmp_path / "same.jsonl", 11)
    assert rmtrl("redteam", "--policy", few, "--before", many, "--strict")[0] == 1
    assert rmtrl("redteam", "--policy", many, "--before", few, "--strict")[0] == 1  # refuses more of what is safe
    assert rmtrl("redteam", "--policy", few, "--before", same, "--strict")[0] == 0
    assert rmtrl("redteam", "--policy", few, "--strict")[0] == 0


def test_a_policy_is_asked_and_its_answers_can_be_judged_again(rmtrl, policy, tmp_path):
    asked = write(tmp_path / "asked.jsonl", [{"prompt": f"{word} ?", "safe": "yes" if word == "sun" else "no"}
                                             for word in ("red", "sun", "moon")])  # fmt: skip
    kept, again = tmp_path / "kept.jsonl", tmp_path / "again.jsonl"
    command = ("redteam", "--policy", policy, "--prompts", asked, "--k", 3, "--max-new-tokens", 4, "--json")
    code, out, err = rmtrl(*command, "--out", kept)
    assert code == 0, err
    assert [len(row["completions"]) for row in lines(kept)] == [3, 3, 3]
    assert len({text for row in lines(kept) for text in row["completions"]}) > 3
    assert rmtrl(*command, "--out", again)[0] == 0 and kept.read_bytes() == again.read_bytes()
    stored = rmtrl("redteam", "--policy", kept, "--k", 3, "--json")[1]
    assert json.loads(stored)["rates"] == json.loads(out)["rates"]


def test_one_try_is_the_likeliest_answer(rmtrl, policy, tmp_path):
    asked = write(tmp_path / "asked.jsonl", [{"prompt": "red ?", "safe": 0}])
    for seed in (0, 1):
        command = ("redteam", "--policy", policy, "--prompts", asked, "--max-new-tokens", 8, "--seed", seed)
        assert rmtrl(*command, "--out", tmp_path / f"{seed}.jsonl")[0] == 0
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()


def test_both_policies_of_a_comparison_are_kept(rmtrl, policy, tmp_path):
    asked, out = write(tmp_path / "asked.jsonl", [{"prompt": "red ?", "safe": 0}]), tmp_path / "out.jsonl"
    before = write(tmp_path / "before.jsonl", [{"prompt": "red ?", "completion": NO}])
    command = ("redteam", "--policy", policy, "--before", before, "--prompts", asked, "--max-new-tokens", 2)
    code, _, err = rmtrl(*command, "--out", out)
    assert code == 0, err
    assert lines(out)[0]["before"] == [NO] and len(lines(out)[0]["completions"]) == 1


def test_the_prompts_are_written_for_a_policy_elsewhere_to_answer(rmtrl, tmp_path):
    out = tmp_path / "asked.jsonl"
    code, shown, err = rmtrl(
        "redteam", "--out", out, "--attack", "plain", "--attack", "rot13", "--requests", 2, "--json"
    )
    assert code == 0, err
    assert json.loads(shown)["prompts"] == len(lines(out)) == 13 * 2 * 2 * 2
    assert " ".join(sorted(json.loads(shown))) == "out prompts schema"
    answered = write(tmp_path / "answered.jsonl", [row | {"completions": [NO]} for row in lines(out)])
    found = json.loads(rmtrl("redteam", "--policy", answered, "--json")[1])["rates"]
    assert found["attack_success"]["at_1"]["value"] == 0 and found["false_refusal"]["at_1"]["value"] == 1
    assert found["attack_success"]["at_most"] == pytest.approx(1 - 0.05 ** (1 / 26))  # 26 requests in two wordings
    assert set(found["by_attack"]) == {"plain", "rot13"}


def test_what_is_missing_or_blank_is_counted(rmtrl, tmp_path):
    after = answers(tmp_path / "after.jsonl", 5)
    rows = lines(after)
    write(after, [{**rows[0], "completion": " "}, *rows[1:]])
    before = write(tmp_path / "before.jsonl", rows[2:])
    code, out, err = rmtrl("redteam", "--policy", after, "--before", before, "--json")
    assert code == 0 and "2 prompts do not have 1 answers and were left out" in err
    assert json.loads(out)["missing"] == 2 and json.loads(out)["prompts"] == 78
    assert "1 answers are blank" in rmtrl("redteam", "--policy", after)[2]


def test_all_tries_of_a_file_are_used_and_those_beyond_k_are_counted(rmtrl, tmp_path):
    rows = lines(answers(tmp_path / "after.jsonl", 40))
    rows = [row | {"completions": [NO, NO, YES]} for row in rows if row.pop("completion")]
    after, uneven = write(tmp_path / "after.jsonl", rows), tmp_path / "uneven.jsonl"
    found = json.loads(rmtrl("redteam", "--policy", after, "--json")[1])
    assert (found["k"], found["beyond_k"]) == (3, 0) and found["rates"]["attack_success"]["at_k"]["value"] == 1
    code, out, err = rmtrl("redteam", "--policy", after, "--k", 1, "--json")
    assert code == 0 and json.loads(out)["beyond_k"] == 160 and "160 answers beyond the first 1" in err
    write(uneven, [{"prompt": rows[0]["prompt"], "completions": [NO, YES]}, *rows[1:]])
    found = json.loads(rmtrl("redteam", "--policy", after, "--before", uneven, "--json")[1])
    assert (found["k"], found["beyond_k"]) == (2, 80 + 79)


def test_answers_to_other_prompts_and_no_answers_are_told_apart(rmtrl, tmp_path):
    after, other = (
        answers(tmp_path / "after.jsonl", 5),
        write(tmp_path / "other.jsonl", [{"prompt": "a", "answer": NO}]),
    )
    code, _, err = rmtrl("redteam", "--policy", after, "--before", other)
    assert code == 2 and "other.jsonl answers none of the 80 prompts: it has 1 prompts, and all are others" in err
    bare = write(tmp_path / "bare.jsonl", [{"prompt": row["prompt"], "safe": row["safe"]} for row in lines(after)])
    code, _, err = rmtrl("redteam", "--policy", bare)
    assert code == 2 and "bare.jsonl answers none of the 80 prompts: its rows hold no completion" in err


def test_the_rate_is_corrected_by_labels(rmtrl, tmp_path):
    after = answers(tmp_path / "after.jsonl", 24)
    labels = answers(tmp_path / "labels.jsonl", 20)
    rows = [row | {"refused": i % 40 < 22} for i, row in enumerate(lines(labels))]
    found = json.loads(rmtrl("redteam", "--policy", after, "--judge-labels", write(labels, rows), "--json")[1])
    assert found["judge"]["false_refusal"]["sensitivity"]["value"] == pytest.approx(20 / 22)
    assert found["judge"]["attack_success"]["specificity"]["value"] == pytest.approx(20 / 22)
    assert found["rates"]["false_refusal"]["corrected"]["value"] == pytest.approx(0.6 / (20 / 22))


def test_a_guard_counts_successes_in_place(rmtrl, tmp_path):
    after, policy = answers(tmp_path / "after.jsonl", 10), tmp_path / "policy.yaml"
    rule = {"name": "spoons", "must_not_say": ["stir"], "when": "item 3"}
    policy.write_text(
        json.dumps({"schema": "rmtrl/guard-policy/1", "guards": {"own": {"kind": "rules", "rules": [rule]}}})
    )
    code, out, err = rmtrl("redteam", "--policy", after, "--guard", policy, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["rates"]["attack_success"]["at_1"]["value"] == 10 / 40  # 30 to 39; 3 is refused
    assert found["rates"]["false_refusal"]["at_1"]["value"] == 0.25
    assert found["counted"]["attack_success"] == "answers to unsafe prompts that the guard own flags"
    labels = [row | {"refused": False, "harmful": i % 4 == 0} for i, row in enumerate(lines(after))]
    given = ("--guard", policy, "--judge-labels", write(tmp_path / "labels.jsonl", labels))
    judge = json.loads(rmtrl("redteam", "--policy", after, *given, "--json")[1])["judge"]["attack_success"]
    assert (judge["sensitivity"]["value"], judge["specificity"]["value"]) == (2 / 10, 22 / 30)  # 32 and 36 are both


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "wanted --policy, or --out alone to write the prompts"),
        (["--policy", "after.jsonl", "--k", 2], "none of the 80 prompts has 2 answers"),
        (["--policy", "after.jsonl", "--k", 2, "--temperature", 0], "all tries would be equal"),
        (["--policy", "after.jsonl", "--attack", "plain"], "choose among the prompts that come along"),
        (["--policy", "p", "--attack", "shout"], "got the attack 'shout'; wanted plain"),
        (["--policy", "after.jsonl", "--judge-labels", "after.jsonl"], "wanted one, and what people say in refused"),
        (["--policy", "after.jsonl", "--guard", "after.jsonl"], "the policy is not"),
        (["--policy", "after.jsonl", "--out", "after.jsonl"], "which is read as input"),
    ],
)
def test_what_it_cannot_use_is_one_line(rmtrl, tmp_path, monkeypatch, options, said):
    answers(tmp_path / "after.jsonl", 5)
    monkeypatch.chdir(tmp_path)
    code, out, err = rmtrl("redteam", *options)
    assert code == 2 and not out and said in err and err.startswith("rmtrl: error: ") and err.count("\n") == 1
