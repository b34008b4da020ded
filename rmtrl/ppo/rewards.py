"""One reward composed of many steps: a scorer, its calibration and uncertainty, filters, a length penalty, a scale.

Whatever judges is called once and checked; a failure stops training and shows the sample: it is never a number.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rmtrl.calibration.calibration import Calibration
from rmtrl.data.messages import conversation_text
from rmtrl.errors import RewardError, UsageError
from rmtrl.reward.remote import load_scorer
from rmtrl.reward.uncertainty import UncertainScorer
from rmtrl.types import Conversation, Guard, checked_scores, failed_at, shorten

Floats = NDArray[np.float64]
Conversations = Sequence[Conversation]
RewardFunction = Callable[..., Any]
"""TRL's form: `f(prompts=, completions=, **columns) -> list[float]`; every `Scorer` is one."""

_PARTS = ("score", "score_std", "calibrated", "uncertainty", "length_penalty", "normalised", "clipped", "reward")


def call_reward(
    reward: RewardFunction, prompts: Conversations, completions: Conversations, /, **columns: Any
) -> Floats:
    """Returns what a reward function gives each completion, checked, `(N,)` float64; of none, it is not called.

    It is called once. Where it raises, the error names the sample by its `index` where it has one, else the batch.

    Args:
        reward (`Callable`): A scorer or a function in TRL's form.
        prompts, completions (`Sequence[Conversation]`): N of each.
        columns: Passed on.

    Raises:
        RewardError: If the reward raises, or returns anything but one finite number a completion.
        UsageError: If the reward says that a setting cannot be used.

    Example:

    ```python
    >>> def brevity(completions, **columns):
    ...     return [-len(completion) for completion in completions]
    >>> call_reward(brevity, ["Hi. "], ["Hello!"]).tolist()
    [-6.0]
    ```
    """
    return Samples(prompts, completions, columns).judged(reward, name=_name_of(reward))


def _name_of(reward: RewardFunction) -> str:
    return f"reward {getattr(reward, '__name__', type(reward).__name__)!r}"


@dataclass(frozen=True)
class Samples:
    """N completions of their prompts, and the columns beside them, as every judge receives them."""

    prompts: Conversations
    completions: Conversations
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.completions)

    def shown(self, index: int) -> str:
        """Returns a sample as a message of an error ends with it."""
        return shown(self.prompts[index], self.completions[index])

    def checked(self, values: Any, *, name: str, abstains: bool = False) -> Floats:
        """Returns what `name` gave, one finite number a completion, `(N,)`; NaN for a None, where it may abstain."""
        silent = [False] * len(self)
        if abstains and isinstance(values, list | tuple) and len(values) == len(self):
            silent = [value is None for value in values]
            values = [0.0 if value is None else value for value in values]
        said: dict[str, Any] = {"name": name, "sample": "completion", "shown": lambda index: f": {self.shown(index)}"}
        return np.where(silent, np.nan, checked_scores(values, len(self), error=RewardError, **said))

    def judged(self, judge: RewardFunction, *, name: str, abstains: bool = False) -> Floats:
        """Returns what a function in TRL's form gives, checked; of no completion, it is not called."""
        if not len(self):
            return np.zeros(0)
        given = {"prompts": self.prompts, "completions": self.completions, **self.columns}
        return self.checked(self.attributed(lambda: judge(**given), name=name), name=name, abstains=abstains)

    def attributed(self, run: Callable[[], Any], *, name: str) -> Any:
        """Returns what `run` does; where it raises, the [`RewardError`] shows the sample that the error is of."""
        n = len(self)
        if len(self.prompts) != n:
            raise RewardError(
                f"got {len(self.prompts)} prompts and {n} completions for the {name}; wanted as many of each"
            )
        try:
            return run()
        except (RewardError, UsageError):
            raise
        except Exception as error:
            own, said = failed_at(error, n), f"{type(error).__name__}: {' '.join(str(error).split())}"
            which, first, index = f"one of completions 0 to {n - 1}", "the first is ", None
            if len(own) == 1:
                which, first, index = f"completion {own[0]} of {n}", "", own[0]
            said = f"the {name} failed for {which}: {said}: {first}{self.shown(own[0])}"
            raise RewardError(said, index=index) from error


def shown(prompt: Conversation, completion: Conversation) -> str:
    """Returns prompt and completion as a message of an error ends with them."""
    return f"prompt {shorten(conversation_text(prompt))!r}, completion {shorten(conversation_text(completion))!r}"


