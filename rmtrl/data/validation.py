"""Checks preference pairs and counts what is wrong with them: every rejected row keeps one reason, none disappears."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rmtrl.data.loading import progress_bars
from rmtrl.data.messages import ROLES, TOOL_ROLES, canonical, is_blank, same, says
from rmtrl.data.normal_form import ROW_GIVEN, TEMPLATE
from rmtrl.data.splits import check_dataset, counted, with_column
from rmtrl.data.templates import TEMPLATE_ERRORS, check_chat_template, rendered
from rmtrl.errors import DataError, UsageError
from rmtrl.io import LARGE_ROWS, Row, table_columns
from rmtrl.types import Chat, Conversation, Message

REASONS = (
    "unreadable", "missing_field", "bad_roles", "context_mismatch", "empty_prompt", "empty_response",
    "identical_candidates", "non_finite_margin", "tie_or_abstention", "unrenderable", "too_long", "duplicate_pair",
    "contradictory_pair",
)  # fmt: skip
"""Why a row can be rejected, in order of precedence: a row with several faults is counted under the first."""

_CODES: dict[str | None, int] = {None: 0} | {reason: code for code, reason in enumerate(REASONS, 1)}
_NEEDED = ("prompt_id", "domain", "prompt", "chosen", "rejected")
_OPTIONAL = ("prompt_rejected", "prompt_left", "prompt_right", "margin", "preference", "fault", "tools",
             "chat_template_kwargs")  # fmt: skip
_COUNTED = ("prompt_id", "domain", "id", "needs_annotation", "margin")
_BATCH_ROWS = 1000


@dataclass(frozen=True)
class ValidationResult:
    """The sound pairs, the rejected ones with their reasons, and the counts.

    Args:
        kept (`Dataset`): Sound rows, in the order of the input, with all its columns but `fault`.
        rejects (`Dataset`): The other rows, with all columns of the input and `reason`; `fault` has what the reader or
            the chat template said. A column `reason` of the input is `reason_given`.
        reasons (`dict[str, int]`): Rejected rows by reason; every reason of `REASONS` is present.
        n (`int`): Rows of the input, always `len(kept) + len(rejects)`.
        tie_rate (`float`): Share of ties among the rows of the input.
        groups (`int`): Distinct `prompt_id`s among the kept rows.
        domains (`dict[str, int]`): Kept rows by domain, the largest first.
        warnings (`tuple[str, ...]`): What a person should look at.
    """

    kept: Dataset
    rejects: Dataset
    reasons: dict[str, int]
    n: int
    tie_rate: float
    groups: int
    domains: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def why(self) -> str:
        """The reasons with their counts, the first fault that has words of its own, and the warnings."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.items() if count)
        faults = self.rejects["fault"] if "fault" in self.rejects.column_names else []
        first = next((f"; the first: {fault}" for fault in faults if fault), "")
        return "; ".join([f"{reasons}{first}", *self.warnings])

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts as a plain dictionary, ready for JSON."""
        counts = {"n": self.n, "kept": len(self.kept), "rejected": len(self.rejects)}
        rest = {name: getattr(self, name) for name in ("reasons", "tie_rate", "groups", "domains")}
        return {**counts, **rest, "warnings": list(self.warnings)}


def validate(
    dataset: Dataset, *, ties: Literal["drop", "keep"] = "drop", tokenizer: Any = None, max_length: int | None = None
) -> ValidationResult:
    """Returns which pairs can be trained on and why the others cannot.

    Rows are read once, in batches. A pair that stands in both orders under one prompt is contradictory and all its
    rows are rejected, whichever came first; a repeated pair is kept once. A tie contradicts nothing.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        ties (`str`): `"drop"` rejects pairs with `preference` ½; `"keep"` leaves them, for a loss that knows ties.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Renders messages, with their tools and template variables:
            what its chat template refuses is rejected. Counts tokens, as TRL does: after the chat template for
            messages; for strings prompt and response together, with the end token where the text lacks it.
        max_length (`int`, *optional*): A pair with a side over this many tokens is rejected whole, never truncated.

    Raises:
        DataError: If a column of the normal form is missing.
        UsageError: If `max_length` comes without a tokenizer, or `ties` is neither of the two.

    Example:

    ```python
    >>> result = validate(read_preferences("examples/pairs.jsonl"))
    >>> len(result.kept), result.reasons["identical_candidates"]
    (4, 1)
    ```
    """
    check_dataset(dataset)
    if ties not in ("drop", "keep"):
        raise UsageError(f"ties is {ties!r}; wanted 'drop' or 'keep'")
    if max_length is not None and tokenizer is None:
        raise UsageError(f"max_length is {max_length} but there is no tokenizer to count with; give tokenizer too")
    missing = [name for name in _NEEDED if name not in dataset.column_names]
    if missing:
        raise DataError(f"got pairs without {', '.join(missing)}; wanted the normal form, see to_normal_form")
    codes, is_tie, said = _codes(dataset, ties == "drop", tokenizer, max_length)
    sound = codes == 0
    counts = np.bincount(codes, minlength=len(REASONS) + 1)[1:].tolist()
    tie_rate = float(is_tie.mean()) if len(is_tie) else 0.0
    named = [name for name in _COUNTED if name in dataset.column_names]
    names: pa.Table = dataset.select_columns(named).with_format("arrow")[:]
    kept_names = names.filter(pa.array(sound))
    kept, rejects = (dataset.select(np.flatnonzero(rows)) for rows in (sound, ~sound))
    with progress_bars(len(rejects) >= LARGE_ROWS):
        if "reason" in rejects.column_names and "reason_given" not in rejects.column_names:
            rejects = rejects.rename_column("reason", "reason_given")
        reasons = pa.array([REASONS[code - 1] for code in codes[~sound]], pa.string())
        rejects, _ = with_column(rejects, "reason", reasons)
        if said:
            before = rejects["fault"][:] if "fault" in rejects.column_names else [None] * len(rejects)
            rows = np.flatnonzero(~sound).tolist()
            faults = [said.get(row) or fault for row, fault in zip(rows, before, strict=True)]
            rejects, _ = with_column(rejects, "fault", pa.array(faults, pa.string()))
    return ValidationResult(
        kept=kept.remove_columns([name for name in ("fault", ROW_GIVEN) if name in kept.column_names]),
        rejects=rejects,
        reasons=dict(zip(REASONS, counts, strict=True)),
        n=len(dataset),
        tie_rate=tie_rate,
        groups=pc.count_distinct(kept_names["prompt_id"]).as_py(),
        domains=counted(kept_names["domain"].to_pylist()),
        warnings=(
            *filter(None, (dataset.info.description or "").split("\n")),
            *_warnings(tie_rate, names, kept_names),
        ),
    )


def _warnings(tie_rate: float, names: pa.Table, kept: pa.Table) -> tuple[str, ...]:
    repeated = len(names) - pc.count_distinct(names["id"]).as_py() if "id" in names.column_names else 0
    waiting = kept["needs_annotation"].to_pylist() if "needs_annotation" in kept.column_names else []
    n_waiting = sum(str(value).lower() in ("true", "1") for value in waiting)
    without_margin = kept["margin"].null_count if "margin" in kept.column_names else 0
    said = {
        f"{n_waiting:,} pairs are variants with the label of their original: have them annotated": n_waiting > 0,
        f"{tie_rate:.0%} of the pairs are ties: unclear guidelines?": tie_rate > 0.30,
        f"{repeated:,} duplicate ids: scores and rejects cannot be told apart by id": repeated > 0,
        f"{without_margin:,} pairs have no margin, and training wants all: fill it in, or drop it": without_margin > 0,
    }
    return tuple(warning for warning, holds in said.items() if holds)


def _codes(
    dataset: Dataset, drop_ties: bool, tokenizer: Any, max_length: int | None
) -> tuple[NDArray[np.int8], NDArray[np.bool_], dict[int, str]]:
    """Returns the reason code of each row, 0 if sound, whether it is a tie, and what a template said of some."""
    n = len(dataset)
    codes, is_tie = np.zeros(n, np.int8), np.zeros(n, bool)
    keys, winners = np.zeros(n, np.int64), np.zeros(n, np.int8)
    said: dict[int, str] = {}
    present = [name for name in (*_NEEDED[2:], *_OPTIONAL) if name in dataset.column_names]
    batches = dataset.select_columns(present).with_format("arrow").iter(_BATCH_ROWS)
    starts = tqdm(range(0, n, _BATCH_ROWS), desc="Validating, in thousands", disable=n < LARGE_ROWS)
    for start, table in zip(starts, batches, strict=True):
        columns = table_columns(table)
        pairs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        rows = slice(start, start + len(pairs))
        is_tie[rows] = [pair.get("preference") == 0.5 for pair in pairs]
        codes[rows] = [_CODES[_reason(pair, drop_ties)] for pair in pairs]
        if tokenizer is not None:
            refused = _mark_rendered(codes[rows], pairs, tokenizer, max_length)
            said |= {start + row: f"unrenderable: row {start + row + 1}: {text}" for row, text in refused.items()}
        known = [(0, 0) if code else _key(pair) for pair, code in zip(pairs, codes[rows].tolist(), strict=True)]
        keys[rows], winners[rows] = zip(*known, strict=True)
    _mark_repeated(codes, keys, winners)
    return codes, is_tie, said


def _reason(pair: Row, drop_ties: bool) -> str | None:
    prompt, chosen, rejected = sides = pair["prompt"], pair["chosen"], pair["rejected"]
    fault, other = pair.get("fault"), pair.get("prompt_rejected")
    if fault is not None:
        reason = fault.split(":", 1)[0]
        return reason if reason in REASONS else "unreadable"
    if None in sides or (isinstance(prompt, list) and any(map(_has_null, sides))):
        return "missing_field"
    if isinstance(prompt, list) and _has_bad_roles(prompt, chosen, rejected):
        return "bad_roles"
    if pair.get("prompt_left") != pair.get("prompt_right") or (other is not None and not same(other, prompt)):
        return "context_mismatch"
    if _is_blank(prompt):
        return "empty_prompt"
    if _is_blank(chosen) or _is_blank(rejected):
        return "empty_response"
    if same(chosen, rejected):
        return "identical_candidates"
    if not math.isfinite(pair.get("margin") or 0.0):
        return "non_finite_margin"
    return "tie_or_abstention" if drop_ties and pair.get("preference") == 0.5 else None


def _has_null(side: list[Message]) -> bool:
    return any(message is None or message.get("role") is None or not says(message) for message in side)


def _has_bad_roles(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> bool:
    if not (prompt and chosen and rejected):
        return True
    if not all(message["role"] in ROLES for side in (prompt, chosen, rejected) for message in side):
        return True
    asks = prompt[-1]["role"] in ("user", *TOOL_ROLES)
    return not (asks and chosen[-1]["role"] == rejected[-1]["role"] == "assistant")


def _is_blank(side: Conversation) -> bool:
    if isinstance(side, str):
        return not side or side.isspace()
    return is_blank(side[-1]) and side[-1]["role"] not in TOOL_ROLES  # a tool may return nothing


# ---- rendering


def _mark_rendered(
    codes: NDArray[np.int8], pairs: list[Row], tokenizer: Any, max_length: int | None
) -> dict[int, str]:
    """Marks what the chat template refuses and what is too long; returns what the template said, by row."""
    said: dict[int, str] = {}
    for side in ("chosen", "rejected"):
        rows = np.flatnonzero(codes == 0).tolist()
        plain = bool(rows) and isinstance(pairs[rows[0]]["prompt"], str)
        if rows and not plain:
            check_chat_template(tokenizer)
        texts: dict[int, str] = {}
        for row, pair in ((row, pairs[row]) for row in rows):
            try:
                texts[row] = _rendered(Chat.of(pair["prompt"] + pair[side], pair), tokenizer)
            except TEMPLATE_ERRORS as error:
                codes[row], said[row] = _CODES["unrenderable"], " ".join(f"{type(error).__name__}: {error}".split())
        if texts and max_length is not None:
            # a template writes the special tokens itself
            ids = tokenizer(list(texts.values()), add_special_tokens=plain)["input_ids"]
            codes[[row for row, own in zip(texts, ids, strict=True) if len(own) > max_length]] = _CODES["too_long"]
    return said


def _rendered(conversation: Conversation, tokenizer: Any) -> str:
    """Returns a conversation as TRL renders it, text with the end token."""
    if not isinstance(conversation, str):
        return rendered(tokenizer, conversation)
    end = getattr(tokenizer, "eos_token", None) or ""
    return conversation if conversation.endswith(end) else conversation + end


# ---- repeated pairs


def _key(pair: Row) -> tuple[int, int]:
    """Returns a hash of the pair that is blind to the order of its sides, and who wins: 1, −1, or 0 for a tie."""
    prompt, chosen, rejected = (canonical(pair[name]) for name in ("prompt", "chosen", "rejected"))
    template = [canonical(pair[name]) for name in TEMPLATE if pair.get(name)]
    first, second = (chosen, rejected) if chosen < rejected else (rejected, chosen)
    preference = pair.get("preference")
    ahead = 1 if preference is None or math.isnan(preference) else (preference > 0.5) - (preference < 0.5)
    return hash((prompt, first, second, *template)), ahead if first is chosen else -ahead


def _mark_repeated(codes: NDArray[np.int8], keys: NDArray[np.int64], winners: NDArray[np.int8]) -> None:
    """Marks duplicate and contradictory pairs among the rows that are sound so far.

    A duplicate says the same of the same pair: the same side wins, or it is a tie again.
    """
    sound = np.flatnonzero(codes == 0)
    rows = pd.DataFrame({"pair": keys[sound], "winner": winners[sound]}, index=sound)
    winner = rows.groupby("pair")["winner"]
    contradictory = (winner.transform("max") == 1) & (winner.transform("min") == -1) & (rows["winner"] != 0)
    codes[sound[contradictory]] = _CODES["contradictory_pair"]
    rest = rows[~contradictory]
    codes[rest.index[rest.duplicated()]] = _CODES["duplicate_pair"]
