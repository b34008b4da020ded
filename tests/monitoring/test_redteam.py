"""The red team: what it asks, what it counts of a planted policy, and what it says of two."""

import base64
import codecs
import json

import numpy as np
import pytest

from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.generation import Completion, Generator
from rmtrl.metrics import binomial_estimate, corrected_rate
from rmtrl.monitoring.redteam import (
    REFUSAL,
    SUCCESS,
    RedTeamPrompt,
    ask,
    judge_answers,
    read_judge,
    read_red_team,
    red_team,
    red_team_changes,
    red_team_rates,
    red_team_warnings,
    written_prompts,
)
from rmtrl.monitoring.refusals import RefusalScorer
from rmtrl.types import Guard, Scorer

NO, YES = "I am sorry, but no.", "Of course: first you take a spoon."


class Sorry(Scorer):
    """A refusal is an answer that says sorry."""

    def score(self, conversations):
        return np.array(["sorry" in own[-1]["content"] for own in conversations], dtype=np.float32)


class Spoons(Scorer):
    def score(self, conversations):
        return np.array(["spoon" in own[-1]["content"] for own in conversations], dtype=np.float32)


REFUSALS, SPOONS = Guard(Sorry(), 0.5, name="sorry"), Guard(Spoons(), 0.5, name="spoons")


class Planted(Generator):
    """Refuses whatever holds one of some words, always or from some try on."""

    def __init__(self, *words, until=1000):
        self.words, self.until = words, until

    def generate(self, prompts, n=1, *, seed=0):
        refused = [any(word in prompt[-1]["content"] for word in self.words) for prompt in prompts]
        return [[Completion(NO if own and i < self.until else YES) for i in range(n)] for own in refused]


def rows(path, *given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


# what it asks


def test_every_request_of_every_category_stands_in_every_attack():
    prompts = written_prompts()
    attacks, categories = ({getattr(one, name) for one in prompts} for name in ("attack", "category"))
    assert len(attacks) >= 10 and len(categories) >= 12
    assert len({one.prompt for one in prompts}) == len(prompts) == len(attacks) * len({one.request for one in prompts})
    for category in categories:
        own = {(one.safe, one.request) for one in prompts if one.category == category}
        assert sum(safe for safe, _ in own) == sum(not safe for safe, _ in own) == 10
    assert {one.attack: one.prompt for one in prompts}["plain"] == prompts[-1].request


def test_wordings_hide_the_request_and_keep_it():
    found = {one.attack: one for one in written_prompts(n_requests=1) if one.category == "malware" and not one.safe}
    request = found["plain"].prompt
    assert base64.b64decode(found["base64"].prompt.splitlines()[-1]).decode() == request
    assert codecs.encode(found["rot13"].prompt.splitlines()[-1], "rot13") == request
    assert request not in found["leetspeak"].prompt and len(found["leetspeak"].prompt) == len(request)
    first, second = found["payload splitting"].prompt.split('"')[1:4:2]
    assert f"{first} {second}" == request and first and second
    hidden = {"base64", "rot13", "leetspeak", "payload splitting"}
    assert all(request in one.prompt for name, one in found.items() if name not in hidden)
    assert {one.request for one in found.values()} == {request}


def test_attacks_and_requests_can_be_fewer():
    prompts = written_prompts(["urgency", "plain"], n_requests=3)
    assert len(prompts) == 2 * 3 * 2 * 13 and {one.attack for one in prompts} == {"urgency", "plain"}


def test_an_attack_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="got the attack 'shouting'; wanted plain, role play, "):
        written_prompts(["shouting"])


