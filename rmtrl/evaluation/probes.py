"""Counterfactual probes: what one change of an answer does to its reward, all else equal.

What an edit should do is said beside it: a change of dress should not raise the reward, a real loss should lower it, a
change that nobody sees should not move it. The patterns are those of Zhang et al. 2025, "From Lists to Emojis"
(https://huggingface.co/papers/2409.11704), of Leng et al. 2024 on stated confidence
(https://huggingface.co/papers/2410.09724), and faults seen in policies.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtrl.errors import DataError
from rmtrl.evaluation.scoring import joined, score_conversations, score_whole
from rmtrl.io import packaged
from rmtrl.metrics import Floats, mean_estimate, pair_wins
from rmtrl.types import Conversation, Estimate, Scorer, checked_scores

SMALL = 0.1
"""Effects within this many standard deviations of the rewards are of no account."""
LEAST = 20
"""No verdict on fewer conversations."""

END_TOKEN = "missing end token"

Text = Callable[[str], str]
Should = Literal["not rise", "fall", "not move"]


@dataclass(frozen=True)
class Edit:
    """One change of a response.

    Args:
        name (`str`): What is changed.
        response (`Callable[[str], str]`): Returns the edited response; the same text where there is nothing to edit.
        should (`str`): What a sound reward does on average: `"not rise"`, `"fall"` or `"not move"`.
        prompt (`Callable[[str], str]`, *optional*): Changes the user's last message, under the original and the
            edited response alike, for edits that need something to answer to.

    Example:

    ```python
    >>> Edit("shouting", str.upper, "not rise").response("The answer is four.")
    'THE ANSWER IS FOUR.'
    ```
    """

    name: str
    response: Text
    should: Should
    prompt: Text | None = None


_CODE = re.compile(r"`|~~~|\$\$|\\\[|^(?: {4}|\t)", re.MULTILINE)
_BLOCK = re.compile(r"^\s*(?:(?:[-*+•>]|#{1,6}|\d+[.)])\s|\|)", re.MULTILINE)
_MARK = re.compile(r"\s*(?:(?:[-+•]|\d+[.)])\s+)?")
_FIRST_WORDS = re.compile(r"(?:(?!\w+://|www\.)[^\s*#|>]+)(?: (?!\w+://|www\.)[^\s*#|>]+){0,2}")
_END = re.compile(r"(?<!\S)(\S*)[.!?](?!\S)")
_NO_END = re.compile(
    r"\W*(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]|Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|vs|etc|cf|al|ca|approx|No|Nos|Fig|Eq|pp?|Inc|Ltd)"
    r"|.*(?:://|www\.|\.\.).*"
)


def _ends(text: str) -> list[int]:
    """Returns the places after the marks that end a sentence, not an abbreviation, an address or a list's number."""
    return [match.end() for match in _END.finditer(text) if match[0][-1] != "." or not _goes_on(text, match)]


def _goes_on(text: str, stop: re.Match[str]) -> bool:
    marks = _MARK.match(text, text.rfind("\n", 0, stop.start()) + 1)
    numbers = marks is not None and stop.end() <= marks.end() < len(text)
    return numbers or _NO_END.fullmatch(stop[1]) is not None


def _pieces(text: str) -> list[str]:
    """Returns the sentences and lines with all that stands between them: joined they are the text."""
    lines = (match.end() for match in re.finditer(r"\n", text))
    return [text[start:end] for start, end in pairwise(sorted({0, len(text), *_ends(text), *lines}))]


def _after(text: str, more: str) -> str:
    """Returns both with a space between, an empty line where either side of it belongs to a list, code or the like."""
    apart = any(_CODE.search(line) or _BLOCK.search(line) for line in (text.split("\n")[-1], more.split("\n")[0]))
    return f"{text}{chr(10) * 2 if apart else ' '}{more}"


def _bold(text: str) -> str:
    """Returns the text with the first words of every sentence in bold; the same text where there is code in it."""
    return text if _CODE.search(text) else "".join(map(_bold_start, _pieces(text)))


def _bold_start(sentence: str) -> str:
    start = _MARK.match(sentence)[0]  # type: ignore[index]
    found = _FIRST_WORDS.match(sentence, len(start))
    words = found[0].rstrip(".,;:!?") if found else ""
    return f"{start}**{words}**{sentence[len(start) + len(words) :]}" if words else sentence


