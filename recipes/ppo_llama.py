"""Trains a policy with PPO against a calibrated reward model, by default in the embedded world on two CPU cores.

    accelerate launch recipes/ppo_llama.py
    accelerate launch recipes/ppo_llama.py --config recipes/configs/llama3_8b/ppo.yaml

Prompts are cut into training, validation (which watches the run) and test prompts (which report it). In the embedded
world the gold scorer judges every evaluation beside the reward. Writes `<output_dir>/`: the policy, `value_model/`,
`rmtrl.json`, `metrics.json`, `samples.jsonl` and `plots/training.png`. Training happens in `<output_dir>.partial`;
after a kill, `--resume_from_checkpoint true` goes on from the last finished checkpoint there.
"""

import json
import time
from pathlib import Path

from trl import ModelConfig, get_peft_config

from rmtrl import PPOConfig, PPOTrainer
from rmtrl.data.provenance import fingerprint
from rmtrl.errors import UsageError, exit_on_error
from rmtrl.io import replace_folder, write_json
from rmtrl.launch import (
    checkpoint_to_resume,
    clear_checkpoints,
    parse_recipe,
    stage_in_partial,
    stage_record,
)
from rmtrl.launch.policy import (
    PPORecipeArguments,
    judges,
    load_policy,
    make_reward,
    paired_figures,
    read_prompt_splits,
    summary,
)
from rmtrl.models import load_tokenizer
from rmtrl.ppo.overoptimization import OveroptimizationCallback
from rmtrl.reporting.plots import save_figure, training_curves
from rmtrl.types import json_ready

TINY = Path(__file__).parent / "configs" / "tiny" / "ppo.yaml"
SCHEMA = "rmtrl/ppo/1"


def main() -> None:
    started = time.time()
    recipe, args, model_args = parse_recipe((PPORecipeArguments, PPOConfig, ModelConfig), TINY)
    if model_args.model_name_or_path is None:
        raise UsageError("no policy to start from; give --model_name_or_path (recipes/sft_llama.py makes one)")
    final = stage_in_partial(args, SCHEMA)
    resume = checkpoint_to_resume(args)
    tokenizer = load_tokenizer(model_args.model_name_or_path, trust_remote_code=recipe.trust_remote_code)
    prompts = read_prompt_splits(recipe)
    watchers = judges(recipe)
    callbacks = [OveroptimizationCallback(next(iter(watchers), None), action=recipe.overoptimization)]
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=load_policy(model_args, trust_remote_code=recipe.trust_remote_code),
        reward_model=make_reward(recipe, args),
        train_dataset=prompts["train"],
        eval_dataset=prompts["validation"],
        peft_config=get_peft_config(model_args),
        callbacks=callbacks,
        eval_scorers=watchers,
    )
    if resume is None:
        clear_checkpoints(trainer)
    trainer.predict(prompts["test"], metric_key_prefix="start")  # a resumed run's policy is loaded in train()
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(args.output_dir)
    trainer.save_state()
    trainer.predict(prompts["test"], metric_key_prefix="test")
    if not trainer.is_world_process_zero():
        return

    folder, samples = Path(args.output_dir), trainer.samples_
    figures = paired_figures(samples["start"], samples["test"], args.num_eval_generations)
    write_json(folder / "metrics.json", json_ready({"schema": "rmtrl/ppo-metrics/1", "test": figures}))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples["test"]))
    save_figure(training_curves(trainer.state.log_history), folder / "plots" / "training.png", dpi=150)
    record = stage_record(trainer, recipe, model_args, final=final, started=started, training=result.metrics)
    record["data"] = {n: {"prompts": len(d), "fingerprint": fingerprint(d)} for n, d in prompts.items()}
    record["figures"] = {"chosen on": "validation", "reported on": "test"}
    write_json(folder / "rmtrl.json", {"schema": SCHEMA} | record)
    replace_folder(folder, final)
    print(summary(str(final), figures))


if __name__ == "__main__":
    with exit_on_error("ppo_llama"):
        main()
