"""A row of any known form goes in; the pairs that its makers mean come out: TRL's forms, votes, and public sets."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

from rmtrl.data.messages import (
    conversation_text,
    listed_messages,
    read_messages,
    same,
    shared_prefix_length,
    written_value,
)  # fmt: skip
from rmtrl.data.normal_form import NAMES, SCORES, TEMPLATE, MissingCellError, as_number
from rmtrl.errors import DataError
from rmtrl.io import Row, packaged
from rmtrl.types import Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""What opens a turn in a transcript, as in hh-rlhf."""

COLUMNS: dict[str, Any] = packaged("rmtrl.data", "columns.yaml")
"""What columns are called, by people and in public sets; the file says what each part of it is for."""

_ASKED = [tuple(names) for names in COLUMNS["asked"]]
TALKS = {*COLUMNS["talks"], *chain(*_ASKED)}
"""Columns that may hold messages."""

_BETTER, _WORSE = "good|better|best|(^|_)win|prefer|positiv|chosen", "bad|wors|(^|_)los|dispref|negativ|reject"
_JUDGE = re.compile(r"(.*_)?(winner|label|preferred|better|choice|chosen_model|verdict)", re.IGNORECASE)
CODES = frozenset({"0", "1"})
_VERDICTS: dict[str, float] = COLUMNS["verdicts"]
_SETS: dict[str, Any] = COLUMNS["sets"] | {
    f"{first} and {second} by {label}": {"first": first, "second": second, "labels": [label], "outcomes": outcomes}
    for answers, labels, outcomes in [COLUMNS["judged"].values()]
    for first, second in answers
    for label in labels
}
_JUDGES = {label for own in _SETS.values() for label in own["labels"]}
_PAIRED = (("chosen", "rejected"), ("left", "right"), ("response_left", "response_right"))


# ---- what was asked


@lru_cache(maxsize=1024)
def prompt_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the columns that a prompt is read from, the first of those known; none where there is none."""
    return next((columns for columns in _ASKED if set(columns) <= set(names)), ())


def asked(row: Row) -> tuple[Any, Any]:
    """Returns the prompt of a row, None where it has none, and the prompt of the right side where that differs."""
    columns = prompt_columns(tuple(row)) + (("input",) if joins_input(row) else ())
    found = [_side(name, row[name]) for name in columns]
    if len(found) < 2:
        return (found[0] if found else None), None
    if "prompt_left" in row:
        return found[0], None if same(*found) else found[1]
    return "\n\n".join(text for text in found if text), None


def system_column(row: Row) -> str:
    """Returns the column of a row's system message."""
    return "system" if "system" in row else "system_prompt"


def joins_input(row: Row) -> bool:
    """Returns whether `input` is the second half of what `prompt` or `question` asks, and does not repeat it."""
    columns, text = prompt_columns(tuple(row)), row.get("input")
    asks = columns in (("prompt",), ("question",)) and "instruction" not in row
    question = row[columns[0]] if asks else None
    return isinstance(question, str) and isinstance(text, str) and bool(text.strip()) and text not in question


def before(row: Row) -> list[Message]:
    """Returns what stands before the prompt in columns of its own: a system message, and earlier turns.

    `history` holds messages, or pairs of what the user and the assistant said.
    """
    system, history = row.get(system_column(row)), row.get("history")
    said = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    if not isinstance(history, list):
        return said
    if any(isinstance(turn, dict) for turn in history):
        return said + read_messages("history", history)
    if not all(map(_is_exchange, history)):
        raise DataError(f"history is {str(history)[:40]!r}; wanted messages, or pairs of what user and assistant said")
    roles = ("user", "assistant")
    return said + [{"role": role, "content": text} for turn in history for role, text in zip(roles, turn, strict=True)]


