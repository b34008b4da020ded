"""Trains a policy with DPO on preference pairs, without a reward model, by default in the embedded world on two cores.

    accelerate launch recipes/dpo_llama.py
    accelerate launch recipes/dpo_llama.py --model_name_or_path MODEL --dataset_name pairs.jsonl

TRL's own trainer on the pairs and splits of recipes/rm_llama.py. Reported are the test pairs, by the reward that the
policy implies, and its answers to test prompts, in the embedded world those of recipes/ppo_llama.py and judged by
gold. Training happens in `<output_dir>.partial`; after a kill, `--resume_from_checkpoint true` goes on there.
"""

import rmtrl.quiet  # isort: skip  # noqa: F401
import time
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import EarlyStoppingCallback
from trl import DPOConfig, DPOTrainer, ModelConfig, get_peft_config

from rmtrl import DPOScorer, RewardConfig
from rmtrl.data.provenance import fingerprint
from rmtrl.errors import exit_on_error
from rmtrl.evaluation.scoring import ScoredPairs
from rmtrl.launch import RESUMES, parse_recipe, prepare_folder, stage_record, start_stage
from rmtrl.launch.pairs import RewardRecipeArguments, checked_splits, read_pairs
from rmtrl.launch.policy import (
    PolicyRecipeArguments,
    finish_stage,
    judges,
    load_policy,
    make_reward,
    read_prompt_splits,
)
from rmtrl.metrics import mean_estimate, mean_estimates, pair_wins
from rmtrl.models import load_tokenizer
from rmtrl.ppo.watch import evaluation_config, policy_evaluator

TINY = Path(__file__).parent / "configs" / "tiny" / "dpo.yaml"
SCHEMA = "rmtrl/dpo/1"


@dataclass
class DPORecipeArguments(RewardRecipeArguments):
    reward_model_path: str | None = field(
        default=None,
        metadata={"help": "A reward model that judges the answers too; else the policy's implied reward."},
    )
    response_length: int = field(default=96, metadata={"help": "Longest answer to a test prompt, in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the answers to test prompts."})
    num_eval_generations: int = field(default=1, metadata={"help": "Answers to each test prompt."})


def pair_figures(scorer: DPOScorer, pairs: Dataset) -> dict:
    """Returns how often the implied reward of the chosen answer is the higher one, and by how much."""
    chosen, rejected = ScoredPairs.of_model(scorer, pairs, "test pairs").scores.T
    wins, groups = pair_wins(chosen, rejected), pairs["prompt_id"]
    return {
        "accuracy": mean_estimate(wins, groups),
        "margin": mean_estimate(chosen - rejected, groups, proportion=False),
        "accuracy_by_domain": mean_estimates(wins, pairs["domain"], groups),
    }


def main() -> None:
    started = time.time()
    recipe, args, model_args = parse_recipe((DPORecipeArguments, DPOConfig, ModelConfig), TINY)
    final, resume = start_stage(args, SCHEMA, model_name_or_path=model_args.model_name_or_path)
    tokenizer = load_tokenizer(model_args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    checks = RewardConfig(str(args.output_dir), max_length=args.max_length, use_cpu=args.use_cpu, report_to="none")
    pairs = read_pairs(recipe, checks)
    valid, splits = checked_splits(pairs, recipe, tokenizer, checks)
    asked = PolicyRecipeArguments(dataset_name=recipe.dataset_name, split_seed=recipe.split_seed)
    asked.trust_remote_code = args.trust_remote_code
    prompts = read_prompt_splits(asked)["test"] if recipe.dataset_name == "embedded" else splits.test
    evaluation = evaluation_config(
        args, reward_model_path=recipe.reward_model_path, response_length=recipe.response_length,
        temperature=recipe.temperature, num_eval_generations=recipe.num_eval_generations,
    )  # fmt: skip
    patience = recipe.early_stopping_patience
    trainer = DPOTrainer(
        model=load_policy(model_args, trust_remote_code=args.trust_remote_code),
        args=args,
        train_dataset=splits.train.select_columns(["prompt", "chosen", "rejected"]),
        eval_dataset=splits.validation.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(patience)] if patience and args.load_best_model_at_end else None,
        peft_config=get_peft_config(model_args),
    )
    policy = trainer.accelerator.unwrap_model(trainer.model)
    implied = DPOScorer(policy, tokenizer, trainer.ref_model, beta=args.beta, progress=False)
    reward = make_reward(asked, evaluation) if recipe.reward_model_path else implied
    prompts = prompts.select_columns(["prompt"])
    judged = {"reward": reward, "eval_dataset": prompts, "eval_scorers": judges(asked)}
    evaluator = policy_evaluator(trainer, evaluation, **judged)
    prepare_folder(trainer, resume)
    evaluator.predict(prompts, metric_key_prefix="start")  # a resumed run's policy is loaded in train()
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(args.output_dir)
    trainer.save_state()
    evaluator.predict(prompts, metric_key_prefix="test")
    if not trainer.is_world_process_zero():
        return
    record = stage_record(trainer, recipe, model_args, final=final, started=started, training=result.metrics)
    record["data"] = {"name": recipe.dataset_name, "fingerprint": fingerprint(pairs), **valid.as_dict()}
    record["splits"] = {n: {"pairs": len(d), "fingerprint": fingerprint(d)} for n, d in splits.as_dict().items()}
    record |= {"schema": SCHEMA, "prompts": {"test": len(prompts), "fingerprint": fingerprint(prompts)}}
    by_pair = pair_figures(implied, splits.test)
    finish_stage(trainer, final, record, evaluator.samples_, recipe.num_eval_generations, pairs=by_pair)
    print(f"test pairs: accuracy of the implied reward {by_pair['accuracy']:.3f}")


if __name__ == "__main__":
    with exit_on_error("dpo_llama", RESUMES):
        main()