@dataclass(frozen=True)
class Filter:
    """What becomes of the completions that a function blocks, such as the `flags` of a [`~rmtrl.types.Guard`].

    Args:
        name (`str`): Key under which the blocked completions stand in [`~rmtrl.ppo.rewards.ComposedReward.parts_`].
        blocked (`Callable`): `f(prompts=, completions=, **columns)`, one bool a completion: whether it is blocked.
        reward (`float`, *optional*, defaults to `-1.0`): What a blocked completion gets, in units after calibration.
            In place of its score it must lie below what ordinary answers get, or being blocked pays.
        action (`str`, *optional*, defaults to `"replace"`): `"replace"` puts the reward in place of the score,
            `"penalise"` adds it to the score, and `"block"` gives no reward, so that the completion takes no part. A
            policy that is never told what an answer costs may go on giving it: `"block"` is for what cannot be judged.

    Raises:
        UsageError: If the reward is not finite, a penalty is not below 0, or the action is another.

    Example:

    ```python
    >>> Filter("links", lambda completions, **columns: ["http" in text for text in completions], reward=-2.0)
    >>> Filter("secrets", guard.flags, reward=-0.5, action="penalise")
    ```
    """

    name: str
    blocked: Callable[..., Sequence[bool] | NDArray[np.bool_]]
    reward: float = -1.0
    action: Literal["replace", "penalise", "block"] = "replace"

    def __post_init__(self) -> None:
        name = f"of the filter {self.name!r}"
        if self.action not in ("replace", "penalise", "block"):
            raise UsageError(f"got the action {self.action!r} {name}; wanted 'replace', 'penalise' or 'block'")
        if not np.isfinite(self.reward):
            raise UsageError(f"got the reward {self.reward} {name}; wanted a finite number")
        if self.action == "penalise" and self.reward >= 0:
            raise UsageError(f"got the reward {self.reward} {name}, which penalises; wanted a number below 0")

    def blocks(self, samples: Samples) -> Floats:
        """Returns 1 where the filter blocks and 0 elsewhere, `(N,)`.

        Raises:
            RewardError: If `blocked` fails or returns anything but one bool a completion.
        """
        blocked = samples.judged(self.blocked, name=f"filter {self.name!r}")
        for index in np.flatnonzero((blocked != 0) & (blocked != 1)).tolist():
            raise RewardError(
                f"the filter {self.name!r} returned {blocked[index]:g} for completion {index}; wanted True (blocked) "
                f"or False: {samples.shown(index)}"
            )
        return blocked


def truncated_filter(reward: float = -1.0, *, end_token_ids: Sequence[int] = ()) -> Filter:
    """Returns the filter of completions that were cut off before their end, the EOS trick.

    OpenAI's summarisation reward replaces the score by −1 (Huang et al. 2024, https://huggingface.co/papers/2403.17031).

    Args:
        reward (`float`, *optional*, defaults to `-1.0`): What a completion without an end gets.
        end_token_ids (`Sequence[int]`, *optional*): Ids that end a completion. Needed with GRPOTrainer and
            RLOOTrainer, which pass `completion_ids` but do not say what was `truncated`.

    Example:

    ```python
    >>> ended = truncated_filter(end_token_ids=[2])
    >>> ended.blocked(prompts=["", ""], completions=["a", "b"], completion_ids=[[5, 2], [5, 6]])
    [False, True]
    ```
    """
    return Filter("truncated", partial(_truncated, end_token_ids=tuple(end_token_ids)), reward)


def empty_filter(reward: float = -1.0) -> Filter:
    """Returns the filter of completions without text.

    Example:

    ```python
    >>> empty_filter().blocked(prompts=["", ""], completions=["a", " "])
    [False, True]
    ```
    """
    return Filter("empty", _empty, reward)


def _truncated(*, end_token_ids: tuple[int, ...], **columns: Any) -> list[bool]:
    truncated, completion_ids = columns.get("truncated"), columns.get("completion_ids")
    if truncated is not None:
        return [bool(value) for value in truncated]
    if completion_ids is None or not end_token_ids:
        raise UsageError(
            "the filter 'truncated' was not told what was cut off; pass truncated, or completion_ids with "
            "truncated_filter(end_token_ids=[tokenizer.eos_token_id])"
        )
    return [not len(ids) or int(ids[-1]) not in end_token_ids for ids in completion_ids]


def _empty(*, completions: Sequence[Conversation], **columns: Any) -> list[bool]:
    return [not conversation_text(completion).strip() for completion in completions]