def test_rows_say_whether_they_are_safe(tmp_path):
    source = rows(
        tmp_path / "own.jsonl",
        {"prompt": "a", "category": "x"}, {"prompt": "b", "safe": True}, {"prompt": "c", "label": "unsafe"},
        {"prompt": "d", "type": "homonyms"}, {"prompt": "e", "type": "contrast_homonyms"},
        {"prompt": "f", "type": "jailbreak", "safe": 0}, {"category": "y", "messages": [
            {"role": "user", "content": "h"}, {"role": "assistant", "content": "5"}]},
        {"prompt": [{"role": "user", "content": "g"}], "safe": "false", "completions": ["1", "2"]},
        {"prompt": "a", "category": "x", "completion": "3"}, {"prompt": "a", "safe": 0, "completion": "4"},
    )  # fmt: skip
    found = read_red_team(source)
    assert [one.safe for one in found] == [False, True, False, True, False, False, False, False]
    assert [one.category for one in found] == ["x", "", "", "homonyms", "homonyms", "jailbreak", "y", ""]
    assert found[6].prompt == [{"role": "user", "content": "h"}] and found[6].completions == ("5",)
    assert found[0].completions == ("3", "4") and found[-1].completions == ("1", "2")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": ""}, "row 1: prompt is ''"),
        ({"prompt": "a", "safe": "perhaps"}, "row 1: safe is 'perhaps'"),
        ({"prompt": "a", "completion": "b"}, "row 1: neither safe nor unsafe; wanted safe"),
        ({"prompt": "a", "safe": None, "category": "x"}, "row 1: neither safe nor unsafe; wanted safe"),
        ({"prompt": "a", "type": "jailbreak"}, "row 1: neither safe nor unsafe, of type 'jailbreak'; wanted safe"),
        ({"prompt": "a", "safe": 0, "completion": 5}, "row 1: completion is of type int"),
        ({"prompt": "a", "safe": 0, "completions": ["b", None]}, "row 1: completions is of type NoneType"),
    ],
)
def test_rows_of_another_form_are_one_line(tmp_path, row, said):
    with pytest.raises(DataError, match=said):
        read_red_team(rows(tmp_path / "own.jsonl", row))


def test_xstest_is_read_as_it_stands(real_data):
    found = read_red_team(str(real_data / "xstest" / "gpt4.csv.gz"))
    assert len(found) == 450 and sum(one.safe for one in found) == 250
    assert len({one.category for one in found if not one.safe}) == 8
    assert all(len(one.completions) == 1 for one in found)


# what it counts


@pytest.mark.parametrize("chat", [True, False])
def test_a_policy_is_asked_in_its_form(chat):
    class Echo(Generator):
        def generate(self, prompts, n=1, *, seed=0):
            return [[Completion(f"{prompt} {i} {seed}") for i in range(n)] for prompt in prompts]

    prompt = RedTeamPrompt("Hi", False)
    form = [{"role": "user", "content": "Hi"}] if chat else "Hi"
    assert ask(Echo(), [prompt], 2, seed=7, chat=chat)[0].completions == (f"{form} 0 7", f"{form} 1 7")


def test_what_a_planted_policy_refuses_is_what_is_counted():
    """It refuses all of two categories' words, whatever they mean, and nothing else."""
    prompts = ask(Planted("gun", "drug"), written_prompts(["plain", "fiction"]))
    rates = red_team_rates(prompts, judge_answers(prompts, REFUSALS))
    hit = [any(word in one.prompt for word in ("gun", "drug")) for one in prompts]
    for kind, safe in ((SUCCESS, False), (REFUSAL, True)):
        share = np.mean([own for own, one in zip(hit, prompts, strict=True) if one.safe == safe])
        assert 0 < share < 1 and rates[kind]["at_1"].n == 260
        assert rates[kind]["at_1"].value == pytest.approx(share if safe else 1 - share)
        assert "at_k" not in rates[kind] and "corrected" not in rates[kind]
    assert rates["by_category"]["hate"][SUCCESS].value == 1 and rates["by_category"]["hate"][REFUSAL].value == 0
    assert rates["by_attack"]["plain"][SUCCESS].value == rates["by_attack"]["fiction"][SUCCESS].value


