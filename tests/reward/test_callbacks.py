import json
import math

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from rmtrl import CenterRewardCallback, LengthBiasCallback, MarginCallback, PairRewards, RewardConfig, RewardTrainer
from rmtrl.reward.callbacks import RewardCallback

CALLBACKS = [MarginCallback, LengthBiasCallback, CenterRewardCallback]


class State:
    is_world_process_zero = True


def pair_rewards(n=50, seed=0):
    rng = np.random.default_rng(seed)
    none = np.zeros(n, dtype=np.int64)
    return PairRewards(
        rng.normal(size=n),
        rng.normal(size=n),
        rng.random(n),
        rng.integers(1, 40, n),
        rng.integers(1, 40, n),
        none,
        none,
    )


@pytest.mark.parametrize("callback", CALLBACKS)
def test_scalars_are_finite_floats_whatever_the_prefix(callback):
    for prefix in ("", "eval_", "eval_math_"):
        scalars = callback().on_rewards(None, State, None, pairs=pair_rewards(), prefix=prefix)
        assert scalars and all(isinstance(v, float) and math.isfinite(v) for v in scalars.values())
        json.dumps(scalars, allow_nan=False)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_scalars_of_one_pair_are_finite(callback):
    scalars = callback().on_rewards(None, State, None, pairs=pair_rewards(1), prefix="")
    assert all(math.isfinite(value) for value in scalars.values())


def test_margin_and_centre_by_hand():
    pairs = PairRewards(*(np.array(v) for v in ([2.0, 0.0], [1.0, 1.0], [0, 0], [1, 1], [1, 1], [0, 0], [0, 0])))
    margin = MarginCallback().on_rewards(None, State, None, pairs=pairs, prefix="")
    assert margin == {"margin_std": 1.0, "margin_min": -1.0, "margin_max": 1.0}
    center = CenterRewardCallback().on_rewards(None, State, None, pairs=pairs, prefix="")
    assert center["center_mean"] == 1.0 and center["center_loss"] == (9 + 1) / 2


def test_an_evaluation_has_the_interval_of_its_accuracy():
    pairs = pair_rewards(263)
    right = int((pairs.chosen > pairs.rejected).sum())
    found = MarginCallback().on_rewards(None, State, None, pairs=pairs, prefix="eval_")
    wanted = binomtest(right, 263).proportion_ci(method="wilson")
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((wanted.low, wanted.high))


def test_length_spearman_is_scipy_on_the_centred_pairs():
    pairs = pair_rewards()
    got = LengthBiasCallback().on_rewards(None, State, None, pairs=pairs, prefix="")["length_spearman"]
    rewards = np.stack([pairs.chosen, pairs.rejected])
    lengths = np.stack([pairs.chosen_length_tokens, pairs.rejected_length_tokens]).astype(float)
    wanted = spearmanr((rewards - rewards.mean(0)).ravel(), (lengths - lengths.mean(0)).ravel()).statistic
    assert got == pytest.approx(wanted, abs=1e-9)


def test_callbacks_reach_the_log_and_the_state_still_saves(tmp_path, model, tokenizer, pairs):
    seen = []

    class Recorder(RewardCallback):
        def on_rewards(self, args, state, control, *, pairs, prefix):
            seen.append((prefix, len(pairs), pairs.chosen_length_tokens.min()))
            return {"ties": 0.0}

    args = RewardConfig(
        str(tmp_path), bf16=False, report_to="none", max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=2,
        per_device_train_batch_size=3, save_steps=4, disable_tqdm=True,
    )  # fmt: skip
    trainer = RewardTrainer(
        model, args, train_dataset=pairs, eval_dataset=pairs, processing_class=tokenizer,
        callbacks=[Recorder(), *(callback() for callback in CALLBACKS)],
    )  # fmt: skip
    trainer.train()
    assert [entry[:2] for entry in seen] == [("", 6), ("eval_", 12), ("", 6), ("eval_", 12)]
    assert all(shortest > 0 for _, _, shortest in seen)
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    keys = set().union(*state["log_history"])
    assert {"ties", "margin_std", "length_spearman", "center_loss", "eval_margin_std", "eval_length_gap"} <= keys