def in_turns(pair: Row, said: list[Message]) -> Row:
    """Returns a pair as messages, after what was said before its prompt; a transcript becomes its turns."""
    turned = dict(pair)
    for name in ("prompt", "prompt_rejected"):
        given = pair.get(name)
        if given is None:
            continue
        turns = read_messages(name, given) if not isinstance(given, str) else _turns(given)
        if isinstance(given, str) and not turns:
            turns = [{"role": "user", "content": given}]
        elif isinstance(given, str):
            answers = {side: pair[side] for side in ("chosen", "rejected")}
            turned |= {side: text.lstrip() for side, text in answers.items() if isinstance(text, str)}
        turned[name] = turns if same(turns[: len(said)], said) else said + turns
    return turned


def _turns(text: str) -> list[Message]:
    """Returns the turns of a transcript that asks for an answer, as in hh-rlhf; none where the text is no such."""
    if HUMAN not in text or not text.rstrip().endswith(ASSISTANT):
        return []
    before, *parts = re.split(f"({HUMAN}|{ASSISTANT})", text)
    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    said = [("system", before), *((roles[mark], part) for mark, part in zip(parts[::2], parts[1::2], strict=True))]
    return [{"role": role, "content": part.strip()} for role, part in said if part.strip()]


def with_messages(row: Row, columns: Collection[str]) -> Row:
    """Returns a row with the messages that stand in cells as text; of two answers only where both are such."""
    texts = {
        name: row[name] for name in columns if isinstance(row[name], str) and row[name].lstrip()[:1] in ("[", "{")
    }
    found = {name: value for name, text in texts.items() if (value := _written(name, text)) is not None}
    for sides in _PAIRED:
        if len(found.keys() & sides) == 1:
            found = {name: messages for name, messages in found.items() if name not in sides}
    return row | found if found else row


def _written(name: str, text: str) -> list[Any] | None:
    """Returns the messages, or the turns of a history, that a cell's text is; None where it is other text."""
    if messages := listed_messages(text):
        return messages
    turns = written_value(text) if name == "history" else None
    return turns if isinstance(turns, list) and all(map(_is_exchange, turns)) else None


def _is_exchange(turn: Any) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2


def _side(name: str, value: Any) -> Any:
    return value if value is None or isinstance(value, str) else read_messages(name, value)


# ---- who won, in words or in numbers that no set has fixed


def label_code(row: Row) -> str | None:
    """Returns the number in the column `label` of a form whose codes no set has fixed, None where there is none."""
    label, unfixed = row.get("label"), ({"left", "right"}, {"response_left", "response_right"}, {"prompt_left"})
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return None
    is_number = not isinstance(label, str) or re.fullmatch(r"\s*[+-]?\d+(\.\d+)?\s*", label)
    return f"{float(label):g}" if is_number and any(names <= row.keys() for names in unfixed) else None


def label_word(code: str, codes: Collection[str], row: Row) -> str:
    """Returns what a number in `label` means where these are all the numbers that stand in the column.

    0 is left and 1 right, in a column of no other number. Beside sides called chosen and rejected a column of zeros
    alone, or of ones alone, says that chosen won.

    Raises:
        DataError: If the numbers may mean something else.
    """
    shown = ", ".join(sorted(codes))
    if not CODES.issuperset(codes):
        raise DataError(f"label holds the numbers {shown}, not 0 (left) and 1 (right) alone; write left, right or tie")
    if "chosen" not in row:
        return ("left", "right")[int(code)]
    if len(codes) > 1:
        raise DataError(
            f"label holds {shown} beside chosen and rejected, and either may be the better one; write chosen, "
            "rejected or tie, or give --map preference=label where 1 means chosen"
        )
    return "chosen"


def is_unjudged(name: str, value: Any) -> bool:
    """Returns whether a cell that says who won is blank."""
    return name in _JUDGES and (value is None or (isinstance(value, str) and not value.strip()))


