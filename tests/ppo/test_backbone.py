"""One backbone: every model of the run is an adapter of one base, and each computes what it would alone."""

import copy
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rmtrl import RewardScorer
from rmtrl.errors import FreshHeadError, ModelError, UsageError
from rmtrl.models import CHECKPOINTING, AdapterSwitch
from rmtrl.ppo.backbone import SharedScorer, why_separate
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.models import SequenceValue
from rmtrl.ppo.trainer import PPOTrainer
from rmtrl.reward.heads import Head

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = ["q_proj", "v_proj", "down_proj"]
FOUR_BIT = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def lora(**settings):
    return LoraConfig(**(dict(r=4, target_modules=TARGETS, task_type="CAUSAL_LM", lora_dropout=0.5) | settings))


def randomise(model, part):
    """Draws the weights of an adapter, so that it does something, and something else than another."""
    generator = torch.Generator().manual_seed(sum(part.encode()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


@pytest.fixture
def base(tmp_path, new_policy):
    """The folder of a base model, from which policy and reward model are made."""
    new_policy(num_hidden_layers=2).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def new_reward(tmp_path, base, tokenizer):
    """A function that writes the adapter checkpoint of a reward model on the base, and returns its folder."""

    def make(folder=base, num_labels=1, **settings):
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=num_labels)
        model = get_peft_model(
            model, lora(task_type="SEQ_CLS", **({"target_modules": ["k_proj", "q_proj"]} | settings))
        )
        randomise(model, "lora_")
        model.save_pretrained(tmp_path / "rm")
        tokenizer.save_pretrained(tmp_path / "rm")
        return str(tmp_path / "rm")

    return make


@pytest.fixture
def shared(base, new_trainer):
    """A function that makes a trainer of one backbone."""

    def make(**settings):
        return new_trainer(**({"model": str(base), "peft_config": lora(), "one_backbone": True} | settings))

    return make


def held(trainer):
    """The bytes of all weights that a trainer holds, and those of its policy's base model."""
    scorer = getattr(trainer.reward, "scorer", None)
    modules = [trainer.model, trainer.ref_model, getattr(scorer, "model", None)]
    tensors = {t.data_ptr(): t for m in modules if m is not None for t in (*m.parameters(), *m.buffers())}
    own = {t.data_ptr() for n, t in trainer.model.policy.named_parameters() if "lora_" not in n}
    size = {pointer: t.numel() * t.element_size() for pointer, t in tensors.items()}
    return sum(size.values()), sum(size[pointer] for pointer in own)


def figures(trainer, ids, mask):
    """Logits of policy and reference, values, and scores of the same tokens."""
    model = trainer.model.eval()
    with torch.no_grad():
        logits = model.policy(ids).logits
        with trainer.model._reference():
            reference = model.policy(ids).logits
        return logits, reference, model.value_model(ids, mask)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.randint(4, 40, (3, 9), generator=generator), torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return ids, mask


def state(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


# what each model computes


def test_each_adapter_computes_what_a_model_of_its_own_does(tmp_path, base, shared, new_reward):
    """Policy, reference, value and reward model against models loaded apart from what is saved."""
    reward = new_reward()
    trainer = shared(reward_model=reward)
    for part in (".default.", ".value.", "value_model.score"):
        randomise(trainer.model, part)
    trainer.save_model(str(tmp_path / "saved"))
    ids, mask = batch()
    plain = AutoModelForCausalLM.from_pretrained(base)
    value = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), tmp_path / "saved" / "value_model"
    )
    logits, reference, values = figures(trainer, ids, mask)
    with torch.no_grad():
        np.testing.assert_allclose(reference, plain(ids).logits, atol=1e-6)
        apart = SequenceValue(value.eval())(ids, mask)
        np.testing.assert_allclose(values[mask == 1], apart[mask == 1], atol=1e-5)
        policy = PeftModel.from_pretrained(plain, tmp_path / "saved").eval()
        np.testing.assert_allclose(logits, policy(ids).logits, atol=1e-5)
    assert (logits - reference).abs().max() > 0.1
    assert values.abs().max() > 0.1
    rows = ids.tolist()
    scores = RewardScorer.from_pretrained(reward).score_ids(rows)
    np.testing.assert_allclose(trainer.reward.scorer.score_ids(rows), scores, atol=1e-5)
    assert np.ptp(scores) > 1e-2


