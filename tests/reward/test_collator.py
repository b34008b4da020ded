import math

import pytest
from datasets import Dataset
from templates import NAMES, tokenizer_of
from trl.trainer.reward_trainer import DataCollatorForPreference

from rmtrl import PreferencePairValidatorCollator
from rmtrl.data.messages import shared_prefix_length
from rmtrl.errors import InvalidPairError
from rmtrl.reward.pairs import REASONS
from rmtrl.reward.preparation import prepare_text

BOS, EOS = 1, 9
SOUND = {"chosen_ids": [BOS, 5, 6, EOS], "rejected_ids": [BOS, 5, 7, 8, EOS]}
BAD = {
    "identical_candidates": {"chosen_ids": [BOS, 5, EOS], "rejected_ids": [BOS, 5, EOS]},
    "no_shared_prompt": {"chosen_ids": [BOS, 5, EOS], "rejected_ids": [BOS, 6, EOS]},
    "empty_response": {"chosen_ids": [BOS, 5], "rejected_ids": [BOS, 5, 6, EOS]},
    "missing_eos": {"chosen_ids": [BOS, 5, 6, EOS], "rejected_ids": [BOS, 5, 7]},
    "too_long": {"chosen_ids": [BOS, 5, *[6] * 30, EOS], "rejected_ids": [BOS, 5, 7, EOS]},
    "non_finite_margin": SOUND | {"margin": math.nan},
}


def make(policy="warn"):
    wrapped = DataCollatorForPreference(pad_token_id=0)
    return PreferencePairValidatorCollator(wrapped, policy=policy, bos_token_id=BOS, eos_token_id=EOS, max_length=20)


def test_every_reason_has_a_case():
    assert set(BAD) == set(REASONS)


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_is_found(reason):
    assert make()([BAD[reason]])["reason"].tolist() == [1 + REASONS.index(reason)]


@pytest.mark.parametrize("reason", REASONS)
def test_raise_names_the_reason(reason):
    with pytest.raises(InvalidPairError, match=reason):
        make("raise")([BAD[reason]])


def test_sound_pairs_pass_every_policy_and_keep_the_batch_of_the_host():
    for policy in ("warn", "drop", "raise"):
        batch = make(policy)([SOUND, SOUND])
        assert batch["reason"].tolist() == [0, 0]
        assert batch["length_tokens"].tolist() == [[2, 3], [2, 3]]
        host = DataCollatorForPreference(pad_token_id=0)([SOUND, SOUND])
        assert all((batch[key] == host[key]).all() for key in host)


def test_an_example_says_that_its_response_is_empty():
    assert make()([SOUND | {"_empty_response": True}])["reason"].tolist() == [1 + REASONS.index("empty_response")]


def test_without_end_token_one_answer_may_be_the_start_of_the_other():
    collator = PreferencePairValidatorCollator(DataCollatorForPreference(pad_token_id=0), bos_token_id=BOS)
    assert collator([{"chosen_ids": [BOS, 5, 6], "rejected_ids": [BOS, 5, 6, 7]}])["reason"].tolist() == [0]


def test_shared_prefix_is_found_at_every_length():
    for length in range(40):
        head = list(range(length))
        assert shared_prefix_length([*head, 100, 101], [*head, 102]) == length
        assert shared_prefix_length(head, head) == length
        assert shared_prefix_length(head, [*head, 7]) == length


def turns(*contents):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, contents, strict=False)]


def checked(tokenizer, *pairs):
    """Reasons and lengths of pairs of chats, prepared and collated as the trainer does."""
    data = Dataset.from_list([{"chosen": chosen, "rejected": rejected} for chosen, rejected in pairs])
    prepared = prepare_text(data, tokenizer, constants={})
    collator = PreferencePairValidatorCollator(
        DataCollatorForPreference(pad_token_id=0),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    batch = collator(list(prepared))
    return [REASONS[code - 1] if code else None for code in batch["reason"]], batch["length_tokens"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_header_that_all_chats_share_is_no_shared_prompt(name):
    tokenizer = tokenizer_of(name)
    short, long, go_on = "is the sun red ?", "one two three " * 9 + "is the moon blue ?", "and the sea ?"
    reasons, lengths = checked(
        tokenizer,
        (turns(short, "yes."), turns(short, "no two three")),
        (turns(short, "yes."), turns(long, "no two three")),
        (turns(long, "yes."), turns(short, "no two three")),
        (turns(short, "yes.", go_on, "yes."), turns(short, "yes.", go_on, "no two three")),
        (turns(short, "yes.", go_on, "yes."), turns(long, "yes.", go_on, "no two three")),
        (turns(short, "yes."), turns(long, "yes.")),
    )
    assert reasons == [None, "no_shared_prompt", "no_shared_prompt", None, "no_shared_prompt", "no_shared_prompt"]
    assert lengths[:5] == [lengths[0]] * 5
    assert lengths[5][0] == lengths[5][1] < len(tokenizer(long)["input_ids"])


def test_a_system_message_that_both_sides_have_is_no_shared_prompt():
    system = [{"role": "system", "content": "be good"}]
    reasons, lengths = checked(
        tokenizer_of("qwen3"),
        (system + turns("one", "yes."), system + turns("two", "no two three")),
        (system + turns("one", "yes."), system + turns("one", "no two three")),
        (system + turns("one", "yes."), turns("one", "no two three")),
    )
    assert reasons == ["no_shared_prompt", None, "no_shared_prompt"]
    assert lengths == [lengths[1]] * 3