def verdict(row: Row, *, strict: bool = False) -> float | None:
    """Returns what `label` says of a row whose sides are called chosen and rejected: 1 where chosen won.

    Chosen is the left side. Beside `prompt_left` and `prompt_right`, or where `strict`, a label must be a verdict;
    else any other value is the user's own.
    """
    if not {"chosen", "chosen_response"} & row.keys():
        return None
    label = row.get("label")
    found = _VERDICTS.get(label.strip().lower()) if isinstance(label, str) else None
    if found is None and "label" in row and (strict or "prompt_left" in row):
        if is_unjudged("label", label):
            raise MissingCellError.of(["label"])
        raise DataError(f"label {str(label)[:40]!r} is none of {', '.join(_VERDICTS)}")
    return found


def label_notes(source: str, codes: Collection[tuple[str, bool]], judged: Collection[bool]) -> list[str]:
    """Returns what a person may not expect of how `label` is read.

    Args:
        source (`str`): What to call the set.
        codes (`Collection[tuple[str, bool]]`): Numbers in the column, each with whether it stands beside chosen.
        judged (`Collection[bool]`): Whether labels beside chosen and rejected were verdicts.
    """
    notes = []
    sides = [code for code, beside in codes if not beside]
    if len(sides) == 1 and CODES.issuperset(code for code, _ in codes):
        side = ("left", "right")[int(sides[0])]
        notes.append(
            f"{source}: every number in label is {sides[0]}, read as {side}; write left, right or tie to be clear"
        )
    if judged and not any(judged):
        notes.append(f"{source}: label is not read, for no row has one of {', '.join(_VERDICTS)} there")
    return notes


# ---- sides named for who won


def _split_texts(chosen: str, rejected: str) -> Row:
    if all(HUMAN in side and ASSISTANT in side for side in (chosen, rejected)):
        prompts = [side[: side.rindex(ASSISTANT) + len(ASSISTANT)] for side in (chosen, rejected)]
        short, long = sorted(prompts, key=len)
        # one side may take several turns to answer; only a human turn among them makes it another conversation
        if long.startswith(short) and "Human:" not in long[len(short) :]:
            prompts = [short, short]
        return _split_at(chosen, rejected, len(prompts[0]), len(prompts[1]))
    head = chosen[: shared_prefix_length(chosen, rejected)]
    words = re.match(r".*\s", head, re.DOTALL)
    end = words.end() if words else 0
    end -= head[:end].endswith(" ")  # the space goes with the response, as in TRL's extract_prompt
    return _split_at(chosen, rejected, end, end) | {"invented": True}


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
    chosen, rejected = (_side(name, row[name]) for name in sides)
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
        other = chosen[:1] if same(chosen[:1], rejected[:1]) and chosen[0].get("role") == "user" else []
        return {"prompt_rejected": other} if other and len(chosen) > 1 else {}
    pair = _split_messages(chosen, rejected)
    if isinstance(prompt, str) and not pair["prompt"]:  # the lists hold the responses alone
        pair["prompt"] = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, str) and not _agrees(prompt, pair["prompt"]):
        pair.setdefault("prompt_rejected", [{"role": "user", "content": prompt}])
    return pair


def _agrees(prompt: str, turns: list[Message]) -> bool:
    """Returns whether a text and the turns that answers stand after have words in common: one holds the other's."""
    words, said = (" ".join(text.casefold().split()) for text in (prompt, conversation_text(turns)))
    users = (" ".join(conversation_text([turn]).casefold().split()) for turn in turns if turn.get("role") == "user")
    return words in said or any(user and user in words for user in users)


def _preferred(pair: Row, preference: float | None) -> Row:
    """Returns the pair with its preference, the sides exchanged where the rejected one won."""
    if preference is None or preference >= 0.5:
        return pair if preference is None else pair | {"preference": preference}
    turned = {"chosen": "rejected", "rejected": "chosen", "chosen_scores": "rejected_scores",
              "rejected_scores": "chosen_scores"}  # fmt: skip
    if pair.get("prompt_rejected") is not None:
        turned |= {"prompt": "prompt_rejected", "prompt_rejected": "prompt"}
    return {turned.get(name, name): value for name, value in pair.items()} | {"preference": 1 - preference}


