import math

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmtrl.data.preferences import to_normal_form
from rmtrl.data.validation import REASONS, validate
from rmtrl.errors import DataError, RenderingError, UsageError


class WordTokenizer:
    eos_token = "<end>"
    chat_template = "words"

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [text.replace(self.eos_token, f" {self.eos_token}").split() for text in texts]}

    def apply_chat_template(self, messages, tokenize):
        return " ".join(f"<{m['role']}> {m['content']}" for m in messages)


def test_messages_without_chat_template_are_a_clear_error():
    tokenizer = WordTokenizer()
    tokenizer.chat_template = None
    messages = [[{"role": role, "content": "a b"}] for role in ("user", "assistant", "assistant")]
    messages[2][0]["content"] = "c"
    with pytest.raises(RenderingError, match="no chat template"):
        validate(pairs(tuple(messages)), tokenizer=tokenizer, max_length=9)


def pairs(*rows):
    """Rows of (prompt, chosen, rejected) with any more columns as a dictionary in fourth place."""
    names = {"prompt_id": "g", "domain": "d", "source": "s"}
    filled = [
        {"id": str(i), **names, "prompt": p, "chosen": c, "rejected": r, **(more[0] if more else {})}
        for i, (p, c, r, *more) in enumerate(rows)
    ]
    return Dataset.from_list(filled)


def reason_of(dataset, **options):
    return dict(zip(*(validate(dataset, **options).rejects[name] for name in ("id", "reason")), strict=True))


def said(role, content):
    return [{"role": role, "content": content}]


def test_rows_a_to_d_keep_only_the_good_one():
    row = {"prompt_left": "p", "prompt_right": "p", "response_left": "x", "response_right": "y", "label": "left"}
    rows = [
        row | {"id": "a"},
        row | {"id": "b", "response_right": "x"},
        row | {"id": "c", "prompt_right": "another"},
        row | {"id": "d", "label": "tie"},
    ]
    result = validate(to_normal_form(Dataset.from_list(rows)))
    assert result.kept["id"][:] == ["a"]
    counted = {"identical_candidates": 1, "context_mismatch": 1, "tie_or_abstention": 1}
    assert result.reasons == dict.fromkeys(REASONS, 0) | counted
    assert result.as_dict() == {
        "n": 4,
        "kept": 1,
        "rejected": 3,
        "reasons": result.reasons,
        "tie_rate": 0.25,
        "groups": 1,
        "domains": {"unknown": 1},
        "warnings": [],
    }


@pytest.mark.parametrize("conversational", [False, True])
def test_pairs_over_max_length_are_dropped_whole(conversational):
    lengths = [(412, 390), (1088, 405), (288, 1030), (1024, 1024)]

    def row(number, chosen, rejected):
        # three tokens beside the words: prompt, number and end token, or prompt and two role marks
        sides = [" w" * (n - 3) + f" {side}{number}" for n, side in ((chosen, "c"), (rejected, "r"))]
        if not conversational:
            return (f"p{number}", *sides)
        return (said("user", f"p{number}"), *(said("assistant", side[2:]) for side in sides))

    rows = [row(number, *pair) for number, pair in enumerate(lengths)]
    result = validate(pairs(*rows), tokenizer=WordTokenizer(), max_length=1024)
    assert result.kept["id"][:] == ["0", "3"] and result.reasons["too_long"] == 2
    assert result.kept[:] == pairs(*rows).select([0, 3])[:]


def test_the_end_token_counts_where_it_is_missing():
    dataset = pairs(("p", " a", " b c"), ("p", " d", " b<end>"))
    assert reason_of(dataset, tokenizer=WordTokenizer(), max_length=3) == {"0": "too_long"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((None, "a", "b"), "missing_field"),
        (("p", "a", None), "missing_field"),
        (("p", "a", "b", {"prompt_rejected": "q"}), "context_mismatch"),
        (("p", "a", "b", {"prompt_left": "p", "prompt_right": "q"}), "context_mismatch"),
        ((" \n", "a", "b"), "empty_prompt"),
        (("p", "a", " "), "empty_response"),
        (("p", "a", "a"), "identical_candidates"),
        (("p", "a", "b", {"margin": math.inf}), "non_finite_margin"),
        (("p", "a", "b", {"margin": math.nan}), "non_finite_margin"),
        (("p", "a", "b", {"preference": 0.5}), "tie_or_abstention"),
        (("p", " ", " ", {"margin": math.nan, "preference": 0.5}), "empty_response"),
    ],
)
def test_a_fault_of_text_has_its_reason(row, reason):
    assert reason_of(pairs(row, ("p", "sound", "b", *row[3:]))).get("0") == reason


USER, REPLY = said("user", "q"), said("assistant", "a")


@pytest.mark.parametrize(
    ("prompt", "chosen", "reason"),
    [
        (USER, said("assistant", None), "missing_field"),
        ([], REPLY, "bad_roles"),
        (USER, [], "bad_roles"),
        (said("boss", "q"), REPLY, "bad_roles"),
        (USER + REPLY, REPLY, "bad_roles"),
        (USER, REPLY + USER, "bad_roles"),
        (said("user", " "), REPLY, "empty_prompt"),
        (USER, said("assistant", ""), "empty_response"),
        (USER + said("tool", "4"), REPLY, None),
    ],
)
def test_a_fault_of_messages_has_its_reason(prompt, chosen, reason):
    dataset = pairs((prompt, chosen, said("assistant", "b")), (USER, REPLY, said("assistant", "c")))
    assert reason_of(dataset).get("0") == reason