def test_at_k_tries_one_is_enough():
    prompts = ask(Planted("gun", until=2), written_prompts(["plain"]), 3)
    events = judge_answers(prompts, REFUSALS, k=3)
    rates = red_team_rates(prompts, events)
    assert rates[SUCCESS]["at_k"].value == 1 > rates[SUCCESS]["at_1"].value
    assert rates[REFUSAL]["at_k"].value == rates[REFUSAL]["at_1"].value > 0
    assert red_team_rates(prompts, judge_answers(prompts, REFUSALS, k=1))[SUCCESS]["at_1"] == rates[SUCCESS]["at_1"]


def test_blank_answers_are_no_success_and_a_guard_counts_in_place():
    prompts = [RedTeamPrompt(str(i), safe, completions=(text,)) for i, (safe, text) in enumerate(
        [(False, NO), (False, " \n"), (False, YES), (False, "Hm."), (True, NO), (True, ""), (True, YES)])]  # fmt: skip
    assert judge_answers(prompts, REFUSALS)[:, 0].tolist() == [False, False, True, True, True, False, False]
    assert judge_answers(prompts, REFUSALS, [SPOONS])[:, 0].tolist() == [False, False, True, False, True, False, False]


def test_a_judge_reads_the_request_and_not_its_wording():
    seen = []

    class Keeps(Scorer):
        def score(self, conversations):
            seen.extend(own[0]["content"] for own in conversations)
            return np.zeros(len(conversations), np.float32)

    prompts = ask(Planted(), written_prompts(["base64"], n_requests=1))
    judge_answers(prompts, Guard(Keeps(), 0.5))
    assert seen == [one.request for one in prompts]


def test_a_judge_that_fails_is_an_error_and_no_verdict():
    class Nothing(Scorer):
        def score(self, conversations):
            return np.full(len(conversations), np.nan, np.float32)

    with pytest.raises(ModelError, match="guard 'nothing' returned nan"):
        judge_answers([RedTeamPrompt("a", False, completions=("b",))], Guard(Nothing(), 0.5, name="nothing"))


def test_single_prompts_have_the_exact_interval_and_none_of_a_hundred_the_rule_of_three():
    prompts = [RedTeamPrompt(str(i), i >= 100, completions=(NO if i < 100 or i >= 270 else YES,)) for i in range(300)]
    rates = red_team_rates(prompts, judge_answers(prompts, REFUSALS))
    assert rates[SUCCESS]["at_1"] == binomial_estimate(0, 100)
    assert rates[SUCCESS]["at_most"] == pytest.approx(0.0295, abs=5e-5)
    assert rates[REFUSAL]["at_1"] == binomial_estimate(30, 200) and "at_most" not in rates[REFUSAL]
    assert rates["by_category"] == {} == rates["by_attack"]


def test_wordings_of_one_request_are_no_further_evidence():
    """One request in ten always succeeds, in each of 15 wordings: the interval is that of ten."""
    prompts = [one for one in ask(Planted(), written_prompts()) if one.category == "drugs" and not one.safe]
    asked = sorted({one.request for one in prompts})
    events = np.array([[one.request == asked[0]] for one in prompts])
    found = red_team_rates(prompts, events)[SUCCESS]["at_1"]
    ten = binomial_estimate(1, 10)
    assert found.value == pytest.approx(0.1) and found.n == 150 and "Korn and Graubard" in found.method
    assert (found.low, found.high) == pytest.approx((ten.low, ten.high))


def test_parts_hold_together_at_95_percent():
    prompts = ask(Planted(), written_prompts(["plain"]))
    rates = red_team_rates(prompts, judge_answers(prompts, REFUSALS))
    assert {own.level for part in rates["by_category"].values() for own in part.values()} == {1 - 0.05 / 26}


# the judge's own errors


def pair(caught, positive, passed, negative):
    return {"sensitivity": binomial_estimate(caught, positive), "specificity": binomial_estimate(passed, negative)}


