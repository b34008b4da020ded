"""Evaluations of a policy in training: their figures by prompt, what they are compared with, and who reads them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmtrl.metrics import mean_estimate
from rmtrl.metrics.ranks import correlation_estimate
from rmtrl.ppo.prompts import Prompts
from rmtrl.ppo.rollout import Episodes
from rmtrl.types import Conversation, Estimate

logger = get_logger(__name__)

Rows = list[dict[str, Any]]
"""A dictionary a response: `prompt` and `completion` as text, and its figures."""


@dataclass(frozen=True)
class PromptMeans:
    """What one evaluation gave each of its P prompts.

    Args:
        step (`int`): Updates before it.
        by_prompt (`dict[str, (P,) array]`): Means over a prompt's responses of `reward`, each of the eval scorers,
            `kl` (nats a response), `length_tokens` and `truncated`; and `within_prompt_std` of the reward where there
            are several responses.
    """

    step: int
    by_prompt: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, step: int, rows: Rows, n: int) -> "PromptMeans":
        """Returns the means of rows that stand together, n a prompt."""
        names = [name for name in rows[0] if name not in ("prompt", "completion")]
        arrays = {name: np.array([row[name] for row in rows], dtype=np.float64).reshape(-1, n) for name in names}
        spread = {"within_prompt_std": arrays["reward"].std(1)} if n > 1 else {}
        return cls(step, {name: values.mean(1) for name, values in arrays.items()} | spread)

    def mean(self, name: str) -> float:
        """Returns the mean over prompts."""
        return float(self.by_prompt[name].mean())


@dataclass(frozen=True)
class Progress:
    """The evaluations of one set of prompts that later ones are compared with; all are answered with the same noise.

    Args:
        prompts_key (`int`): Names the prompts, the number of responses and the scorers.
        n_evaluations (`int`): Evaluations so far.
        start ([`PromptMeans`]): The run's first.
        best (`dict[str, PromptMeans]`): For the reward and each scorer the evaluation of its highest mean.
    """

    prompts_key: int
    n_evaluations: int
    start: PromptMeans
    best: Mapping[str, PromptMeans]

    def after(self, now: PromptMeans) -> "Progress":
        """Returns the progress with one evaluation more; of equally good ones the first is the best."""
        best = {name: now if now.mean(name) > best.mean(name) else best for name, best in self.best.items()}
        return replace(self, n_evaluations=self.n_evaluations + 1, best=best)

    def gains(self, now: PromptMeans) -> dict[str, Estimate]:
        """Returns the changes since the start of each score and of the length, paired by prompt."""
        return {
            f"{name}_gain": mean_estimate(now.by_prompt[name] - self.start.by_prompt[name], proportion=False)
            for name in (*self.best, "length_tokens")
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Progress":
        """Returns what was written as JSON."""

        def means(own: Mapping[str, Any]) -> PromptMeans:
            return PromptMeans(own["step"], {name: np.array(values) for name, values in own["by_prompt"].items()})

        best = {name: means(own) for name, own in stored["best"].items()}
        return cls(**dict(stored) | {"start": means(stored["start"]), "best": best})


def next_progress(
    before: Progress | None, now: PromptMeans, prompts_key: int, scores: Sequence[str], prefix: str
) -> Progress:
    """Returns the progress with one evaluation more; it starts anew where there is none of the same prompts."""
    if before is not None and before.prompts_key == prompts_key:
        return before.after(now)
    if before is not None:
        logger.warning(f"{prefix}: other prompts or scorers than in the run's earlier evaluations; gains start anew")
    return Progress(prompts_key, 1, now, dict.fromkeys(scores, now))


@dataclass(frozen=True)
class PolicyEvaluation:
    """One evaluation of one set of prompts.

    Args:
        prefix (`str`): Opens the set's keys in the log, such as `"eval"`.
        figures (`dict[str, Estimate]`): The figures, keyed without prefix.
        now ([`PromptMeans`]): The same by prompt.
        progress ([`Progress`]): What it compares with, this evaluation included.
        prompts (`(P,)` sequence): The prompts as a reward sees them.
        answers (`(P,)` sequence): The first response to each, as text or as one message.
    """

    prefix: str
    figures: Mapping[str, Estimate]
    now: PromptMeans
    progress: Progress
    prompts: Sequence[Conversation] = ()
    answers: Sequence[Conversation] = ()


class PPOCallback(TrainerCallback):
    """A callback that [`PPOTrainer`] hands each evaluation of each of its sets.

    The figures are those of all processes and the call is made on each of them, so a callback computes the same
    numbers everywhere and needs no communication of its own.

    Example:

    ```python
    >>> class WorstPromptCallback(PPOCallback):
    ...     def on_policy_evaluation(self, args, state, control, *, evaluation):
    ...         return {"reward_min": float(evaluation.now.by_prompt["reward"].min())}
    ```
    """

    def on_policy_evaluation(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, evaluation: PolicyEvaluation
    ) -> dict[str, float]:
        """Returns scalars for the log, keyed without prefix.

        Args:
            args, state, control: As in every [`~transformers.TrainerCallback`] event.
            evaluation ([`PolicyEvaluation`]): What was measured.
        """
        raise NotImplementedError


def response_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Prompts, episodes: Episodes, columns: Mapping[str, Iterable[Any]]
) -> Rows:
    """Returns a row for each response, with its entry of each column; of a chat, the last message is shown."""
    asked = [prompts.prompts[index] for index in episodes.indices]
    said = [prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) for prompt in asked]
    texts = episodes.texts(tokenizer, range(len(episodes)))
    return [
        {"prompt": prompt, "completion": text} | dict(zip(columns, map(float, figures), strict=True))
        for prompt, text, *figures in zip(said, texts, *columns.values(), strict=True)
    ]


def policy_figures(rows: Rows, n: int) -> dict[str, Estimate]:
    """Returns the means of rows, n a prompt, and the correlation of reward and length, with intervals over prompts."""
    means = PromptMeans.of(0, rows, n).by_prompt
    figures = {name: mean_estimate(values, proportion=False) for name, values in means.items()}
    reward, length = (np.array([row[name] for row in rows]) for name in ("reward", "length_tokens"))
    if len(rows) < 4 or reward.std() == 0 or length.std() == 0:
        return figures
    n_prompts = len(rows) // n
    correlation = correlation_estimate(reward, length, np.repeat(np.arange(n_prompts), n), kind="pearson")
    return figures | {"score_length_correlation": replace(correlation, n=n_prompts)}


def flat(figures: Mapping[str, Estimate], prefix: str) -> dict[str, float]:
    """Returns values and the ends of their intervals as they are logged."""
    return {
        f"{prefix}_{name}{end}": value
        for name, own in figures.items()
        for end, value in (("", own.value), ("_low", own.low), ("_high", own.high))
    }


def log_table(rows: Rows, name: str, step: int) -> None:
    """Sends a table of samples to wandb."""
    import wandb

    if wandb.run is not None:
        data = [[round(v, 4) if isinstance(v, float) else v for v in row.values()] for row in rows[:64]]
        wandb.log({name: wandb.Table(columns=list(rows[0]), data=data), "train/global_step": step})
