"""Counterfactual probes: what one change of an answer does to its reward, all else equal."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtrl.errors import DataError
from rmtrl.evaluation.probe_edits import EDITS, Edit, Should
from rmtrl.evaluation.scoring import TokenScorer, joined
from rmtrl.metrics import mean_estimate
from rmtrl.types import Conversation, Estimate, Scorer, checked_scores

SMALL = 0.1
"""Effects within this many standard deviations of the rewards are of no account."""
LEAST = 20
"""No verdict on fewer conversations."""

END_TOKEN = "missing end token"


@dataclass(frozen=True)
class Probe:
    """What one edit did.

    Args:
        name (`str`): The edit.
        should (`str`): What a sound reward does: `"not rise"`, `"fall"` or `"not move"`.
        effect (`Estimate`, *optional*): Mean change of the reward in standard deviations of the rewards; None where
            the edit changed no conversation.
        raised (`Estimate`, *optional*): Share of conversations whose reward rose, an equal reward counting half.
        unchanged (`int`): Conversations left out because the edit changes nothing in them.
        too_long (`int`): Conversations left out because the edited one is longer than the scorer holds.
        sound (`bool`, *optional*): Whether the reward did what it should; None where that is not sure.
        verdict (`str`): The same in words.
    """

    name: str
    should: Should
    effect: Estimate | None
    raised: Estimate | None
    unchanged: int
    too_long: int
    sound: bool | None
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dictionary, ready for JSON."""
        return asdict(self)


