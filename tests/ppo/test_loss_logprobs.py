"""Log probabilities with little memory, and logits at the places asked for: equal to the plain ways."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributions import Categorical
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen3Config,
)

from rmtrl.errors import ModelError
from rmtrl.ppo.loss import response_logits, token_logprobs


def plain(logits, tokens, temperature=1.0):
    """The textbook way, from torch's own functions."""
    logits = logits.float() / temperature
    return torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0], Categorical(logits=logits).entropy()


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    return 4 * torch.randn(13, 101), torch.randint(0, 101, (13,))


def test_a_row_by_hand():
    logprobs, entropy = token_logprobs(torch.tensor([[3.0, 1.0, 1.0]]).log(), torch.tensor([0]))
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.6]))
    torch.testing.assert_close(entropy, torch.tensor([0.9502705]))  # -.6 ln .6 - .4 ln .2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("of", [(1, 0), (0, 1), (1, -0.3)], ids=["logprobs", "entropy", "both"])
def test_values_and_gradients_are_torchs(drawn, temperature, of):
    logits, tokens = drawn
    weights = torch.rand(2, 13)
    grads = []
    for function in (plain, token_logprobs):
        leaf = logits.clone().requires_grad_()
        outputs = function(leaf, tokens, temperature)
        sum(k * (w * out).sum() for k, w, out in zip(of, weights, outputs, strict=True) if k).backward()
        grads.append((*outputs, leaf.grad))
    for wanted, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


def test_gradients_are_those_of_finite_differences(drawn):
    logits = drawn[0][:4, :9].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, drawn[1][:4] % 9, 0.7, 3), (logits,))
    assert token_logprobs(logits, drawn[1][:4] % 9)[0].dtype == torch.float64


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_change_nothing(drawn, chunk):
    both = []
    for size in (chunk, None):
        leaf = drawn[0].clone().requires_grad_()
        logprobs, entropy = token_logprobs(leaf, drawn[1], 0.9, size)
        (logprobs.sum() + entropy.square().sum()).backward()
        both.append((logprobs, entropy, leaf.grad))
    for got, wanted in zip(*both, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_bf16_logits_are_read_in_float32_and_kept_in_bf16(drawn):
    kept, leaf = [], drawn[0].bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        logprobs, entropy = token_logprobs(leaf, drawn[1], 0.7)
    wanted = plain(leaf.detach(), drawn[1], 0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close((logprobs, entropy), wanted, rtol=1e-5, atol=2e-6)
    assert sum(x.nbytes for x in kept) == leaf.nbytes + 13 * (8 + 4 + 4)  # the logits, tokens and two numbers a row
    logprobs.sum().backward()
    exact = drawn[0].bfloat16().float().requires_grad_()
    plain(exact, drawn[1], 0.7)[0].sum().backward()
    torch.testing.assert_close(leaf.grad, exact.grad.bfloat16(), rtol=1e-2, atol=1e-4)


def test_tokens_that_cannot_be_drawn_leave_all_finite(drawn):
    logits, tokens = drawn
    allowed = torch.arange(0, 101, 2)
    masked = torch.full_like(logits, -torch.inf).index_copy(1, allowed, logits[:, allowed]).requires_grad_()
    compact = logits[:, allowed].clone().requires_grad_()
    for leaf, chosen in ((masked, tokens // 2 * 2), (compact, tokens // 2)):
        logprobs, entropy = token_logprobs(leaf, chosen)
        (logprobs + 0.5 * entropy).sum().backward()
    torch.testing.assert_close((logprobs, entropy), token_logprobs(masked, tokens // 2 * 2))
    torch.testing.assert_close(masked.grad[:, allowed], compact.grad)
    assert (masked.grad[:, 1::2] == 0).all()
    assert token_logprobs(masked, torch.full((13,), 1))[0].tolist() == [-torch.inf] * 13


SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=0.3),
    "qwen3": Qwen3Config(**SIZES),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32),
}
ADAPTERS = {
    "plain": None,
    "lora": {"target_modules": "all-linear"},
    "lora-and-head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def causal(config, **adapter):
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if adapter:
        policy = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **adapter))
    return policy.eval()


@pytest.fixture
def batch():
    torch.manual_seed(0)
    attention_mask = torch.ones(3, 9).long()
    attention_mask[0, :4], attention_mask[2, 7:] = 0, 0
    rows, columns = torch.tensor([0, 0, 2, 1, 1, 1]), torch.tensor([5, 7, 6, 3, 0, 8])
    return torch.randint(1, 50, (3, 9)), attention_mask, rows, columns


@pytest.mark.parametrize(
    ("name", "adapter"),
    [*((name, "plain") for name in CONFIGS), ("llama", "lora"), ("llama", "lora-and-head"), ("gemma2", "lora")],
)
def test_logits_are_those_of_the_whole_forward_and_so_are_gradients(batch, name, adapter):
    input_ids, attention_mask, rows, columns = batch
    policy = causal(CONFIGS[name], **ADAPTERS[adapter] or {})
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    whole = policy(input_ids, attention_mask=attention_mask, position_ids=positions).logits[rows, columns]
    parameters = [p for p in policy.parameters() if p.requires_grad]
    there = response_logits(policy, *batch)
    torch.testing.assert_close(there, whole, rtol=0, atol=1e-6)
    grads = [torch.autograd.grad(logits.sin().sum(), parameters) for logits in (whole, there)]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)
    assert any(grad.abs().max() > 1e-3 for grad in grads[0])
    assert torch.equal(policy(input_ids, attention_mask=attention_mask, position_ids=positions).logits[rows, columns],
                       whole)  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_on_the_left_changes_no_logit(batch, name):
    policy, ids = causal(CONFIGS[name]), batch[0][:1]
    row, column = torch.tensor([0]), torch.tensor([8])
    alone = response_logits(policy, ids[:, 4:], torch.ones(1, 5).long(), row, column - 4)
    padded = response_logits(policy, ids, (torch.arange(9) >= 4).long()[None], row, column)
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


def test_the_head_sees_only_the_places_asked_for(batch):
    policy, seen = causal(CONFIGS["gemma2"]), []
    policy.lm_head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    assert response_logits(policy, *batch).shape == (6, 50) and seen == [(1, 6, 50)]


def test_the_hook_is_gone_after_an_error(batch):
    policy = causal(CONFIGS["llama"])
    with pytest.raises(IndexError):
        response_logits(policy, *batch[:3], batch[3] + 9)
    assert not policy.lm_head._forward_pre_hooks


def test_models_whose_logits_cannot_be_picked_are_refused(batch):
    with pytest.raises(ModelError, match="LlamaForSequenceClassification without output embeddings"):
        response_logits(LlamaForSequenceClassification(CONFIGS["llama"]), *batch)
    policy = causal(CONFIGS["llama"])
    policy.forward = lambda **inputs: policy.model(input_ids=inputs["input_ids"]) | {"logits": torch.zeros(1, 6, 50)}
    with pytest.raises(ModelError, match=r"wanted one of \(3, 9\)"):
        response_logits(policy, *batch)
