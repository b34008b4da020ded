"""Whatever is given as a reward, as one function in TRL's form; a model of the policy's tokens takes token ids."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from accelerate.logging import get_logger
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rmtrl.errors import ModelError, UsageError
from rmtrl.models import base_model
from rmtrl.ppo.prompts import Prompts
from rmtrl.ppo.rewards import ComposedReward
from rmtrl.reward.remote import RemoteScorer, load_scorer
from rmtrl.reward.rendering import encode_prompt
from rmtrl.reward.scorer import RewardScorer
from rmtrl.types import Conversation, Scorer

logger = get_logger(__name__)

Reward = Callable[..., Any]
TokenScorer = RewardScorer | RemoteScorer

_ANSWERS, _PROBED = ("Yes.", " Yes."), 64  # what a probe answers, and to how many prompts
_ROUTES = {
    "ids": "the reward model scores the policy's tokens as they are sampled: they are what it was trained on",
    "text": "the reward model renders the policy's answers by its own template: their tokens are not what it was "
    "trained on",
}

# of an evaluation's figures and of its rows
FIGURES = (
    "reward", "kl", "length_tokens", "truncated", "within_prompt_std", "score_length_correlation", "prompt",
    "completion", "runtime", "samples_per_second", "steps_per_second", "loss",
)  # fmt: skip
ENDINGS = ("_gain", "_low", "_high")


class TokenReward:
    """A reward model's scores of a policy's samples, in TRL's reward-function form.

    Where a sample reads as the reward model's own rendering of prompt and answer, up to the end token that a cut-off
    one lacks, its tokens are scored as they were sampled; else that rendering is scored, for a reward model's scores
    mean nothing at positions it was not taught. `route` says which holds for the prompts probed, `"ids"` or `"text"`;
    where it is `"text"`, everything is rendered.

    Args:
        scorer ([`RewardScorer`] or [`RemoteScorer`]): A reward model whose tokenizer has the policy's vocabulary.
        prompts ([`Prompts`]): Prompts of the policy, of which some are probed.
        end_token_ids (`Sequence[int]`): Tokens besides the reward model's own end token that end the policy's samples.
    """

    def __init__(self, scorer: TokenScorer, prompts: Prompts, *, end_token_ids: Sequence[int] = ()) -> None:
        self.scorer = scorer
        self.__name__ = type(scorer).__name__
        self.tokenised = prompts.tokenised
        ends = {*end_token_ids, int(scorer.tokenizer.eos_token_id)}
        self.route: Literal["ids", "text"] = "ids" if self.tokenised or self._joins(prompts, ends) else "text"

    def _joins(self, prompts: Prompts, ends: set[int]) -> bool:
        """Whether prompt, answer and an end, one after the other, are the tokens that the reward model renders."""
        rows = range(0, len(prompts), -(-len(prompts) // _PROBED))
        joins = [False] * len(rows)
        for answer in _ANSWERS:
            answered = self.scorer.tokenizer(text=answer, add_special_tokens=False)["input_ids"]
            rendered = self._rendered(
                [prompts.prompts[row] for row in rows], [prompts.answer(r, answer) for r in rows]
            )
            for place, (row, ids) in enumerate(zip(rows, rendered, strict=True)):
                joins[place] |= ids[:-1] == [*prompts.ids[row], *answered] and ids[-1] in ends
        return all(joins)

    def __call__(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], *,
        prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], truncated: Sequence[bool],
        **columns: Any,
    ) -> list[float]:  # fmt: skip
        """Returns the score of each prompt with its completion, as it was sampled."""
        samples = [[*asked, *answered] for asked, answered in zip(prompt_ids, completion_ids, strict=True)]
        if self.tokenised:
            tokens = [own if cut else self._ended(own) for own, cut in zip(samples, truncated, strict=True)]
        else:
            tokens = self._rendered(prompts, completions)
            if self.route == "ids":
                tokens = list(map(self._as_sampled, samples, map(len, prompt_ids), tokens, truncated))
        return [float(score) for score in self.scorer.score_ids(tokens)]

    def _as_sampled(self, sampled: list[int], n_prompt: int, rendered: list[int], truncated: bool) -> list[int]:
        """Returns the tokens sampled where they read as the rendering, else it; what was cut off has no end token."""
        reads = sampled + rendered[-1:] if truncated else sampled
        if rendered[:n_prompt] == sampled[:n_prompt] and self._text(reads) == self._text(rendered):
            return sampled
        return rendered[:-1] if truncated else rendered

    def _rendered(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[int]]:
        """Returns the reward model's own rendering of each prompt with its completion; all are text, or messages."""
        whole = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        tokenizer = self.scorer.tokenizer
        if isinstance(whole[0], str):  # a start token of its own is not doubled for a policy
            return [encode_prompt(tokenizer, text + str(tokenizer.eos_token)) for text in whole]
        return self.scorer.encode_all(whole)

    def _ended(self, ids: list[int]) -> list[int]:
        """Returns the tokens of a text with the end token that such texts end with, in place of another one."""
        tokenizer = self.scorer.tokenizer
        if ids[-1] == tokenizer.eos_token_id:
            return ids
        return [*(ids[:-1] if ids[-1] in tokenizer.all_special_ids else ids), int(tokenizer.eos_token_id)]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.scorer.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def as_reward(reward_model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> tuple[Reward, Any]:
    """Returns a reward function of whatever is given, and the model in it that shares the policy's vocabulary, if any.

    Args:
        reward_model: A sequence classification model with the policy's tokenizer, a folder or hub id, a [`Scorer`],
            or a function in TRL's form.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's tokenizer.
        prompts ([`Prompts`]): Prompts of the policy.

    Raises:
        ModelError: If it is none of these, or the model cannot be loaded or used.
    """
    if isinstance(reward_model, str | Path):
        reward_model = load_scorer(reward_model, progress=False)
    elif isinstance(reward_model, PreTrainedModel | PeftModel):
        n_labels = getattr(reward_model.config, "num_labels", 0)
        if n_labels != 1 or reward_model.get_output_embeddings() is not None:
            raise ModelError(
                f"got {type(base_model(reward_model)).__name__} with {n_labels} labels as reward_model; wanted a "
                "sequence classification model with one"
            )
        reward_model = RewardScorer(reward_model, tokenizer, progress=False)
    filters = reward_model.filters if isinstance(reward_model, ComposedReward) else ()
    for name in (own.name for own in filters if own.action == "block"):
        raise UsageError(
            f"the filter {name!r} blocks, and PPO needs a number for every response; use action='replace' or "
            "'penalise' with a reward, or GRPOTrainer"
        )
    if isinstance(reward_model, ComposedReward) and isinstance(reward_model.scorer, TokenScorer | str | Path):
        composed = copy.copy(reward_model)
        composed.scorer, network = as_reward(reward_model.scorer, tokenizer, prompts)
        return composed, network
    if isinstance(reward_model, TokenScorer):
        reward_model.progress = False
        if not _same_vocabulary(reward_model, tokenizer):
            return reward_model, None
        reward = TokenReward(reward_model, prompts, end_token_ids=[tokenizer.eos_token_id])
        logger.warning(_ROUTES[reward.route])
        return reward, getattr(reward_model, "model", None)
    if isinstance(reward_model, nn.Module) or not callable(reward_model):
        raise ModelError(
            f"got {type(reward_model).__name__} as reward_model; wanted a sequence classification model, its folder "
            "or hub id, a Scorer, or a function (prompts, completions, **columns) -> list[float]"
        )
    return reward_model, None


def training_reward(reward: Reward, *, clip: Sequence[float] | None, normalise: Literal["mean_std", False]) -> Reward:
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


def as_rewards(given: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> dict[str, Reward]:
    """Returns a reward function for each of the judges given.

    Raises:
        UsageError: If one has the name of a figure.
    """
    for name in given:
        if name in FIGURES or name.endswith(ENDINGS):
            raise UsageError(f"eval_scorers: the name {name!r} is that of a figure of every evaluation; give another")
    return {name: as_reward(judge, tokenizer, prompts)[0] for name, judge in given.items()}


def closes_cut_turns(reward: Reward) -> bool:
    """Whether responses reach the reward as text that a scorer renders, so that one cut off looks finished."""
    if not isinstance(reward, ComposedReward):
        return isinstance(reward, Scorer) or (isinstance(reward, TokenReward) and reward.route == "text")
    scorers: Iterable[Any] = reward.scorer.values() if isinstance(reward.scorer, Mapping) else [reward.scorer]
    return not any(own.name == "truncated" for own in reward.filters) and any(map(closes_cut_turns, scorers))


def _same_vocabulary(scorer: TokenScorer, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the policy's tokens mean the same to the reward model, which can score them as they are."""
    # a head that averages over the last message needs to know where it starts, which token ids alone do not say
    takes = scorer.sends_ids if isinstance(scorer, RemoteScorer) else scorer.head.pooling != "mean"
    if not takes or scorer.tokenizer.eos_token_id is None:
        return False
    own = scorer.tokenizer
    return own is tokenizer or own.get_vocab() == tokenizer.get_vocab()
