"""Trains a policy with PPO against a calibrated reward model, by default in the embedded world on two CPU cores.

    accelerate launch recipes/ppo_llama.py
    accelerate launch recipes/ppo_llama.py --config recipes/configs/llama3_8b/ppo.yaml

Prompts are cut into training, validation (which watches the run) and test prompts (which report it). In the embedded
world the gold scorer judges every evaluation beside the reward. Writes `<output_dir>/`: the policy, `value_model/`,
`rmtrl.json`, `metrics.json`, `samples.jsonl` and `plots/training.png`. Training happens in `<output_dir>.partial`;
after a kill, `--resume_from_checkpoint true` goes on from the last finished checkpoint there.
"""

import rmtrl.quiet  # isort: skip  # noqa: F401
import time
from pathlib import Path

from transformers import set_seed
from trl import ModelConfig, get_peft_config

from rmtrl import PPOConfig, PPOTrainer
from rmtrl.data.provenance import fingerprint
from rmtrl.errors import exit_on_error
from rmtrl.launch import RESUMES, parse_recipe, prepare_folder, stage_record, start_stage
from rmtrl.launch.policy import (
    PPORecipeArguments,
    finish_stage,
    judges,
    load_policy,
    make_reward,
    read_prompt_splits,
)
from rmtrl.models import load_tokenizer
from rmtrl.ppo.overoptimization import OveroptimizationCallback
from rmtrl.reporting.plots import save_figure, training_curves

TINY = Path(__file__).parent / "configs" / "tiny" / "ppo.yaml"
SCHEMA = "rmtrl/ppo/1"


def main() -> None:
    started = time.time()
    recipe, args, model_args = parse_recipe((PPORecipeArguments, PPOConfig, ModelConfig), TINY)
    final, resume = start_stage(args, SCHEMA, model_name_or_path=model_args.model_name_or_path)
    tokenizer = load_tokenizer(model_args.model_name_or_path, trust_remote_code=recipe.trust_remote_code)
    prompts = read_prompt_splits(recipe)
    watchers = judges(recipe)
    set_seed(args.seed)  # an adapter's first weights and a value head's too
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
    prepare_folder(trainer, resume)
    trainer.predict(prompts["test"], metric_key_prefix="start")  # a resumed run's policy is loaded in train()
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(args.output_dir)
    trainer.save_state()
    trainer.predict(prompts["test"], metric_key_prefix="test")
    if not trainer.is_world_process_zero():
        return

    record = stage_record(trainer, recipe, model_args, final=final, started=started, training=result.metrics)
    record["data"] = {n: {"prompts": len(d), "fingerprint": fingerprint(d)} for n, d in prompts.items()}
    curves = training_curves(trainer.state.log_history)
    save_figure(curves, Path(args.output_dir) / "plots" / "training.png", dpi=150)
    finish_stage(trainer, final, {"schema": SCHEMA} | record, trainer.samples_, args.num_eval_generations)


if __name__ == "__main__":
    with exit_on_error("ppo_llama", RESUMES):
        main()
