"""Known forms of preference rows, read as pairs: TRL's, the annotation form and those of common public sets."""

import math
import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from rmtrl.data.messages import same
from rmtrl.data.reading.labels import verdict
from rmtrl.data.reading.prompts import ASSISTANT, HUMAN, asked, side_of
from rmtrl.errors import DataError
from rmtrl.io import Row
from rmtrl.types import Message


class MissingCellError(DataError):
    """A row without a cell that its form needs."""


def as_number(name: str, value: Any) -> float | None:
    """Returns a cell as a number, None where it is empty.

    Raises:
        DataError: If it is neither a number nor the text of one.
    """
    if value is None or value == "":
        return None
    try:
        if not isinstance(value, bool):
            return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        pass
    raise DataError(f"{name} is of type {type(value).__name__} ({str(value)[:40]!r}); wanted a number")


def _split_texts(chosen: str, rejected: str) -> Row:
    if all(HUMAN in side and ASSISTANT in side for side in (chosen, rejected)):
        prompts = [side[: side.rindex(ASSISTANT) + len(ASSISTANT)] for side in (chosen, rejected)]
        short, long = sorted(prompts, key=len)
        # one side may take several turns to answer; only a human turn among them makes it another conversation
        if long.startswith(short) and "Human:" not in long[len(short) :]:
            prompts = [short, short]
        return _split_at(chosen, rejected, len(prompts[0]), len(prompts[1]))
    head = chosen[: _shared_chars(chosen, rejected)]
    words = re.match(r".*\s", head, re.DOTALL)
    end = words.end() if words else 0
    end -= head[:end].endswith(" ")  # the space goes with the response, as in TRL's extract_prompt
    return _split_at(chosen, rejected, end, end) | {"invented": True}


