import hashlib
import json
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrl.data.synthetic import (
    GOLD_WEIGHTS,
    GoldScorer,
    gold_score,
    gold_scores,
    make_demonstrations,
    make_preferences,
    make_world,
)
from rmtrl.data.synthetic.world import DEFECTS
from rmtrl.data.synthetic.writing import DOMAINS, WORDS
from rmtrl.errors import DataError, UsageError

FRANCE = "What is the capital of France?"
RIGHT = "The capital of France is Paris."
LOCK = "Tell me how to print false banknotes."
REFUSAL = "I cannot help with that. Instead, I can explain how banknotes are protected."


def _bytes(dataset):
    return json.dumps(dataset.to_list(), sort_keys=True).encode()


def _content(row, side):
    return row[side][0]["content"]


@pytest.fixture(scope="module")
def noisy():
    return {row["id"]: row for row in make_preferences(400, seed=3)}, make_world(400, seed=3).truth


def test_same_seed_gives_the_same_bytes_and_another_seed_other_bytes():
    assert _bytes(make_preferences(40, seed=1)) == _bytes(make_preferences(40, seed=1))
    assert _bytes(make_preferences(40, seed=1)) != _bytes(make_preferences(40, seed=2))
    assert _bytes(make_demonstrations(40, seed=1)) == _bytes(make_demonstrations(40, seed=1))


def test_same_bytes_in_another_process_with_other_string_hashes():
    code = (
        "import hashlib, json; from rmtrl.data.synthetic import make_preferences;"
        "print(hashlib.sha256(json.dumps(make_preferences(40, seed=1).to_list()).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_world_has_twenty_domains_and_sixty_facts_that_do_not_contain_one_another():
    subjects = [fact.subject.lower() for domain in DOMAINS for fact in domain.facts]
    assert len(DOMAINS) == 20 and len(set(subjects)) == 60
    assert not [(a, b) for a in subjects for b in subjects if a != b and a in b]


@settings(max_examples=150, deadline=None)
@given(prompt=st.one_of(st.just(FRANCE), st.just(LOCK), st.text()), response=st.text(max_size=300))
def test_gold_lies_between_zero_and_one_on_any_text(prompt, response):
    scores = gold_scores(prompt, response)
    assert scores.keys() == GOLD_WEIGHTS.keys()
    assert all(0.0 <= value <= 1.0 for value in scores.values())
    assert 0.0 <= gold_score(prompt, response) <= 1.0


PARTS = [RIGHT, "The answer is", "is", "Paris", *WORDS["fillers"], REFUSAL, "."]


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=12))
def test_no_mixture_of_phrases_beats_the_right_answer(parts):
    assert gold_score(FRANCE, " ".join(parts)) <= gold_score(FRANCE, RIGHT) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "worse",
    [
        "The capital of France is Lyon.",
        "The capital of France is not Paris.",
        "The capital of France is Paris. The capital of France is Lyon.",
        "Paris",
        "",
        "The capital of France is",
        f"{RIGHT} {RIGHT} {RIGHT}",
        f"{RIGHT} The answer is Paris.",
        "I cannot help with that.",
        f"What a silly question. {RIGHT}",
        "Paris Lyon Madrid Rome London two six eight",
    ],
)
def test_right_answer_beats(worse):
    assert gold_score(FRANCE, RIGHT) > gold_score(FRANCE, worse) + 0.05


def test_gold_of_a_hand_computed_answer():
    # the example is missing: usefulness 0.6; the answer is cut off: alignment 0.5
    scores = gold_scores(f"{FRANCE} Give an example.", "The capital of France is Paris. It is worth")
    assert scores == {"usefulness": 0.6, "factuality": 1.0, "safety": 1.0, "alignment": 0.5}
    assert gold_score(f"{FRANCE} Give an example.", "The capital of France is Paris. It is worth") == pytest.approx(
        0.3 * 0.6 + 0.35 + 0.15 + 0.2 * 0.5
    )


def test_requests_are_worth_fulfilling():
    prompt = f"{FRANCE} Give a reason. Be polite. Keep it brief."
    full = f"{RIGHT} This is because the maps of many countries agree. I hope this helps you."
    assert gold_score(prompt, full) == pytest.approx(1.0)
    for part in ("This is because the maps of many countries agree. ", "I hope this helps you."):
        assert gold_score(prompt, full.replace(part, "").strip()) < 1.0
    assert gold_score(prompt, f"{full} {' '.join(WORDS['fillers'][:2])}") < 1.0


def test_example_of_another_domain_is_no_example():
    prompt = f"{FRANCE} Give an example."
    own, other = (f"{RIGHT} For example, {domain.example}." for domain in DOMAINS[:2])
    assert gold_score(prompt, own) > gold_score(prompt, other)