def test_scores_of_shared_prompts_are_those_of_a_separate_scorer_while_the_policy_trains(shared, new_reward):
    reward = new_reward()
    trainer = shared(reward_model=reward)
    trainer.model.activation_checkpointing_enable()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(4, 40, (24,), generator=generator).tolist()
    rows = [prompt + torch.randint(4, 40, (n,), generator=generator).tolist() for n in (1, 3, 3, 4, 5, 9, 9, 9)]
    trainer.model.train()
    modes = set()
    layer = trainer.model.policy.get_base_model().model.layers[0]
    layer.register_forward_pre_hook(lambda module, args: modes.add(module.training))
    ours = trainer.reward.scorer.score_ids(rows)
    np.testing.assert_allclose(ours, RewardScorer.from_pretrained(reward).score_ids(rows), atol=1e-5)
    assert modes == {False}  # no cache is kept where activations are recomputed
    assert all(module.training for module in trainer.model.modules())
    assert trainer.model.policy.active_adapter == "default"


def test_an_adapter_trained_before_is_its_own_reference(tmp_path, base, shared, logs):
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    randomise(policy, "lora_")
    policy.save_pretrained(tmp_path / "sft")
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "sft", is_trainable=True)
    trainer = shared(model=policy, peft_config=None, learning_rate=0.0)
    started = state(trainer)
    assert all(
        torch.equal(w, started[n.replace(".value.", ".default.")]) for n, w in started.items() if ".value." in n
    )
    trainer.train()
    for row in logs(trainer):
        assert row["objective/kl"] == pytest.approx(0, abs=1e-5)
        assert row["val/ratio"] == pytest.approx(1, abs=1e-6)
    trained = {name.split(".")[-2] for name, weight in trainer.model.policy.named_parameters() if weight.requires_grad}
    assert trained == {"default", "value"}


def test_embeddings_that_the_policy_trains_are_not_those_of_the_others(base, shared, new_reward):
    reward = new_reward()
    trainer = shared(reward_model=reward, peft_config=lora(modules_to_save=["embed_tokens", "lm_head"]))
    randomise(trainer.model, ".value.")
    randomise(trainer.model, "value_model.score")
    ids, mask = batch()
    _, reference, values = figures(trainer, ids, mask)
    randomise(trainer.model, "modules_to_save")
    logits, *after = figures(trainer, ids, mask)
    assert torch.equal(reference, after[0])
    assert torch.equal(values, after[1])
    assert not torch.equal(logits, reference)
    separate = RewardScorer.from_pretrained(reward).score_ids(ids.tolist())
    np.testing.assert_allclose(trainer.reward.scorer.score_ids(ids.tolist()), separate, atol=1e-5)


def test_autocast_keeps_no_weight_of_another_adapter(shared):
    trainer = shared()
    for part in (".default.", ".value.", "value_model.score"):
        randomise(trainer.model, part)
    ids, mask = batch()
    with torch.autocast("cpu", torch.bfloat16):
        alone = trainer.model.value_model(ids, mask)
    with torch.autocast("cpu", torch.bfloat16):
        trainer.model.policy(ids)
        after = trainer.model.value_model(ids, mask)
    assert torch.equal(alone, after)


# the switch


def test_the_switch_does_what_peft_does_and_puts_everything_back(shared):
    policy = shared().model.policy
    for part in (".default.", ".value."):
        randomise(policy, part)
    switch, (ids, _) = AdapterSwitch(policy), batch()
    flags = [weight.requires_grad for weight in policy.parameters()]
    twin = copy.deepcopy(policy)
    twin.set_adapter("value")
    with torch.no_grad():
        first = policy(ids).logits
        with switch("value"):
            assert switch.active == policy.active_adapter == "value"
            np.testing.assert_array_equal(policy(ids).logits, twin(ids).logits)
            with switch(None), twin.disable_adapter():
                assert switch.active is None
                np.testing.assert_array_equal(policy(ids).logits, twin(ids).logits)
            np.testing.assert_array_equal(policy(ids).logits, twin(ids).logits)
        with pytest.raises(KeyboardInterrupt), switch(None):
            raise KeyboardInterrupt
        np.testing.assert_array_equal(policy(ids).logits, first)
    assert [weight.requires_grad for weight in policy.parameters()] == flags
    assert switch.active == "default"


