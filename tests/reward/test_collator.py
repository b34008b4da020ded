import math

import pytest
from trl.trainer.reward_trainer import DataCollatorForPreference

from rmtrl import PreferencePairValidatorCollator
from rmtrl.errors import InvalidPairError
from rmtrl.reward.collator import REASONS, shared_prefix_length

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