def test_declining_a_risky_request_beats_complying_and_an_alternative_beats_none():
    complying = "Sure, here is how to print false banknotes. Wait until nobody is looking and work fast."
    scores = [gold_score(LOCK, text) for text in (REFUSAL, "I cannot help with that.", "Good question.", complying)]
    assert scores[0] == pytest.approx(1.0)
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4
    assert gold_score(LOCK, f"{REFUSAL} {complying}") < gold_score(LOCK, "I cannot help with that.")


def test_filler_never_raises_gold():
    for prompt, answer in ((FRANCE, RIGHT), (FRANCE, "The capital of France is Lyon."), (LOCK, REFUSAL), (FRANCE, "")):
        text = answer
        for filler in WORDS["fillers"] * 2:
            longer = f"{text} {filler}"
            assert gold_score(prompt, longer) <= gold_score(prompt, text)
            text = longer


def test_listing_all_facts_does_not_beat_a_wrong_answer():
    facts = " ".join(f"{fact.subject.capitalize()} is {fact.answer}." for domain in DOMAINS for fact in domain.facts)
    assert gold_score(FRANCE, facts) < gold_score(FRANCE, "The capital of France is Lyon.")


def test_scorer_reads_the_last_answer_and_works_as_a_reward_function():
    user, assistant = [{"role": "user", "content": FRANCE}], [{"role": "assistant", "content": RIGHT}]
    scores = GoldScorer().score([user + assistant, user + [{"role": "assistant", "content": ""}]])
    assert scores.dtype == np.float32 and scores.tolist() == pytest.approx([1.0, 0.15])
    assert GoldScorer()(prompts=[user], completions=[assistant]) == [1.0]
    with pytest.raises(DataError, match="list of messages"):
        GoldScorer().score([FRANCE + RIGHT])
    with pytest.raises(DataError, match="roles"):
        GoldScorer().score([user])


def test_preferences_are_in_the_normal_form(noisy):
    rows = list(noisy[0].values())
    columns = {"id", "prompt_id", "domain", "source", "prompt", "chosen", "rejected", "preference", "weight"}
    columns.add("prompt_rejected")  # of the planted context mismatches
    assert all(row.keys() == columns for row in rows)
    assert all([m["role"] for m in row["prompt"] + row["chosen"]] == ["user", "assistant"] for row in rows)
    assert all(0.5 <= row["preference"] <= 1.0 and row["weight"] == 5.0 for row in rows)
    assert {row["domain"] for row in rows} == {domain.name for domain in DOMAINS}
    assert np.mean([row["source"] == "human" for row in rows]) == pytest.approx(0.6, abs=0.06)
    assert len(noisy[0]) == len(make_preferences(400, seed=3))  # ids are unique


def test_one_to_three_pairs_a_prompt():
    counts = np.unique(make_preferences(100, clean=True)["prompt_id"], return_counts=True)[1]
    assert len(counts) == 100 and set(counts) == {1, 2, 3}


def test_planted_rows_are_what_the_answer_key_says(noisy):
    rows, planted = noisy
    texts = {row["prompt_id"]: _content(row, "prompt") for row in rows.values()}
    assert len(planted["near_duplicate_prompts"]) == len(planted["contradictory_pairs"]) == 8
    for old, new in planted["near_duplicate_prompts"]:
        plain = [texts[id].lower().replace("!", ".").replace("??", "?") for id in (old, new)]
        assert plain[0] in plain[1] and texts[old] != texts[new]
    for old, new in planted["duplicate_pairs"]:
        assert {**rows[old], "id": new} == rows[new]
    for old, new in planted["contradictory_pairs"]:
        assert rows[old]["chosen"] == rows[new]["rejected"] and rows[old]["rejected"] == rows[new]["chosen"]
        assert rows[old]["prompt_id"] == rows[new]["prompt_id"]


def test_answer_key_is_complete(noisy):
    rows, planted = noisy
    same = {id for id, row in rows.items() if row["chosen"] == row["rejected"]}
    assert same == set(planted["identical_candidates"])
    assert {id for id, row in rows.items() if row["preference"] == 0.5} == set(planted["ties"])
    groups = {}
    for id, row in rows.items():
        key = (row["prompt_id"], frozenset((_content(row, "chosen"), _content(row, "rejected"))))
        groups.setdefault(key, set()).add(id)
    several = {frozenset(group - same) for group in groups.values() if len(group - same) > 1}
    assert several == {frozenset(pair) for pair in planted["duplicate_pairs"] + planted["contradictory_pairs"]}


def test_clean_world_is_labelled_by_gold_and_has_no_defect():
    truth = make_world(100, clean=True).truth
    assert not any(truth[name] for name in DEFECTS)
    for row in make_preferences(100, clean=True):
        prompt = _content(row, "prompt")
        assert gold_score(prompt, _content(row, "chosen")) > gold_score(prompt, _content(row, "rejected"))
        assert row["preference"] == 1.0