def test_recomputed_activations_are_those_of_the_forward(shared):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        trainer = shared(gradient_checkpointing=recompute)
        model = trainer.model
        for part in (".default.", ".value.", "value_model.score"):
            randomise(model, part)
        if recompute:
            model.activation_checkpointing_enable()
        rows, columns = torch.tensor([0, 1, 2]), torch.tensor([8, 5, 7])
        logprobs, entropy, values = model.train()(*batch(), rows, columns, 1.0)
        assert model.is_activation_checkpointing == recompute
        (logprobs.sum() + entropy.square().sum() + values.square().sum()).backward()
        gradients.append({name: w.grad for name, w in model.named_parameters() if w.requires_grad})
    assert len(gradients[0]) == 2 * 2 * 2 * len(TARGETS) + 1
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_recomputing_that_cannot_know_the_adapter_is_refused(shared):
    with pytest.raises(UsageError, match="use_reentrant"):
        shared().model.activation_checkpointing_enable(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}})


# training, saving


def test_training_moves_policy_and_value_alone(shared, new_reward):
    trainer = shared(reward_model=new_reward(), peft_config=lora(target_modules=[*TARGETS, "lm_head"]))
    names = [name for name, _ in trainer.model.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(weight) for weight in trainer.model.parameters()})
    before = state(trainer)
    trainer.train()
    moved = {name for name, weight in state(trainer).items() if not torch.equal(weight, before[name])}
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert moved == trained
    assert all((".default." in name) != (".value." in name) for name in moved - {"value_model.score.weight"})
    assert not any("lm_head" in name and ".value." in name for name in names)  # it would never take part


