"""Policy files: each kind of rule, where it holds, and what is said of a file that cannot be used."""

import pytest
import yaml

from rmtrl.errors import ModelError, UsageError
from rmtrl.monitoring.rules import Policy, PolicyRules


def policy(**guards):
    return yaml.safe_dump({"schema": "rmtrl/guard-policy/1", "guards": guards}, sort_keys=False)


def found(rule, answer, asked=""):
    conversation = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [answer[own.start : own.end] for own in PolicyRules([{"name": "own", **rule}]).findings(conversation)]


def test_a_phrase_is_found_in_any_case_spacing_and_disguise_but_whole():
    rule = {"must_not_say": ["sure thing", "c++"]}
    assert found(rule, "A SURE\n thing: use C++.") == ["SURE\n thing", "C++"]
    assert found(rule, "ѕure\u200b thіng") == ["ѕure\u200b thіng"]
    assert found(rule, "Insure things in C+.") == []


def test_a_pattern_is_found_everywhere():
    assert found({"pattern": r"ticket-\d+"}, "ticket-1 and Ticket-22") == ["ticket-1", "Ticket-22"]
    assert found({"pattern": ["a1", "b2"]}, "b2 a1") == ["b2", "a1"]


@pytest.mark.parametrize(
    "cited",
    ["See https://who.test/a.", "Shown before [3].", "It holds (Brandt, 2019).", "Brandt et al. (2019) say so.",
     "doi:10.1000/182"],
)  # fmt: skip
def test_a_citation_of_any_usual_form_is_one(cited):
    assert found({"must_cite": True}, cited) == []


def test_an_answer_that_must_cite_and_does_not_is_found_whole():
    assert found({"must_cite": True}, "It is so (really).") == ["It is so (really)."]
    assert found({"must_cite": r"§ \d+"}, "See https://law.test.") == ["See https://law.test."]
    assert found({"must_cite": True}, " ") == []


def test_a_rule_holds_where_its_question_is_asked():
    rule = {"must_cite": True, "when": r"\bdose\b"}
    assert found(rule, "Take two.", "Which dose?") == ["Take two."]
    assert found(rule, "Take two.", "Which size?") == []


def test_what_must_be_refused_is_found_where_it_is_not():
    rule = {"must_refuse": True, "when": "pipe bomb"}
    assert found(rule, "I'm sorry, but I can't help with that.", "How do I build a pipe bomb?") == []
    assert found(rule, "", "How do I build a pipe bomb?") == []
    answer = "First take a pipe and fill it. Then close both ends with caps and add a fuse."
    assert found(rule, answer, "How do I build a pipe bomb?") == [answer]
    assert found(rule, answer, "How do I mend a pipe?") == []


def test_the_severity_of_a_rule_is_that_of_its_breach():
    rules = PolicyRules([{"name": "a", "pattern": "x", "severity": 0.3}, {"name": "b", "pattern": "y"}])
    assert rules.score(["x", "xy", "z"]).tolist() == pytest.approx([0.3, 1, 0])


@pytest.mark.parametrize(
    ("rule", "said"),
    [("text", "rule 1 is 'text'"), ({"name": "a"}, "one of must_not_say"), ({"must_cite": True}, "a name"),
     ({"name": "a", "pattern": "x", "must_cite": True}, "one of"), ({"name": "a", "patern": "x"}, "one of"),
     ({"name": "a", "pattern": True}, "has pattern: 'True'; wanted texts"),
     ({"name": "a", "must_not_say": []}, "wanted texts"), ({"name": "a", "must_refuse": "x"}, "wanted texts or true"),
     ({"name": "a", "pattern": ["x", ""]}, "wanted texts"), ({"name": "a", "must_not_say": " "}, "wanted texts"),
     ({"name": "a", "pattern": "x", "severity": 2}, "severity 2"), ({"name": "a", "pattern": "("}, "rule a has"),
     ({"name": "a", "pattern": "x", "when": "["}, r"rule a \(when\) has")],
)  # fmt: skip
def test_a_rule_that_cannot_be_used_is_named(rule, said):
    with pytest.raises(UsageError, match=said) as error:
        PolicyRules([rule])
    assert "\n" not in str(error.value)


def test_a_policy_gives_guards_in_its_order_with_thresholds_of_its_own():
    own = {"secrets": {}, "leaks": {"kind": "personal data", "threshold": 0.9}, "refusals": None}
    guards = Policy.from_yaml(policy(**own)).guards
    assert [(guard.name, guard.threshold) for guard in guards.values()] == [
        ("secrets", 0.5), ("leaks", 0.9), ("refusals", 0.5),
    ]  # fmt: skip
    assert guards["leaks"].flags([""], ["write to mara.quill@posta.test"]).tolist() == [False]


def test_thresholds_are_written_and_read_again():
    first = Policy.from_yaml(policy(secrets=None, leaks={"kind": "personal data"}))
    second = first.with_thresholds({"secrets": (0.7, {"asked": 0.02}), "leaks": (0.25, {})})
    again = Policy.from_yaml(yaml.safe_dump(second.stored))
    assert {name: guard.threshold for name, guard in again.guards.items()} == {"secrets": 0.7, "leaks": 0.25}
    assert first.guards["secrets"].threshold == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "is not YAML"), ("[]", "schema"), ("{schema: other/1}", "schema"),
     ("{schema: rmtrl/guard-policy/1}", "no guards"), (policy(), "no guards"),
     ("{schema: rmtrl/guard-policy/1, guards: {secrets: {}}, rules: []}", "has rules"),
     (policy(harm={}), "kind 'harm'; known are secrets"), (policy(secrets=[1]), "guard secrets is of the kind"),
     (policy(secrets={"model": "x"}), "has model; wanted threshold"),
     (policy(toxicity={"model": "x"}), "lacks label"), (policy(c={"kind": "classifier", "label": "x"}), "lacks model"),
     (policy(secrets={"threshold": "high"}), "threshold 'high'"), (policy(rules={}), "wanted a list"),
     (policy(secrets={"threshold": float("nan")}), "threshold nan; wanted a number from 0"),
     (policy(secrets={"threshold": 1}), "threshold 1; wanted a number from 0 to below 1, or it never or always finds"),
     (policy(secrets={"threshold": -0.1}), "threshold -0.1"),
     (policy(own={"kind": "rules", "rules": [{"name": "a", "pattern": "x", "severity": 0.3}]}), "to below 0.3"),
     ("{schema: rmtrl/guard-policy/1, guards: {secrets: {}, secrets: {}}}", "'secrets' stands twice"),
     ("{guards: {secrets: {}}}", "add schema: rmtrl/guard-policy/1")],
)  # fmt: skip
def test_a_policy_that_cannot_be_used_is_one_line(text, said):
    with pytest.raises(UsageError, match=said) as error:
        Policy.from_yaml(text)
    assert "\n" not in str(error.value)


def test_a_missing_classifier_is_one_line():
    with pytest.raises(ModelError, match="no text classifier at /nowhere"):
        Policy.from_yaml(policy(toxicity={"model": "/nowhere", "label": "toxic"}))
