"""PPO against exact optima: a reward that counts one token, a uniform reference, a KL penalty."""

import math

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rmtrl import PPOConfig, PPOTrainer

VOCABULARY, LENGTH, TOKEN = 16, 8, 3

pytestmark = pytest.mark.slow


def optimum(beta, lam=1.0):
    """Mean share of the token and KL of the best policy; with λ < 1, of the fixed point under a state-blind critic.

    Position t of L learns from the score times λ^(L−1−t), so its best policy has odds exp(λ^(L−1−t) / (L β)).
    """
    shares = []
    for t in range(LENGTH):
        odds = math.exp(lam ** (LENGTH - 1 - t) / (LENGTH * beta))
        shares.append(odds / (odds + VOCABULARY - 1))
    kl = sum(
        p * math.log(p * VOCABULARY) + (1 - p) * math.log((1 - p) * VOCABULARY / (VOCABULARY - 1)) for p in shares
    )
    return sum(shares) / LENGTH, kl


def largest_objective(beta):
    """β log E_ref[e^(r/β)], which no policy's E[r] − β KL exceeds (Donsker and Varadhan)."""
    return beta * LENGTH * math.log((math.exp(1 / (LENGTH * beta)) + VOCABULARY - 1) / VOCABULARY)


class StateBlind(torch.nn.Module):
    """A critic that knows the position alone."""

    def __init__(self):
        super().__init__()
        self.values = torch.nn.Parameter(torch.zeros(32))

    def forward(self, input_ids, attention_mask):
        return 20 * self.values[: input_ids.shape[1]].expand(input_ids.shape)  # keeps up with the policy


def share_of_token(prompts, completions, completion_ids, **columns):
    return [ids.count(TOKEN) / LENGTH for ids in completion_ids]


def train(folder, beta, *, lam=1.0, value_model=None, max_steps=40, **settings):
    """Returns the log of a run from a uniform policy."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0")),
        pad_token="t0", eos_token="t1",
    )  # fmt: skip
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip
    policy.lm_head.weight.data.zero_()
    defaults = dict(
        per_device_train_batch_size=64, gradient_accumulation_steps=4, num_mini_batches=4, num_ppo_epochs=4,
        max_steps=max_steps, learning_rate=1e-3, lr_scheduler_type="cosine", kl_coef=beta, lam=lam, temperature=1.0,
        response_length=LENGTH, stop_token=None, local_rollout_forward_batch_size=256, max_grad_norm=1.0,
        report_to="none", bf16=False, gradient_checkpointing=False, save_strategy="no", logging_steps=1,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(
        PPOConfig(str(folder), **(defaults | settings)), tokenizer, policy, reward_model=share_of_token,
        train_dataset=Dataset.from_dict({"input_ids": [[2]] * 512}), value_model=value_model,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer.train()
    finally:
        torch.set_num_threads(threads)
    return [entry for entry in trainer.state.log_history if "objective/scores" in entry]


def mean_of_last(log, key, n=10):
    return sum(entry[key] for entry in log[-n:]) / n


def assert_bounded(log, beta, episodes=256):
    """J = E[r] − β KL is at most its bound, beyond the noise of each update's sample and of the last ten."""
    bound = largest_objective(beta)
    for entry in log:
        assert entry["objective/rlhf_reward"] <= bound + 5 * entry["objective/scores_std"] / math.sqrt(episodes)
    error = mean_of_last(log, "objective/scores_std") / math.sqrt(10 * episodes)
    assert mean_of_last(log, "objective/rlhf_reward") <= bound + 3 * error


def test_the_optimum_is_that_of_the_closed_form():
    assert optimum(0.05) == pytest.approx((0.448, 4.724), abs=6e-4)
    assert optimum(0.02) == pytest.approx((0.972, 20.55), abs=6e-3)
    assert optimum(0.05, lam=0.95) == pytest.approx((0.355, 3.064), abs=6e-4)
    assert largest_objective(0.05) == pytest.approx(0.2120, abs=5e-5)
    assert largest_objective(0.02) == pytest.approx(0.5610, abs=5e-5)


def test_the_optimum_is_reached(tmp_path):
    log = train(tmp_path, 0.05)
    share, kl = optimum(0.05)
    assert mean_of_last(log, "objective/scores") == pytest.approx(share, abs=0.03)
    assert mean_of_last(log, "objective/kl") == pytest.approx(kl, abs=0.4)
    assert_bounded(log, 0.05)


def test_a_state_blind_critic_shifts_the_fixed_point_as_predicted(tmp_path):
    # one pass a batch: with noisy advantages the clip of further passes is a pull towards more entropy
    log = train(
        tmp_path, 0.05, lam=0.95, value_model=StateBlind(), max_steps=70, num_ppo_epochs=1,
        per_device_train_batch_size=128, local_rollout_forward_batch_size=512,
    )  # fmt: skip
    share, kl = optimum(0.05, lam=0.95)
    assert mean_of_last(log, "objective/scores") == pytest.approx(share, abs=0.03)
    assert mean_of_last(log, "objective/kl") == pytest.approx(kl, abs=0.4)
    assert_bounded(log, 0.05, episodes=512)


def test_a_weak_penalty_is_followed_nearly_to_the_end(tmp_path):
    log = train(tmp_path, 0.02, max_steps=50)
    assert mean_of_last(log, "objective/scores") >= 0.93
    assert_bounded(log, 0.02)