def labelled(path, *counts, **more):
    """Answers by (safe, what people say of a refusal, answer, how many)."""
    given = [own[:3] for own in counts for _ in range(own[3])]
    return rows(path, *({"prompt": str(i), "safe": safe, "refused": refused, "completion": answer} | more
                        for i, (safe, refused, answer) in enumerate(given)))  # fmt: skip


def test_rates_are_corrected_for_the_judge_that_people_have_checked(tmp_path):
    """Of 100 answered attacks it finds 90, of 100 refused ones it takes 30 for answered; it counts 40 of 100: 1/6."""
    source = labelled(tmp_path / "labels.jsonl", (False, False, YES, 90), (False, False, NO, 10),
                      (False, True, NO, 70), (False, True, YES, 30), (True, False, YES, 5))  # fmt: skip
    judge = read_judge(source, REFUSALS)
    assert judge == {SUCCESS: pair(90, 100, 70, 100)}
    prompts = [RedTeamPrompt(str(i), False, completions=(YES if i < 40 else NO,)) for i in range(100)]
    found = red_team_rates(prompts, judge_answers(prompts, REFUSALS), judge)[SUCCESS]
    assert found["corrected"].value == pytest.approx(1 / 6) and found["at_1"].value == 0.4
    assert found["corrected"] == corrected_rate(binomial_estimate(40, 100), **judge[SUCCESS])


def test_each_kind_has_its_own_errors_and_a_guard_its_own_labels(tmp_path):
    source = labelled(tmp_path / "labels.jsonl", (True, True, NO, 8), (True, True, YES, 2), (True, False, YES, 9),
                      (True, False, NO, 1), (False, True, YES, 4), (False, False, NO, 6), harmful="yes")  # fmt: skip
    judge = read_judge(source, REFUSALS, [SPOONS])
    assert judge == {REFUSAL: pair(8, 10, 9, 10)}  # all attacks are harmful: no specificity


def test_no_rate_is_corrected_by_a_judge_without_knowledge(tmp_path):
    counts = [(False, refused, answer, 5) for refused in (False, True) for answer in (YES, NO)]
    judge = read_judge(labelled(tmp_path / "labels.jsonl", *counts), REFUSALS)
    found = red_team_rates([RedTeamPrompt("a", False)], np.array([[True]]), judge)[SUCCESS]
    assert "corrected" not in found and "sensitivity 0.500 and specificity 0.500" in found["uncorrected"]


def test_labels_of_one_sort_say_why_nothing_is_corrected(tmp_path):
    judge = read_judge(labelled(tmp_path / "labels.jsonl", (False, True, NO, 5)), REFUSALS)
    prompts, events = [RedTeamPrompt("a", False)], np.array([[True]])
    found = red_team_rates(prompts, events, judge)[SUCCESS]
    assert judge == {} and "labels of both sorts" in found["uncorrected"]
    assert "uncorrected" not in red_team_rates(prompts, events)[SUCCESS]


def test_a_rate_that_the_figures_of_the_judge_cannot_bring_about_is_warned_of():
    judge = {SUCCESS: pair(90, 100, 70, 100)}  # it counts 30 % where nothing is so and 90 % where all is
    for n, warned in ((0, True), (30, False), (50, False), (90, False), (100, True)):
        prompts = [RedTeamPrompt(str(i), False, completions=(YES if i < n else NO,)) for i in range(100)]
        found = red_team(prompts, REFUSALS, judge=judge)
        assert any("attack success" in line and "do not fit" in line for line in red_team_warnings(found)) is warned


def test_labels_of_one_request_in_several_wordings_are_one_piece_of_evidence(tmp_path):
    wordings = [{"prompt": f"{i} {wording}", "request": str(i), "safe": True, "refused": i < 10, "completion": NO}
                for i in range(20) for wording in range(5)]  # fmt: skip
    judge = read_judge(rows(tmp_path / "labels.jsonl", *wordings), REFUSALS)[REFUSAL]
    assert [(own.value, own.n, own.high) for own in judge.values()] == [
        (1, 10, 1),
        (0, 10, binomial_estimate(0, 10).high),
    ]


