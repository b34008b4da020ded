"""The benchmarks of the one rule, pairs or best-of-k rows and weighted means of their parts: public ones and your own.

Your own is a folder with files of rows and a `benchmark.yaml`:

```yaml
name: my-benchmark
kind: instruction following        # what decides who is right
rule: pairs                        # rows {prompt, chosen, rejected}; or best_of: {prompt, candidates, correct};
                                   # and tools, chat_template_kwargs where the prompt has them
subsets:                           # file of each subset
  short: short.jsonl
  long: long.jsonl
sections:                          # optional: weights of the subsets in each section
  all: {short: 1, long: 2}
```
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.benchmarks.base import (
    Benchmark,
    Figure,
    Figures,
    Item,
    Row,
    average,
    file_rows,
    folder_files,
    made_item,
    named,
    named_after,
    pooled,
)


class JudgeBench(Benchmark):
    """JudgeBench: pairs of answers of one model, of which one is verified to be right.

    Tan et al. 2024, https://huggingface.co/papers/2410.12784; code https://github.com/ScalerLab/JudgeBench.

    Args:
        split (`str`): Whose answers are judged: `"gpt"` (GPT-4o, 350 pairs, the split that is reported) or `"claude"`
            (Claude 3.5 Sonnet, 270 pairs).
    """

    rule = (
        "the right answer must score above the wrong one; overall is the mean over all pairs, as on JudgeBench's "
        "leaderboard; `macro` is the mean of the four sections, as in the Skywork-Reward-V2 report"
    )
    ties = "a tie is wrong (the official code reads it as B>A, which depends on the order of the answers)"
    kind = "verified correctness"
    source = "ScalerLab/JudgeBench"
    id, prompt, answers, facts = "pair_id", "question", ("response_A", "response_B"), ("source",)
    correct = ("label", {"A>B": 0, "B>A": 1})
    starts = {"mmlu-pro": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math",
              "livecodebench": "coding"}  # fmt: skip
    sections = {name: [name] for name in starts.values()}
    overall, others = "rows", {"macro": "sections"}

    def __init__(self, split: str = "gpt") -> None:
        sizes = {"gpt": (154, 98, 56, 42), "claude": (154, 51, 34, 31)}
        if split not in sizes:
            raise UsageError(f"got the split {split!r}; wanted gpt or claude")
        self.name = "judgebench" if split == "gpt" else f"judgebench-{split}"
        self.split = split
        self.hub = {"": (self.source, split)}
        self.expected = dict(zip(self.starts.values(), sizes[split], strict=True))

    def local_rows(self, path: Path) -> Iterable[Row]:
        files = folder_files(path)
        if len(files) > 1:
            files = [file for file in files if self.split in file.name and not file.name.startswith("scores")]
        if len(files) != 1:
            raise DataError(f"{path} has {len(files)} files of the split {self.split}; give the file itself")
        return file_rows(files[0])

    def subset_of(self, row: Row) -> str:
        for start, section in self.starts.items():
            if row.text("source").startswith(start):
                return section
        raise row.wrong("source", f"wanted one that starts with {', '.join(self.starts)}")


class LLMBar(Benchmark):
    """LLMBar: which of two outputs follows the instruction, natural and adversarial.

    From the repository's `Dataset/LLMBar` folder or from files named after the five sets. Zeng et al. 2023,
    https://huggingface.co/papers/2310.07641; code https://github.com/princeton-nlp/LLMBar.
    """

    name = "llmbar"
    rule = (
        "the output that follows the instruction must score above the other; overall is the mean over all rows, "
        "`macro` the mean of the five sets, adversarial is the mean over the rows of its four sets"
    )
    kind = "instruction following"
    source = "princeton-nlp/LLMBar"
    expected = {"natural": 100, "neighbor": 134, "gptinst": 92, "gptout": 47, "manual": 46}
    hub = {
        split.lower(): ("princeton-nlp/LLMBar", split, "LLMBar")
        for split in ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")
    }
    prompt, answers = "input", ("output_1", "output_2")
    correct = ("label", {"1": 0, "2": 1})
    sections = {"natural": ["natural"], "adversarial": ["neighbor", "gptinst", "gptout", "manual"]}
    overall, others = "rows", {"macro": "parts"}

    def local_rows(self, path: Path) -> Iterator[Row]:
        known = set()
        for file in folder_files(path, ignore=("result.json", "statistics.json")):
            if (of := named_after(file, self.hub, "a set of LLMBar", folders=1)) in known:
                raise DataError(f"{file} is another file of the set {of}; give one file a set")
            known.add(of)
            yield from file_rows(file, of)


class RewardBench(Benchmark):
    """RewardBench, first version: 23 subsets of pairs in four sections, and the prior preference sets.

    Lambert et al. 2024, https://huggingface.co/papers/2403.13787; code https://github.com/allenai/reward-bench.

    Args:
        prior (`bool`): Whether the prior sets (`allenai/pref-test-sets`) count too: from the hub, or from files named
            after them in the folder that holds the `filtered` split. Without them the overall figure is the mean of
            the four sections, as model cards report it.
    """

    rule = (
        "chosen must score above rejected; sections weigh subsets by EXAMPLE_COUNTS (math-prm as 984 rows), overall "
        "is their mean, with Prior Sets at half weight where they are scored (rewardbench 0.1.4)"
    )
    kind = "mixed"
    source = "allenai/reward-bench"
    sections: Mapping[str, Mapping[str, int]] = {
        "Chat": {
            "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28,
            "mt-bench-med": 40,
        },
        "Chat Hard": {
            "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
            "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
        },
        "Safety": {
            "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154,
            "xstest-should-respond": 250, "donotanswer": 136,
        },
        "Reasoning": {  # math-prm has 447 rows, and weighs as much as the code subsets together
            "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
            "hep-rust": 164,
        },
    }  # fmt: skip
    prior_sets = {"anthropic_helpful": 6192, "anthropic_hhh": 221, "shp": 1741, "summarize": 9000}

    def __init__(self, prior: bool = False) -> None:
        self.name = "rewardbench-prior" if prior else "rewardbench"
        self.hub = {"": (self.source, "filtered")}
        self.expected = {subset: n for weights in self.sections.values() for subset, n in weights.items()}
        self.expected["math-prm"] = 447
        if prior:
            self.hub |= {name: ("allenai/pref-test-sets", name) for name in self.prior_sets}
            self.expected |= self.prior_sets

    def local_rows(self, path: Path) -> Iterable[Row]:
        if len(self.hub) == 1 or not path.is_dir():
            return super().local_rows(path)
        files = folder_files(path)
        rows = [row for of in self.hub for file in files if file.name.startswith(of or "filtered")
                for row in file_rows(file, of)]  # fmt: skip
        if all(row.of for row in rows):
            listed = ", ".join(file.name for file in files)
            raise DataError(f"{path} holds {listed[:200]}; wanted a file filtered… of RewardBench too")
        return rows

    def subset_of(self, row: Row) -> str:
        if (subset := super().subset_of(row)) not in self.expected:
            raise DataError(f"{row.place}: RewardBench has no subset {subset!r}; give its filtered split")
        return subset

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        own = super().figures(parts)
        prior = average(parts.get(name) for name in self.prior_sets)
        if prior is None:
            return own
        overall = average([*own.sections.values(), prior], [2.0] * len(own.sections) + [1.0])
        others = named({"mean of the four sections": own.overall})
        return Figures(overall, {**own.sections, "Prior Sets": prior}, others)


class RMB(Benchmark):
    """RMB: pairs and best-of-n over 49 categories of helpfulness and harmlessness.

    From the repository's `RMB_dataset` folder, a folder in it, or one of its files. Zhou et al. 2024,
    https://huggingface.co/papers/2410.09893; data and the rule of pairs
    https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark, best-of-n as in https://github.com/RM-R1-UIUC/RM-R1.
    """

    name = "rmb"
    rule = (
        "chosen must score above reject, the best answer above every loser; each of the four sets is the mean over "
        "its rows, overall the mean of the four"
    )
    kind = "mixed"
    source = "https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark"
    expected = {"pairs helpfulness": 10067, "pairs harmlessness": 7064, "best-of-n helpfulness": 2109,
                "best-of-n harmlessness": 1677}  # fmt: skip

    def hub_rows(self) -> Iterator[Row]:
        raise DataError(f"RMB is not on the hub; clone {self.source} and give rmb=PATH of its folder RMB_dataset")

    def local_rows(self, path: Path) -> Iterable[Row]:
        return (row for file in folder_files(path) for row in file_rows(file))

    def item(self, row: Row) -> Item:
        kind, goal, category = (row.text("category_path").split("/", 2) + ["", ""])[:3]
        pairs = kind == "Pairwise_set"
        form, id_column = ("pairs", "pair_uid") if pairs else ("best-of-n", "bon_uid")
        subset = f"{form} {goal.lower()}"
        if kind not in ("Pairwise_set", "BoN_set") or subset not in self.expected or not category:
            raise row.wrong("category_path", "wanted <set>/<goal>/<category>")
        own_id = str(row.cell(id_column))
        best, losers = ("chosen", [row.cell("reject")]) if pairs else ("bon_best", row.cell("loser_list"))
        answers = [row.cell(best), *losers]
        if len(answers) < 2 or not all(isinstance(answer, dict) for answer in answers):
            said = f"its answers are {str(answers)[:60]}; wanted two or more with llm_name and answer"
            raise DataError(f"{row.place}: {said}")
        prompt = [{key: turn[key] for key in ("role", "content")} for turn in row.prompt("conversation_input")]
        texts = [Row(row.place, answer).text("answer") for answer in answers]
        facts = {"correct": (0,), "category": category}
        return made_item(f"{form}/{own_id}", prompt, subset, texts, facts, own_id)

    def part_of(self, item: Item) -> str:
        return f"{item.subset}/{item.facts['category']}"

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        of = {name: [part for part in parts if part.startswith(f"{name}/")] for name in self.expected}
        sections = named({name: pooled(parts, own) for name, own in of.items()})
        return Figures(average(sections.values()), sections)


class PPEPreference(Benchmark):
    """PPE's human preferences: accuracy on the pairs where the human named a winner.

    Frick et al. 2024, https://huggingface.co/papers/2410.14872; code https://github.com/lmarena/PPE.
    """

    name = "ppe-preference"
    rule = "the response the human preferred must score above the other; pairs that the human tied are left out"
    kind = "human preference"
    source = "lmarena-ai/PPE-Human-Preference-V1"
    expected = {"human preference": 16038}
    takes_failed = True
    hub = {"": ("lmarena-ai/PPE-Human-Preference-V1", "test")}
    id, answers, facts = "question_id", ("response_1", "response_2"), ("language",)
    correct = ("winner", {"model_a": 0, "model_b": 1, "tie": 0})
    overall = "rows"

    def item(self, row: Row) -> Item:
        if not row.text("winner").startswith("tie"):
            return super().item(row)
        item = super().item(row._replace(cells={**row.cells, "winner": "tie"}))
        return replace(item, excluded="tied by the human")

    def subset_of(self, row: Row) -> str:
        return "human preference"


PUBLIC = [RewardBench(), RewardBench(prior=True), RMB(), JudgeBench(), JudgeBench("claude"), PPEPreference(), LLMBar()]

_RULES = {
    "pairs": "chosen must score above rejected",
    "best_of": "the best of the correct candidates must score above every other",
}
_KEYS = {"name": str, "kind": str, "rule": str, "subsets": dict, "sections": dict}


class UserBenchmark(Benchmark):
    """A benchmark from a folder of your own; overall is the mean of its sections, or of all rows without sections.

    Args:
        folder (`str` or `Path`): Folder with `benchmark.yaml`.

    Raises:
        DataError: If the file is missing, or has a key that is unknown, absent or of the wrong form.

    Example:

    ```python
    >>> UserBenchmark("examples/benchmark").name
    'kitchen'
    ```
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.source = str(folder)
        settings = _settings(self.folder / "benchmark.yaml")
        self.name, self.kind, self.form = settings["name"], settings["kind"], settings["rule"]
        self.subsets, self.sections = settings["subsets"], settings["sections"]
        if not self.sections:
            self.overall = "rows"
        else:
            self.others = {"all rows": "rows"}
        self.rule = (
            f"{_RULES[self.form]}; overall is the mean {'of the sections' if self.sections else 'over all rows'}"
        )

    def hub_rows(self) -> Iterable[Row]:
        return self.local_rows(self.folder)

    def local_rows(self, path: Path) -> Iterator[Row]:
        for subset, file in self.subsets.items():
            yield from file_rows(path / file, subset)

    def id_of(self, row: Row) -> str:
        own = row.cells.get("id")
        return super().id_of(row) if own is None else str(own)

    def repeated(self, row: Row, item: Item, times: int) -> Item:
        raise DataError(f"{row.place}: the id {item.id!r} stands twice; ids of a benchmark must differ")

    def item(self, row: Row) -> Item:
        if self.form == "pairs":
            return super().item(row)
        candidates, correct = row.texts("candidates"), row.cell("correct")
        known = isinstance(correct, list) and all(type(i) is int and 0 <= i < len(candidates) for i in correct)
        if not known or not 0 < len(set(correct)) < len(candidates):
            last = len(candidates) - 1
            raise row.wrong("correct", f"wanted indices from 0 to {last}, one at least and not all of them")
        return made_item(self.id_of(row), row.prompt(), row.of, candidates, {"correct": tuple(correct)})


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError(f"a key stands twice in {', '.join(keys)}")
        return super().construct_mapping(node, deep)


