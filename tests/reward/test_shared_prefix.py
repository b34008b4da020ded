"""Packed rows against separate forward passes: the same rewards, the same gradients, the same training run."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)
from trl import TrlParser
from trl.trainer.reward_trainer import DataCollatorForPreference

from rmtrl import RewardConfig, RewardTrainer
from rmtrl.errors import ModelError
from rmtrl.reward.heads import compute_head_in_float32
from rmtrl.reward.scoring import why_sharing_differs
from rmtrl.reward.shared_prefix import SharedPrefixCollator
from rmtrl.reward.shared_prefix.forward import (
    attention_mask,
    layer_windows,
    rewards_at,
    visible,
    why_not_exact,
    why_not_shared,
)
from rmtrl.reward.shared_prefix.plan import PADDING, make_rows, pair_units, plan_calls, row_tokens, shared_unit

PAD, EOS = 0, 3


def token_ids(n, seed):
    return torch.randint(4, 97, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


LONG, SHORT = token_ids(20, 1), token_ids(12, 2)
PAIRS = [
    ([*LONG, *token_ids(9, 3), EOS], [*LONG, *token_ids(14, 4), EOS]),
    ([*SHORT, *token_ids(3, 5), EOS], [*SHORT, *token_ids(6, 6), EOS]),
    (token_ids(7, 7), token_ids(30, 8)),  # nothing shared
    (SHORT, [*SHORT, *token_ids(5, 9)]),  # one side starts the other
    ([*LONG, EOS], [*LONG, EOS]),  # both the same
    ([*LONG, *token_ids(8, 10), PAD, PAD], [*LONG, PAD]),  # the model reads the last token that is not padding
]

# Plan


def test_a_pair_is_one_unit_whose_second_branch_restarts_after_the_prefix():
    unit = shared_unit([7, 8, 1], [7, 8, 2, 3], sides=(4, 9))
    assert unit.ids == [7, 8, 1, 2, 3]
    assert unit.positions == [0, 1, 2, 2, 3]
    assert unit.branches == [0, 0, 1, 2, 2]
    assert unit.ends == {4: 2, 9: 4}


@pytest.mark.parametrize(
    ("chosen", "rejected", "ids", "ends"),
    [
        ([5], [6, 7], [5, 6, 7], {0: 0, 1: 2}),
        ([5, 6], [5, 6, 7], [5, 6, 7], {0: 1, 1: 2}),
        ([5, 6, 7], [5, 6], [5, 6, 7], {0: 2, 1: 1}),
        ([5, 6], [5, 6], [5, 6], {0: 1, 1: 1}),
        ([5, 6, PAD], [5, PAD, PAD], [5, 6, PAD, PAD, PAD], {0: 1, 1: 0}),
    ],
    ids=["empty prefix", "chosen is the prefix", "rejected is the prefix", "identical", "pad at the end"],
)
def test_ends_at_the_edges(chosen, rejected, ids, ends):
    unit = shared_unit(chosen, rejected, pad_token_id=PAD)
    assert (unit.ids, unit.ends) == (ids, ends)


def test_a_short_prefix_before_long_answers_is_not_shared_where_attention_costs():
    answers = [1, *token_ids(300, 1)], [1, *token_ids(300, 2)]
    settings = dict(sides=(0, 1), pad_token_id=PAD)
    assert len(pair_units(*answers, cell_cost=0.0, **settings)) == 1
    assert len(pair_units(*answers, cell_cost=1e-3, **settings)) == 2
    assert len(pair_units(*answers, cell_cost=0.0, share=False, **settings)) == 2
    prompt = token_ids(300, 3)
    assert len(pair_units([*prompt, 1], [*prompt, 2], cell_cost=1e-3, **settings)) == 1


@pytest.mark.parametrize("one_call", [True, False])
@pytest.mark.parametrize("shape", [(2, 40), (200, 900), (16, 17)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 16, 64])
def test_every_unit_stands_once_with_little_padding(n, shape, one_call):
    lengths = np.random.default_rng(0).integers(*shape, n).tolist()
    calls = plan_calls(lengths, cell_cost=1 / 1536, one_call=one_call)
    assert sorted(i for call in calls for row in call for i in row) == list(range(n))
    assert len(calls) == 1 or not one_call
    few = one_call and n < 16  # a few rows of one pass cannot always be made even
    assert sum(len(call) * row_tokens(call, lengths) for call in calls) <= (1.4 if few else 1.15) * sum(lengths)


def test_passes_are_cut_where_lengths_differ():
    calls = plan_calls([500, 100, 98, 497], cell_cost=1 / 300, one_call=False)
    assert [sorted(i for row in call for i in row) for call in calls] == [[0, 3], [1, 2]]


def test_cheap_attention_makes_long_rows():
    lengths = [100] * 8 + [60] * 8
    rows = [len(plan_calls(lengths, cell_cost=cost, one_call=True)[0]) for cost in (0.0, 1e-4, 1.0)]
    assert rows[0] == 1 and rows == sorted(rows) and rows[2] > 4


# Rows


def test_rows_are_two_dimensional_and_ends_point_at_the_last_tokens():
    for one_call in (True, False):
        rows, ends = make_rows(PAIRS, pad_token_id=PAD, cell_cost=1e-3, one_call=one_call)
        assert all(tensor.dim() == 2 for call in rows for tensor in call.values())
        tokens = torch.cat([call["input_ids"].flatten() for call in rows])[ends].tolist()
        sides = [side for sides in zip(*PAIRS, strict=True) for side in sides]
        assert tokens == [next(t for t in reversed(side) if t != PAD) for side in sides]


def test_the_batch_keeps_what_the_host_collator_made():
    host = DataCollatorForPreference(pad_token_id=PAD)
    examples = [{"chosen_ids": chosen, "rejected_ids": rejected, "margin": 0.5} for chosen, rejected in PAIRS]
    batch, expected = SharedPrefixCollator(host, pad_token_id=PAD)(examples), host(examples)
    assert list(batch) == [*expected, "rows", "ends"]
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


# Masks


def test_a_branch_sees_the_prefix_and_itself():
    segments = torch.tensor([[0, 1, 2, 3, 5, PADDING]])
    positions = torch.tensor([[0, 1, 1, 0, 1, 0]])
    assert visible(segments, positions)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert visible(segments, positions, window=1)[0, 0].int().tolist() == torch.eye(6).int().tolist()


def test_each_attention_gets_the_mask_in_its_form():
    config = LlamaConfig(attn_implementation="sdpa")
    segments, positions = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]])
    boolean = attention_mask(config, segments, positions, torch.float32)
    assert torch.equal(boolean, visible(segments, positions))
    config._attn_implementation = "eager"
    added = attention_mask(config, segments, positions, torch.bfloat16)
    assert added.dtype == torch.bfloat16 and torch.equal(added == 0, boolean) and added.isfinite().all()


def test_attention_that_compiles_for_each_length_is_not_shared(new_model):
    model = new_model()
    assert why_not_shared(model) is None
    model.config._attn_implementation = "flex_attention"
    assert "takes no mask of any form and length" in why_not_shared(model)


def test_windows_follow_the_types_of_layers():
    assert layer_windows(LlamaConfig()) == {"all": None}
    assert layer_windows(MistralConfig(sliding_window=8)) == {"all": 8}
    assert layer_windows(Gemma2Config(sliding_window=8)) == {"full_attention": None, "sliding_attention": 8}


# Exactness

SMALL = dict(
    vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
    max_position_embeddings=256, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None, initializer_range=0.2,
)  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED, **TYPES, use_sliding_window=True),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "mistral": MistralConfig(**GROUPED, sliding_window=8),
    "gemma2": Gemma2Config(**GROUPED, **TYPES, head_dim=8),
    "gemma3": Gemma3TextConfig(**GROUPED, **TYPES, head_dim=8),
    "phi": PhiConfig(**SMALL),
    "gpt_neox": GPTNeoXConfig(**SMALL),
}
LAYOUTS = {
    "one row": dict(cell_cost=0.0, one_call=True),
    "several rows": dict(cell_cost=1e-2, one_call=True),
    "several passes": dict(cell_cost=1e-2, one_call=False),
    "nothing shared": dict(cell_cost=1.0, one_call=False),
}


def new_model(name, attention="sdpa"):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name], attn_implementation=attention)
    compute_head_in_float32(model)
    return model.eval()


def separate_rewards(model):
    sides = [side for sides in zip(*PAIRS, strict=True) for side in sides]
    return torch.stack([model(torch.tensor([ids]), use_cache=False).logits[0, 0] for ids in sides])


def rewards_and_gradient(model, rewards):
    model.zero_grad()
    chosen, rejected = rewards.chunk(2)
    (-torch.nn.functional.logsigmoid(chosen - rejected).mean() + 0.01 * ((chosen + rejected) ** 2).mean()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return rewards.detach(), torch.cat(gradients).clone()


def assert_same_rewards_and_gradients(model, **layout):
    expected = rewards_and_gradient(model, separate_rewards(model))
    rows, ends = make_rows(PAIRS, pad_token_id=PAD, **layout)
    actual = rewards_and_gradient(model, rewards_at(model, rows, ends)[:, 0])
    for ours, theirs in zip(actual, expected, strict=True):
        assert theirs.norm() > 0 and (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_rewards_and_gradients_are_those_of_separate_passes(name, attention, layout):
    if (name, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no SDPA for Gemma2, whose attention is soft-capped")
    assert_same_rewards_and_gradients(new_model(name, attention), **LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_and_gradient_checkpointing_are_exact(layout):
    model = get_peft_model(new_model("gemma3"), LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"]))
    for module in model.modules():
        for parameter in getattr(module, "lora_B", {}).values() if hasattr(module, "lora_B") else ():
            torch.nn.init.normal_(parameter.weight)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_rewards_and_gradients(model.train(), **LAYOUTS[layout])


# The probe


def probe(model, **settings):
    defaults = dict(max_length=None, share=True, low_precision=False)
    return why_not_exact(model, Accelerator(cpu=True), **(defaults | settings))


@pytest.mark.parametrize("name", CONFIGS)
def test_probe_passes_where_rows_are_exact(name):
    assert probe(new_model(name, "eager")) is None


def test_probe_leaves_the_model_in_its_mode():
    model = new_model("llama")
    for training in (True, False):
        probe(model.train(training))
        assert model.training is training


def test_probe_is_longer_than_a_window_and_its_comparison_needs_no_trained_head(monkeypatch):
    model = new_model("mistral")
    torch.nn.init.zeros_(model.score.weight)
    assert probe(model) is None
    monkeypatch.setattr("rmtrl.reward.shared_prefix.forward.layer_windows", lambda config: {"all": None})
    assert "differ from those of separate passes" in probe(model)


def test_probe_finds_a_boolean_mask_under_eager_attention(monkeypatch):
    model = new_model("gemma3", "eager")
    monkeypatch.setattr(
        "rmtrl.reward.shared_prefix.forward._as_taken", lambda kind, s, p, window, dtype: visible(s, p)
    )
    assert "differ" in probe(model)


def test_probe_finds_positions_that_the_model_ignores():
    model = new_model("llama")
    rotate = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: rotate(x, torch.arange(x.shape[1])[None])
    assert "differ" in probe(model)


def test_every_process_takes_the_answer_of_the_one_that_finds_a_difference(monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "gather", lambda own: torch.cat([own, ~own]))
    settings = dict(max_length=None, share=True, low_precision=False)
    assert why_not_exact(new_model("llama"), accelerator, **settings) == "another process found it inexact"


def by_both_probes(model):
    """What the trainer's probe and the scorer's say of a model."""
    return probe(model), why_sharing_differs(model, PAD)


def test_memory_that_runs_out_in_a_probe_is_not_taken_for_an_answer(monkeypatch):
    model = new_model("llama")
    plain = model.forward

    def short_of_memory(attention_mask=None, **inputs):
        if attention_mask is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(**inputs)

    monkeypatch.setattr(model, "forward", short_of_memory)
    for reason in by_both_probes(model):
        assert "memory ran out in the probe, so whether packed rows are exact is not known (OutOfMemoryError" in reason


def test_what_a_model_refuses_is_said_with_the_way_it_refused(monkeypatch):
    model = new_model("llama")
    plain = model.forward
    monkeypatch.setattr(model, "forward", lambda input_ids, use_cache=False: plain(input_ids=input_ids))
    for reason in by_both_probes(model):
        assert reason.startswith("packed rows raise TypeError: ") and "position_ids" in reason


def test_a_mistake_of_our_own_is_not_taken_for_one_of_the_model(monkeypatch):
    monkeypatch.setattr("rmtrl.reward.shared_prefix.forward.visible", None)
    for asked in (probe, lambda model: why_sharing_differs(model, PAD)):
        with pytest.raises(TypeError, match="NoneType"):
            asked(new_model("llama"))


# The trainer

QUIET = dict(
    per_device_train_batch_size=4, per_device_eval_batch_size=3, max_steps=6, logging_steps=1, save_strategy="no",
    report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, learning_rate=1e-3,
)  # fmt: skip


@pytest.fixture
def trainer(tmp_path, new_model, tokenizer, pairs):
    """Makes a trainer with a setting of shared_prefix over the same model, tokenizer and data."""

    def make(setting, *, args=None, **settings):
        settings = {"train_dataset": pairs, "processing_class": tokenizer, "model": new_model()} | settings
        return RewardTrainer(
            args=RewardConfig(str(tmp_path), shared_prefix=setting, **(QUIET | (args or {}))), **settings
        )

    return make


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_same_run(ours, theirs, rtol=1e-5):
    for run in (ours, theirs):
        set_seed(0)  # the order of rows grouped by length hangs on it
        run.train()
    np.testing.assert_allclose(logged(ours, "loss"), logged(theirs, "loss"), rtol=rtol)
    np.testing.assert_allclose(logged(ours, "grad_norm"), logged(theirs, "grad_norm"), rtol=10 * rtol)
    assert len(logged(ours, "loss")) > 0
    for key in ("num_tokens", "num_input_tokens_seen", "eval_num_tokens"):
        assert logged(ours, key) == logged(theirs, key)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "args",
    [
        {"include_num_input_tokens_seen": "all"},
        {"include_num_input_tokens_seen": "non_padding", "max_steps": 2},
        {"gradient_accumulation_steps": 2, "max_steps": 3},
        {"gradient_checkpointing": True, "max_steps": 3},
        {"dataloader_num_workers": 2, "max_steps": 3},
        {"center_rewards_coefficient": 0.01, "per_device_train_batch_size": 5, "max_steps": 3},
        {"pair_validation": "drop", "max_steps": 3},
        {"train_sampling_strategy": "group_by_length", "max_steps": 3},
    ],
    ids=str,
)
def test_same_run_as_padded_batches(trainer, rows, args):
    data = rows(12)
    data[1] |= {"rejected": data[1]["chosen"]}
    data = Dataset.from_list(data).add_column("margin", [0.1 * i for i in range(12)])
    args = {"eval_strategy": "steps", "eval_steps": 2} | args
    ours, theirs = (trainer(s, args=args, train_dataset=data, eval_dataset=data) for s in (True, False))
    assert_same_run(ours, theirs)
    np.testing.assert_allclose(ours.pairs_.chosen, theirs.pairs_.chosen, atol=1e-4)
    np.testing.assert_allclose(logged(ours, "eval_loss"), logged(theirs, "eval_loss"), rtol=1e-5)
    np.testing.assert_allclose(ours.predict(data).predictions, theirs.predict(data).predictions, atol=1e-4)


def test_same_run_with_an_adapter(trainer):
    runs = [trainer(s, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"])) for s in (True, False)]
    assert_same_run(*runs)


def test_same_run_where_the_data_is_streamed(trainer, rows):
    def stream():
        return IterableDataset.from_generator(lambda: iter(rows(12)))

    runs = [trainer(s, train_dataset=stream(), eval_dataset=stream()) for s in (True, False)]
    assert_same_run(*runs)
    assert runs[0].evaluate()["eval_loss"] == pytest.approx(runs[1].evaluate()["eval_loss"], rel=1e-5)


def test_same_run_where_pad_is_the_end_token(trainer, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    assert_same_run(*(trainer(s, processing_class=copy.deepcopy(tokenizer)) for s in (True, False)))


def test_a_run_resumes(trainer):
    args = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    whole = trainer(True, args=args)
    whole.train()
    resumed = trainer(True, args=args)
    resumed.train(resume_from_checkpoint=str(Path(resumed.args.output_dir) / "checkpoint-3"))
    np.testing.assert_allclose(logged(resumed, "loss"), logged(whole, "loss"), rtol=1e-5)


def test_low_precision_runs_with_a_float32_head(trainer):
    ours, theirs = (trainer(s, args={"bf16": True}) for s in (True, False))
    ours.train(), theirs.train()
    np.testing.assert_allclose(logged(ours, "loss"), logged(theirs, "loss"), rtol=0.05)
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    with ours.compute_loss_context_manager():
        assert ours.compute_loss(ours.model_wrapped, batch, return_outputs=True)[1].logits.dtype == torch.float32


def test_auto_shares_without_a_word(trainer, caplog):
    ours = trainer("auto")
    ours.train()
    assert ours._sharing.exact and "computed twice" not in caplog.text


@pytest.mark.parametrize("setting", ["auto", True, False])
def test_setting_is_read_from_a_command_line(tmp_path, setting):
    line = ["--output_dir", str(tmp_path), "--shared_prefix", str(setting)]
    (config,) = TrlParser((RewardConfig,)).parse_args_and_config(line)
    assert config.shared_prefix == setting
    with pytest.raises(ValueError, match="shared_prefix"):
        RewardConfig(str(tmp_path), shared_prefix="always")


def small_model(config, tokenizer):
    torch.manual_seed(0)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    return AutoModelForSequenceClassification.from_config(config)


def encoder(tokenizer):
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=1,
            intermediate_size=64, max_position_embeddings=64, pad_token_id=0, initializer_range=0.2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def without_own_positions(tokenizer):
    """GPT-2 that counts positions itself."""
    model = small_model(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, num_labels=1, initializer_range=0.2,
                   resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), tokenizer
    )  # fmt: skip
    forward = model.transformer.forward
    model.transformer.forward = lambda *args, **kwargs: forward(*args, **(kwargs | {"position_ids": None}))
    return model


def without_masks(tokenizer):
    """BLOOM, which reads positions from a two-dimensional mask."""
    return small_model(
        BloomConfig(hidden_size=32, n_layer=2, n_head=4, num_labels=1, initializer_range=0.2), tokenizer
    )  # fmt: skip


FALLBACKS = {encoder: "no head named `score`", without_own_positions: "differ from", without_masks: "ValueError"}


@pytest.mark.parametrize("make", FALLBACKS)
def test_what_is_not_exact_runs_padded_after_one_warning(trainer, tokenizer, make, caplog):
    def run(setting):
        torch.manual_seed(0)
        return trainer(setting, model=make(tokenizer))

    ours, theirs = run("auto"), run(False)
    assert_same_run(ours, theirs, rtol=1e-7)
    assert caplog.text.count("computed twice") == 1 and FALLBACKS[make] in caplog.text
    assert not ours._sharing.exact
    with pytest.raises(ModelError, match=FALLBACKS[make]):
        run(True).train()


def test_another_collator_is_not_replaced(trainer, tokenizer, caplog):
    class Own(DataCollatorForPreference):
        pass

    ours = trainer("auto", data_collator=Own(pad_token_id=tokenizer.pad_token_id))
    assert "built by Own" in caplog.text
    assert_same_run(ours, trainer(False), rtol=1e-7)


def attention_by_positions(module, query, key, value, mask, scaling=None, position_ids=None, **_):
    """What FlashAttention does with a row of several sequences, on any machine."""
    assert mask is None
    sequence = (position_ids == 0).cumsum(-1)
    allowed = (sequence[:, :, None] == sequence[:, None]).tril()[:, None]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def test_attention_without_mask_packs_but_does_not_share(trainer, new_model, caplog):
    AttentionInterface.register("flash_by_positions", attention_by_positions)

    def run(setting):
        model = new_model()
        if setting:
            model.config._attn_implementation = "flash_by_positions"
        return trainer(setting, model=model)

    ours = run("auto")
    assert caplog.text.count("takes no mask") == 1
    assert_same_run(ours, run(False))
    assert ours._sharing.exact
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    assert batch["rows"][0]["input_ids"].numel() == batch["attention_mask"].sum()
    with pytest.raises(ModelError, match="takes no mask"):
        run(True)


TWO_PROCESSES = """
import json, sys
from datasets import Dataset
from rmtrl import RewardConfig, RewardTrainer
sys.path.insert(0, {tests!r})
from conftest import WORDS, make_model, make_tiny_tokenizer, text_rows
tokenizer = make_tiny_tokenizer([" ".join(WORDS)] * 20, vocab_size=320)
data = Dataset.from_list(text_rows(12))
if {streamed}:
    data = data.to_iterable_dataset()
logs = {{}}
for setting in (True, False):
    args = RewardConfig({out!r}, shared_prefix=setting, {settings})
    trainer = RewardTrainer(make_model(tokenizer), args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    logs[setting] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
if trainer.accelerator.is_main_process:
    print("LOSSES", json.dumps([logs[True], logs[False]]))
"""


@pytest.mark.integration
@pytest.mark.parametrize("streamed", [False, True])
def test_two_processes_run_as_padded_batches_do(tmp_path, streamed):
    settings = ", ".join(f"{key}={value!r}" for key, value in (QUIET | {"per_device_train_batch_size": 3}).items())
    script = tmp_path / "train.py"
    tests = str(Path(__file__).parents[1])
    script.write_text(TWO_PROCESSES.format(tests=tests, out=str(tmp_path), settings=settings, streamed=streamed))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOSSES"))
    ours, theirs = json.loads(line.removeprefix("LOSSES "))
    assert len(ours) == 6
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
