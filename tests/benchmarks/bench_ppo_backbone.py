"""PPO with one backbone against separate models: weights held, peak memory, episodes a second; one run, interleaved.

    python tests/benchmarks/bench_ppo_backbone.py [--sizes small,medium,large] [--repeats 3] [--updates 2] [--save]

One base Llama a size, in float32, and on it the adapter checkpoint of a reward model, as `rmtrl.RewardTrainer` writes.
Policy, value and reward adapter are LoRA on all linear layers. Three ways to train from them:

- one backbone: `PPOConfig(one_backbone=True)`;
- adapters: the same without it, so that value and reward model each hold a base of their own;
- four models: no adapter anywhere, policy and value model trained whole, the reward model merged; for weights alone.

Weights are the unique parameters and buffers of all models of the trainer. Peak memory is the resident set's, of a
process of its own that makes one update of four short episodes, over what it had before it loaded a model; the
second figure therefore holds gradients and the optimizer's state of what is trained.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import logging as transformers_logging
from workloads import append_results, human_pairs, machine, make_tokenizer, spread

from rmtrl import PPOConfig, PPOTrainer

SIZES = {
    "small": dict(hidden_size=256, num_hidden_layers=4, vocab_size=8192, r=8),
    "medium": dict(hidden_size=512, num_hidden_layers=6, vocab_size=16384, r=8),
    "large": dict(hidden_size=1024, num_hidden_layers=8, vocab_size=32768, r=16),
}
WAYS = ("one backbone", "adapters", "four models")


def write_models(folder: Path, size: str) -> None:
    """Writes prompts, tokenizer, base model, reward adapter on it, and the reward model merged."""
    shape = dict(SIZES[size])
    rank, hidden = shape.pop("r"), shape["hidden_size"]
    tokenizer = make_tokenizer(human_pairs(500))
    torch.manual_seed(0)
    config = LlamaConfig(**shape, intermediate_size=3 * hidden, num_attention_heads=hidden // 64,
                         num_key_value_heads=hidden // 64, max_position_embeddings=1024, bos_token_id=None,
                         eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    (folder / "prompts.json").write_text(json.dumps([row["prompt"][-300:] for row in human_pairs(64)]))
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    model = get_peft_model(model, adapter(rank, task_type="SEQ_CLS"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    model.save_pretrained(folder / "rm")
    model.merge_and_unload().save_pretrained(folder / "rm-merged")
    for name in ("base", "rm", "rm-merged"):
        tokenizer.save_pretrained(folder / name)


def adapter(rank: int, **settings: Any) -> LoraConfig:
    return LoraConfig(**({"r": rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings))


def make_trainer(folder: Path, size: str, way: str, updates: int, rows: int = 4, tokens: int = 32) -> PPOTrainer:
    """A trainer of one of the ways, for four times `rows` episodes an update of `tokens` new tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    prompts = Dataset.from_dict({"prompt": json.loads((folder / "prompts.json").read_text())})
    args = PPOConfig(
        str(folder / "out"), one_backbone=way == "one backbone", max_steps=updates, per_device_train_batch_size=rows,
        gradient_accumulation_steps=4, num_mini_batches=2, num_ppo_epochs=2, response_length=tokens, stop_token=None,
        max_prompt_length=4 * tokens, report_to="none", save_strategy="no", disable_tqdm=True,
        num_sample_generations=0, gradient_checkpointing=False, bf16=torch.cuda.is_available(), logging_steps=1000,
    )  # fmt: skip
    peft_config = None if way == "four models" else adapter(SIZES[size]["r"])
    reward = folder / ("rm-merged" if way == "four models" else "rm")
    return PPOTrainer(
        args, tokenizer, str(folder / "base"), reward_model=str(reward), train_dataset=prompts, peft_config=peft_config
    )