# ---- public sets: two answers, and a column that says which is better


def _first_wins(label: Any, outcomes: dict[str, float]) -> float:
    # 1.0 is what becomes of 1 in a column of whole numbers with a gap
    name = str(int(label) if isinstance(label, float) and label.is_integer() else label).strip()
    if (found := {own.lower(): share for own, share in outcomes.items()}.get(name.lower())) is None:
        raise DataError(f"label {str(label)[:40]!r} is none of {', '.join(outcomes)}")
    return found


def _two(
    row: Row, prompt: str | None, first: str, second: str, labels: list[str],
    outcomes: dict[str, float] | None = None, **named: str,
) -> list[Row]:  # fmt: skip
    """Returns the pair of two answers, by one label or several votes.

    Without outcomes a label is a strength, negative where the first answer is better. The prompt stands in a column of
    its own, or where it is asked; `named` are the columns that hold names.
    """
    given, other = (row[prompt], None) if prompt else asked(row)
    pair = {"prompt": given, "chosen": row[first], "rejected": row[second], "prompt_rejected": other}
    pair |= {name: row.get(column) for name, column in named.items()}
    if outcomes is None:
        strength = float(row[labels[0]])
        return [_preferred(pair | {"rating_gap": abs(strength)}, 0.5 - 0.5 * ((strength > 0) - (strength < 0)))]
    shares = [_first_wins(row[label], outcomes) for label in labels]
    votes = {"weight": len(labels)} if len(labels) > 1 else {}
    return [_preferred(pair | votes, sum(shares) / len(shares))]


def _nectar(row: Row) -> list[Row]:
    """Pairs the best answer with each of the others, as the set ranks them; equal ranks are a tie."""
    best, *others = sorted(row["answers"], key=lambda answer: float(answer["rank"]))
    if not others:
        raise DataError("answers holds one answer; wanted two or more")
    gaps = [float(other["rank"]) - float(best["rank"]) for other in others]
    shared = {"prompt": row["prompt"], "chosen": best["answer"]}
    return [
        shared | {"rejected": other["answer"], "preference": 1.0 if gap else 0.5, "rating_gap": gap}
        for other, gap in zip(others, gaps, strict=True)
    ]


# ---- the table of forms


Layout = Callable[[Row], list[Row]]
_argilla = partial(_explicit, sides=("chosen_response", "rejected_response"))
EXPLICIT = (_explicit, _argilla)
"""The layouts whose sides are named for who won; their prompt may stand in one of several columns, or in none."""


def _declared(
    first: str, second: str, labels: list[str], prompt: str | None = None, asks: Collection[str] = (), **more: Any
) -> tuple[frozenset[str], Layout]:
    """Returns the columns of a set of two answers, and what reads a row of it."""
    columns = frozenset({first, second, *labels, *asks, *((prompt,) if prompt else ())})
    return columns, partial(_two, prompt=prompt, first=first, second=second, labels=labels, **more)


LAYOUTS: dict[str, tuple[frozenset[str], Layout]] = {
    # TRL's forms; also hh-rlhf, UltraFeedback binarized, Skywork-Preference and the Tülu 3 mixtures
    "chosen and rejected": (frozenset({"chosen", "rejected"}), _explicit),
    "Argilla": (frozenset({"chosen_response", "rejected_response"}), _argilla),
    "Nectar": (frozenset({"prompt", "answers"}), _nectar),
    **{name: _declared(**own) for name, own in _SETS.items()},
}
"""Forms recognised by their columns, first match wins: the columns a form needs and what reads one row of it."""


