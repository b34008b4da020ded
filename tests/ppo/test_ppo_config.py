"""`rmtrl.PPOConfig`: TRL's fields and defaults, and a line for each setting that cannot be used."""

from dataclasses import MISSING, fields, replace

import pytest
from transformers import HfArgumentParser, TrainingArguments

from rmtrl.errors import UsageError
from rmtrl.ppo._base import TRL_HAS_PPO, _PPOFields
from rmtrl.ppo.config import PPOConfig

ADDED = {
    "max_prompt_length", "top_p", "generation_kwargs", "num_generations", "num_eval_generations", "missing_eos_score",
    "reward_clip_range", "normalize_rewards", "kl_target", "kl_horizon", "max_approx_kl", "max_kl", "entropy_coef",
    "one_backbone", "use_vllm", "vllm_gpu_memory_utilization", "vllm_max_logprob_gap",
}  # fmt: skip


def defaults(config):
    return {
        field.name: field.default_factory() if field.default is MISSING else field.default for field in fields(config)
    }


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this TRL has no PPOConfig")
def test_the_fields_and_defaults_that_stand_in_for_trls_are_trls():
    from trl.experimental.ppo import PPOConfig as TRLConfig

    assert defaults(_PPOFields) == defaults(TRLConfig)


def test_fields_are_trls_with_the_added_ones_and_one_default_differs():
    ours, stand_in = defaults(PPOConfig), defaults(_PPOFields)
    assert set(ours) == set(stand_in) | ADDED
    assert {name for name in stand_in if ours[name] != stand_in[name]} == {"stop_token"}
    assert ours["stop_token"] == "eos"


def test_every_field_has_help_for_the_command_line():
    own = {field.name for field in fields(PPOConfig)} - {field.name for field in fields(TrainingArguments)}
    assert all(field.metadata.get("help") for field in fields(PPOConfig) if field.name in own)


def test_settings_are_read_from_flags(tmp_path):
    flags = ["--output_dir", str(tmp_path), "--kl_coef", "0.2", "--max_prompt_length", "9", "--use_cpu",
             "--bf16", "False", "--generation_kwargs", '{"min_new_tokens": 2}',
             "--reward_clip_range", "-1", "1"]  # fmt: skip
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(flags)
    assert (config.kl_coef, config.max_prompt_length) == (0.2, 9)
    assert config.generation_kwargs == {"min_new_tokens": 2}
    assert config.reward_clip_range == [-1.0, 1.0]


def test_the_number_of_processes_is_what_it_is_and_no_setting(new_config):
    assert new_config().world_size == new_config(world_size=8).world_size == 1
    assert replace(new_config(), kl_coef=0.1).world_size == 1
    assert new_config().to_dict()["world_size"] == 1


