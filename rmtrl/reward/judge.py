"""A chat model as a judge, behind any chat-completions endpoint: ratings of answers, and pairs in both orders."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrl.data.messages import message_text
from rmtrl.errors import ModelError, UsageError
from rmtrl.metrics import mean_estimate
from rmtrl.reward.remote import AsyncReward, Endpoint, sendable
from rmtrl.types import Conversation, Estimate, Scorer, check_pairs, shorten

RATING = """Rate how well the answer serves whoever wrote the prompt: right, useful, honest, safe. Length is no merit.

[Prompt]
{prompt}

[Answer]
{answer}

Say briefly why, then end with one number from {low:g} (worst) to {high:g} (best) in double brackets: [[{low:g}]].
"""
COMPARISON = """Compare how well two answers serve whoever wrote the prompt: right, useful, honest, safe. Neither their
length nor their order is a merit.

[Prompt]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Say briefly why, then end with [[A]] if answer A is better, [[B]] if answer B is, or [[tie]].
"""
_VERDICTS = {"A": 1.0, "B": 0.0, "tie": 0.5}
_MARK = re.compile(r"\[\[([^\[\]]*)\]\]")


@dataclass(frozen=True)
class Preferences:
    """What a judge says of N pairs, each asked in both orders.

    Args:
        preferred (`(N,)` float64): 1 where the first answer is better in both orders, 0 where the second is, 0.5 where
            the orders contradict one another or a tie is among them, NaN where an order had no verdict.
        agreement ([`Estimate`], *optional*): Share of the pairs with two verdicts in which they are the same.
        first_shown ([`Estimate`], *optional*): Mean verdict for the answer shown first, over these pairs and both
            orders; 0.5 without a bias of position.
        n_abstained (`int`): Pairs without two verdicts.
    """

    preferred: NDArray[np.float64]
    agreement: Estimate | None
    first_shown: Estimate | None
    n_abstained: int


class JudgeScorer(AsyncReward, Scorer):
    """
    Scores answers by the ratings of a chat model, and compares pairs in both orders.

    A reply counts where it holds one verdict in double brackets that was asked for (the form of Zheng et al. 2023,
    https://huggingface.co/papers/2306.05685); of any other reply the judge abstains: NaN from `score`, None in TRL's
    form, which [`~rmtrl.ppo.rewards.ComposedReward`] takes. `abstained_` counts those of the last call. An endpoint
    that fails raises, as in [`RemoteScorer`].

    Args:
        url (`str`):
            Of an endpoint that speaks chat completions, such as `http://127.0.0.1:8000/v1`.
        model (`str`):
            Name of the model there.
        rating, comparison (`str`, *optional*):
            What the judge is told, with `{prompt}`, `{answer}`, `{low}` and `{high}`, or `{prompt}`, `{first}` and
            `{second}`; other braces stay as they are.
        low, high (`float`, *optional*, default to `1` and `10`):
            Ends of the ratings.
        sampling (`Mapping[str, Any]`, *optional*):
            Further fields of a request; temperature 0 by default.
        settings:
            As in [`Endpoint`], `api_key_env` among them.

    Raises:
        UsageError: If an end is not below the other, or a prompt does not show what is judged.

    Example:

    ```python
    >>> judge = JudgeScorer("http://127.0.0.1:8000/v1", "Qwen/Qwen3-32B")
    >>> judge(prompts=["2 + 2 ="], completions=[" 4"])
    [10.0]
    >>> judge.compare(["2 + 2 ="], [" 4"], [" 5"]).preferred
    array([1.])
    ```
    """

    def __init__(
        self, url: str, model: str, *, rating: str = RATING, comparison: str = COMPARISON, low: float = 1.0,
        high: float = 10.0, sampling: Mapping[str, Any] | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        if not low < high:
            raise UsageError(f"got ratings from {low:g} to {high:g}; wanted the lower end first")
        for name, told, shows in (
            ("rating", rating, "prompt answer"), ("comparison", comparison, "prompt first second")
        ):  # fmt: skip
            if lacks := [field for field in shows.split()[1:] if f"{{{field}}}" not in told]:
                known = ", ".join(f"{{{field}}}" for field in shows.split())
                raise UsageError(f"the {name} has {known} and no other text to show; wanted {{{lacks[0]}}} in it")
        path = "/chat/completions"
        self.endpoint = Endpoint(url.rstrip("/").removesuffix(path) + path, **settings)
        self.model, self.rating, self.comparison, self.low, self.high = model, rating, comparison, low, high
        self.sampling = {"temperature": 0.0} if sampling is None else dict(sampling)
        self.abstained_ = 0

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the rating of each conversation's last answer, `(N,)` float32; NaN where the judge abstains.

        Raises:
            ModelError: If the endpoint refuses, or does not answer in all its tries.
        """
        cut = [("", own) if isinstance(own, str) else (own[:-1], own[-1:]) for own in conversations]
        return self._rated(cut)

    def score_completions(  # type: ignore[override]
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[float | None]:
        """Returns the ratings of the completions as TRL's trainers expect them, None where the judge abstains."""
        check_pairs(prompts, completions)
        rated = self._rated(list(zip(prompts, completions, strict=True)))
        return [None if np.isnan(own) else float(own) for own in rated]

    def compare(
        self, prompts: Sequence[Conversation], first: Sequence[Conversation], second: Sequence[Conversation]
    ) -> Preferences:
        """Returns which answer to each prompt the judge prefers, asked in both orders; N of each.

        Raises:
            As [`JudgeScorer.score`].
        """
        check_pairs(prompts, first)
        check_pairs(prompts, second)
        pairs = list(zip(map(_text, prompts), map(_text, first), map(_text, second), strict=True))
        orders = [*pairs, *((prompt, b, a) for prompt, a, b in pairs)]
        asked = [_filled(self.comparison, prompt=prompt, first=a, second=b) for prompt, a, b in orders]
        verdicts = [_VERDICTS.get(mark or "", np.nan) for mark in self._marks(asked)]
        shown = np.array(verdicts, dtype=np.float64).reshape(2, -1)
        ahead = np.stack([shown[0], 1 - shown[1]])
        judged, same = np.isfinite(ahead).all(axis=0), ahead[0] == ahead[1]
        preferred = np.where(judged, np.where(same, ahead[0], 0.5), np.nan)
        self.abstained_ = int((~judged).sum())
        groups = np.array([prompt for prompt, _, _ in pairs], dtype=object)[judged].astype(str)
        agreement, first_shown = (
            mean_estimate(values[judged], groups) if judged.any() else None for values in (same, shown.mean(axis=0))
        )
        return Preferences(preferred, agreement, first_shown, self.abstained_)

    def _rated(self, cut: Sequence[tuple[Conversation, Conversation]]) -> NDArray[np.float32]:
        """Returns the rating of each answer to its prompt."""
        ends = {"low": f"{self.low:g}", "high": f"{self.high:g}"}
        asked = [_filled(self.rating, prompt=_text(prompt), answer=_text(answer), **ends) for prompt, answer in cut]
        ratings = np.array([self._number(mark) for mark in self._marks(asked)], dtype=np.float32)
        self.abstained_ = int(np.isnan(ratings).sum())
        return ratings

    def _number(self, mark: str | None) -> float:
        known = mark is not None and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", mark)
        return float(mark or 0) if known and self.low <= float(mark or 0) <= self.high else np.nan

    def _marks(self, asked: Sequence[str]) -> list[str | None]:
        """Returns the one verdict in each reply, None where there is none or more than one."""
        bodies = [
            {"model": self.model, "messages": [{"role": "user", "content": text}], **self.sampling} for text in asked
        ]
        with sendable(asked):
            replies = map(self._reply, self.endpoint.post_all(bodies))
            # what is thought is no verdict; some templates open the thought themselves
            found = [_MARK.findall(own.rpartition("</think>")[2].partition("<think>")[0]) for own in replies]
        return [marks[0].strip() if len(marks) == 1 else None for marks in found]

    def _reply(self, told: Any) -> str:
        try:
            return str(told["choices"][0]["message"]["content"] or "")
        except (KeyError, TypeError, IndexError) as error:
            said = f"{self.endpoint.url} answered {shorten(repr(told))}"
            raise ModelError(f"{said}; wanted what chat completions answer") from error


def _filled(told: str, **fields: str) -> str:
    """Returns what a judge is told, with its fields filled in and all other braces as they are."""
    return re.sub(r"\{(\w+)(:g)?\}", lambda found: fields.get(found[1], found[0]), told)


def _text(conversation: Conversation) -> str:
    """Returns a conversation as a judge reads it: who says what, where there are several turns."""
    if isinstance(conversation, str):
        return conversation
    texts = [message_text(turn) for turn in conversation]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"{turn['role']}: {text}" for turn, text in zip(conversation, texts, strict=True))
