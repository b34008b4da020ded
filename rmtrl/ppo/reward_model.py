"""Whatever is given as a reward, as one function in TRL's form; a model of the policy's tokens takes token ids."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rmtrl.errors import ModelError, RewardError, UsageError
from rmtrl.ppo.episodes import Episodes
from rmtrl.ppo.prompts import Prompts
from rmtrl.ppo.reward_calls import call_reward, shown
from rmtrl.ppo.rewards import ComposedReward
from rmtrl.reward.heads import base_model
from rmtrl.reward.scorer import RewardScorer
from rmtrl.types import Conversation, Scorer

Reward = Callable[..., Any]

# of an evaluation's figures and of its rows
FIGURES = (
    "reward", "kl", "length_tokens", "truncated", "within_prompt_std", "score_length_correlation", "prompt",
    "completion", "runtime", "samples_per_second", "steps_per_second", "loss",
)  # fmt: skip
ENDINGS = ("_gain", "_low", "_high")


class TokenReward:
    """A reward model's scores of token ids, in TRL's reward-function form: nothing is decoded or rendered again.

    Args:
        scorer ([`RewardScorer`]): A reward model with the policy's tokenizer.
    """

    def __init__(self, scorer: RewardScorer) -> None:
        self.scorer = scorer
        self.__name__ = type(scorer).__name__

    def __call__(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], *,
        prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], **columns: Any,
    ) -> list[float]:  # fmt: skip
        """Returns the score of each prompt with its completion, as it was sampled."""
        rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        return [float(score) for score in self.scorer.score_ids(rows)]


def as_reward(reward_model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[Reward, Any]:
    """Returns a reward function of whatever is given, and the model in it that shares the policy's tokens, if any.

    Args:
        reward_model: A sequence classification model with the policy's tokenizer, a folder or hub id, a [`Scorer`],
            or a function in TRL's form.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's tokenizer.

    Raises:
        ModelError: If it is none of these, or the model cannot be loaded or used.
    """
    if isinstance(reward_model, str | Path):
        reward_model = RewardScorer.from_pretrained(reward_model, progress=False)
    elif isinstance(reward_model, PreTrainedModel | PeftModel):
        n_labels = getattr(reward_model.config, "num_labels", 0)
        if n_labels != 1 or reward_model.get_output_embeddings() is not None:
            raise ModelError(
                f"got {type(base_model(reward_model)).__name__} with {n_labels} labels as reward_model; wanted a "
                "sequence classification model with one"
            )
        reward_model = RewardScorer(reward_model, tokenizer, progress=False)
    if isinstance(reward_model, ComposedReward) and isinstance(reward_model.scorer, RewardScorer | str | Path):
        composed = copy.copy(reward_model)
        composed.scorer, network = as_reward(reward_model.scorer, tokenizer)
        return composed, network
    if isinstance(reward_model, RewardScorer):
        reward_model.progress = False
        if _same_tokens(reward_model, tokenizer):
            return TokenReward(reward_model), reward_model.model
        return reward_model, None
    if isinstance(reward_model, nn.Module) or not callable(reward_model):
        raise ModelError(
            f"got {type(reward_model).__name__} as reward_model; wanted a sequence classification model, its folder "
            "or hub id, a Scorer, or a function (prompts, completions, **columns) -> list[float]"
        )
    return reward_model, None


def training_reward(
    reward: Reward, *, clip: tuple[float, float] | None, normalise: Literal["mean_std", False]
) -> Reward:
    """Returns the reward with the trainer's normalisation and clip; of a composed reward, a copy.

    The copy takes moments of its own from those of the reward given, which training leaves as they are.
    """
    if isinstance(reward, ComposedReward):
        reward = copy.copy(reward)
        if reward.clip is None and not (normalise and reward.normalise):
            reward.clip, reward.normalise = clip, normalise or reward.normalise
            return reward
    return ComposedReward(reward, clip=clip, normalise=normalise) if clip or normalise else reward


def unscaled(reward: Reward) -> Reward:
    """Returns the reward before normalisation and clip."""
    return reward.unscaled() if isinstance(reward, ComposedReward) else reward


def as_rewards(given: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Reward]:
    """Returns a reward function for each of the judges given.

    Raises:
        UsageError: If one has the name of a figure.
    """
    for name in given:
        if name in FIGURES or name.endswith(ENDINGS):
            raise UsageError(f"eval_scorers: the name {name!r} is that of a figure of every evaluation; give another")
    return {name: as_reward(judge, tokenizer)[0] for name, judge in given.items()}


def closes_cut_turns(reward: Reward) -> bool:
    """Whether responses reach the reward as text that a scorer renders, so that one cut off looks finished."""
    if not isinstance(reward, ComposedReward):
        return isinstance(reward, Scorer)
    scorers: Iterable[Any] = reward.scorer.values() if isinstance(reward.scorer, Mapping) else [reward.scorer]
    return not any(own.name == "truncated" for own in reward.filters) and any(map(closes_cut_turns, scorers))


def _same_tokens(scorer: RewardScorer, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the policy's tokens are those that the reward model was trained on, template and all."""
    own = scorer.tokenizer
    # a head that averages over the last message needs to know where it starts, which token ids alone do not say
    if scorer.head.pooling == "mean":
        return False
    return own is tokenizer or (
        own.get_vocab() == tokenizer.get_vocab()
        and own.chat_template == tokenizer.chat_template
        and own.eos_token_id == tokenizer.eos_token_id
    )


def score_episodes(
    reward: Reward, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, episodes: Episodes, rows: Sequence[int]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Returns what a reward gives some episodes, `(n,)`, and what its parts gave, where it has parts.

    Args:
        reward: In TRL's form. It receives messages where the prompt is messages, else text; the other columns of the
            data; and `prompt_ids`, `completion_ids` and `truncated`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Decodes.
        prompts ([`Prompts`]): The data set of the prompts.
        episodes ([`Episodes`]): All episodes.
        rows (`Sequence[int]`): Which of them to score.

    Raises:
        RewardError: If the reward fails, or returns something else than a number an episode that float32 holds.
    """
    indices = [episodes.indices[row] for row in rows]
    texts = completions(tokenizer, episodes, rows)
    given = [prompts.prompts[index] for index in indices]
    values = call_reward(
        reward,
        given,
        [prompts.answer(index, text) for index, text in zip(indices, texts, strict=True)],
        prompt_ids=[episodes.prompt_ids[row] for row in rows],
        completion_ids=[episodes.completion_ids[row] for row in rows],
        truncated=[episodes.truncated[row] for row in rows],
        **prompts.columns(indices),
    )  # fmt: skip
    too_large = np.flatnonzero(np.abs(values) > np.finfo(np.float32).max)
    if len(too_large):
        row = int(too_large[0])
        raise RewardError(
            f"the reward {getattr(reward, '__name__', type(reward).__name__)!r} gave {values[row]:g} for completion "
            f"{row}; wanted a number that float32 holds (3.4e38 at most): {shown(given[row], texts[row])}"
        )
    parts = getattr(reward, "parts_", {})
    return values, {name: np.asarray(part, dtype=np.float64) for name, part in parts.items()}


def completions(tokenizer: PreTrainedTokenizerBase, episodes: Episodes, rows: Sequence[int]) -> list[str]:
    """Returns the text of some responses, special tokens left out."""
    return list(tokenizer.batch_decode([episodes.completion_ids[row] for row in rows], skip_special_tokens=True))