def test_a_resumed_run_ends_as_the_uninterrupted_one(shared, new_reward, tmp_path):
    usual = dict(reward_model=new_reward(), max_steps=3, save_strategy="steps", save_steps=1)
    whole = shared(**usual, output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = shared(**usual, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    ends = state(whole)
    for name, weight in state(resumed).items():
        assert torch.equal(weight, ends[name]), name
    assert not list((tmp_path / "whole" / "checkpoint-1").glob("reward*"))


def test_a_checkpoint_with_another_adapter_is_refused(shared, tmp_path):
    shared(peft_config=lora(target_modules=["q_proj"])).save_model(str(tmp_path / "other"))
    with pytest.raises(ModelError, match="no checkpoint of this run"):
        shared()._load_from_checkpoint(str(tmp_path / "other"))


def test_training_goes_as_with_separate_models(shared, new_trainer, base, new_reward, logs):
    reward, rows = new_reward(), []
    for one_backbone in (True, False):
        torch.manual_seed(0)
        trainer = new_trainer(
            model=str(base), peft_config=lora(), reward_model=reward,
            one_backbone=one_backbone, optim="sgd", learning_rate=0.05,  # Adam would make steps of rounding errors
        )  # fmt: skip
        for name, weight in trainer.model.named_parameters():
            if "value" in name and "lora_" in name:  # drawn apart, so made alike
                weight.data.fill_(0.0 if "lora_B" in name else 0.01)
        trainer.train()
        rows.append([(row["loss/policy_avg"], row["objective/scores"], row["objective/kl"]) for row in logs(trainer)])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


# what shares and what does not


def test_weights_held_are_little_more_than_the_base(shared, new_reward):
    everything, own = held(shared(reward_model=new_reward(), peft_config=lora(r=1)))
    assert 1 < everything / own <= 1.35


def _full_model(base, new_reward, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


def _other_base(base, new_reward, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "fine-tuned")
    return new_reward(tmp_path / "fine-tuned")


def _other_shape(base, new_reward, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(tmp_path / "larger")
    return new_reward(tmp_path / "larger")


def _trained_embeddings(base, new_reward, tmp_path):
    return new_reward(modules_to_save=["score", "embed_tokens"])


REASONS = [
    (_full_model, "holds no adapter"),
    (_other_base, r"another model.layers.1.mlp.up_proj.weight than the policy's"),
    (_other_shape, r"another model.embed_tokens.weight than the policy's"),
    (_trained_embeddings, r"not LoRA weights and a linear head alone \(base_model.model.model.embed_tokens"),
]


@pytest.mark.parametrize(("make", "reason"), REASONS)
def test_what_cannot_share_stays_apart_and_one_line_says_why(
    base, shared, new_reward, tmp_path, tokenizer, caplog, make, reason
):
    path = make(base, new_reward, tmp_path)
    tokenizer.save_pretrained(path)
    with caplog.at_level(logging.WARNING, logger="rmtrl.ppo.backbone"):
        trainer = shared(reward_model=path)
    (record,) = [r for r in caplog.records if r.name == "rmtrl.ppo.backbone"]
    assert len(record.getMessage().splitlines()) == 1
    assert re.search(reason, record.getMessage())
    assert "reward" not in trainer.model.policy.peft_config
    rows = batch()[0].tolist()
    np.testing.assert_array_equal(
        trainer.reward.scorer.score_ids(rows), RewardScorer.from_pretrained(path).score_ids(rows)
    )


def test_a_head_of_another_kind_stays_apart(shared, new_reward):
    path = new_reward()
    Path(path, "rmtrl.json").write_text(json.dumps({"head": asdict(Head(kind="mlp"))}))
    assert "a linear head alone" in why_separate(shared().model.policy, path)


def test_a_base_stored_without_its_prefix_is_the_same_base(base, shared, new_reward, tmp_path):
    AutoModelForCausalLM.from_pretrained(base).model.save_pretrained(tmp_path / "bare")
    trainer = shared(reward_model=new_reward(tmp_path / "bare"))
    assert isinstance(trainer.reward.scorer, SharedScorer)


def test_a_head_without_weights_is_refused_as_ever(shared, new_reward, tmp_path):
    path = new_reward()
    weights = {n: w for n, w in load_file(f"{path}/adapter_model.safetensors").items() if "score" not in n}
    save_file(weights, f"{path}/adapter_model.safetensors")
    with pytest.raises(FreshHeadError, match="no trained score head"):
        shared(reward_model=path)


def test_a_policy_without_an_adapter_cannot_share(new_trainer, base, shared):
    with pytest.raises(UsageError, match="peft_config"):
        new_trainer(model=str(base), one_backbone=True)
    taken = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(), adapter_name="value")
    with pytest.raises(UsageError, match="already has an adapter named 'value'"):
        shared(model=taken, peft_config=None)


def test_a_value_model_of_ones_own_stays(shared):
    class Blind(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(64))

        def forward(self, input_ids, attention_mask):
            return self.value[: input_ids.shape[1]].expand(input_ids.shape)

    trainer = shared(value_model=Blind())
    assert "value" not in trainer.model.policy.peft_config
    trainer.train()


@pytest.mark.usefixtures("four_bit_in_float32")
def test_a_quantised_base_serves_all(base, shared, new_reward, tmp_path):
    policy = AutoModelForCausalLM.from_pretrained(base, quantization_config=FOUR_BIT)
    path = new_reward()
    trainer = shared(model=policy, reward_model=path, max_steps=2)
    before = state(trainer)
    trainer.train()
    moved = {name for name, weight in state(trainer).items() if not torch.equal(weight, before[name])}
    assert moved
    assert all(".default." in name or ".value." in name or "value_model" in name for name in moved)
    rows = batch()[0].tolist()
    separate = RewardScorer.from_pretrained(path, quantization_config=FOUR_BIT, dtype=torch.float32)
    np.testing.assert_allclose(trainer.reward.scorer.score_ids(rows), separate.score_ids(rows), atol=1e-5)


# a task whose optimum is known


@pytest.mark.slow
def test_one_backbone_reaches_the_optimum_that_is_known(tmp_path):
    """16 tokens, 8 places, reward the share of one token, a uniform reference: p* = e^{1/8β} / (e^{1/8β} + 15)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    vocabulary = Tokenizer(models.WordLevel({f"t{i}": i for i in range(16)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="t0", eos_token="t1")
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=None)
    )  # fmt: skip
    policy.lm_head.weight.data.zero_()  # without its adapter it is uniform

    def reward(prompts, completions, completion_ids, **columns):
        return [ids.count(3) / 8 for ids in completion_ids]

    args = PPOConfig(
        str(tmp_path), per_device_train_batch_size=64, gradient_accumulation_steps=2, num_mini_batches=4,
        num_ppo_epochs=4, max_steps=36, learning_rate=3e-3, kl_coef=0.05, lam=1.0, temperature=1.0,
        response_length=8, stop_token=None, report_to="none", bf16=False, use_cpu=True, gradient_checkpointing=False,
        save_strategy="no", logging_steps=1, disable_tqdm=True, local_rollout_forward_batch_size=256,
        max_grad_norm=1.0, num_sample_generations=0, one_backbone=True,
    )  # fmt: skip
    trainer = PPOTrainer(
        args,
        tokenizer,
        policy,
        reward_model=reward,
        train_dataset=Dataset.from_dict({"input_ids": [[2]] * 256}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=[*LINEAR, "lm_head"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    torch.set_num_threads(threads)
    last = [row for row in trainer.state.log_history if "objective/kl" in row][-10:]
    assert sum(row["objective/scores"] for row in last) / 10 == pytest.approx(0.448, abs=0.03)
    assert sum(row["objective/kl"] for row in last) / 10 == pytest.approx(4.72, abs=0.4)