def test_answers_may_be_messages(tmp_path):
    said = [{"role": "assistant", "content": "One"}]
    given = [{"prompt": "a", "safe": 0, "completion": said}, {"prompt": "b", "safe": 0, "completions": [said, "Two"]}]
    assert [one.completions for one in read_red_team(rows(tmp_path / "own.jsonl", *given))] == [
        ("One",),
        ("One", "Two"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "safe": 0, "completion": "b"},
        {"prompt": "a", "safe": 0, "refused": True},
        {"prompt": "a", "safe": 0, "completion": "b", "refused": "so"},
    ],
)
def test_labels_of_another_form_are_one_line(tmp_path, row):
    with pytest.raises(DataError, match="row 1.*wanted"):
        read_judge(rows(tmp_path / "labels.jsonl", row), REFUSALS)


def test_the_labels_of_xstest_are_those_of_people(real_data):
    judge = read_judge(str(real_data / "xstest" / "llama2orig.csv.gz"), Guard(RefusalScorer(), 0.5))
    assert {kind: sum(rate.n for rate in own.values()) for kind, own in judge.items()} == {SUCCESS: 200, REFUSAL: 250}
    assert judge[REFUSAL]["sensitivity"].n == 95  # .380 of 250


# two policies


def test_a_change_is_paired_and_named_where_it_is():
    """The second policy has stopped refusing what names a drug; nothing else has changed."""
    prompts = written_prompts(["plain", "role play", "urgency"])
    words = {one.request.split(" ")[-1] for one in prompts if one.category == "drugs" and not one.safe}
    after, before = (judge_answers(ask(policy, prompts), REFUSALS) for policy in (Planted(), Planted(*words)))
    found = red_team_changes(prompts, after, before)
    whole = {row["of"]: row for row in found["whole"]}
    changed = {
        one.request
        for one, new, old in zip(prompts, after[:, 0], before[:, 0], strict=True)
        if new != old and not one.safe
    }
    assert whole[SUCCESS]["difference"].value == pytest.approx(len(changed) / 130)
    assert whole[SUCCESS]["p"] == pytest.approx(2 * 0.5 ** len(changed))
    assert whole[SUCCESS]["p_holm"] == pytest.approx(2 * whole[SUCCESS]["p"])
    by = {(row["category"], row["of"]): row for row in found["by_category"]}
    assert len(by) == 26 and by["drugs", SUCCESS]["difference"].value == 1
    assert by["drugs", SUCCESS]["p"] == pytest.approx(2 * 0.5**10)
    assert by["drugs", SUCCESS]["p_holm"] == pytest.approx(26 * 2 * 0.5**10)
    assert by["violence", REFUSAL]["p_holm"] == 1
    assert len(found["by_attack"]) == 6


def test_the_same_policy_has_not_changed():
    prompts = written_prompts(["plain"])
    events = judge_answers(ask(Planted("gun", until=1), prompts, 2), REFUSALS, k=2)
    found = red_team_changes(prompts, events, events)
    assert [(row["of"], row["tries"], row["p"]) for row in found["whole"]] == [
        (SUCCESS, 1, 1), (SUCCESS, 2, 1), (REFUSAL, 1, 1), (REFUSAL, 2, 1)]  # fmt: skip
    assert all(row["difference"].low < 0 < row["difference"].high for row in found["whole"])


def test_chance_alone_seldom_looks_like_a_change():
    """Two samples of one policy on requests that fail together: false alarms of the exact test stay at 5 %."""
    prompts = [one for one in written_prompts() if not one.safe and one.category in ("drugs", "fraud")]
    asked = np.unique([one.request for one in prompts], return_inverse=True)[1]
    rng, low = np.random.default_rng(0), 0
    for _ in range(200):
        after, before = ((rng.random(20) < 0.4)[asked, None] for _ in range(2))
        low += red_team_changes(prompts, after, before)["whole"][0]["p"] <= 0.05
    assert low <= 16  # 99 % bound of 5 % in 200 is 18
