"""The models of a run: adapters go on being trained, and a line for what cannot play its part."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import ModelConfig

from rmtrl.errors import ModelError, UsageError
from rmtrl.launch.policy import load_policy as load_recipe_policy
from rmtrl.ppo.models import check_vocabulary, load_policy

LORA = dict(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.fixture
def adapter(new_policy, tmp_path):
    """The folder of an adapter that was trained a little, on a base in another folder."""
    base = new_policy()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(**LORA))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def lora(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name}


def trained(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_an_adapter_folder_goes_on_being_trained_and_its_start_is_the_reference(adapter, new_trainer, kind):
    trainer = new_trainer(model=kind(adapter), peft_config=None)
    policy = trainer.model.policy
    assert isinstance(policy, PeftModel) and trainer.ref_model is None
    before = lora(policy)
    trainer.train()
    moved = trained(before, lora(policy))
    assert moved and not any("reference" in name for name in moved)
    assert trainer.state.log_history[0]["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_a_recipe_trains_an_adapter_too(adapter):
    policy = load_recipe_policy(ModelConfig(model_name_or_path=str(adapter)))
    assert any(weight.requires_grad for weight in policy.parameters())


def test_an_adapter_is_not_thrown_away_for_a_new_one(adapter, new_trainer):
    for model in (str(adapter), AutoModelForCausalLM.from_pretrained(adapter)):
        with pytest.raises(UsageError, match="a model with an adapter and a peft_config; merge"):
            new_trainer(model=model, peft_config=LoraConfig(**LORA))


def test_a_policy_without_a_trained_weight_is_refused(adapter, new_policy, new_trainer):
    frozen = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(adapter.parent / "base"), adapter)
    for model in (AutoModelForCausalLM.from_pretrained(adapter), frozen, new_policy().requires_grad_(False)):
        with pytest.raises(UsageError, match="no weight that is trained; call model.requires_grad_"):
            new_trainer(model=model)


def test_a_16_bit_folder_is_trained_in_float32_and_left_as_it_is_below_an_adapter(new_policy, new_trainer, tmp_path):
    new_policy().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert next(load_policy(str(tmp_path / "half")).parameters()).dtype == torch.float32
    assert next(load_policy(tmp_path / "half", adapted=True).parameters()).dtype == torch.bfloat16
    trainer = new_trainer(model=tmp_path / "half", ref_model=tmp_path / "half")
    assert trainer.model.policy.dtype == trainer.ref_model.dtype == torch.float32


def test_16_bit_weights_given_are_trained_with_a_warning(new_policy, new_trainer, caplog):
    with caplog.at_level(logging.WARNING):
        new_trainer(model=new_policy())
        assert "small updates" not in caplog.text
        new_trainer(model=new_policy().to(torch.bfloat16))
    assert "trained weights are torch.bfloat16, in which small updates are lost" in caplog.text


def test_models_that_see_what_comes_after_are_refused(new_trainer, tmp_path):
    small = dict(vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    bert = BertForMaskedLM(BertConfig(**small))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    for model in (bert, t5):
        with pytest.raises(ModelError, match=f"{type(model).__name__}, which sees more than the tokens before"):
            new_trainer(model=model)


def test_a_pad_token_without_embedding_is_no_hindrance(tokenizer, new_policy, new_trainer, prompts, new_reward_model):
    policy, reward_model, rows = new_policy(), new_reward_model(), len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|later|>"})
    assert tokenizer.pad_token_id == rows == policy.config.vocab_size
    trainer = new_trainer(model=policy, reward_model=reward_model, eval_dataset=prompts)
    trainer.train()
    assert tokenizer.pad_token == "<|later|>"
    trainer.save_model()
    AutoModelForCausalLM.from_pretrained(trainer.args.output_dir)


def test_a_reward_model_without_the_pad_token_scores_what_it_would_with_it(tokenizer, new_trainer, new_reward_model):
    rows, model = [[5, 6, 3], [7, 8, 9, 10, 11, 3], [12]], new_reward_model()
    with torch.no_grad():
        wanted = [model(input_ids=torch.tensor([ids])).logits.item() for ids in rows]
    tokenizer.add_special_tokens({"pad_token": "<|later|>"})
    trainer = new_trainer(reward_model=model)
    assert trainer.reward.scorer.score_ids(rows).tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("which", ["ref_model", "value_model", "reward_model"])
def test_models_with_fewer_positions_than_a_response_needs_are_refused(
    new_trainer, new_policy, new_reward_model, which
):
    short = (new_policy if which == "ref_model" else new_reward_model)(max_position_embeddings=8)
    with pytest.raises(UsageError, match=rf"{which} has 8 positions and a prompt with its response takes up to \d+;"):
        new_trainer(**{which: short})


@pytest.mark.parametrize("which", ["model", "ref_model", "value_model", "reward_model"])
def test_models_of_another_vocabulary_are_refused_at_construction(new_trainer, new_policy, new_reward_model, which):
    make = new_policy if which in ("model", "ref_model") else new_reward_model
    small = make(vocab_size=40, **({"eos_token_id": None} if make is new_policy else {}))
    with pytest.raises(ModelError, match=rf"{which} has 40 embeddings and token \d+ is in use"):
        new_trainer(**{which: small})


def test_token_ids_beyond_the_policy_are_refused(tokenizer, new_policy, new_trainer):
    with pytest.raises(ModelError, match="model has .* embeddings and token 9,999 is in use"):
        new_trainer(train_dataset=Dataset.from_dict({"input_ids": [[5, 9999]] * 8}))
    check_vocabulary({"model": new_policy()}, tokenizer, [[5, len(tokenizer) - 1]], [])
    with pytest.raises(ModelError, match="in use"):
        check_vocabulary({"model": new_policy()}, tokenizer, [[5]], [len(tokenizer)])


def test_the_best_of_several_sets_needs_a_name(new_trainer, prompts):
    settings = dict(
        load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1
    )
    sets = {"easy": prompts, "hard": prompts}
    with pytest.raises(UsageError, match="sets easy, hard; name the figure of one, such as eval_easy_reward"):
        new_trainer(eval_dataset=sets, **settings)
    new_trainer(eval_dataset=sets, metric_for_best_model="hard_reward", **settings)


def test_the_best_checkpoint_is_told_by_the_reward(new_trainer, prompts):
    trainer = new_trainer(eval_dataset=prompts, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1,
                          save_strategy="steps", save_steps=1)  # fmt: skip
    trainer.train()
    rewards = [row["eval_reward"] for row in trainer.state.log_history if "eval_reward" in row]
    assert trainer.state.best_metric == max(rewards)


def test_completions_are_printed_as_trls_script_does_at_its_end(new_trainer, prompts, capsys):
    new_trainer().generate_completions()
    assert capsys.readouterr().out == ""
    trainer = new_trainer(eval_dataset={"easy": prompts}, per_device_eval_batch_size=2)
    trainer.generate_completions()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and all(line.startswith("easy: ") and "(reward " in line for line in printed)
    trainer.generate_completions(sampling=True)
    assert capsys.readouterr().out.splitlines() == printed[:2]
