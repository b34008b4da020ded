"""RMB: pairs and best-of-n over 49 categories of helpfulness and harmlessness.

Zhou et al. 2024, https://huggingface.co/papers/2410.09893; data and the rule of pairs
https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark, best-of-n as in https://github.com/RM-R1-UIUC/RM-R1.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks.base import Credit, Figure, Figures, Item, Scores, average, named, pooled
from rmtrl.evaluation.benchmarks.pairs import StrictBest, strictly_best, with_distinct_ids
from rmtrl.evaluation.benchmarks.rows import (
    Placed,
    answered,
    cell,
    file_rows,
    folder_files,
    prompt_key,
    prompt_of,
    text,
)

_SETS = {"Pairwise_set": "pairs", "BoN_set": "best-of-n"}
_SECTIONS = {"pairs helpfulness": 10067, "pairs harmlessness": 7064, "best-of-n helpfulness": 2109,
             "best-of-n harmlessness": 1677}  # fmt: skip


class RMB(StrictBest):
    """RMB, from the repository's `RMB_dataset` folder, a folder in it, or one of its files."""

    name = "rmb"
    rule = (
        "chosen must score above reject, the best answer above every loser; each of the four sets is the mean over "
        "its rows, overall the mean of the four"
    )
    kind = "mixed"
    source = "https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark"
    expected = _SECTIONS

    def read(self, path: str | None = None) -> list[Item]:
        if path is None:
            raise DataError(f"RMB is not on the hub; clone {self.source} and give rmb=PATH of its folder RMB_dataset")
        files = folder_files(Path(path).expanduser())
        return with_distinct_ids(_item(placed) for file in files for placed in file_rows(file))

    def credits(self, items: Sequence[Item], scores: Scores) -> list[Credit]:
        return [
            Credit(f"{item.subset}/{item.facts['category']}", item.prompt_id,
                   math.nan if own is None else strictly_best(own, item.facts["correct"]))
            for item, own in zip(items, scores, strict=True)
        ]  # fmt: skip

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        of = {name: [part for part in parts if part.startswith(f"{name}/")] for name in _SECTIONS}
        sections = named({name: pooled(parts, own) for name, own in of.items()})
        return Figures(average(sections.values()), sections)


def _item(placed: Placed) -> Item:
    kind, _, category = text(placed, "category_path").partition("/")
    goal, _, category = category.partition("/")
    subset = f"{_SETS.get(kind)} {goal.lower()}"
    if subset not in _SECTIONS or not category:
        raise DataError(
            f"{placed[0]}: category_path is {placed[1]['category_path']!r}; wanted <set>/<goal>/<category>"
        )
    prompt = [{key: turn[key] for key in ("role", "content")} for turn in prompt_of(placed, "conversation_input")]
    if kind == "BoN_set":
        form, own_id, answers = (
            "best-of-n",
            str(cell(placed, "bon_uid")),
            [cell(placed, "bon_best"), *cell(placed, "loser_list")],
        )
    else:
        form, own_id, answers = (
            "pairs",
            str(cell(placed, "pair_uid")),
            [cell(placed, "chosen"), cell(placed, "reject")],
        )
    if len(answers) < 2 or not all(isinstance(answer, dict) for answer in answers):
        raise DataError(
            f"{placed[0]}: its answers are {str(answers)[:60]}; wanted two or more with llm_name and answer"
        )
    candidates = answered(prompt, [text((placed[0], answer), "answer") for answer in answers])
    facts = {"correct": (0,), "category": category}
    return Item(f"{form}/{own_id}", prompt_key(prompt), subset, candidates, facts, own_id=own_id)
