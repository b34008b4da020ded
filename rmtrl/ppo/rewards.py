"""One reward composed of many steps: a scorer, its calibration and uncertainty, filters, a length penalty, a scale."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rmtrl.calibration.calibration import Calibration
from rmtrl.errors import RewardError, UsageError
from rmtrl.ppo.reward_calls import Conversations, Floats, RewardFunction, attributed, call_reward, checked_rewards
from rmtrl.ppo.reward_steps import Filter, LengthPenalty, Moments
from rmtrl.reward.scorer import RewardScorer
from rmtrl.reward.uncertainty import ScoreDistribution, UncertainScorer


class ComposedReward:
    """
    A reward made of steps: score → calibration → uncertainty → filters → length penalty → normalisation → clip.

    It is itself a reward function in TRL's form: for [`PPOTrainer`], for `reward_funcs` of GRPOTrainer and
    RLOOTrainer, and as a scorer of another [`ComposedReward`]. Every step acts on every completion, in this order.

    After a call `parts_` holds what each step gave, in a lone [`ComposedReward`] within too, `(N,)` arrays: `score`
    (and each scorer's own, by name), `score_std`, `calibrated`, `uncertainty` (what was taken off), each filter (1
    where it blocked), `length_penalty`, `normalised`, `clipped` (1 where it was) and `reward`. Where the trainer
    passes `log_metric` their means are logged under `__name__`, which may be set to tell several apart.

    Args:
        scorer ([`~rmtrl.types.Scorer`] or `Callable` or `Mapping[str, Callable]` or `str`):
            What scores: a scorer, a function in TRL's form, or several by name, whose weighted sum is the score. The
            folder or hub id of a reward model is loaded when first used, by [`PPOTrainer`] in the way that suits it.
        weights (`Mapping[str, float]`, *optional*):
            Weight of each of several scorers; 1 when absent. To calibrate one of them alone, nest a `ComposedReward`.
        calibration ([`~rmtrl.calibration.calibration.Calibration`] or `Callable`, *optional*):
            From scores `(N,)` to rewards `(N,)`, rising: an [`AffineReward`], or the `reward` of a `Calibration`.
        pessimism (`float`, *optional*, defaults to `0.0`):
            Standard deviations by which the score is lowered before it is calibrated, k: an affine reward falls by
            k · std / scale. Needs an [`~rmtrl.reward.uncertainty.UncertainScorer`] with `aggregation="mean"`.
        filters (`Sequence[Filter]`, *optional*):
            What gets a fixed reward in place of its score. Where several block a completion it gets the lowest.
        length_penalty ([`LengthPenalty`], *optional*):
            What is taken off for length. Needs `completion_ids`, without padding.
        clip (`tuple[float, float]`, *optional*):
            Ends of the reward, after normalisation. Narrow ends hide what the policy should learn from.
        normalise (`str`, *optional*):
            `"std"` divides by the standard deviation of all completions so far, the present ones and those of other
            processes included; `"mean_std"` takes their mean off too, so that 0 moves with the policy. The weight of
            a KL penalty against the reward then moves as well: where a calibration gives the scale, prefer it.

    `update_moments = False` holds the moments as they are, for evaluation; no process then waits for another.

    Raises:
        UsageError: If a setting cannot be used.

    Example:

    ```python
    >>> reward = ComposedReward(
    ...     RewardScorer.from_pretrained("outputs/rm"), calibration=read_calibration("outputs/rm"),
    ...     filters=[truncated_filter()], length_penalty=LengthPenalty(128, 0.01), clip=(-5, 5),
    ... )
    >>> GRPOTrainer(model, reward_funcs=reward, train_dataset=prompts)
    ```
    """

    def __init__(
        self, scorer: RewardFunction | Mapping[str, RewardFunction] | str | Path, *,
        weights: Mapping[str, float] | None = None,
        calibration: Calibration | Callable[[Floats], Any] | None = None, pessimism: float = 0.0,
        filters: Sequence[Filter] = (), length_penalty: LengthPenalty | None = None,
        clip: tuple[float, float] | None = None, normalise: Literal["std", "mean_std", False] = False,
    ) -> None:  # fmt: skip
        self.__name__ = type(self).__qualname__  # TRL names the reward in its log by this
        self.scorer = scorer
        self.weights = weights
        self.calibration = calibration.reward if isinstance(calibration, Calibration) else calibration
        self.pessimism = pessimism
        self.filters = tuple(filters)
        self.length_penalty = length_penalty
        self.clip = clip
        self.normalise = normalise
        self.update_moments = True
        self.moments_ = Moments()
        self.parts_: dict[str, Floats] = {}
        self._check_scorers()
        self._check_settings()

    def __call__(self, prompts: Conversations, completions: Conversations, **columns: Any) -> list[float]:
        """Returns the reward of each completion.

        Args:
            prompts, completions (`Sequence[Conversation]`): N of each.
            columns: What scorers and filters receive too, among it `completion_ids`, a list of token ids a completion,
                and `truncated`, a bool a completion.

        Raises:
            RewardError: If a step fails or returns anything but one finite number a completion.
            UsageError: If a step needs `completion_ids` or `truncated` and they are not given.
        """
        self.parts_ = {}
        rewards = self._scored(prompts, completions, columns)
        rewards = self._filtered(rewards, prompts, completions, columns)
        if self.length_penalty is not None:
            self.parts_["length_penalty"] = self.length_penalty(_lengths(completions, columns.get("completion_ids")))
            rewards = rewards - self.parts_["length_penalty"]
        if self.normalise:
            rewards = self.parts_["normalised"] = self._normalised(rewards)
        if self.clip is not None:
            whole, rewards = rewards, rewards.clip(*self.clip)
            self.parts_["clipped"] = (rewards != whole).astype(np.float64)
        self.parts_["reward"] = rewards
        log_metric = columns.get("log_metric")
        if log_metric is not None and not callable(log_metric):
            raise UsageError(
                f"log_metric is TRL's function to log with, got {type(log_metric).__name__}; rename the column"
            )
        if log_metric is not None and len(rewards):
            for part, values in self.parts_.items():
                log_metric(f"{self.__name__}/{part}", float(values.mean()))
        return [float(reward) for reward in rewards]

    def unscaled(self) -> "ComposedReward":
        """Returns a copy without normalisation and clip, whose rewards can be compared over time."""
        self._load()  # here, not in each copy
        own = copy.copy(self)
        own.normalise, own.clip, own.parts_ = False, None, {}
        if isinstance(own.scorer, ComposedReward):
            own.scorer = own.scorer.unscaled()
        return own

    def state_dict(self) -> dict[str, float]:
        """Returns the running moments, ready for JSON, which keeps them exactly."""
        return asdict(self.moments_)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes up the moments that [`ComposedReward.state_dict`] returned.

        Raises:
            UsageError: If `state` is something else.
        """
        wanted = self.state_dict()
        if set(state) != set(wanted):
            raise UsageError(
                f"got a reward state with {sorted(state)}; wanted {sorted(wanted)}, as state_dict() gives"
            )
        self.moments_ = Moments(**state)

    def _load(self) -> RewardFunction | Mapping[str, RewardFunction]:
        if isinstance(self.scorer, str | Path):
            self.scorer = RewardScorer.from_pretrained(self.scorer, progress=False)
        return self.scorer

    def _scored(self, prompts: Conversations, completions: Conversations, columns: dict[str, Any]) -> Floats:
        """Returns the calibrated scores, lowered by their uncertainty, `(N,)`."""
        scorer = self._load()
        if isinstance(scorer, Mapping):
            scores, std = np.zeros(len(completions)), None
            for name, one in scorer.items():
                self.parts_[name] = call_reward(one, prompts, completions, **columns)
                scores = scores + (1.0 if self.weights is None else self.weights[name]) * self.parts_[name]
        elif isinstance(scorer, UncertainScorer) and scorer.aggregation == "mean":
            scores, std = _distribution(scorer, prompts, completions)
        else:
            scores, std = call_reward(scorer, prompts, completions, **columns), None
        inner = scorer.parts_ if isinstance(scorer, ComposedReward) else {}
        self.parts_ |= {"score": scores} | inner  # a reward within is shown by its own parts
        rewards = self._calibrated(scores, prompts, completions)
        if self.calibration is not None:
            self.parts_["calibrated"] = rewards
        if std is not None:
            self.parts_["score_std"] = std
            lowered = self._calibrated(scores - self.pessimism * std, prompts, completions)
            self.parts_["uncertainty"] = rewards - lowered
            return lowered
        return rewards

    def _calibrated(self, scores: Floats, prompts: Conversations, completions: Conversations) -> Floats:
        calibration = self.calibration
        if calibration is None or not len(scores):
            return scores
        mapped = attributed(lambda: calibration(scores), prompts, completions, name="calibration")
        return checked_rewards(mapped, prompts, completions, name="calibration")

    def _filtered(
        self, rewards: Floats, prompts: Conversations, completions: Conversations, columns: dict[str, Any]
    ) -> Floats:
        fixed = np.full(len(rewards), np.inf)
        for own in self.filters:
            blocked = own(prompts, completions, columns)
            self.parts_[own.name] = blocked
            fixed = np.where(blocked == 1.0, np.minimum(fixed, own.reward), fixed)
        return np.where(np.isfinite(fixed), fixed, rewards)

    def _normalised(self, rewards: Floats) -> Floats:
        if self.update_moments:
            self.moments_ = self.moments_.merged(Moments.of(rewards).over_processes())
        centred = rewards - self.moments_.mean if self.normalise == "mean_std" else rewards
        return centred / (self.moments_.std or 1.0)

    def _check_scorers(self) -> None:
        named = self.scorer if isinstance(self.scorer, Mapping) else {"scorer": self.scorer}
        if not named:
            raise UsageError("got no scorers; wanted at least one")
        for name, scorer in named.items():
            if isinstance(scorer, torch.nn.Module) or not (callable(scorer) or isinstance(self.scorer, str | Path)):
                raise UsageError(
                    f"got {type(scorer).__name__} as {name}; wanted a Scorer, such as RewardScorer(model, tokenizer), "
                    "or a function f(prompts, completions, **columns) -> list[float]"
                )
            if isinstance(scorer, ComposedReward) and scorer.normalise:
                raise UsageError(f"the reward {name} within another is normalised; normalise the outer one alone")
        if self.weights is not None and (not isinstance(self.scorer, Mapping) or set(self.weights) != set(named)):
            raise UsageError(
                f"got weights for {sorted(self.weights)}; wanted one for each of several scorers, by name"
            )
        if self.weights is not None and not np.isfinite(list(self.weights.values())).all():
            raise UsageError(f"got weights {dict(self.weights)}; wanted finite numbers")

    def _check_settings(self) -> None:
        if not 0 <= self.pessimism < np.inf:
            raise UsageError(f"got pessimism={self.pessimism}; wanted a finite number from 0")
        if self.pessimism and not (isinstance(self.scorer, UncertainScorer) and self.scorer.aggregation == "mean"):
            raise UsageError(
                f"pessimism={self.pessimism} needs a scorer with an uncertainty and aggregation='mean' "
                "(EnsembleScorer, HeadEnsembleScorer, MCDropoutScorer, LaplaceScorer); "
                f"got {type(self.scorer).__name__}"
            )
        if self.normalise not in (False, None, "std", "mean_std"):
            raise UsageError(f"got normalise={self.normalise!r}; wanted 'std', 'mean_std' or False")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise UsageError(f"got clip={self.clip}; wanted the lower end first")
        names = [*(self.scorer if isinstance(self.scorer, Mapping) else ()), *(own.name for own in self.filters)]
        twice = {name for name in names if name in _PARTS or names.count(name) > 1}
        if twice:
            raise UsageError(f"got the name {sorted(twice)[0]!r} twice, or for a step that has it; give another")


