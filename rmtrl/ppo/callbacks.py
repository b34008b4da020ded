"""Callbacks that read each evaluation of a policy in training, beside the evaluations that it compares with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmtrl.types import Estimate


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

    def as_dict(self) -> dict[str, Any]:
        """Returns the progress ready for JSON, every figure exact."""

        def plain(means: PromptMeans) -> dict[str, Any]:
            return {"step": means.step, "by_prompt": {name: own.tolist() for name, own in means.by_prompt.items()}}

        best = {name: plain(means) for name, means in self.best.items()}
        own = {"prompts_key": self.prompts_key, "n_evaluations": self.n_evaluations}
        return own | {"start": plain(self.start), "best": best}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Progress":
        """Returns what `as_dict` was made from."""

        def means(plain: Mapping[str, Any]) -> PromptMeans:
            return PromptMeans(plain["step"], {name: np.array(own) for name, own in plain["by_prompt"].items()})

        best = {name: means(plain) for name, plain in stored["best"].items()}
        return cls(stored["prompts_key"], stored["n_evaluations"], means(stored["start"]), best)


@dataclass(frozen=True)
class PolicyEvaluation:
    """One evaluation of one set of prompts.

    Args:
        prefix (`str`): Opens the set's keys in the log, such as `"eval"`.
        figures (`dict[str, Estimate]`): The figures, keyed without prefix.
        now ([`PromptMeans`]): The same by prompt.
        progress ([`Progress`]): What it compares with, this evaluation included.
    """

    prefix: str
    figures: Mapping[str, Estimate]
    now: PromptMeans
    progress: Progress


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
