"""Trains a policy with GRPO or RLOO against a calibrated reward model, by default in the embedded world on two cores.

    accelerate launch recipes/grpo_llama.py
    accelerate launch recipes/grpo_llama.py --algorithm rloo

TRL's own trainer; the reward, the prompts, the judges that watch every evaluation and what is written are those of
recipes/ppo_llama.py, so that the two can be compared. Training happens in `<output_dir>.partial`; after a kill,
`--resume_from_checkpoint true` goes on from the last finished checkpoint there.
"""

import rmtrl.quiet  # isort: skip  # noqa: F401
import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import GRPOConfig, GRPOTrainer, ModelConfig, RLOOConfig, RLOOTrainer, get_peft_config

from rmtrl.data.provenance import fingerprint
from rmtrl.errors import UsageError, exit_on_error
from rmtrl.launch import RESUMES, parse_recipe, prepare_folder, stage_record, start_stage
from rmtrl.launch.policy import (
    PolicyRecipeArguments,
    finish_stage,
    judges,
    load_policy,
    make_reward,
    read_prompt_splits,
)
from rmtrl.models import load_tokenizer
from rmtrl.ppo.overoptimization import OveroptimizationCallback
from rmtrl.ppo.rewards import truncated_filter
from rmtrl.ppo.watch import PolicyWatch, evaluation_config
from rmtrl.reporting.plots import save_figure, training_curves

TINY = Path(__file__).parent / "configs" / "tiny" / "grpo.yaml"
SCHEMA = "rmtrl/grpo/1"
ALGORITHMS: dict[str, tuple[Any, Any]] = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}


@dataclass
class GRPORecipeArguments(PolicyRecipeArguments):
    algorithm: str = field(default="grpo", metadata={"help": "As a flag: grpo or rloo.", "choices": list(ALGORITHMS)})
    reward_model_path: str | None = field(default=None, metadata={"help": "Folder or hub id of the reward model."})
    missing_eos_penalty: float | None = field(default=None, metadata={"help": "Taken off an answer cut off."})
    num_eval_generations: int = field(default=1, metadata={"help": "Responses to each prompt in an evaluation."})


def with_missing_eos(reward: Any, penalty: float | None, eos_token_id: int) -> Any:
    """Returns the reward less what PPO's `missing_eos_penalty` takes off an answer cut off; None stays None."""
    if penalty is None:
        return reward
    cut = truncated_filter(end_token_ids=[eos_token_id]).blocked

    def score(*, completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        rewards = reward(completion_ids=completion_ids, **columns)
        blocked = cut(completion_ids=completion_ids)
        return [own if own is None else own - penalty * off for own, off in zip(rewards, blocked, strict=True)]

    score.__name__ = reward.__name__
    return score


def main() -> None:
    started = time.time()
    flag = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flag.add_argument("--algorithm", default="grpo")
    algorithm = flag.parse_known_args()[0].algorithm
    config_class, trainer_class = ALGORITHMS.get(algorithm, ALGORITHMS["grpo"])  # others are refused with the rest
    recipe, args, model_args = parse_recipe((GRPORecipeArguments, config_class, ModelConfig), TINY)
    if recipe.algorithm != algorithm:
        raise UsageError(f"the file says algorithm: {recipe.algorithm}; give --algorithm {recipe.algorithm}")
    recipe.trust_remote_code = args.trust_remote_code
    models = {"model_name_or_path": model_args.model_name_or_path, "reward_model_path": recipe.reward_model_path}
    final, resume = start_stage(args, SCHEMA, **models)
    tokenizer = load_tokenizer(model_args.model_name_or_path, trust_remote_code=recipe.trust_remote_code)
    prompts, watchers, penalty = read_prompt_splits(recipe), judges(recipe), recipe.missing_eos_penalty
    evaluation = evaluation_config(
        args, reward_model_path=recipe.reward_model_path, response_length=args.max_completion_length,
        temperature=args.temperature, num_eval_generations=recipe.num_eval_generations, missing_eos_penalty=penalty,
    )  # fmt: skip
    reward = make_reward(recipe, evaluation)
    trainer = trainer_class(
        model=load_policy(model_args, trust_remote_code=recipe.trust_remote_code),
        reward_funcs=with_missing_eos(reward, penalty, tokenizer.eos_token_id),
        args=args,
        train_dataset=prompts["train"],
        eval_dataset=prompts["validation"],
        processing_class=tokenizer,
        callbacks=[OveroptimizationCallback(next(iter(watchers), None), action=recipe.overoptimization)],
        peft_config=get_peft_config(model_args),
    )
    held_out = {"reward": reward, "eval_dataset": prompts["validation"], "eval_scorers": watchers}
    evaluator = PolicyWatch(trainer, evaluation, **held_out).evaluator
    prepare_folder(trainer, resume)
    evaluator.predict(prompts["test"], metric_key_prefix="start")  # a resumed run's policy is loaded in train()
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(args.output_dir)
    trainer.save_state()
    evaluator.predict(prompts["test"], metric_key_prefix="test")
    if not trainer.is_world_process_zero():
        return
    if args.eval_strategy != "no":
        curves = training_curves(trainer.state.log_history)
        save_figure(curves, Path(args.output_dir) / "plots" / "training.png", dpi=150)
    record = stage_record(trainer, recipe, model_args, final=final, started=started, training=result.metrics)
    record["data"] = {n: {"prompts": len(d), "fingerprint": fingerprint(d)} for n, d in prompts.items()}
    finish_stage(trainer, final, {"schema": SCHEMA} | record, evaluator.samples_, recipe.num_eval_generations)


if __name__ == "__main__":
    with exit_on_error("grpo_llama", RESUMES):
        main()