def _settings(path: Path) -> dict[str, Any]:
    """Returns what `benchmark.yaml` holds, checked."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    wanted = f"wanted keys {', '.join(_KEYS)}"
    if not isinstance(found, dict):
        raise DataError(f"{path} is {str(found)[:40]!r}; {wanted}")
    settings = {"sections": {}, **found}
    if absent := [key for key in _KEYS if key not in settings]:
        raise DataError(f"{path} has no {', '.join(absent)}; {wanted}")
    for fault in _faults(settings):
        raise DataError(f"{path}{fault}")
    return settings


def _faults(settings: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the settings, the first fault first."""
    for key, value in settings.items():
        if key not in _KEYS:
            yield f" has the key {key!r}; wanted {', '.join(_KEYS)}"
        elif not isinstance(value, _KEYS[key]):
            yield f": {key} is {str(value)[:40]!r}; wanted a {_KEYS[key].__name__}"
    name, rule, subsets = settings["name"], settings["rule"], settings["subsets"]
    if not re.fullmatch(r"\w([\w.-]*\w)?", name):
        yield f": name is {name!r}; wanted letters and digits, dots and hyphens between them only"
    if rule not in _RULES:
        yield f": rule is {rule!r}; wanted {' or '.join(_RULES)}"
    if not subsets or not all(isinstance(text, str) for text in (*subsets, *subsets.values())):
        yield f": subsets is {subsets}; wanted a file for every subset, both as text"
    for section, weights in settings["sections"].items():
        if not isinstance(section, str) or not isinstance(weights, dict) or not weights:
            yield f": section {section} is {weights!r}; wanted a weight for each of its subsets"
        for subset, weight in weights.items():
            if subset not in subsets:
                yield f": section {section} has the subset {subset!r}, which has no file"
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                yield f": the weight of {subset} in {section} is {weight!r}; wanted a number above 0"