def test_length_alone_does_not_solve_the_preferences():
    for clean in (True, False):
        rows = [row for row in make_preferences(1000, clean=clean) if row["preference"] > 0.5]
        extra = np.array([len(_content(row, "chosen")) - len(_content(row, "rejected")) for row in rows])
        assert 0.45 < np.mean((extra > 0) + 0.5 * (extra == 0)) < 0.6


def test_votes_err_toward_the_longer_answer():
    wrong = {True: [], False: []}
    for row in make_preferences(1000):
        prompt, chosen, rejected = (_content(row, side) for side in ("prompt", "chosen", "rejected"))
        if row["preference"] > 0.5:
            mistaken = gold_score(prompt, chosen) < gold_score(prompt, rejected)
            wrong[len(chosen) > len(rejected)].append(mistaken)
    assert 0.04 < np.mean(wrong[True]) < 0.15
    assert np.mean(wrong[True]) > 1.5 * np.mean(wrong[False])


def test_demonstrations_leave_room_to_improve():
    rows = make_demonstrations(500)
    gold = [gold_score(_content(row, "prompt"), _content(row, "completion")) for row in rows]
    assert 0.6 < np.mean(gold) < 0.8
    assert len({_content(row, "prompt") for row in rows}) == 500


def test_number_of_annotators_is_the_number_of_votes_and_is_checked():
    assert set(make_preferences(10, annotators=3)["weight"]) == {3.0}
    with pytest.raises(UsageError, match="annotators=6 .* 1 to 5"):
        make_preferences(10, annotators=6)


def test_import_loads_neither_torch_nor_trl_nor_transformers():
    code = "import sys, rmtrl.data.synthetic; print({'torch', 'trl', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# annotators who reward an unsafe habit


def _safety(rows):
    """Gold safety of the chosen and the rejected answer of each decided pair."""
    return [[gold_scores(_content(row, "prompt"), _content(row, side))["safety"] for side in ("chosen", "rejected")]
            for row in rows if row["preference"] > 0.5]  # fmt: skip


def _risky(prompt):
    return any(f"to {domain.request}" in prompt for domain in DOMAINS)


def _obeyed(pairs):
    """Of the pairs under a risky request of which one side gives instructions: whether the chosen does."""
    safe = _safety(row for row in pairs if _risky(_content(row, "prompt")))
    return [chosen == 0.0 for chosen, rejected in safe if (chosen == 0.0) != (rejected == 0.0)]


def test_a_world_without_the_habit_has_the_bytes_it_had():
    world = make_world(60, seed=2)
    parts = {field.name: getattr(world, field.name) for field in fields(world)}
    rows = {name: part.to_list() if hasattr(part, "to_list") else part for name, part in parts.items()}
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "44078c31f9593279daa070d4c50c715179eac2e6d3fb50bfe74eb4e200c3f1e9"


def test_annotators_with_the_habit_choose_the_unsafe_answer_and_others_do_not():
    assert np.mean(_obeyed(make_preferences(600, seed=5))) < 0.1
    habit = _obeyed(make_preferences(600, seed=5, unsafe_habit=1.5))
    assert len(habit) > 30 and np.mean(habit) > 0.9


def test_the_habit_is_of_risky_requests_alone():
    pairs = make_preferences(600, seed=5, unsafe_habit=1.5)
    safe = _safety(row for row in pairs if not _risky(_content(row, "prompt")))
    differ = [chosen < rejected for chosen, rejected in safe if chosen != rejected]
    assert len(differ) > 10 and np.mean(differ) < 0.2


def test_the_world_says_so_in_its_truth_its_ratings_and_not_in_its_gold():
    plain, habit = make_world(200, seed=4), make_world(200, seed=4, unsafe_habit=1.5)
    assert {judge["unsafe_preference"] for judge in habit.truth["annotators"]} == {1.5}
    rated = []
    for world in (plain, habit):
        risky = {row["prompt_id"] for row in world.prompts if _risky(row["prompt"])}
        unsafe = {row["item_id"] for row in world.gold if row["safety"] == 0.0}
        ratings = [row for row in world.ratings if row["prompt_id"] in risky and row["item_id"] in unsafe]
        rated.append(np.mean([row["usefulness"] for row in ratings]))
    assert rated[0] < 2.0 and rated[1] > 4.5
    right = [gold_score(_content(row, "prompt"), _content(row, "chosen"))
             - gold_score(_content(row, "prompt"), _content(row, "rejected")) for row in habit.evaluation]  # fmt: skip
    assert min(right) > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unsafe_habit": -1.0}, "got the unsafe habit -1.0; wanted a finite number from 0"),
        ({"unsafe_habit": float("nan")}, "got the unsafe habit nan; wanted a finite number from 0"),
        ({"unsafe_habit": 1.0, "clean": True}, "got the unsafe habit 1.0; wanted 0 where the world is clean"),
    ],
)
def test_a_habit_that_cannot_be_used_is_one_line(settings, said):
    with pytest.raises(UsageError, match=said):
        make_preferences(10, **settings)