def test_a_stop_token_of_its_own_stops_too(new_config):
    assert new_config().stops
    assert not new_config(stop_token=None).stops
    assert new_config(stop_token=None, stop_token_id=7).stops


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(num_mini_batches=0), "`num_mini_batches` must be 1 or more, got 0"),
        (dict(num_ppo_epochs=0), "`num_ppo_epochs` must be 1 or more, got 0"),
        (dict(response_length=0), "`response_length` must be 1 or more, got 0"),
        (dict(local_rollout_forward_batch_size=0), "`local_rollout_forward_batch_size` must be 1 or more"),
        (dict(num_generations=0), "`num_generations` must be 1 or more"),
        (dict(num_eval_generations=0), "`num_eval_generations` must be 1 or more"),
        (dict(total_episodes=0), "`total_episodes` must be 1 or more"),
        (dict(max_prompt_length=0), "`max_prompt_length` must be 1 or more"),
        (dict(temperature=0.0), "`temperature` must be above 0, got 0.0"),
        (dict(temperature=float("nan")), "`temperature` must be above 0, got nan"),
        (dict(top_p=0.0), "`top_p` must be above 0, up to 1"),
        (dict(top_p=1.5), "`top_p` must be above 0, up to 1, got 1.5"),
        (dict(kl_coef=-0.1), "`kl_coef` must be 0 or more, got -0.1"),
        (dict(kl_target=0.0), "`kl_target` must be above 0"),
        (dict(kl_horizon=0), "`kl_horizon` must be above 0"),
        (dict(cliprange=0.0), "`cliprange` must be above 0"),
        (dict(cliprange_value=0.0), "`cliprange_value` must be above 0"),
        (dict(gamma=1.1), "`gamma` must be above 0, up to 1"),
        (dict(lam=-0.1), "`lam` must be from 0 to 1"),
        (dict(entropy_coef=-1.0), "`entropy_coef` must be 0 or more"),
        (dict(vf_coef=-1.0), "`vf_coef` must be 0 or more"),
        (dict(max_approx_kl=0.0), "`max_approx_kl` must be above 0"),
        (dict(max_kl=0.0), "`max_kl` must be above 0"),
        (dict(missing_eos_penalty=-1.0), "`missing_eos_penalty` must be above 0"),
        (dict(stop_token="pad"), "`stop_token` must be 'eos' or None, got 'pad'; or set `stop_token_id`"),
        (dict(kl_estimator="k2"), "`kl_estimator` must be 'k1' or 'k3', got 'k2'"),
        (dict(reward_clip_range=(1, -1)), "`reward_clip_range` must be two numbers, the lower first, got (1, -1)"),
        (dict(reward_clip_range=(1,)), "`reward_clip_range` must be two numbers"),
        (dict(stop_token=None, missing_eos_penalty=1.0), "need a stop token; set `stop_token='eos'`"),
        (dict(stop_token=None, missing_eos_score=-1.0), "need a stop token"),
        (dict(missing_eos_penalty=1.0, missing_eos_score=-1.0), "exclude each other; set one"),
        (dict(generation_kwargs="{min: 4"), "`generation_kwargs` must be JSON such as"),
        (dict(generation_kwargs={"max_new_tokens": 3}), "holds 'max_new_tokens'; set `response_length` instead"),
        (dict(generation_kwargs={"temperature": 0.5}), "holds 'temperature'; set `temperature` instead"),
        (dict(generation_kwargs={"min_new_token": 3}), "'min_new_token', which is no setting of a GenerationConfig"),
        (dict(generation_kwargs={"top_k": 5}), "holds 'top_k', which has no effect on samples drawn here or would"),
        (dict(generation_kwargs={"num_beams": 2}), "holds 'num_beams', which has no effect"),
        (dict(generation_kwargs={"pad_token_id": 2}), "holds 'pad_token_id', which has no effect"),
        (dict(generation_kwargs={"return_dict_in_generate": True}), "holds 'return_dict_in_generate', which has no"),
        (dict(neftune_noise_alpha=5.0), "`neftune_noise_alpha` must be left out, for it does harm or nothing in PPO"),
        (dict(torch_compile=True), "`torch_compile` must be left out"),
        (dict(torch_compile_mode="default"), "`torch_compile_mode` must be left out"),
        (dict(use_liger_kernel=True), "`use_liger_kernel` must be left out"),
        (dict(ds3_gather_for_generation=False), "`ds3_gather_for_generation` must be true, got False"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_in_one_line(new_config, settings, line):
    with pytest.raises(UsageError) as stop:
        new_config(**settings)
    assert line in str(stop.value)
    assert "\n" not in str(stop.value)


def test_the_ends_of_each_range_can_be_used(new_config):
    new_config(top_p=1.0, gamma=1.0, lam=0.0, kl_coef=0.0, entropy_coef=0.0, vf_coef=0.0)
    new_config(lam=1.0, missing_eos_score=-1.0, stop_token=None, stop_token_id=7)


@pytest.mark.parametrize("word", ["none", "null", "None"])
def test_a_flag_can_take_the_stop_token_away(tmp_path, word):
    flags = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "False", "--stop_token", word]
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(flags)
    assert config.stop_token is None and not config.stops


def test_the_best_checkpoint_is_told_by_the_reward_unless_another_figure_is_named(new_config):
    steps = dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    config = new_config(**steps)
    assert (config.metric_for_best_model, config.greater_is_better) == ("eval_reward", True)
    config = new_config(metric_for_best_model="eval_kl", greater_is_better=False, **steps)
    assert (config.metric_for_best_model, config.greater_is_better) == ("eval_kl", False)
    assert new_config().metric_for_best_model is None


def test_settings_of_generation_that_act_on_the_logits_are_taken(new_trainer, prompts):
    trainer = new_trainer(eval_dataset=prompts, response_length=6, generation_kwargs={
        "min_new_tokens": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "bad_words_ids": [[5], [6, 7]],
        "sequence_bias": [[[8], -5.0]], "suppress_tokens": [9], "begin_suppress_tokens": [10], "use_cache": True,
        "exponential_decay_length_penalty": [2, 1.1], "remove_invalid_values": True, "forced_eos_token_id": 3,
        "min_length": 1, "cache_implementation": "static",
    })  # fmt: skip
    assert trainer.evaluate()["eval_length_tokens"] >= 2
