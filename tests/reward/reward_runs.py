"""Small reward model trainings in processes of their own, under any engine, which can be killed; what they came to."""

import os
import signal

import processes
import torch
from transformers import TrainerCallback

LENGTHS = dict(train=24, easy=7, hard=6)
WORDS = ["red", "green", "blue", "one", "two", "three", "sun", "moon", "sea", "good", "bad", "yes", "no", "thanks"]


def make_start(folder):
    """Writes a small causal Llama in five layers of odd and even sizes, and its tokenizer; returns the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from rmtrl.tiny import make_tiny_tokenizer

    tokenizer = make_tiny_tokenizer([" ".join(WORDS)] * 20, vocab_size=301)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=26, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    for part in (LlamaForCausalLM(config), tokenizer):
        part.save_pretrained(folder)
    return str(folder)


def pairs(name):
    """Pairs of texts that share prompts and differ in length, the same in every process."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(LENGTHS[name])

    def words(low, high):
        count = int(torch.randint(low, high, (), generator=generator))
        return "".join(f" {WORDS[i]}" for i in torch.randint(len(WORDS), (count,), generator=generator))

    rows = [[words(low, high) for low, high in ((3, 9), (1, 8), (1, 8))] for _ in range(LENGTHS[name])]
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])


def new_trainer(folder, start, *, lora=False, callbacks=(), **settings):
    """A trainer from a folder, by default of all weights; its global batch is 8 pairs.

    With the usual epsilon Adam's first steps follow the signs of gradients, also of those that are rounding alone.
    """
    from peft import LoraConfig
    from transformers import AutoTokenizer

    from rmtrl import RewardConfig, RewardTrainer

    usual = dict(
        bf16=False, use_cpu=True, report_to="none", gradient_checkpointing=False, disable_tqdm=True, logging_steps=1,
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", 1)), gradient_accumulation_steps=2,
        per_device_eval_batch_size=4 // int(os.environ.get("WORLD_SIZE", 1)), max_steps=4, learning_rate=1e-2,
        save_strategy="no", adam_epsilon=1e-3, center_rewards_coefficient=0.01,
    )  # fmt: skip
    args = RewardConfig(str(folder), **(usual | settings))
    shard_small_weights_too(args)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if lora else None
    return RewardTrainer(
        start, args, train_dataset=pairs("train"), eval_dataset={name: pairs(name) for name in ("easy", "hard")},
        processing_class=AutoTokenizer.from_pretrained(start), peft_config=adapter, callbacks=list(callbacks),
    )  # fmt: skip


def shard_small_weights_too(args):
    """Makes ZeRO-3 spread weights that it would keep whole for being small, as all are here."""
    if args.deepspeed_plugin is not None:
        zero = args.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero |= dict(stage3_param_persistence_threshold=0, reduce_bucket_size=1000, stage3_prefetch_bucket_size=0)


def train(folder, *, resume=None, kill_at_step=None, save=True, environment=None, **settings):
    """Trains, predicts and saves; returns what came of it, or ends as `kill -9` does after a step."""
    os.environ.update(environment or {})
    trainer = new_trainer(folder, callbacks=[Kill(kill_at_step)], **settings)
    trainer.train(resume_from_checkpoint=resume)
    predicted = trainer.predict(pairs("hard")).predictions
    if save:
        trainer.save_model()
    history = [row for row in trainer.state.log_history if "train_runtime" not in row]
    return {
        "log": [{key: value for key, value in row.items() if "second" not in key and "runtime" not in key}
                for row in history],
        "predictions": predicted.tolist(), "dtype": str(predicted.dtype), "best": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step, "world_size": trainer.accelerator.num_processes,
        "local_rank": trainer.accelerator.local_process_index,
        "engine": str(trainer.accelerator.distributed_type), "share_held": share_held(trainer),
    }  # fmt: skip


def share_held(trainer):
    """The shares of weights and of the optimizer's state that this process holds, after training."""
    from torch.distributed.tensor import DTensor

    weights, whole = list(trainer.model.parameters()), 0
    held = 0
    for weight in weights:
        own = weight.to_local() if isinstance(weight, DTensor) else getattr(weight, "ds_tensor", weight)
        held, whole = held + own.numel(), whole + getattr(weight, "ds_numel", weight.numel())
    trained = sum(getattr(w, "ds_numel", w.numel()) for w in weights if w.requires_grad)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    state = [part["exp_avg"] for part in optimizer.state.values()]
    own = sum((part.to_local() if isinstance(part, DTensor) else part).numel() for part in state)
    return {"weights": held / whole, "optimizer": own / trained}


class Kill(TrainerCallback):
    """Ends the process at a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(out, function=train, **settings):
    """Returns exit codes, results and what was printed of new processes, see [`processes.run`]."""
    return processes.run(out, function, **settings)


def result(out, function=train, **settings):
    """The results of new processes that all ended well, whose logs have to be one."""
    codes, results, printed = run(out, function, **settings)
    assert set(codes) == {0}, [text[-3000:] for text in printed]
    assert all(other["log"] == results[0]["log"] for other in results if other)
    return results


def largest_difference(one, other):
    """The largest difference of two runs' logs and predictions, relative above 1; their names have to be the same."""
    assert [sorted(row) for row in one["log"]] == [sorted(row) for row in other["log"]]
    values, twins = ([*(v for row in run["log"] for _, v in sorted(row.items())), run["best"],
                      *(v for row in run["predictions"] for v in row)] for run in (one, other))  # fmt: skip
    assert [a is None for a in values] == [b is None for b in twins]
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(values, twins, strict=True) if a is not None)
