"""Trains a reward model on validated, leak-free splits, by default in the embedded world on two CPU cores.

    accelerate launch recipes/rm_llama.py
    accelerate launch recipes/rm_llama.py --config recipes/configs/llama3_8b/rm.yaml

Pairs are read, validated (rejects are counted) and split by prompt. The best checkpoint is chosen on validation; the
figures that count are those of the test split. Writes `<output_dir>/`: checkpoint, `rmtrl.json` (what made it),
`metrics.json`, `test.jsonl`, `worst_pairs.jsonl` and `rejects.jsonl`; beside it the run's `report.html`. Training
happens in `<output_dir>.partial`, and the finished folder replaces the one before; after a kill,
`--resume_from_checkpoint true` goes on from the last finished checkpoint there.
"""

import rmtrl.quiet  # isort: skip  # noqa: F401
import json
import time
from pathlib import Path

from transformers import EarlyStoppingCallback
from trl import ModelConfig, get_peft_config, get_quantization_config

from rmtrl import CenterRewardCallback, LengthBiasCallback, MarginCallback, RewardConfig, RewardTrainer
from rmtrl.data.provenance import fingerprint
from rmtrl.errors import exit_on_error
from rmtrl.evaluation.scoring import TESTED, WORST, ScoredPairs
from rmtrl.io import replace_folder, write_json, write_rows
from rmtrl.launch import (
    RESUMES,
    evaluate_often,
    model_init_kwargs,
    n_parameters,
    parse_recipe,
    prepare_folder,
    push_records,
    report_run,
    stage_record,
    start_stage,
    unusual_settings,
)
from rmtrl.launch.pairs import SCHEMA, RewardRecipeArguments, checked_splits, label_ceiling, read_pairs
from rmtrl.models import load_tokenizer
from rmtrl.reward.report import pair_figures, summary
from rmtrl.types import json_ready

TINY = Path(__file__).parent / "configs" / "tiny" / "rm.yaml"


def main() -> None:
    started = time.time()
    recipe, args, model_args = parse_recipe((RewardRecipeArguments, RewardConfig, ModelConfig), TINY)
    final, resume = start_stage(args, SCHEMA)
    args.model_init_kwargs = model_init_kwargs(model_args)
    tokenizer = load_tokenizer(model_args.model_name_or_path, trust_remote_code=args.trust_remote_code)

    pairs = read_pairs(recipe, args)
    valid, splits = checked_splits(pairs, recipe, tokenizer, args)
    evaluate_often(args, len(splits.train))

    callbacks = [MarginCallback(), LengthBiasCallback(), CenterRewardCallback()]
    if recipe.early_stopping_patience and args.eval_strategy != "no" and args.load_best_model_at_end:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    peft_config = get_peft_config(model_args)
    trainer = RewardTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=splits.train,
        eval_dataset=splits.validation,
        processing_class=tokenizer,
        callbacks=callbacks,
        quantization_config=get_quantization_config(model_args),
        peft_config=peft_config,
    )
    for note in unusual_settings(args, n_parameters=n_parameters(trainer), adapter=peft_config is not None):
        trainer.accelerator.print(f"note: {note}")
    prepare_folder(trainer, resume)
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(args.output_dir)
    trainer.save_state()

    reported = {"validation": splits.validation, "test": splits.test}
    if splits.spillover is not None:
        sample = splits.train.shuffle(args.seed).select(range(min(len(splits.train), 1000)))
        reported |= {"train": sample, "spillover": splits.spillover}
    figures, scores, ceilings = {}, {}, {"test": label_ceiling(recipe, pairs)}
    for name, split in reported.items():
        scores[name] = trainer.predict(split, metric_key_prefix=name).predictions
        figures[name] = pair_figures(trainer.pairs_, split["prompt_id"], split["domain"], ceilings.get(name))
    if not trainer.is_world_process_zero():
        return

    folder = Path(args.output_dir)
    write_json(folder / "metrics.json", {"schema": "rmtrl/reward-metrics/1", **json_ready(figures)})
    record = stage_record(trainer, recipe, model_args, final=final, started=started, training=result.metrics)
    record["seeds"]["split"] = recipe.split_seed
    record["data"] = {"name": recipe.dataset_name, "fingerprint": fingerprint(pairs), **valid.as_dict()}
    record["splits"] = {n: {"pairs": len(d), "fingerprint": fingerprint(d)} for n, d in splits.as_dict().items()}
    record["figures"] = {"chosen on": "validation", "reported on": "test"}
    write_json(folder / "rmtrl.json", json.loads((folder / "rmtrl.json").read_text()) | record | {"schema": SCHEMA})
    write_rows(folder / WORST, ScoredPairs(splits.test, scores["test"]).worst())
    write_rows(folder / TESTED, splits.test)
    valid.rejects.to_json(folder / "rejects.jsonl")
    replace_folder(folder, final, keep=True)
    print(summary(str(final), valid.as_dict(), splits.sizes(), figures))
    report_run(final)
    push_records(trainer, final)


if __name__ == "__main__":
    with exit_on_error("rm_llama", RESUMES):
        main()
