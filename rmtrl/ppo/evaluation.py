"""Evaluation of a policy in training: fresh responses to held-out prompts, judged by the reward and by others."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from numpy.typing import NDArray
from transformers.trainer_utils import PredictionOutput, speed_metrics

from rmtrl.errors import DataError, UsageError
from rmtrl.generation import sampling_key
from rmtrl.metrics import mean_estimate
from rmtrl.metrics.ranks import correlation_estimate
from rmtrl.ppo.batches import make_plan
from rmtrl.ppo.callbacks import PolicyEvaluation, PPOCallback, Progress, PromptMeans
from rmtrl.ppo.episodes import Episodes, Experience
from rmtrl.ppo.prompts import Prompts, read_sets
from rmtrl.ppo.reward_model import completions, unscaled
from rmtrl.types import Estimate

logger = get_logger(__name__)


class PPOEvaluation:
    """The part of [`PPOTrainer`] that evaluates."""

    def evaluate(
        self: Any,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Returns the figures of `num_eval_generations` responses to each prompt, over all processes.

        `{prefix}_reward` (before normalisation, which moves with training, and clip), `_kl` (nats a response),
        `_length_tokens`, `_truncated`, `_score_length_correlation`, the score of each of `eval_scorers` under
        its name, and the ends of 95 % intervals as `_reward_low` and so on; `evaluation_` holds the same as
        [`Estimate`]s over prompts. The same prompts are always answered with the same noise, so that two evaluations
        differ by the policy alone: `_reward_gain`, `_length_tokens_gain` and that of each scorer are changes since
        the run's first evaluation, their intervals those of the paired differences.

        Args:
            eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*): Replaces the trainer's own.
            ignore_keys: Not used.
            metric_key_prefix (`str`): Opens each key; sets of a dictionary add their name.
        """
        sets = self.eval_prompts if eval_dataset is None else self._read(eval_dataset)
        if not sets:
            raise DataError("there is nothing to evaluate on; give eval_dataset")
        alone = set(sets) == {"eval"}
        metrics: dict[str, float] = {}
        started = time.time()
        for name, prompts in sets.items():
            prefix = metric_key_prefix if alone else f"{metric_key_prefix}_{name}"
            estimates, rows = self.evaluate_policy(prompts)
            evaluation = self._compared(prompts, prefix, estimates, rows)
            self.evaluation_ |= {f"{prefix}_{key}": estimate for key, estimate in evaluation.figures.items()}
            self.samples_[prefix] = rows
            metrics |= _flat(evaluation.figures, prefix)
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, PPOCallback):
                    scalars = callback.on_policy_evaluation(self.args, self.state, self.control, evaluation=evaluation)
                    metrics |= {f"{prefix}_{key}": value for key, value in scalars.items()}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=sum(map(len, sets.values())))
        self.log(metrics)
        for name in sets:
            prefix = metric_key_prefix if alone else f"{metric_key_prefix}_{name}"
            self.log_table(self.samples_[prefix], "eval_completions" if alone else f"{prefix}_completions")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self: Any, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Returns the responses to each prompt as texts, and their figures; nothing is logged.

        `evaluation_` and, with scores and texts, `samples_` hold them too.

        Args:
            test_dataset ([`~datasets.Dataset`]): Prompts.
            ignore_keys: Not used.
            metric_key_prefix (`str`): Opens each key.

        Raises:
            UsageError: If several sets are given.
        """
        if isinstance(test_dataset, dict):
            raise UsageError(f"predict takes one data set, got a dict of {len(test_dataset)}; call it for each")
        estimates, rows = self.evaluate_policy(self._read(test_dataset)["eval"])
        self.evaluation_ |= {f"{metric_key_prefix}_{key}": estimate for key, estimate in estimates.items()}
        self.samples_[metric_key_prefix] = rows
        texts = np.array([row["completion"] for row in rows])
        return PredictionOutput(texts, None, _flat(estimates, metric_key_prefix))

    def evaluate_policy(self: Any, prompts: Prompts) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
        """Returns the figures of fresh responses to each prompt, with intervals over prompts, and the responses."""
        n = self.args.num_eval_generations
        world = self.accelerator.num_processes
        indices = [index for index in range(len(prompts)) for _ in range(n)]
        filled = indices + indices[:1] * (-len(indices) % world)  # a row more for a process that would have none
        keys = [sampling_key(self.args.seed, "evaluation", row) for row in range(len(filled))]
        episodes = self.sample(prompts, filled, keys)
        plan = make_plan(
            episodes.lengths, 1, rows_per_pass=self.args.per_device_eval_batch_size, world_size=world, seed=0,
            device_type=self.accelerator.device.type,
        )  # fmt: skip
        log_ratio = self.token_figures(episodes, plan)[0] - self.token_figures(episodes, plan, reference=True)[0]
        judges = {"reward": self.reward} | self.eval_scorers
        columns = {name: self.score_with(unscaled(f), prompts, episodes)[0] for name, f in judges.items()}
        columns["reward"] = self.with_missing_eos(columns["reward"], episodes)
        columns |= {
            "kl": log_ratio.sum(1),
            "length_tokens": torch.tensor([float(len(ids)) for ids in episodes.completion_ids]),
            "truncated": torch.tensor(episodes.truncated).float(),
        }
        arrays = {name: column.cpu().double().numpy()[: len(indices)] for name, column in columns.items()}
        rows = _rows(self.processing_class, prompts, episodes, arrays)
        means = _by_prompt(rows, n)
        estimates = {name: mean_estimate(values, proportion=False) for name, values in means.items()}
        return estimates | _correlations(arrays, n), rows

    def _compared(
        self: Any, prompts: Prompts, prefix: str, figures: dict[str, Estimate], rows: list[dict[str, Any]]
    ) -> PolicyEvaluation:
        """Returns an evaluation beside the run's earlier ones of the same prompts, with its gains since the first."""
        n, scores = self.args.num_eval_generations, ("reward", *self.eval_scorers)
        now = PromptMeans(self.state.global_step, _by_prompt(rows, n))
        before, key = self.progress_.get(prefix), sampling_key(prompts.digest, n, scores)
        if before is not None and before.prompts_key != key:
            logger.warning(
                f"{prefix}: other prompts or scorers than in the run's earlier evaluations; gains start anew"
            )
            before = None
        progress = Progress(key, 1, now, dict.fromkeys(scores, now)) if before is None else before.after(now)
        self.progress_[prefix] = progress
        start = progress.start.by_prompt
        gains = {
            f"{name}_gain": mean_estimate(now.by_prompt[name] - start[name], proportion=False)
            for name in (*scores, "length_tokens")
        }
        return PolicyEvaluation(prefix, figures | gains, now, progress)

    def evaluation_state(self: Any) -> dict[str, Any]:
        """Returns the evaluations that later ones are compared with, ready for JSON."""
        return {prefix: progress.as_dict() for prefix, progress in self.progress_.items()}

    def load_evaluation_state(self: Any, stored: dict[str, Any]) -> None:
        """Restores what `evaluation_state` returned; a set whose prompts or scorers are others by now starts anew."""
        self.progress_ = {prefix: Progress.from_dict(progress) for prefix, progress in stored.items()}

    def _read(self: Any, dataset: Any) -> dict[str, Prompts]:
        return read_sets(dataset, self.processing_class, max_length=self.max_prompt_length)

    def log_samples(self: Any, experience: Experience) -> None:
        """Logs a table of responses to the training prompts, `num_sample_generations` times over the run."""
        n = self.args.num_sample_generations
        every = max(1, self.num_total_batches // n) if n > 0 else 0
        if not every or (self.state.global_step - 1) % every:
            return
        arrays = {"reward": experience.scores.scores.cpu().numpy()}
        self.samples_["train"] = _rows(
            self.processing_class, self.train_prompts, experience.rollout.episodes, arrays
        )  # fmt: skip
        self.log_table(self.samples_["train"], "completions")

    def log_table(self: Any, rows: list[dict[str, Any]], name: str) -> None:
        """Sends a table of samples to wandb, where it is reported to."""
        if "wandb" not in self.args.report_to or not self.is_world_process_zero():
            return
        import wandb

        if wandb.run is not None:
            data = [[round(v, 4) if isinstance(v, float) else v for v in row.values()] for row in rows[:64]]
            table = wandb.Table(columns=list(rows[0]), data=data)
            wandb.log({name: table, "train/global_step": self.state.global_step})

    def generate_completions(self: Any, sampling: bool = False) -> None:
        """Prints five responses to the evaluation prompts with their rewards, and logs the table of all.

        Args:
            sampling (`bool`): Whether to answer the prompts of one batch alone.
        """
        most = self.args.per_device_eval_batch_size * self.accelerator.num_processes if sampling else None
        for name, prompts in self.eval_prompts.items():
            _, rows = self.evaluate_policy(replace(prompts, ids=prompts.ids[:most]))
            for row in rows[:5] if self.is_world_process_zero() else []:
                print(f"{name}: {row['prompt']!r} -> {row['completion']!r} (reward {row['reward']:.3f})")
            self.log_table(rows, "completions" if name == "eval" else f"{name}_completions")


def _rows(tokenizer: Any, prompts: Prompts, episodes: Episodes, arrays: dict[str, Any]) -> list[dict[str, Any]]:
    n = len(next(iter(arrays.values())))
    texts = completions(tokenizer, episodes, range(n))
    return [
        {"prompt": _text(prompts.prompts[episodes.indices[row]]), "completion": texts[row]}
        | {name: float(values[row]) for name, values in arrays.items()}
        for row in range(n)
    ]


def _by_prompt(rows: list[dict[str, Any]], n: int) -> dict[str, NDArray[np.float64]]:
    """Returns the means of n rows a prompt, and the spread of the reward within it."""
    names = [name for name in rows[0] if name not in ("prompt", "completion")]
    arrays = {name: np.array([row[name] for row in rows], dtype=np.float64).reshape(-1, n) for name in names}
    spread = {"within_prompt_std": arrays["reward"].std(1)} if n > 1 else {}
    return {name: values.mean(1) for name, values in arrays.items()} | spread


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _correlations(arrays: dict[str, Any], n: int) -> dict[str, Estimate]:
    reward, length = arrays["reward"], arrays["length_tokens"]
    if len(reward) < 4 or reward.std() == 0 or length.std() == 0:
        return {}
    n_prompts = len(reward) // n
    estimate = correlation_estimate(reward, length, np.repeat(np.arange(n_prompts), n), kind="pearson")
    return {"score_length_correlation": replace(estimate, n=n_prompts)}


def _flat(estimates: dict[str, Estimate], prefix: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, estimate in estimates.items():
        flat |= {
            f"{prefix}_{name}": estimate.value,
            f"{prefix}_{name}_low": estimate.low,
            f"{prefix}_{name}_high": estimate.high,
        }
    return flat
