"""Supervised start of a policy: TRL's SFTTrainer on demonstrations, by default in the embedded world on two CPU cores.

    accelerate launch recipes/sft_llama.py
    accelerate launch recipes/sft_llama.py --model_name_or_path MODEL --dataset_name demonstrations.jsonl

Writes `<output_dir>/` when finished: model, tokenizer with its chat template, and `rmtrl.json` (what made it). After a
kill, `--resume_from_checkpoint true` goes on from the last checkpoint in `<output_dir>.partial`, if any was saved.
"""

import rmtrl.quiet  # isort: skip  # noqa: F401
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from rmtrl.data.provenance import fingerprint
from rmtrl.data.synthetic import make_demonstrations
from rmtrl.data.synthetic.gold import GOLD_WEIGHTS, gold_score, gold_scores
from rmtrl.errors import UsageError, exit_on_error
from rmtrl.io import replace_folder, write_json
from rmtrl.launch import (
    RESUMES,
    model_init_kwargs,
    parse_recipe,
    prepare_folder,
    read_rows,
    stage_record,
    start_stage,
)
from rmtrl.models import load_language_model, load_tokenizer
from rmtrl.tiny import make_tiny_llama, make_tiny_tokenizer

CONFIGS = Path(__file__).parent / "configs"
N_HELD_OUT = 64


@dataclass
class SftRecipeArguments(ScriptArguments):
    dataset_name: str | None = field(
        default="embedded", metadata={"help": "`embedded`, a .json(l) file, a folder or a hub id of demonstrations."}
    )
    n_demonstrations: int = field(default=7000, metadata={"help": "Demonstrations of the embedded world."})


def read_demonstrations(recipe: SftRecipeArguments, seed: int) -> tuple[Dataset, list[dict[str, Any]]]:
    """Returns the rows to train on, and rows kept out of training (none but in the embedded world)."""
    if recipe.dataset_name == "embedded":
        rows = make_demonstrations(recipe.n_demonstrations + N_HELD_OUT, seed)
        return rows.select(range(recipe.n_demonstrations)), rows.to_list()[recipe.n_demonstrations :]
    return read_rows(recipe), []


def sample_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list, seed: int) -> list[str]:
    """Returns one answer a prompt, sampled at temperature 1: what a policy trained from here starts with."""
    texts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    set_seed(seed)
    settings = {"do_sample": True, "max_new_tokens": 96, "use_cache": True}
    ids = model.eval().generate(**inputs.to(model.device), **settings, synced_gpus=False)  # one process samples
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    started = time.time()
    real = any(part.startswith("--model_name_or_path") for part in sys.argv)
    default = CONFIGS / ("llama3_8b" if real else "tiny") / "sft.yaml"
    recipe, args, model_args = parse_recipe((SftRecipeArguments, SFTConfig, ModelConfig), default)
    final, resume = start_stage(args, "rmtrl/sft/1")
    if model_args.model_name_or_path is None and recipe.dataset_name != "embedded":
        raise UsageError(f"the embedded model cannot read {recipe.dataset_name}; give --model_name_or_path as well")
    train, held_out = read_demonstrations(recipe, args.seed)
    if model_args.model_name_or_path is None:
        set_seed(args.seed)
        tokenizer = make_tiny_tokenizer(row["content"] for side in ("prompt", "completion") for [row] in train[side])
        model = make_tiny_llama(tokenizer)
    else:
        model = model_args.model_name_or_path
        tokenizer = load_tokenizer(model, trust_remote_code=args.trust_remote_code)
        args.model_init_kwargs = model_init_kwargs(model_args)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    prepare_folder(trainer, resume)
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(args.output_dir)
    if not trainer.is_world_process_zero():
        return
    folder, answers = Path(args.output_dir), []
    questions = [row["prompt"][0]["content"] for row in held_out]
    if held_out:  # of what was saved: a model in shares would need every process
        model = load_language_model(folder).to(args.device)
        answers = sample_answers(model, tokenizer, [row["prompt"] for row in held_out], args.seed)
    scores = [gold_scores(*pair) | {"gold": gold_score(*pair)} for pair in zip(questions, answers, strict=True)]
    gold = {name: sum(s[name] for s in scores) / len(scores) for name in (*GOLD_WEIGHTS, "gold")} if scores else {}
    record = stage_record(trainer, recipe, model_args, final=final, started=started, training=result.metrics)
    record["data"] = {"name": recipe.dataset_name, "rows": len(train), "fingerprint": fingerprint(train)}
    record["gold"] = {"n": len(scores), "split": "held-out prompts, answers sampled at temperature 1", **gold}
    write_json(folder / "rmtrl.json", {"schema": "rmtrl/sft/1"} | record)
    replace_folder(folder, final, keep=True)
    n_weights = record["model"]["parameters"]
    print(f"{final}: {n_weights:,} parameters, {len(train):,} demonstrations, {record['seconds']} s")
    print(*(f"  {q}\n    -> {a}" for q, a in list(zip(questions, answers, strict=True))[:2]), sep="\n")
    if gold:
        print(f"gold score, {len(scores)} held-out prompts: " + ", ".join(f"{k} {v:.2f}" for k, v in gold.items()))
    print(f"next: accelerate launch recipes/rm_llama.py --model_name_or_path {final}")


if __name__ == "__main__":
    with exit_on_error("sft_llama", RESUMES):
        main()