_PARTS = ("score", "score_std", "calibrated", "uncertainty", "length_penalty", "normalised", "clipped", "reward")


def _distribution(
    scorer: UncertainScorer, prompts: Conversations, completions: Conversations
) -> tuple[Floats, Floats]:
    """Returns scores and their standard deviations, `(N,)` each."""
    if not len(completions):
        return np.zeros(0), np.zeros(0)
    name = f"reward {scorer.__name__!r}"

    def run() -> ScoreDistribution:
        sides: Any = zip(prompts, completions, strict=True)
        return scorer.distribution([prompt + completion for prompt, completion in sides])

    found = attributed(run, prompts, completions, name=name)
    return (
        checked_rewards(found.mean, prompts, completions, name=name),
        checked_rewards(found.std, prompts, completions, name=f"uncertainty of the {name}"),
    )


def _lengths(completions: Conversations, completion_ids: Sequence[Sequence[int]] | None) -> list[int]:
    """Returns the length of each completion in tokens."""
    if completion_ids is None:
        raise UsageError("the length penalty counts tokens; pass completion_ids, a list of token ids a completion")
    if len(completion_ids) != len(completions):
        raise RewardError(f"got completion_ids of {len(completion_ids)} for {len(completions)} completions")
    return [len(ids) for ids in completion_ids]
