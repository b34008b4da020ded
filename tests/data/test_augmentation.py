import pytest
from datasets import Dataset

from rmtrl.data.design import augment
from rmtrl.data.splits import make_splits
from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import DataError

ROW = {"id": "1", "prompt_id": "p", "domain": "d", "source": "s"}
PAIRS = Dataset.from_list(
    [{**ROW, "prompt": "WHAT?", "chosen": "This.", "rejected": "THAT."}, {**ROW, "id": "2", "prompt": "why?",
     "chosen": "a", "rejected": "b"}]
)  # fmt: skip


def test_a_variant_keeps_its_group_and_is_marked():
    more = augment(PAIRS, "lower", str.lower, of="prompt")
    assert more["id"] == ["1", "2", "1~lower"]  # the second prompt has no other wording
    assert more["needs_annotation"] == [False, False, True]
    assert more[2] == {**PAIRS[0], "id": "1~lower", "prompt": "what?", "needs_annotation": True, "variant_of": "1"}


def test_both_responses_are_edited_and_messages_keep_their_roles():
    assert augment(PAIRS, "lower", str.lower, of="both")[2]["rejected"] == "that."
    chats = make_preferences(5, clean=True)
    more = augment(chats, "upper", str.upper, of="responses")
    assert more[-1]["chosen"] == [{"role": "assistant", "content": chats[-1]["chosen"][0]["content"].upper()}]
    assert more[-1]["prompt"] == chats[-1]["prompt"]


def test_variants_stay_in_the_split_of_their_original():
    splits = make_splits(augment(make_preferences(100, clean=True), "upper", str.upper, of="prompt"))
    assert not any(splits.overlap().values())
    for part in splits.as_dict().values():
        assert len(part.filter(lambda row: row["needs_annotation"])) * 2 == len(part)


def test_the_same_variant_twice_is_an_error():
    with pytest.raises(DataError, match="has the variant lower already"):
        augment(augment(PAIRS, "lower", str.lower, of="prompt"), "lower", str.lower, of="prompt")
    with pytest.raises(DataError, match="returned NoneType"):
        augment(PAIRS, "none", lambda text: None, of="prompt")
