"""Fifty steps on human pairs: the losses and weights of TRL's trainer, with every shared prompt computed once."""

import random

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig

import rmtrl
from rmtrl.data.preferences import read_preferences
from rmtrl.data.validation import validate
from rmtrl.tiny import make_tiny_tokenizer

STEPS, PAIRS = 50, 16


@pytest.fixture(scope="module")
def human(real_data):
    kept = validate(read_preferences(real_data / "hh-rlhf" / "harmless-base-test.jsonl.gz")).kept
    rows = kept.select_columns(["prompt", "chosen", "rejected"]).to_list()
    random.Random(0).shuffle(rows)
    tokenizer = make_tiny_tokenizer([row["prompt"] for row in rows], vocab_size=2000)
    return rows, tokenizer


def run(library, rows, tokenizer, new_model, folder, *, peft_config=None, **settings):
    args = library.RewardConfig(
        folder, per_device_train_batch_size=PAIRS, max_steps=STEPS, learning_rate=1e-5, logging_steps=1, use_cpu=True,
        max_length=512, report_to="none", disable_tqdm=True, save_strategy="no", bf16=False,
        **({"gradient_checkpointing": False} | settings),
    )  # fmt: skip
    pad = tokenizer.convert_tokens_to_ids("<|pad|>")  # its row starts as zeros
    model = new_model(vocab_size=len(tokenizer), pad_token_id=pad, max_position_embeddings=512,
                      hidden_size=64, intermediate_size=192)  # fmt: skip
    trainer = library.RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows),
                                    processing_class=tokenizer, peft_config=peft_config)  # fmt: skip
    trainer.train()
    weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    return [entry["loss"] for entry in trainer.state.log_history if "grad_norm" in entry], weights


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "lora", "gradient checkpointing", "pad is end"])
def test_every_loss_and_the_weights_are_trls(human, new_model, tmp_path, case):
    rows, tokenizer = human
    settings, mine = {}, tokenizer
    if case == "lora":
        settings["peft_config"] = LoraConfig(
            task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["score"]
        )
    if case == "gradient checkpointing":
        settings["gradient_checkpointing"] = True
    if case == "pad is end":
        import copy

        mine = copy.deepcopy(tokenizer)
        mine.pad_token = mine.eos_token  # ours mends it; TRL is given the mended one
    torch.manual_seed(0)
    ours, weights = run(rmtrl, rows, mine, new_model, tmp_path / "rmtrl", shared_prefix=True, **settings)
    torch.manual_seed(0)
    theirs, wanted = run(trl, rows, tokenizer, new_model, tmp_path / "trl", **settings)
    assert len(ours) == len(theirs) == STEPS
    difference = np.abs(np.array(ours) / np.array(theirs) - 1).max()
    apart = max(float((weights[name] - wanted[name]).abs().max()) for name in wanted)
    print(f"{case}: losses differ by {difference:.1e} (relative), weights by {apart:.1e}")
    assert weights.keys() == wanted.keys()
    assert difference < 1e-5 and apart < 1e-4