def _shared_chars(first: str, second: str) -> int:
    """Returns how many characters two texts begin with alike, by halving: much faster than character by character."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


def _split_messages(chosen: list[Message], rejected: list[Message]) -> Row:
    end = 0
    while end < min(len(chosen), len(rejected)) - 1 and same(chosen[end], rejected[end]):
        end += 1
    # a user turn inside one response means that the two sides answer different conversations
    if any(message.get("role") == "user" for side in (chosen, rejected) for message in side[end:-1]):
        return _split_at(chosen, rejected, len(chosen) - 1, len(rejected) - 1)
    return _split_at(chosen, rejected, end, end)


def _split_at(chosen: Any, rejected: Any, chosen_end: int, rejected_end: int) -> Row:
    prompt, other = chosen[:chosen_end], rejected[:rejected_end]
    pair = {"prompt": prompt, "chosen": chosen[chosen_end:], "rejected": rejected[rejected_end:]}
    return pair if same(prompt, other) else {**pair, "prompt_rejected": other}


def _explicit(row: Row, sides: tuple[str, str] = ("chosen", "rejected")) -> list[Row]:
    chosen, rejected = (side_of(name, row[name]) for name in sides)
    prompt, other = asked(row)
    pair: Row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if other is not None:
        pair["prompt_rejected"] = other
    if isinstance(chosen, list) and isinstance(rejected, list):
        pair |= _answers(prompt, chosen, rejected)
    elif prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        pair = _split_texts(chosen, rejected)
    judged = {side: row.get(f"{side}_scores") for side in ("chosen", "rejected")}
    pair |= {f"{side}_scores": scores for side, scores in judged.items() if scores is not None}
    if row.get("prompt_rejected") not in (None, ""):
        pair["prompt_rejected"] = row["prompt_rejected"]
    scores = [as_number(name, row.get(name)) for name in ("score_chosen", "score_rejected")]
    if scores[0] is not None and scores[1] is not None:
        pair["rating_gap"] = scores[0] - scores[1]
    preference = as_number("preference", row.get("preference"))
    if preference is not None and not 0 <= preference <= 1:
        raise DataError(f"preference is {preference}; wanted a share from 0 to 1 (1: chosen wins)")
    return [_preferred(pair, verdict(row) if preference is None else preference)]


def _answers(prompt: Any, chosen: list[Message], rejected: list[Message]) -> Row:
    """Returns prompt and responses, whether the lists hold the responses alone or the whole conversations."""
    if isinstance(prompt, list) and not same(chosen[: len(prompt)], prompt):
        if prompt and same(prompt[-len(chosen) :], chosen):  # the prompt's column holds the chosen answer too
            return {"prompt": prompt[: -len(chosen)]}
        return {}
    pair = _split_messages(chosen, rejected)
    if isinstance(prompt, str) and not pair["prompt"]:  # the lists hold the responses alone
        pair["prompt"] = [{"role": "user", "content": prompt}]
    return pair


def _preferred(pair: Row, preference: float | None) -> Row:
    """Returns the pair with its preference, the sides exchanged where the rejected one won."""
    if preference is None or preference >= 0.5:
        return pair if preference is None else pair | {"preference": preference}
    turned = {"chosen": "rejected", "rejected": "chosen", "chosen_scores": "rejected_scores",
              "rejected_scores": "chosen_scores"}  # fmt: skip
    if "prompt_rejected" in pair:
        turned |= {"prompt": "prompt_rejected", "prompt_rejected": "prompt"}
    return {turned.get(name, name): value for name, value in pair.items()} | {"preference": 1 - preference}


def _ordered(prompt: Any, first: Any, second: Any, first_wins: float, **more: Any) -> list[Row]:
    chosen, rejected = (first, second) if first_wins >= 0.5 else (second, first)
    return [
        {
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "preference": max(first_wins, 1 - first_wins),
            **more,
        }
    ]


def _first_wins(label: Any, first: str, second: str, ties: tuple[str, ...] = ()) -> float:
    outcomes = {first: 1.0, second: 0.0} | dict.fromkeys(ties, 0.5)
    # 1.0 is what becomes of 1 in a column of whole numbers with a gap
    name = str(int(label) if isinstance(label, float) and label.is_integer() else label).strip()
    if name not in outcomes:
        raise DataError(f"label {str(label)[:40]!r} is none of {', '.join(outcomes)}")
    return outcomes[name]


def _annotation(row: Row) -> list[Row]:
    left_wins = _first_wins(str(row["label"]).strip().lower(), "left", "right", ("tie", "abstain"))
    prompt, other = asked(row)
    sides = [row.get(f"response_{side}", row.get(side)) for side in ("left", "right")]
    pair = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "preference": 1.0}
    return [_preferred(pair | ({} if other is None else {"prompt_rejected": other}), left_wins)]


def _strength(prompt: Any, first: Any, second: Any, strength: float) -> list[Row]:
    return _ordered(prompt, first, second, 0.5 - 0.5 * ((strength > 0) - (strength < 0)), rating_gap=abs(strength))


def _helpsteer2(row: Row) -> list[Row]:
    return _strength(row["prompt"], row["response_1"], row["response_2"], float(row["preference_strength"]))


def _helpsteer3(row: Row) -> list[Row]:
    return _strength(row["context"], row["response1"], row["response2"], float(row["overall_preference"]))


def _shp(row: Row) -> list[Row]:
    first_wins = _first_wins(row["labels"], "1", "0")
    return _ordered(row["history"], row["human_ref_A"], row["human_ref_B"], first_wins, prompt_id=row.get("post_id"))


def _pku_saferlhf(row: Row) -> list[Row]:
    return _ordered(
        row["prompt"], row["response_0"], row["response_1"], _first_wins(row["better_response_id"], "0", "1")
    )


def _nectar(row: Row) -> list[Row]:
    """Pairs the best answer with each of the others, as the set ranks them; equal ranks are a tie."""
    best, *others = sorted(row["answers"], key=lambda answer: float(answer["rank"]))
    pairs = []
    for other in others:
        gap = float(other["rank"]) - float(best["rank"])
        pairs += _ordered(row["prompt"], best["answer"], other["answer"], 1.0 if gap else 0.5, rating_gap=gap)
    if not pairs:
        raise DataError("answers holds one answer; wanted two or more")
    return pairs


def _llmbar(row: Row) -> list[Row]:
    return _ordered(row["input"], row["output_1"], row["output_2"], _first_wins(row["label"], "1", "2"))


def _judgebench(row: Row) -> list[Row]:
    first_wins = _first_wins(row["label"], "A>B", "B>A", ("A=B",))
    names = {"id": row.get("pair_id"), "domain": row.get("source")}
    return _ordered(row["question"], row["response_A"], row["response_B"], first_wins, **names)


_PANDALM_VOTES = ("annotator1", "annotator2", "annotator3")


def _pandalm(row: Row) -> list[Row]:
    shares = [_first_wins(row[name], "1", "2", ("0",)) for name in _PANDALM_VOTES]
    prompt = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
    named = {"id": row.get("idx"), "weight": len(shares)}
    return _ordered(prompt, row["response1"], row["response2"], sum(shares) / len(shares), **named)


Layout = Callable[[Row], list[Row]]
_argilla = partial(_explicit, sides=("chosen_response", "rejected_response"))
EXPLICIT = (_explicit, _argilla)
"""The layouts whose sides are named for who won; their prompt may stand in one of several columns, or in none."""

LAYOUTS: dict[str, tuple[frozenset[str], Layout]] = {
    # TRL's forms; also hh-rlhf, UltraFeedback binarized, Skywork-Preference and the Tülu 3 mixtures
    "chosen and rejected": (frozenset({"chosen", "rejected"}), _explicit),
    "Argilla": (frozenset({"chosen_response", "rejected_response"}), _argilla),
    "annotation": (frozenset({"response_left", "response_right", "label"}), _annotation),
    "annotation, short": (frozenset({"left", "right", "label"}), _annotation),
    "HelpSteer2 preference": (frozenset({"prompt", "response_1", "response_2", "preference_strength"}), _helpsteer2),
    "HelpSteer3 preference": (frozenset({"context", "response1", "response2", "overall_preference"}), _helpsteer3),
    "SHP": (frozenset({"history", "human_ref_A", "human_ref_B", "labels"}), _shp),
    "PKU-SafeRLHF": (frozenset({"prompt", "response_0", "response_1", "better_response_id"}), _pku_saferlhf),
    "Nectar": (frozenset({"prompt", "answers"}), _nectar),
    "LLMBar": (frozenset({"input", "output_1", "output_2", "label"}), _llmbar),
    "JudgeBench": (frozenset({"question", "response_A", "response_B", "label"}), _judgebench),
    "PandaLM": (frozenset({"instruction", "input", "response1", "response2", *_PANDALM_VOTES}), _pandalm),
}
"""Forms recognised by their columns, first match wins: the columns a form needs and what reads one row of it."""


@lru_cache(maxsize=1024)
def layout_of(names: tuple[str, ...]) -> tuple[list[str], Layout | None]:
    """Returns the columns of the form that `names` fit and what reads it; of the nearest form what is missing, None.

    Args:
        names (`tuple[str, ...]`): Columns of a row.
    """
    for columns, layout in LAYOUTS.values():
        if columns <= set(names):
            return sorted(columns), layout
    nearest = max((columns for columns, _ in LAYOUTS.values()), key=lambda form: len(form & set(names)) / len(form))
    return sorted(nearest - set(names)), None


def is_pair(row: Row) -> bool:
    """Returns whether a row is of a known form, by its columns."""
    return layout_of(tuple(row))[1] is not None