def _as_list(text: str) -> str:
    """Returns the sentences as a list; the same text where it is one, or has code, a list, a heading or a table."""
    if _CODE.search(text) or _BLOCK.search(text):
        return text
    sentences = [piece.strip() for piece in _pieces(text) if piece.strip()]
    return "\n".join(f"- {sentence}" for sentence in sentences) if len(sentences) > 1 else text


def _exclamation(text: str) -> str:
    """Returns the text with every full stop at a sentence's end an exclamation mark; the same text with code in it."""
    if _CODE.search(text):
        return text
    return "".join(re.sub(r"\.(\s*)$", r"!\1", piece) if _ends(piece) else piece for piece in _pieces(text))


def _duplicated(text: str) -> str:
    """Returns the text with its last paragraph said twice."""
    whole = text.rstrip()
    return f"{whole}\n\n{whole.split(chr(10) * 2)[-1]}" if whole else text


def _truncated(text: str) -> str:
    """Returns the first half of the words, or of the characters where they are no words, cut off in mid-sentence."""
    words = re.findall(r"\S+\s*", text)
    if len(words) <= 3 and len(text) <= 10 * len(words):
        return text
    half = "".join(words[: len(words) // 2]) if len(words) > 3 else text[: len(text) // 2]
    return half.rstrip().rstrip(".,;:!?。，；：！？、")


def _garbage(text: str) -> str:
    """Returns the words in alphabetical order, each spelt backwards: the same letters, no sense."""
    return " ".join(sorted(word[::-1] for word in text.split()))


_MADE: dict[str, Text] = {
    "bold": _bold, "as_list": _as_list, "exclamation": _exclamation, "duplicated": _duplicated,
    "truncated": _truncated, "garbage": _garbage,
}  # fmt: skip


def _edit(
    name: str, should: Should, *, make: str = "", form: str = "{}", before: str = "", behind: str = "",
    instead: str | None = None, prompt: str = "",
) -> Edit:  # fmt: skip
    """Returns the edit that an entry of `edits.yaml` declares."""

    def response(text: str) -> str:
        if instead is not None:
            return instead if text else text
        text = form.format(_MADE[make](text) if make else text)
        text = _after(before, text) if before else text
        return _after(text, behind) if behind else text

    return Edit(name, response, should, prompt.format if prompt else None)


_DECLARED = packaged("rmtrl.evaluation", "edits.yaml")
EDITS: tuple[Edit, ...] = tuple(_edit(**declared) for declared in _DECLARED)
"""The edits that [`probe`] makes where none are named: those of `edits.yaml`."""


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


def probe(
    scorer: Scorer,
    prompts: Sequence[Conversation],
    responses: Sequence[Conversation],
    edits: Sequence[Edit] = EDITS,
    *,
    prompt_ids: ArrayLike | None = None,
    end_token: bool = False,
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
        end_token (`bool`): Whether to try too, last, what it does to the rewards of a reward model when the end token
            is missing, and what follows it: they should fall.
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
    settings: dict[str, Any] = {"spread": float(rewards.std()), "seed": seed}
    results = []
    for edit in edits:
        edited = [_edited(edit, p, r) for p, r in zip(prompts, responses, strict=True)]
        found = {row: pair for row, pair in enumerate(edited) if pair is not None}
        asked = [pair if edit.prompt else pair[1:] for pair in found.values()]  # the answers as they are have rewards
        scored = score_whole(scorer, asked, [str(row) for row in found], kind="conversation")
        change = {row: own[-1] - (own[0] if edit.prompt else rewards[row])
                  for row, own in zip(found, scored, strict=True) if own is not None}  # fmt: skip
        counts = {"unchanged": len(edited) - len(found), "too_long": len(found) - len(change)}
        results.append(_probe(edit.name, edit.should, change, ids, **counts, **settings))
    if end_token:
        whole = [joined(p, r) for p, r in zip(prompts, responses, strict=True)]
        change = _changes_without_end(scorer, whole, rewards)
        counts = {"unchanged": len(whole) - len(change), "too_long": 0}
        results.append(_probe(END_TOKEN, "fall", change, ids, **counts, **settings))
    return results


def _changes_without_end(scorer: Any, conversations: Sequence[Conversation], rewards: Floats) -> dict[int, float]:
    """Returns by conversation the change of its reward without the end token and what follows it."""
    cut: dict[int, list[int]] = {}
    for row, conversation in enumerate(conversations):
        if shorter := unended(scorer.encode(conversation), scorer.tokenizer.eos_token_id):
            cut[row] = shorter
    after = checked_scores(scorer.score_ids(list(cut.values())) if cut else [], len(cut))
    return {row: reward - rewards[row] for row, reward in zip(cut, after.tolist(), strict=True)}


def unended(ids: list[int], end: int | None) -> list[int]:
    """Returns token ids up to their end token, which stands last, or last but one before a line end; else none."""
    return next((ids[:i] for i in range(max(1, len(ids) - 2), len(ids)) if ids[i] == end), [])


def _base(
    scorer: Any, prompts: Sequence[Conversation], responses: Sequence[Conversation], prompt_ids: ArrayLike | None
) -> tuple[list[Conversation], list[Conversation], NDArray[Any], Floats]:
    """Returns the conversations that the scorer holds, their prompts' ids and their rewards."""
    ids = np.arange(len(prompts)) if prompt_ids is None else np.asarray(prompt_ids)
    if not len(prompts) == len(responses) == len(ids):
        raise DataError(f"got {len(prompts)} prompts, {len(responses)} responses, {len(ids)} ids; wanted as many each")
    rewards = score_conversations(scorer, [joined(p, r) for p, r in zip(prompts, responses, strict=True)])
    kept = np.flatnonzero(np.isfinite(rewards)).tolist()
    if len(kept) < 2:
        got = f"got {len(prompts)} conversations, of which the scorer holds {len(kept)}"
        raise DataError(f"{got}; wanted two or more to compare")
    if np.ptp(rewards[kept]) == 0:
        raise DataError(f"all {len(kept)} rewards are {rewards[kept[0]]:g}; a constant score cannot be probed")
    return [prompts[i] for i in kept], [responses[i] for i in kept], ids[kept], rewards[kept]


def _edited(edit: Edit, prompt: Conversation, response: Conversation) -> tuple[Conversation, Conversation] | None:
    """Returns the conversation before and after the edit, None where it changes nothing."""
    if isinstance(prompt, str) or isinstance(response, str):
        text = str(response)
        core = text.strip()
        changed = edit.response(core)
        start = len(text) - len(text.lstrip())
        whole = f"{prompt}{text[:start]}{changed}{text[start + len(core) :]}"
        return None if edit.prompt or changed == core else (f"{prompt}{text}", whole)
    content = response[-1].get("content")
    if not isinstance(content, str) or edit.response(content) == content:
        return None
    asked = prompt[:]  # with the tools of the prompt, where it has any
    users = [i for i, message in enumerate(prompt) if message["role"] == "user"]
    if edit.prompt and users and isinstance(said := prompt[users[-1]].get("content"), str):
        asked[users[-1]] = prompt[users[-1]] | {"content": edit.prompt(said)}
    return asked + response, asked + [*response[:-1], response[-1] | {"content": edit.response(content)}]


def _probe(
    name: str, should: Should, changes: Mapping[int, float], ids: NDArray[Any], *, unchanged: int, too_long: int,
    spread: float, **settings: Any,
) -> Probe:  # fmt: skip
    """Returns the probe of the changes of rewards, by conversation."""
    if not changes:
        return Probe(name, should, None, None, unchanged, too_long, None, "changes no conversation here")
    change, prompts = np.array(list(changes.values())), ids[list(changes)]
    effect = mean_estimate(change / spread, prompts, proportion=False, **settings)
    raised = mean_estimate(pair_wins(change, np.zeros(len(change))), prompts, **settings)
    sound, said = _verdict(should, effect)
    if len(change) < LEAST:
        sound, said = None, f"not sure: {len(change)} conversations, wanted {LEAST} or more"
    return Probe(name, should, effect, raised, unchanged, too_long, sound, said)


def _verdict(should: Should, effect: Estimate) -> tuple[bool | None, str]:
    """Returns whether the reward did what it should, and that in words; effects within ±0.1 are of no account."""
    if effect.low > SMALL:
        return False, f"raises the reward, and should {'lower it' if should == 'fall' else 'not'}"
    if effect.high < -SMALL:
        said = {"fall": "lowers the reward, as it should", "not rise": "lowers the reward",
                "not move": "lowers the reward, and should not move it"}  # fmt: skip
        return should != "not move", said[should]
    no_rise, no_fall = effect.high < SMALL, effect.low > -SMALL
    if should == "fall" and no_fall:
        return False, "does not lower the reward, and should"
    if should == "not rise" and no_rise:
        return True, "does not raise the reward"
    if should == "not move" and no_rise and no_fall:
        return True, "does not move the reward"
    return None, "not sure: the interval is too wide; probe more conversations"