@dataclass(frozen=True)
class LengthPenalty:
    """What is taken off a completion's reward for its length: min(`per_token` · max(0, length − free), `most`).

    DAPO's soft overlong punishment with L_max = 100 and L_cache = 20 (Yu et al. 2025,
    https://huggingface.co/papers/2503.14476) is `LengthPenalty(80, 1 / 20, most=1.0)`.

    Args:
        free_tokens (`int`): Length up to which nothing is taken off.
        per_token (`float`): What each further token costs, in units of the calibrated reward.
        most (`float`, *optional*, defaults to `inf`): Largest penalty.

    Raises:
        UsageError: If a number is negative or not finite.

    Example:

    ```python
    >>> LengthPenalty(free_tokens=2, per_token=0.5)([1, 2, 4]).tolist()
    [0.0, 0.0, 1.0]
    ```
    """

    free_tokens: int
    per_token: float
    most: float = np.inf

    def __post_init__(self) -> None:
        if not (0 <= self.free_tokens < np.inf and 0 <= self.per_token < np.inf and self.most >= 0):
            raise UsageError(
                f"got LengthPenalty({self.free_tokens}, {self.per_token}, most={self.most}); wanted numbers from 0"
            )

    def __call__(self, length_tokens: ArrayLike) -> Floats:
        """Returns the penalties, `(N,)`, of lengths `(N,)`."""
        over = np.asarray(length_tokens, dtype=np.float64) - self.free_tokens
        return np.minimum(self.per_token * over.clip(min=0.0), self.most)


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of numbers, which merge exactly.

    Example:

    ```python
    >>> Moments.of([1.0, 2.0]).merged(Moments.of([3.0])).mean
    2.0
    ```
    """

    count: float = 0.0
    mean: float = 0.0
    sum_squares: float = 0.0

    @classmethod
    def of(cls, values: ArrayLike) -> "Moments":
        """Returns the moments of `values`, `(N,)`, NaN left out; of none, those that change nothing."""
        array = np.asarray(values, dtype=np.float64)
        array = array[_known(array)]
        if not array.size:
            return cls()
        mean = float(array.mean())
        return cls(float(array.size), mean, float(((array - mean) ** 2).sum()))

    def merged(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of numbers together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        between = delta**2 * self.count * other.count / count
        return Moments(count, self.mean + delta * other.count / count, self.sum_squares + other.sum_squares + between)

    def over_processes(self) -> "Moments":
        """Returns the moments of all processes' numbers, the same on each; every process has to call it."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self)
        return reduce(Moments.merged, gathered, Moments())

    @property
    def std(self) -> float:
        """Standard deviation (divisor N); 0 where the numbers differ by rounding alone."""
        std = float(np.sqrt(self.sum_squares / self.count)) if self.count else 0.0
        return std if std > 1e-6 * abs(self.mean) else 0.0


