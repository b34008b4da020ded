"""Variants of prompts and of responses that keep their group and are marked for annotation anew."""

from collections.abc import Callable
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets

from rmtrl.data.messages import message_text
from rmtrl.data.normal_form import dataset_of
from rmtrl.errors import DataError
from rmtrl.types import Conversation

Edit = Callable[[str], str]
_SIDES = {"prompt": ("prompt",), "responses": ("chosen", "rejected"), "both": ("prompt", "chosen", "rejected")}


def augment(dataset: Dataset, name: str, edit: Edit, *, of: Literal["prompt", "responses", "both"]) -> Dataset:
    """Returns the pairs followed by a variant of each one that `edit` changes.

    A variant keeps `prompt_id` (and `cluster_id`), so that no split can part it from its original; it has the label of
    the original only until somebody looks: `needs_annotation` is true, and `rmtrl data validate` says how many are.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        name (`str`): Name of the variant; `id` becomes `<id>~<name>` and `variant_of` the original's id.
        edit (`Callable[[str], str]`): Returns another wording of a text; the same text where it has none.
        of (`str`): What to edit: `"prompt"` (its last message), `"responses"` (both) or `"both"`.

    Raises:
        DataError: If a row has this variant already, or `edit` returns no text.

    Example:

    ```python
    >>> augment(pairs, "lower", str.lower, of="prompt")[-1]["needs_annotation"]
    True
    ```
    """
    if "needs_annotation" not in dataset.column_names:
        dataset = dataset.add_column("needs_annotation", [False] * len(dataset))
        dataset = dataset.add_column("variant_of", [""] * len(dataset))
    ids = {id for batch in dataset.select_columns(["id"]).iter(1000) for id in batch["id"]}
    variants: list[dict[str, Any]] = []
    for row in dataset:
        edited = {side: _edited(row[side], edit) for side in _SIDES[of]}
        if all(edited[side] == row[side] for side in edited):
            continue
        id = f"{row['id']}~{name}"
        if id in ids:
            raise DataError(f"row {row['id']} has the variant {name} already; give another name")
        variants.append({**row, **edited, "id": id, "variant_of": row["id"], "needs_annotation": True})
    if not variants:
        return dataset
    return concatenate_datasets([dataset, dataset_of(variants, dataset.features)])


def _edited(side: Conversation, edit: Edit) -> Conversation:
    text = side if isinstance(side, str) else message_text(side[-1])
    edited = edit(text)
    if not isinstance(edited, str):
        raise DataError(f"the edit returned {type(edited).__name__} for {text[:40]!r}; wanted a string")
    if isinstance(side, str) or edited == text:
        return edited if isinstance(side, str) else side
    return [*side[:-1], {**side[-1], "content": edited}]