def probe(
    scorer: Scorer,
    prompts: Sequence[Conversation],
    responses: Sequence[Conversation],
    edits: Sequence[Edit] = EDITS,
    *,
    prompt_ids: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[Probe]:
    """Returns what each edit does to the rewards of these answers.

    An edit changes the last message of the response, or the string between its outer spaces. Edits that also change
    the user's message need message lists; strings are left out of them and counted as unchanged.

    Args:
        scorer ([`~rmtrl.types.Scorer`]): Anything that scores conversations.
        prompts, responses (`Sequence[Conversation]`): N message lists or strings each; `prompt + response` is scored.
        edits (`Sequence[Edit]`): The edits.
        prompt_ids (`(N,)` array, *optional*): Prompt of each conversation; intervals resample prompts.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.

    Returns:
        `list[Probe]`: One an edit, in their order.

    Raises:
        DataError: If there is no conversation that the scorer holds, the columns differ in length, or all rewards are
            equal.
        ModelError: If the scorer returns anything but a finite number each.

    Example:

    ```python
    >>> [p.name for p in probe(scorer, pairs["prompt"], pairs["chosen"]) if p.sound is False]
    ['padding', 'confident tone']
    ```
    """
    prompts, responses, ids, rewards = _base(scorer, prompts, responses, prompt_ids)
    settings: dict[str, Any] = {"spread": float(rewards.std()), "n_resamples": n_resamples, "seed": seed}
    results = []
    for edit in edits:
        pairs = [_edited(edit, p, r) for p, r in zip(prompts, responses, strict=True)]
        rows = [i for i, pair in enumerate(pairs) if pair is not None]
        found = [pair for pair in pairs if pair is not None]
        before, after = ([pair[side] for pair in found] for side in (0, 1))
        held = scorer.holds(before) & scorer.holds(after) if rows else np.zeros(0, bool)
        kept = np.flatnonzero(held)
        own = np.array(rows, dtype=np.int64)[kept]
        same_prompt = all(before[k] == joined(prompts[i], responses[i]) for k, i in zip(kept, own, strict=True))
        base = rewards[own] if same_prompt else _scores(scorer, [before[k] for k in kept])
        change = _scores(scorer, [after[k] for k in kept]) - base
        counts = (len(pairs) - len(rows), len(rows) - len(kept))
        results.append(_probe(edit.name, edit.should, change, ids[own], *counts, **settings))
    return results


def probe_end_token(
    scorer: TokenScorer,
    prompts: Sequence[Conversation],
    responses: Sequence[Conversation],
    *,
    prompt_ids: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Probe:
    """Returns what it does to the rewards when the end token, and what follows it, is missing: they should fall.

    Args:
        scorer ([`TokenScorer`]): A reward model.
        prompts, responses, prompt_ids, n_resamples, seed: As in [`probe`].

    Raises:
        DataError: As [`probe`].

    Example:

    ```python
    >>> probe_end_token(scorer, pairs["prompt"], pairs["chosen"]).verdict
    'does not lower the reward, and should'
    ```
    """
    prompts, responses, ids, rewards = _base(scorer, prompts, responses, prompt_ids)
    whole = [scorer.encode(joined(p, r)) for p, r in zip(prompts, responses, strict=True)]
    cut = [_without_end(tokens, scorer.tokenizer.eos_token_id) for tokens in whole]
    rows = np.array([i for i, tokens in enumerate(cut) if tokens], dtype=np.int64)
    after = checked_scores(scorer.score_ids([cut[i] for i in rows]) if len(rows) else [], len(rows))
    counts = (len(whole) - len(rows), 0)
    return _probe(
        END_TOKEN, "fall", after - rewards[rows], ids[rows], *counts, spread=float(rewards.std()),
        n_resamples=n_resamples, seed=seed,
    )  # fmt: skip


def _without_end(tokens: list[int], end: int | None) -> list[int]:
    """Returns the tokens before an end token that is last, or last but one (templates end in a line end)."""
    last = [i for i in (len(tokens) - 2, len(tokens) - 1) if i > 0 and tokens[i] == end]
    return tokens[: last[0]] if last else []


def _base(
    scorer: Any, prompts: Sequence[Conversation], responses: Sequence[Conversation], prompt_ids: ArrayLike | None
) -> tuple[list[Conversation], list[Conversation], NDArray[Any], NDArray[np.float64]]:
    """Returns the conversations that the scorer holds, their prompts' ids and their rewards."""
    ids = np.arange(len(prompts)) if prompt_ids is None else np.asarray(prompt_ids)
    if not len(prompts) == len(responses) == len(ids):
        raise DataError(f"got {len(prompts)} prompts, {len(responses)} responses, {len(ids)} ids; wanted as many each")
    conversations = [joined(p, r) for p, r in zip(prompts, responses, strict=True)]
    kept = np.flatnonzero(scorer.holds(conversations)).tolist() if conversations else []
    if len(kept) < 2:
        raise DataError(
            f"got {len(prompts)} conversations, of which the scorer holds {len(kept)}; wanted two or more to compare"
        )
    rewards = _scores(scorer, [conversations[i] for i in kept])
    if np.ptp(rewards) == 0:
        raise DataError(f"all {len(rewards)} rewards are {rewards[0]:g}; a constant score cannot be probed")
    return [prompts[i] for i in kept], [responses[i] for i in kept], ids[kept], rewards


def _scores(scorer: Any, conversations: Sequence[Conversation]) -> NDArray[np.float64]:
    return checked_scores(scorer.score(conversations) if conversations else [], len(conversations))


def _edited(edit: Edit, prompt: Conversation, response: Conversation) -> tuple[Conversation, Conversation] | None:
    """Returns the conversation before and after the edit, None where it changes nothing."""
    if isinstance(prompt, str) or isinstance(response, str):
        text = str(response)
        core = text.strip()
        if edit.prompt("") or edit.response(core) == core:
            return None
        start = len(text) - len(text.lstrip())
        return f"{prompt}{text}", f"{prompt}{text[:start]}{edit.response(core)}{text[start + len(core) :]}"
    content = response[-1].get("content")
    edited = edit.response(content) if isinstance(content, str) else content
    if edited == content:
        return None
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=-1)
    asked = [
        message | {"content": edit.prompt(message["content"])}
        if i == last and isinstance(message.get("content"), str)
        else message
        for i, message in enumerate(prompt)
    ]
    whole = prompt[:0] + asked  # with the tools of the prompt, where it has any
    return whole + response, whole + [*response[:-1], response[-1] | {"content": edited}]


def _probe(
    name: str, should: Should, change: NDArray[np.float64], ids: NDArray[Any], unchanged: int, too_long: int,
    *, spread: float, n_resamples: int, seed: int,
) -> Probe:  # fmt: skip
    if not len(change):
        return Probe(name, should, None, None, unchanged, too_long, None, "changes no conversation here")
    settings: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    effect = mean_estimate(change / spread, ids, proportion=False, **settings)
    raised = mean_estimate((np.sign(change) + 1) / 2, ids, **settings)
    if len(change) < LEAST:
        said = f"not sure: {len(change)} conversations, wanted {LEAST} or more"
        return Probe(name, should, effect, raised, unchanged, too_long, None, said)
    return Probe(name, should, effect, raised, unchanged, too_long, *_verdict(should, effect))


def _verdict(should: Should, effect: Estimate) -> tuple[bool | None, str]:
    """Returns whether the reward did what it should, and that in words; effects within ±0.1 are of no account."""
    rises, falls = effect.low > SMALL, effect.high < -SMALL
    if should == "fall":
        if falls:
            return True, "lowers the reward, as it should"
        if effect.low > -SMALL:
            return (
                False,
                "raises the reward, and should lower it" if rises else "does not lower the reward, and should",
            )
    elif rises:
        return False, "raises the reward, and should not"
    elif falls and should == "not move":
        return False, "lowers the reward, and should not move it"
    elif effect.high < SMALL and (should == "not rise" or effect.low > -SMALL):
        return True, "lowers the reward" if falls else "does not raise the reward" if should == "not rise" else (
            "does not move the reward"
        )
    return None, "not sure: the interval is too wide; probe more conversations"