class ComposedReward:
    """
    A reward made of steps: score → calibration → uncertainty → filters → length penalty → normalisation → clip.

    It is itself a reward function in TRL's form: for [`PPOTrainer`], for `reward_funcs` of GRPOTrainer and
    RLOOTrainer, and as a scorer of another [`ComposedReward`]. Every step acts on every completion, in this order.

    After a call `parts_` holds what each step gave, in a lone [`ComposedReward`] within too, `(N,)` arrays: `score`
    (and each scorer's own, by name), `score_std`, `calibrated`, `uncertainty` (what was taken off), each filter (1
    where it blocked), `length_penalty`, `normalised`, `clipped` (1 where it was) and `reward`. Where the trainer
    passes `log_metric` their means are logged under `__name__`, which may be set to tell several apart.

    A scorer abstains from a completion by None, as in TRL (NaN is an error). Of several scorers the others' weighted
    sum stands. Where all abstain and no filter replaces the score, or where a filter of the action `"block"` blocks,
    the reward is None and NaN in `parts_`, which means and moments leave out. GRPOTrainer and RLOOTrainer then give it
    the advantage 0 and take it out of its group's baseline, if no other of `reward_funcs` gives it a number: they add
    those up, so what is taken off besides belongs in here. A scorer that abstains from some answers to a prompt and
    not from others compares sums of unlike parts: let it speak of all or none. [`PPOTrainer`] needs a number for every
    response and raises.

    Steps act on each completion by itself; a scorer may compare the answers to one prompt. From TRL's trainers it
    receives those of its own process, `num_generations` to a prompt one after another. They are whole groups where
    `per_device_train_batch_size` · `steps_per_generation` is a multiple of `num_generations`; else a group lies across
    two processes.

    Args:
        scorer ([`~rmtrl.types.Scorer`] or `Callable` or `Mapping[str, Callable]` or `str`):
            What scores: a scorer, a function in TRL's form, or several by name, whose weighted sum is the score. The
            folder, hub id or server's URL of a reward model is loaded when first used, by [`PPOTrainer`] in the way
            that suits it.
        weights (`Mapping[str, float]`, *optional*):
            Weight of each of several scorers; 1 when absent. To calibrate one of them alone, nest a `ComposedReward`.
        calibration ([`~rmtrl.calibration.calibration.Calibration`] or `Callable`, *optional*):
            From scores `(N,)` to rewards `(N,)`, rising: an [`AffineReward`], or the `reward` of a `Calibration`.
        pessimism (`float`, *optional*, defaults to `0.0`):
            Standard deviations by which the score is lowered before it is calibrated, k: an affine reward falls by
            k · std / scale. Needs an [`~rmtrl.reward.uncertainty.UncertainScorer`] with `aggregation="mean"`.
        filters (`Sequence[Filter | Guard]`, *optional*):
            What gets another reward than its score; a [`~rmtrl.types.Guard`] alone replaces the score of what it flags
            by -1. Of several that replace it the lowest stands; penalties add up, on it too; one that blocks outdoes
            all.
        length_penalty ([`LengthPenalty`], *optional*):
            What is taken off for length. Needs `completion_ids`, without padding.
        clip (`Sequence[float]`, *optional*):
            The two ends of the reward, after normalisation. Narrow ends hide what the policy should learn from.
        normalise (`str`, *optional*):
            `"std"` divides by the standard deviation of all completions so far, the present ones and those of other
            processes included; `"mean_std"` takes their mean off too, so that 0 moves with the policy. The weight of
            a KL penalty against the reward then moves as well: where a calibration gives the scale, prefer it.

    `update_moments = False` holds the moments as they are, for evaluation; no process then waits for another.

    Raises:
        UsageError: If a setting cannot be used.

    Example:

    ```python
    >>> from rmtrl.calibration import read_calibration
    >>> reward = ComposedReward(
    ...     RewardScorer("outputs/rm"), calibration=read_calibration("outputs/rm"),
    ...     filters=[truncated_filter()], length_penalty=LengthPenalty(128, 0.01), clip=(-5, 5),
    ... )
    >>> GRPOTrainer(model, reward_funcs=reward, train_dataset=prompts)
    ```
    """

    def __init__(
        self, scorer: RewardFunction | Mapping[str, RewardFunction] | str | Path, *,
        weights: Mapping[str, float] | None = None,
        calibration: Calibration | Callable[[Floats], Any] | None = None, pessimism: float = 0.0,
        filters: Sequence[Filter | Guard] = (), length_penalty: LengthPenalty | None = None,
        clip: Sequence[float] | None = None, normalise: Literal["std", "mean_std", False] = False,
    ) -> None:  # fmt: skip
        self.__name__ = type(self).__qualname__  # TRL names the reward in its log by this
        self.scorer, self.weights, self.pessimism = scorer, weights, pessimism
        self.filters = tuple(Filter(own.__name__, own.flags) if isinstance(own, Guard) else own for own in filters)
        self.calibration = calibration.reward if isinstance(calibration, Calibration) else calibration
        self.length_penalty, self.clip, self.normalise = length_penalty, clip, normalise
        self.update_moments = True
        self.moments_ = Moments()
        self.parts_: dict[str, Floats] = {}
        self._check_scorers()
        self._check_settings()

    def __call__(self, prompts: Conversations, completions: Conversations, **columns: Any) -> list[float | None]:
        """Returns the reward of each completion, None where every scorer abstains or a filter says so.

        Args:
            prompts, completions (`Sequence[Conversation]`): N of each.
            columns: What scorers and filters receive too, among it `completion_ids`, a list of token ids a completion,
                and `truncated`, a bool a completion.

        Raises:
            RewardError: If a step fails or returns anything but one finite number (a scorer: or None) a completion.
            UsageError: If a step needs `completion_ids` or `truncated` and they are not given.
        """
        self.parts_ = {}
        samples = Samples(prompts, completions, columns)
        rewards = self._filtered(self._scored(samples), samples)
        if self.length_penalty is not None:
            self.parts_["length_penalty"] = self.length_penalty(_lengths(samples))
            rewards = rewards - self.parts_["length_penalty"]
        if self.normalise:
            rewards = self.parts_["normalised"] = self._normalised(rewards)
        if self.clip is not None:
            whole, rewards = rewards, rewards.clip(self.clip[0], self.clip[1])
            self.parts_["clipped"] = np.sign(abs(whole - rewards))
        self.parts_["reward"] = rewards
        log_metric = columns.get("log_metric")
        if log_metric is not None and not callable(log_metric):
            raise UsageError(
                f"log_metric is TRL's function to log with, got {type(log_metric).__name__}; rename the column"
            )
        if log_metric is not None and len(rewards):
            for part, values in self.parts_.items():  # as many on every process: NaN is left out by TRL's log
                log_metric(f"{self.__name__}/{part}", Moments.of(values).mean if _known(values).any() else np.nan)
        return [None if np.isnan(reward) else float(reward) for reward in rewards]

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
            scorer: RewardFunction = load_scorer(self.scorer, progress=False)
            self.scorer = scorer
        return self.scorer

    def _scored(self, samples: Samples) -> Floats:
        """Returns the calibrated scores, lowered by their uncertainty, `(N,)`."""
        scorer, std = self._load(), None
        if isinstance(scorer, Mapping):
            weights = self.weights or dict.fromkeys(scorer, 1.0)
            parts = {name: samples.judged(one, name=_name_of(one), abstains=True) for name, one in scorer.items()}
            scores = np.where(sum(map(_known, parts.values())), 0.0, np.nan)
            scores += sum(weights[name] * np.nan_to_num(part) for name, part in parts.items())
            self.parts_ |= parts
        elif isinstance(scorer, UncertainScorer) and scorer.aggregation == "mean":
            scores, std = _distribution(scorer, samples)
        else:
            scores = samples.judged(scorer, name=_name_of(scorer), abstains=True)
        self.parts_ |= {"score": scores} | getattr(scorer, "parts_", {})  # a reward within is shown by its own parts
        rewards = self._calibrated(scores, samples)
        if self.calibration is not None:
            self.parts_["calibrated"] = rewards
        if std is None:
            return rewards
        lowered = self._calibrated(scores - self.pessimism * std, samples)
        self.parts_ |= {"score_std": std, "uncertainty": rewards - lowered}
        return lowered

    def _calibrated(self, scores: Floats, samples: Samples) -> Floats:
        calibration, known = self.calibration, _known(scores)
        if calibration is None or not known.any():
            return scores
        filled = np.where(known, scores, scores[known][0])
        given = samples.attributed(lambda: calibration(filled), name="calibration")
        return np.where(known, samples.checked(given, name="calibration"), np.nan)

    def _filtered(self, rewards: Floats, samples: Samples) -> Floats:
        fixed, added = np.full(len(rewards), np.inf), np.zeros(len(rewards))
        for own in self.filters:
            blocked = self.parts_[own.name] = own.blocks(samples)
            if own.action == "replace":
                fixed = np.where(blocked == 1.0, np.minimum(fixed, own.reward), fixed)
            else:  # NaN is no reward, whatever else is added
                added += np.where(blocked == 1.0, own.reward if own.action == "penalise" else np.nan, 0.0)
        return np.where(np.isfinite(fixed), fixed, rewards) + added

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


def _distribution(scorer: UncertainScorer, samples: Samples) -> tuple[Floats, Floats]:
    """Returns scores and their standard deviations, `(N,)` each."""
    if not len(samples):
        return np.zeros(0), np.zeros(0)
    name = _name_of(scorer)
    sides: Any = zip(samples.prompts, samples.completions, strict=True)
    found = samples.attributed(lambda: scorer.distribution([prompt + own for prompt, own in sides]), name=name)
    return samples.checked(found.mean, name=name), samples.checked(found.std, name=f"uncertainty of the {name}")


def _known(values: Floats) -> NDArray[np.bool_]:
    """Returns where a scorer did not abstain, `(N,)`."""
    return ~np.isnan(values)


def _lengths(samples: Samples) -> list[int]:
    """Returns the length of each completion in tokens."""
    completion_ids = samples.columns.get("completion_ids")
    if completion_ids is None:
        raise UsageError("the length penalty counts tokens; pass completion_ids, a list of token ids a completion")
    if len(completion_ids) != len(samples):
        raise RewardError(f"got completion_ids of {len(completion_ids)} for {len(samples)} completions")
    return [len(ids) for ids in completion_ids]
