"""A small policy whose responses end by themselves, prompts for it, and a trainer over both."""

from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.trainer import PPOTrainer

_CONFIG = {field.name for field in fields(PPOConfig)}


def token_reward(completion_ids, **columns):
    """A reward that every token moves."""
    return [sum(ids) % 7 - 3 for ids in completion_ids]


@pytest.fixture
def new_policy(tokenizer):
    """A function that makes the same small Llama again; about a fifth of its tokens are end tokens."""

    def make(seed=0, kind=LlamaForCausalLM, **settings):
        torch.manual_seed(seed)
        shape = dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2,
                     pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                     bos_token_id=None)  # fmt: skip
        model = kind(LlamaConfig(**(shape | settings)))
        with torch.no_grad():
            model.get_input_embeddings().weight[:, 0] = 1.0
            if kind is LlamaForCausalLM:
                model.lm_head.weight[:, 0] = 0.0
                model.lm_head.weight[tokenizer.eos_token_id, 0] = 1.5
        return model

    return make


@pytest.fixture
def new_reward_model(new_policy):
    """A function that makes the same small reward model again."""

    def make(seed=1, num_labels=1, **settings):
        return new_policy(seed, LlamaForSequenceClassification, num_labels=num_labels, **settings)

    return make


@pytest.fixture
def prompts(rows):
    """Twelve prompts of different lengths."""
    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows(12)]})


@pytest.fixture
def new_config(tmp_path):
    """A function that makes a configuration of four episodes an update, with any setting replaced."""

    def make(**settings):
        usual = dict(output_dir=str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none", logging_steps=1,
                     gradient_checkpointing=False, disable_tqdm=True, save_strategy="no", num_sample_generations=0,
                     response_length=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
                     num_mini_batches=2, num_ppo_epochs=2, total_episodes=8, learning_rate=1e-3)  # fmt: skip
        return PPOConfig(**(usual | settings))

    return make


@pytest.fixture
def new_trainer(tokenizer, new_policy, prompts, new_config):
    """A function that makes a trainer; what is no field of the configuration goes to the trainer."""

    def make(kind=PPOTrainer, **settings):
        config = settings.pop("args", None) or new_config(**{k: v for k, v in settings.items() if k in _CONFIG})
        own = {k: v for k, v in settings.items() if k not in _CONFIG}
        usual = dict(processing_class=tokenizer, reward_model=token_reward, train_dataset=prompts)
        if "model" not in own:
            usual["model"] = new_policy()
        return kind(args=config, **(usual | own))

    return make


@pytest.fixture
def logs():
    """A function that returns the updates' rows of a trainer's log."""

    def read(trainer):
        return [row for row in trainer.state.log_history if "objective/kl" in row]

    return read
