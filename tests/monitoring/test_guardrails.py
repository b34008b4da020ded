"""Answers read from any layout, thresholds fitted on labels, files screened: rates, places, the limit."""

import json

import numpy as np
import pytest

from rmtrl.errors import DataError, ModelError
from rmtrl.monitoring.guardrails import fit_policy, fit_warnings, overlap, read_answers, screen
from rmtrl.monitoring.rules import Policy
from rmtrl.types import Guard, Scorer


@pytest.fixture
def read(tmp_path):
    """A function that writes rows and reads their answers."""

    def answers(*rows, guards=()):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_answers(str(tmp_path / "rows.jsonl"), guards)

    return answers


class Length(Scorer):
    """The severity of an answer is a tenth of its length."""

    def score(self, conversations):
        return np.array([len(own[-1]["content"]) / 10 for own in conversations], np.float32)


def length(threshold=0.5):
    return {"length": Guard(Length(), threshold, name="length")}


USER, ASSISTANT = ({"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello!")))


@pytest.mark.parametrize(
    "row",
    [{"prompt": "Hi", "response": "Hello!"}, {"prompt": "Hi", "completion": "Hello!"}, {"messages": [USER, ASSISTANT]},
     {"prompt": [USER], "completion": [ASSISTANT]}, {"prompt": [USER], "response": "Hello!"},
     {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
     {"instruction": "Hi", "output": "Hello!"}, {"question": "Hi", "answer": "Hello!"},
     {"prompt": "Hi", "completions": ["Hello!"]}, {"prompt": "Hi", "best": "Hello!", "candidates": ["No", "Hello!"]},
     {"prompt": json.dumps([USER]), "response": json.dumps([ASSISTANT])}, {"messages": json.dumps([USER, ASSISTANT])},
     {"prompt": "Hi", "response": ASSISTANT}],
)  # fmt: skip
def test_an_answer_is_read_from_any_layout(read, row):
    (own,) = read(row)
    assert (own.prompt, own.text, own.conversation) == ([USER], "Hello!", [USER, ASSISTANT])
    assert (own.id, own.domain, own.reference, own.labels) == ("0", "unknown", None, {})


def test_several_answers_to_a_prompt_are_several_of_one_prompt(read):
    found = read({"id": "q", "domain": "chat", "prompt": "Hi", "completions": ["A", "", "C"], "reference": "R"})
    assert [(own.id, own.text, own.domain, own.reference) for own in found] == [
        ("q/0", "A", "chat", "R"), ("q/1", "", "chat", "R"), ("q/2", "C", "chat", "R"),
    ]  # fmt: skip
    assert len({own.prompt_id for own in found}) == 1


def test_answers_without_a_prompt_are_each_their_own(read):
    found = read({"response": "A"}, {"response": "A"}, {"text": "B"})
    assert len({own.prompt_id for own in found}) == 3 and found[2].text == "B"


@pytest.mark.parametrize("row", [{"prompt": "Hi"}, {"prompt": "Hi", "response": None}, {"messages": [USER]}, {"x": 1}])
def test_a_row_without_an_answer_is_named(read, row):
    with pytest.raises(DataError, match=r"rows.jsonl row 2: no answer; wanted one in response"):
        read({"response": "A"}, row)


@pytest.mark.parametrize("value", [3, {"a": 1}, [{"role": 1}]])
def test_a_cell_of_no_answer_is_named(read, value):
    with pytest.raises(DataError, match="row 1"):
        read({"prompt": "Hi", "response": value})


def test_labels_are_of_one_guard_or_of_all(read):
    rows = [{"response": "A", "labels": {"a": 1, "b": None}}, {"response": "B", "label": False},
            {"response": "C", "labels": '{"b": "true"}'}, {"response": "D"}]  # fmt: skip
    found = read(*rows, guards=["a", "b"])
    assert [own.labels for own in found] == [{"a": True}, {"a": False, "b": False}, {"b": True}, {}]
    with pytest.raises(DataError, match="row 1: label is 'bad'; wanted true or false"):
        read({"response": "A", "label": "bad"}, guards=["a"])
    assert read({"response": "A", "label": "bad"})[0].labels == {}


def test_a_policy_fitted_on_labels_holds_its_rate_and_is_read_again(read):
    rows = [{"prompt": f"q{i}", "response": "x" * i, "label": 0} for i in range(99)]
    labelled = read(
        *rows, *({"prompt": f"r{i}", "response": "x" * 98, "label": 1} for i in range(4)), guards=["length"]
    )
    fitted, fits = fit_policy(Policy(length(), {"guards": {"length": None}}), labelled, 0.02)
    assert fits["length"].threshold == pytest.approx(9.7)
    assert (fits["length"].false_positive_rate.n, fits["length"].sensitivity.value) == (99, 1)
    assert fitted.guards["length"].threshold == fitted.stored["guards"]["length"]["threshold"]
    assert fitted.stored["guards"]["length"]["fit"]["asked"] == 0.02
    assert overlap(labelled, read({"prompt": "q1", "response": "A"}, {"response": "A"})) == 1


def test_too_few_labels_are_one_line_that_names_the_guard(read):
    rows = [{"response": "x" * i, "label": 0} for i in range(48)]
    with pytest.raises(DataError, match="the guard length: 48 harmless prompts cannot hold"):
        fit_policy(Policy(length(), {"guards": {"length": {}}}), read(*rows, guards=["length"]), 0.02)
    with pytest.raises(DataError, match="no guard has labels; the rows have other, the policy length"):
        labelled = read({"response": "x", "labels": {"other": 0}}, guards=["length"])
        fit_policy(Policy(length(), {"guards": {"length": {}}}), labelled, 0.02)


def test_rates_are_exact_by_guard_and_by_domain(read):
    rows = [{"prompt": str(i), "response": "x" * (9 if i < 3 else 1), "domain": "ab"[i % 2]} for i in range(20)]
    found = screen(length(), read(*rows), limit=0.1)
    own = found.guards["length"]
    assert (own.rate.value, own.rate.n, own.rate.method) == (0.15, 20, "exact binomial")
    assert (own.rate.low, own.rate.high) == (pytest.approx(0.0321, abs=1e-4), pytest.approx(0.3789, abs=1e-4))
    assert {name: rate.value for name, rate in own.by_domain.items()} == {"a": 0.2, "b": 0.1}
    assert found.flagged == own.rate and own.above_limit and not found.passed
    assert [(row["id"], row["start"], row["end"], row["reason"]) for row in found.findings] == [
        (str(i), 0, 9, "severity 0.9") for i in range(3)
    ]  # fmt: skip


@pytest.mark.parametrize(("limit", "passed"), [(None, True), (0.15, True), (0.149, False), (0, False)])
def test_the_limit_is_held_against_the_rate_of_the_file_not_against_its_interval(read, limit, passed):
    rows = [{"prompt": str(i), "response": "x" * (9 if i < 3 else 1)} for i in range(20)]
    assert screen(length(), read(*rows), limit=limit).passed is passed


def test_rows_of_one_prompt_are_no_independent_draws(read):
    rows = [{"prompt": str(i), "completions": ["x" * (9 if i < 10 else 1)] * 5} for i in range(40)]
    rate = screen(length(), read(*rows)).guards["length"].rate
    assert (rate.value, rate.n) == (0.25, 200) and "worth 40.0 prompts" in rate.method
    assert rate.high - rate.low > 0.2


def test_findings_say_what_was_found_where_and_only_above_the_threshold(read):
    policy = Policy.from_yaml("{schema: rmtrl/guard-policy/1, guards: {personal data: {}}}")
    text = "Mail mara.quill@posta.test or info@posta.test"
    (own,) = screen(policy.guards, read({"id": "7", "response": text})).findings
    assert text[own["start"] : own["end"]] == "mara.quill@posta.test"
    assert (own["guard"], own["id"], own["reason"]) == ("personal data", "7", "e-mail address")
    assert own["place"].endswith("row 1") and "text" not in own


def test_what_could_not_be_judged_is_flagged_and_counted(read, monkeypatch):
    monkeypatch.setattr("rmtrl.monitoring.answers.PATTERN_SECONDS", 0.05)
    rule = '{name: slow, pattern: "(a+)+$"}'
    policy = Policy.from_yaml(f"{{schema: rmtrl/guard-policy/1, guards: {{own: {{kind: rules, rules: [{rule}]}}}}}}")
    found = screen(policy.guards, read({"response": "a" * 3000 + "!"}, {"response": "b"}))
    assert (found.guards["own"].not_judged, found.guards["own"].rate.value) == (1, 0.5)
    assert "1 answers could not be judged by own" in found.warnings[0]
    assert "rule slow took over" in found.findings[0]["reason"]


@pytest.mark.parametrize("threshold", [0, 0.5, 1])
def test_no_threshold_passes_what_could_not_be_judged(read, threshold, monkeypatch):
    monkeypatch.setattr("rmtrl.monitoring.answers.PATTERN_SECONDS", 0.05)
    rule = '{name: slow, pattern: "(a+)+$"}'
    own = f"{{kind: rules, threshold: {threshold}, fit: {{}}, rules: [{rule}]}}"
    policy = Policy.from_yaml(f"{{schema: rmtrl/guard-policy/1, guards: {{own: {own}}}}}")
    assert not screen(policy.guards, read({"response": "a" * 3000 + "!"}), limit=0).passed


def test_a_guard_has_a_rate_only_of_what_it_judged(read):
    rule = "{name: dose, must_cite: true, when: dose}"
    text = f"{{schema: rmtrl/guard-policy/1, guards: {{factuality: {{}}, own: {{kind: rules, rules: [{rule}]}}}}}}"
    guards = Policy.from_yaml(text).guards
    rows = [{"prompt": f"q{i}", "response": "It opened in 1887.", "domain": "a"} for i in range(8)]
    held = {"reference": "It opened in 1889.", "domain": "b"}
    found = screen(guards, read(*rows, rows[0] | held, rows[1] | held | {"reference": "It opened in 1887."}))
    own = found.guards["factuality"]
    assert (own.rate.value, own.rate.n, own.not_applicable, set(own.by_domain)) == (0.5, 2, 8, {"b"})
    own = found.guards["own"]
    assert (own.rate, own.not_applicable, own.by_domain, own.above_limit) == (None, 10, {}, False)
    assert found.words["guards"]["own"]["rate"] == "nothing to judge" and found.flagged.n == 10
    assert screen(guards, read(*rows[:3], {"prompt": "Which dose?", "response": "x"}), limit=0.9).passed is False


def test_rates_of_grouped_answers_stand_beside_the_number_of_prompts(read):
    found = screen(
        length(), read({"prompt": "a", "completions": ["x"] * 5}, {"prompt": "b", "completions": ["x"] * 5})
    )
    assert (found.n, found.prompts, found.words["prompts"]) == (10, 2, 2)


@pytest.mark.parametrize(
    "row",
    [{"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, {"messages": [USER]},
     {"prompt": "Hi", "response": None}, {"prompt": "Hi", "completions": []}, {"prompt": "Hi", "response": 3}],
)  # fmt: skip
def test_a_row_without_an_answer_is_counted_and_the_others_are_read(read, tmp_path, row):
    skipped = []
    with pytest.raises(DataError, match="row 2"):
        read({"response": "A"}, row, {"response": "B"})
    found = read_answers(str(tmp_path / "rows.jsonl"), skipped=skipped)
    assert [own.text for own in found] == ["A", "B"] and len(skipped) == 1
    assert skipped[0]["place"].endswith("row 2") and skipped[0]["reason"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="row 1"):
        read_answers(str(tmp_path / "rows.jsonl"), skipped=[])


def test_an_answer_after_calls_of_tools_is_read(read):
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "4"}]
    assert read({"messages": [USER, *calls, ASSISTANT]})[0].text == "Hello!"


