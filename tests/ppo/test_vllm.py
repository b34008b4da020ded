"""vLLM generates from the policy's own weights, and training ends where the two engines part."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ppo_runs
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rmtrl import PPOConfig
from rmtrl.errors import ModelError, UsageError
from rmtrl.generation import TransformersGenerator
from rmtrl.ppo.loss import token_logprobs
from rmtrl.ppo.vllm import merged_weights

TRAIN = """
import json, os, sys
sys.path[:0] = {paths}
import ppo_runs
shape = dict(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
policy = ppo_runs.new_policy(ppo_runs.new_tokenizer(), **shape)
trainer = ppo_runs.new_trainer({out!r}, kind={kind!r}, policy=policy, use_vllm=True)
trainer.train()
print("GAPS", json.dumps([row["generation/logprob_gap"] for row in trainer.state.log_history[:-1]]))
"""


class FakeLLM:
    """vLLM's `LLM` as far as it is used, which may forget to take new weights."""

    forgets = False

    def __init__(self, folder, **settings):
        self.tokenizer = ppo_runs.new_tokenizer()
        self.model = ppo_runs.new_policy(self.tokenizer)
        self.loads, self.settings = 0, settings

    def apply_model(self, function):
        self.loads += 1
        if not self.forgets or self.loads == 1:
            function(SimpleNamespace(load_weights=lambda weights: self.model.load_state_dict(dict(weights), False)))

    def generate(self, prompts, settings, use_tqdm):
        asked = zip(prompts, settings, strict=True)
        return [SimpleNamespace(outputs=[self.complete(prompt["prompt_token_ids"], own)]) for prompt, own in asked]

    @torch.no_grad()
    def complete(self, ids, settings):
        ends = settings.stop_token_ids
        generator = TransformersGenerator(
            self.model, self.tokenizer, end_token_ids=ends, progress=False, max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )  # fmt: skip
        (made,) = generator.complete([ids], [settings.seed])
        every = torch.tensor([[*ids, *made.token_ids]])
        logits = self.model(every).logits[0, len(ids) - 1 : -1]
        said = token_logprobs(logits, every[0, len(ids) :], settings.temperature)[0].tolist()
        of = [{i: SimpleNamespace(logprob=value)} for i, value in zip(made.token_ids, said, strict=True)]
        return SimpleNamespace(token_ids=list(made.token_ids), logprobs=of, finish_reason="length")


@pytest.fixture
def fake_vllm(monkeypatch):
    module = ModuleType("vllm")
    module._custom_ops = ModuleType("vllm._custom_ops")
    module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", module._custom_ops)
    monkeypatch.setattr(FakeLLM, "forgets", False)


@pytest.mark.parametrize("kind", ["full", "lora", "backbone"])
def test_responses_come_from_the_weights_that_are_trained(fake_vllm, tmp_path, kind):
    trainer = ppo_runs.new_trainer(tmp_path, kind=kind, use_vllm=True, max_steps=4, temperature=0.7)
    trainer.train()
    gaps = [row["generation/logprob_gap"] for row in trainer.state.log_history[:-1]]
    assert len(gaps) == 4
    assert max(gaps) < 1e-5
    assert trainer.generator._engine.loads == 4
    assert trainer.generator._engine.settings["max_model_len"] == max(map(len, trainer.train_prompts.ids)) + 6


def test_training_ends_where_the_engines_part(fake_vllm, monkeypatch, tmp_path):
    monkeypatch.setattr(FakeLLM, "forgets", True)
    trainer = ppo_runs.new_trainer(tmp_path, use_vllm=True, max_steps=4, learning_rate=0.3, vllm_max_logprob_gap=0.05)
    with pytest.raises(
        ModelError, match=r"^step 3: log probabilities of vLLM and the policy are [\d.]+ apart a token"
    ):
        trainer.train()


@pytest.mark.parametrize(
    "settings", [{}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens", "v_proj"]}]
)
def test_merged_weights_are_those_that_peft_would_merge(settings):
    tokenizer = ppo_runs.new_tokenizer()
    policy = ppo_runs.new_policy(tokenizer, tie_word_embeddings=False)
    usual = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    model = get_peft_model(policy, LoraConfig(**(usual | settings)))
    model.add_adapter("other", LoraConfig(**usual))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = {name: weight.clone() for name, weight in merged_weights(model)}
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    wanted = dict(model.merge_and_unload(adapter_names=["default"]).named_parameters())
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name])


def test_what_vllm_cannot_do_is_refused(fake_vllm, monkeypatch, tmp_path):
    for settings in ({"top_p": 0.9}, {"generation_kwargs": {"min_new_tokens": 2}}):
        with pytest.raises(UsageError, match="^use_vllm samples from the policy itself; leave top_p at 1"):
            ppo_runs.new_trainer(tmp_path, use_vllm=True, **settings)
    with pytest.raises(UsageError, match="vllm_max_logprob_gap"):
        PPOConfig(str(tmp_path), vllm_max_logprob_gap=0.0, bf16=False)
    model = get_peft_model(
        ppo_runs.new_policy(ppo_runs.new_tokenizer()), LoraConfig(use_dora=True, target_modules=["q_proj"])
    )
    with pytest.raises(ModelError, match="^use_vllm cannot merge"):
        list(merged_weights(model))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match="^use_vllm needs vLLM, which cannot be imported"):
        ppo_runs.new_trainer(tmp_path, use_vllm=True)


@pytest.mark.vllm
@pytest.mark.integration
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_vllm_itself_says_what_the_policy_says(tmp_path, kind):
    if "RMTRL_VLLM_PYTHON" not in os.environ:
        pytest.skip("RMTRL_VLLM_PYTHON is not set")
    here = Path(__file__).parent
    code = TRAIN.format(paths=[str(here.parents[1]), str(here), str(here.parent)], out=str(tmp_path), kind=kind)
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run([os.environ["RMTRL_VLLM_PYTHON"], "-c", code], env=os.environ | settings, text=True,
                          capture_output=True, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    gaps = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("GAPS"))[5:])
    print(gaps)
    assert len(gaps) == 6
    assert max(gaps) <= 1e-5