_CARE = {"label", "preference", "score_chosen", "score_rejected", *SCORES, "prompt_rejected", "system",
         "system_prompt", "history", "input", *TEMPLATE}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What is known of a row by its columns: what reads it, the cells it needs, and the columns nothing reads.

    A plain one has its pair in `prompt`, `chosen` and `rejected`, and no column that says more of it.
    """

    layout: Layout | None
    needed: list[str]
    explicit: bool
    plain: bool
    asked: bool
    reads_asked: bool
    talks: list[str]
    unread: tuple[str, ...]


@lru_cache(maxsize=1024)
def form_of(names: tuple[str, ...]) -> Form:
    """Returns the form of rows with these columns; where none is known, without a layout and with what is missing."""
    found = next(((columns, layout) for columns, layout in LAYOUTS.values() if columns <= set(names)), None)
    if found is None:
        known = [columns for columns, _ in LAYOUTS.values()]
        nearest = max(known, key=lambda columns: len(columns & set(names)) / len(columns))
        return Form(None, sorted(nearest - set(names)), False, False, False, False, [], ())
    columns, layout = found
    asked = prompt_columns(names)
    read = {*columns, *asked, "history", "prompt_rejected"}
    prompts = [name for name in asked if layout in EXPLICIT and (name != "input" or len(asked) == 1)]
    prompts += [name for name in names if name == "label" and layout in EXPLICIT and "prompt_left" in asked]
    ours = {*NAMES, "prompt_left", "prompt_right"} - {"fault"}  # a reader's fault is no column of a row
    named = {layout.keywords[name] for name in NAMES if name in layout.keywords} if isinstance(layout, partial) else ()
    unread = tuple(name for name in names if name not in {*ours, *columns, *asked, *named})
    talks = [name for name in names if name in TALKS and name in read]
    plain = layout is _explicit and asked == ("prompt",) and _CARE.isdisjoint(names)
    explicit, sides = layout in EXPLICIT, not columns.isdisjoint(("left", "response_left"))
    return Form(layout, [*sorted(columns), *prompts], explicit, plain, bool(asked), explicit or sides, talks, unread)


def how_to_rename(names: tuple[str, ...]) -> str:
    """Returns what makes a known form of columns that fit none, guessed where their names say who won.

    Example:

    ```python
    >>> how_to_rename(("question", "good", "bad")).partition(" (")[0]
    'wanted prompt, chosen and rejected: add --map chosen=good --map rejected=bad'
    ```
    """
    left = [name for name in names if name not in prompt_columns(names)]
    worse = [name for name in left if re.search(_WORSE, name.lower())]
    better = [name for name in left if name not in worse and re.search(_BETTER, name.lower())]
    rest = [name for name in left if name not in worse + better]
    renamed = [f"--map chosen={name}" for name in better if name != "chosen"]
    renamed += [f"--map rejected={name}" for name in worse if name != "rejected"]
    judge = next((name for name in left if _JUDGE.fullmatch(name)), None)
    if len(better) != 1 or len(worse) != 1:
        if judge and len(left) > 2 and {"chosen", "rejected"}.isdisjoint(names):
            own = {"response_a": "FIRST", "response_b": "SECOND", "winner": judge}
            mapped = " ".join(f"--map {new}={old}" for new, old in own.items() if new not in names)
            return (
                f"wanted two answers and who won, A, B or tie: add {mapped} (rmtrl/data/columns.yaml lists all forms)"
            )
        renamed = ["--map chosen=YOURS", "--map rejected=YOURS"]
    elif not prompt_columns(names) and len(rest) == 1:
        renamed.insert(0, f"--map prompt={rest[0]}")
    return (
        f"wanted prompt, chosen and rejected: add {' '.join(renamed)} (a recipe takes what `rmtrl data validate --map "
        "new=old --out FILE` writes; rmtrl/data/columns.yaml lists all forms)"
    )


def is_pair(row: Row) -> bool:
    """Returns whether a row is of a known form, by its columns."""
    return form_of(tuple(row)).layout is not None