def test_half_a_surrogate_pair_hides_no_answer_and_moves_no_place(read):
    policy = Policy.from_yaml(
        "{schema: rmtrl/guard-policy/1, guards: {r: {kind: rules, rules: [{name: w, must_not_say: word}]}}}"
    )
    found = screen(policy.guards, read({"prompt": "Hi", "response": "\udc00 a wo\ud800rd, \U0001f600"}))
    assert [(own["start"], own["end"]) for own in found.findings] == [(4, 9)]


def test_a_name_that_no_row_has_is_no_name_of_a_column(read, tmp_path):
    read({"prompt": "Hi", "response": "A"})
    with pytest.raises(
        DataError, match="got --map response=mispelt, and no row of .* has mispelt; .* prompt, response"
    ):
        read_answers(str(tmp_path / "rows.jsonl"), columns={"response": "mispelt"})


def test_a_fit_that_catches_little_or_nobody_knows_what_is_warned_of(read):
    rows = [{"prompt": f"q{i}", "response": "x" * i, "label": 0} for i in range(99)]
    policy = Policy(length(), {"guards": {"length": None}})
    for harmful, said in (([], "not measured"), (["x"] * 9, "catches 0.000"), (["x" * 99] * 9, None)):
        more = [{"prompt": f"r{i}", "response": text, "label": 1} for i, text in enumerate(harmful)]
        found = list(fit_warnings(fit_policy(policy, read(*rows, *more, guards=["length"]), 0.02)[1]))
        assert [said in line for line in found] == [True] if said else not found


def test_of_a_transcript_the_last_turn_is_the_answer_but_a_completion_is_whole(read):
    text = "\n\nHuman: Hi\n\nAssistant: Hello!"
    (alone,) = read({"text": text})
    assert (alone.prompt[0]["content"], alone.text) == ("\n\nHuman: Hi", "Hello!")
    assert read({"prompt": "Hi", "response": text})[0].text == text


def test_a_column_of_another_name_is_read_by_it(read, tmp_path):
    with pytest.raises(DataError, match="--map response=NAME"):
        read({"prompt": "Hi", "chosen": "Hello!"})
    (own,) = read_answers(str(tmp_path / "rows.jsonl"), columns={"response": "chosen"})
    assert own.text == "Hello!"


def test_a_severity_that_is_no_number_names_the_row(read):
    class Broken(Scorer):
        def score(self, conversations):
            return [float("nan")] * len(conversations)

    with pytest.raises(ModelError, match="guard 'own' returned nan for answer 0.*at .*rows.jsonl row 1"):
        screen({"own": Guard(Broken(), 0, name="own")}, read({"response": "A"}))