def weights_held(trainer: PPOTrainer) -> tuple[int, int]:
    """Bytes of all weights that the trainer holds, and of its policy's base model."""
    modules = [trainer.model, trainer.ref_model, trainer.reward.scorer.model]
    tensors = {t.data_ptr(): t for m in modules if m is not None for t in (*m.parameters(), *m.buffers())}
    policy = trainer.model.policy
    inner = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    own = {t.data_ptr() for name, t in (*inner.named_parameters(), *inner.named_buffers()) if "lora_" not in name}
    size = {pointer: t.numel() * t.element_size() for pointer, t in tensors.items()}
    return sum(size.values()), sum(size[pointer] for pointer in own)


def measure_memory(folder: Path, size: str, way: str) -> None:
    """Prints what one process of its own holds."""
    before = 0 if torch.cuda.is_available() else int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    trainer = make_trainer(folder, size, way, 1, rows=1, tokens=16)
    held, own = weights_held(trainer)
    made = _peak()
    trainer.train()
    print(json.dumps({"held": held, "base": own, "made": made - before, "peak": _peak() - before}))


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()  # getrusage would hold the peak of the parent too
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def memory_rows(folder: Path, size: str) -> list[str]:
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, "--measure", str(folder), "--sizes", size, "--way", way]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        base = found["base"]
        rows.append(
            f"| {size} | {way} | {base / 2**20:.1f} | {found['held'] / 2**20:.1f} | {found['held'] / base:.2f} "
            f"| {found['made'] / 2**20:.0f} | {found['peak'] / 2**20:.0f} |"
        )
        print(rows[-1], flush=True)
    return rows


def speed_row(folder: Path, size: str, repeats: int, updates: int) -> str:
    """Episodes a second of both ways with adapters, in turn; the first round warms up and is not counted."""
    seen: dict[str, list[float]] = {way: [] for way in WAYS[:2]}
    for repeat in range(repeats + 1):
        for way in WAYS[:2] if repeat % 2 else WAYS[1::-1]:
            trainer = make_trainer(folder, size, way, updates if repeat else 1)
            start = time.perf_counter()
            trainer.train()
            if repeat:
                seen[way].append(updates * trainer.batch_size / (time.perf_counter() - start))
            del trainer
    ours, theirs = seen.values()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"| {size} | {spread(ours)} | {spread(theirs)} | {spread(ratios)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="small,medium,large")
    parser.add_argument("--speed_sizes", default="small,medium")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="append the tables to RESULTS.md")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    if arguments.measure:
        return measure_memory(Path(arguments.measure), arguments.sizes, arguments.way)
    weights, speed = [], []
    with tempfile.TemporaryDirectory() as folder:
        sizes = [size for size in arguments.sizes.split(",") if size]
        timed = [size for size in arguments.speed_sizes.split(",") if size]
        for size in dict.fromkeys([*sizes, *timed]):
            write_models(Path(folder) / size, size)
        for size in sizes:
            weights += memory_rows(Path(folder) / size, size)
        for size in timed:
            speed.append(speed_row(Path(folder) / size, size, arguments.repeats, arguments.updates))
            print(speed[-1], flush=True)
    if arguments.save:
        shapes = "; ".join(
            f"{name}: hidden {shape['hidden_size']}, {shape['num_hidden_layers']} layers, vocabulary "
            f"{shape['vocab_size']:,}, rank {shape['r']}" for name, shape in SIZES.items()
        )  # fmt: skip
        append_results([
            "### PPO with one backbone", "",
            f"{machine()}. Llama in float32, LoRA on all linear layers; {shapes}.", "",
            "| size | models | base, MiB | weights held, MiB | over the base's | peak once made, MiB "
            "| peak after an update, MiB |",
            "|---|---|---|---|---|---|---|", *weights, "",
            "Episodes a second, prompts of at most 128 tokens, 32 new ones, 16 episodes an update; median and range "
            f"of {arguments.repeats} interleaved repeats of {arguments.updates} updates.", "",
            "| size | one backbone | separate adapters | ratio |", "|---|---|---|---|", *speed,
        ])  # fmt: skip


if __name__ == "__main__":
    main()
