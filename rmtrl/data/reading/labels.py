"""Who won, where the column `label` says it in words or in numbers that no set has fixed."""

import re
from collections.abc import Collection

from rmtrl.errors import DataError
from rmtrl.io import Row

CODES = frozenset({"0", "1"})
_VERDICTS = {"chosen": 1.0, "left": 1.0, "rejected": 0.0, "right": 0.0, "tie": 0.5, "abstain": 0.5}


def label_code(row: Row) -> str | None:
    """Returns the number in the column `label` of a form whose codes no set has fixed, None where there is none."""
    named = {"left", "right"} <= set(row) or {"response_left", "response_right"} <= set(row)
    label = row.get("label")
    if isinstance(label, bool) or not (named or "prompt_left" in row):
        return None
    if isinstance(label, str) and not re.fullmatch(r"\s*[+-]?\d+(\.\d+)?\s*", label):
        return None
    return f"{float(label):g}" if isinstance(label, str | int | float) else None


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


def has_label(row: Row) -> bool:
    """Returns whether something stands in the column `label`."""
    label = row.get("label")
    return bool(label.strip()) if isinstance(label, str) else label is not None


def verdict(row: Row, *, strict: bool = False) -> float | None:
    """Returns what `label` says of a row whose sides are called chosen and rejected: 1 where chosen won.

    Chosen is the left side. Beside `prompt_left` and `prompt_right`, or where `strict`, a label must be a verdict;
    else any other value is the user's own.
    """
    if not {"chosen", "chosen_response"} & row.keys():
        return None
    label = row.get("label")
    found = _VERDICTS.get(label.strip().lower()) if isinstance(label, str) else None
    if found is None and has_label(row) and (strict or "prompt_left" in row):
        raise DataError(f"label {str(label)[:40]!r} is none of {', '.join(_VERDICTS)}")
    return found


def label_notes(source: str, codes: Collection[str], judged: Collection[bool]) -> list[str]:
    """Returns what a person may not expect of how `label` is read.

    Args:
        source (`str`): What to call the set.
        codes (`Collection[str]`): Numbers that were read as a side.
        judged (`Collection[bool]`): Whether labels beside chosen and rejected were verdicts.
    """
    notes = []
    if len(codes) == 1:
        (code,) = codes
        side = ("left", "right")[int(code)]
        notes.append(
            f"{source}: every number in label is {code}, read as {side}; write left, right or tie to be clear"
        )
    if judged and not any(judged):
        notes.append(f"{source}: label is not read, for no row has one of {', '.join(_VERDICTS)} there")
    return notes