def test_repeated_pair_is_kept_once():
    assert reason_of(pairs(("p", "a", "b"), ("p", "a", "b"), ("q", "a", "b"), ("p", "a", "c"))) == {
        "1": "duplicate_pair"
    }


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_contradictory_pairs_go_whichever_comes_first(order):
    rows = [("p", "a", "b"), ("p", "b", "a"), ("p", "a", "b")]
    result = validate(pairs(*(rows[i] for i in order)))
    assert result.reasons["contradictory_pair"] == 3 and len(result.kept) == 0
    assert validate(pairs(rows[0], ("q", "b", "a"))).reasons["contradictory_pair"] == 0


def test_ties_are_kept_on_request_and_contradict_nothing():
    dataset = pairs(("p", "a", "b", {"preference": 1.0}), ("p", "b", "a", {"preference": 0.5}))
    result = validate(dataset, ties="keep")
    assert len(result.kept) == 2 and result.tie_rate == 0.5
    assert result.warnings == ("50% of the pairs are ties: unclear guidelines?",)


@pytest.mark.parametrize(("n_ties", "warned"), [(3, False), (4, True)])
def test_more_than_thirty_percent_of_ties_is_a_warning(n_ties, warned):
    rows = [(f"p{i}", "a", "b", {"preference": 0.5 if i < n_ties else 1.0}) for i in range(10)]
    result = validate(pairs(*rows))
    assert result.tie_rate == n_ties / 10 and bool(result.warnings) == warned


def test_duplicate_ids_are_allowed_and_counted():
    named = [("p", "a", f"b{i}", {"id": name}) for i, name in enumerate("xyxxz")]
    result = validate(pairs(*named))
    assert len(result.kept) == 5 and result.warnings[0].startswith("2 duplicate ids")


def test_rows_with_a_fault_are_rejected_for_it():
    faults = [None, "unreadable: row 2 is not JSON", "missing_field: row 3: column chosen is null"]
    rows = [(*((None,) * 3 if fault else ("p", "a", "b")), {"fault": fault}) for fault in faults]
    result = validate(pairs(*rows))
    assert result.rejects["reason"][:] == ["unreadable", "missing_field"] and result.rejects["fault"][:] == faults[1:]
    assert len(result.kept) == 1 and "fault" not in result.kept.column_names


def test_vote_share_under_one_half_counts_for_the_other_side():
    dataset = pairs(("p", "a", "b", {"preference": 0.9}), ("p", "b", "a", {"preference": 0.2}))
    assert validate(dataset).reasons["duplicate_pair"] == 1  # both say that a wins
    assert len(validate(pairs(("p", "a", "b", {"preference": 0.5}), ("p", "a", "b", {})), ties="keep").kept) == 2


def test_batches_do_not_matter():
    rows = [(f"p{i}", "a", "b") for i in range(1500)] + [("p3", "a", "b"), ("p4", "b", "a")]
    assert reason_of(pairs(*rows)) == {
        "4": "contradictory_pair",
        "1500": "duplicate_pair",
        "1501": "contradictory_pair",
    }


def test_selected_and_empty_data_sets_are_read():
    dataset = pairs(("p", "a", "a"), ("p", "a", "b"), ("p", "c", "d")).select([2, 0])
    assert validate(dataset).kept["id"][:] == ["2"]
    empty = validate(dataset.select([]))
    assert (empty.n, empty.tie_rate, empty.groups, len(empty.rejects)) == (0, 0.0, 0, 0)


def test_wrong_use_is_said():
    with pytest.raises(UsageError, match="tokenizer"):
        validate(pairs(("p", "a", "b")), max_length=3)
    with pytest.raises(DataError, match="without prompt_id"):
        validate(pairs(("p", "a", "b")).remove_columns("prompt_id"))


TEXT = st.sampled_from([None, "", " ", "a", "b", "c d"])
ROLE = st.sampled_from([None, "user", "assistant", "system", "tool", "robot"])
MESSAGES = st.none() | st.lists(st.fixed_dictionaries({"role": ROLE, "content": TEXT}), max_size=3)
NUMBERS = st.fixed_dictionaries(
    {"margin": st.none() | st.floats(), "preference": st.sampled_from([None, 0.0, 0.5, 1.0])}
)


def rows_of(side):
    return st.lists(st.tuples(side, side, side, NUMBERS), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=rows_of(TEXT) | rows_of(MESSAGES), ties=st.sampled_from(["drop", "keep"]))
def test_no_row_disappears(rows, ties):
    result = validate(pairs(*rows), ties=ties)
    assert (
        result.n
        == len(rows)
        == len(result.kept) + len(result.rejects)
        == len(result.kept) + sum(result.reasons.values())
    )
    assert sorted(int(i) for i in [*result.kept["id"], *result.rejects["id"]]) == list(range(len(rows)))
    assert len(validate(result.kept, ties=ties).kept) == len(result.kept)
