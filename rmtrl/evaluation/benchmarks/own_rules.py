"""The public benchmarks that have rules of their own: RMB, RewardBench 2, RM-Bench, PPE correctness."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import base
from rmtrl.evaluation.benchmarks.base import Benchmark, Credit, Figure, Figures, Floats, Item, Row, Scores
from rmtrl.metrics import best_of_n_curve, pair_wins


class RMB(Benchmark):
    """RMB: pairs and best-of-n over categories of helpfulness and harmlessness, from a tree of files."""

    def hub_rows(self) -> Iterator[Row]:
        raise DataError(f"RMB is not on the hub; clone {self.source} and give rmb=PATH of its folder RMB_dataset")

    def local_rows(self, path: Path) -> Iterable[Row]:
        return (row for file in base.folder_files(path) for row in base.file_rows(file))

    def item(self, row: Row) -> Item:
        subset = self.subset_of(row)
        form, category = subset.split(" ")[0], row.text(self.subset).split("/", 2)[2]
        own_id = str(row.cell("pair_uid" if form == "pairs" else "bon_uid"))
        best, losers = ("chosen", [row.cell("reject")]) if form == "pairs" else ("bon_best", row.cell("loser_list"))
        answers = [row.cell(best), *losers]
        if len(answers) < 2 or not all(isinstance(answer, dict) for answer in answers):
            said = f"its answers are {str(answers)[:60]}; wanted two or more with llm_name and answer"
            raise DataError(f"{row.place}: {said}")
        prompt = [{key: turn[key] for key in ("role", "content")} for turn in row.prompt("conversation_input")]
        texts = [Row(row.place, answer).text("answer") for answer in answers]
        facts = {"correct": (0,), "category": category}
        return base.made_item(f"{form}/{own_id}", prompt, subset, texts, facts, own_id)

    def part_of(self, item: Item) -> str:
        return f"{item.subset}/{item.facts['category']}"


class RewardBench2(Benchmark):
    """RewardBench 2: best of four in five domains, and Ties, where many answers are right.

    As `reroll_and_score_dataset`, `_compute_prompt_stats` and `process_single_model` of its code, but that the margin
    `"current"` counts a tied prompt whose correct answers score all alike as 0 (0/0), 1 or −1, and `"0.1.4"`, the last
    release, leaves it out.
    """

    margin: str
    # a sum of at most 1.01, which the official code does not rescale
    ties_weights = {"tied accuracy": 0.30, "ref accuracy": 0.30, "preferred": 0.20, "preferred hard": 0.20,
                    "margin": 0.01}  # fmt: skip

    def item(self, row: Row) -> Item:
        subset, id, prompt = row.text("subset"), str(row.cell("id")), row.prompt()
        chosen, rejected = row.texts("chosen"), row.texts("rejected")
        if subset.lower() != "ties":
            if len(chosen) != 1:
                raise DataError(f"{row.place}: chosen holds {len(chosen)} texts; wanted 1 outside Ties")
            return base.made_item(id, prompt, subset, [*chosen, *rejected])
        kind, _, number = id.partition(":")
        if kind not in ("ref", "tied") or not number:
            raise row.wrong("id", "wanted ref:<n> or tied:<n> in Ties")
        item = base.made_item(id, prompt, "Ties", [*chosen, *rejected], {"kind": kind, "num_correct": len(chosen)})
        return replace(item, prompt_id=f"ties:{number}")

    def earned(self, item: Item, scores: Floats) -> Iterable[tuple[str, float]]:
        if item.subset == "Ties":
            return [(f"Ties/{item.facts['kind']} accuracy", float(gap(scores, item) > 0))]
        return [(item.subset, fractional_credit(scores))]

    def credits(self, items: Sequence[Item], scores: Scores) -> list[Credit]:
        given = [(item, own) for item, own in zip(items, scores, strict=True) if item.subset == "Ties"]
        ties = {(item.facts["kind"], item.prompt_id): (item, own) for item, own in given}
        found = super().credits(items, scores)
        for (kind, prompt), tied in ties.items():
            if kind == "tied" and (ref := ties.get(("ref", prompt))):
                found += [Credit(f"Ties/{name}", prompt, value) for name, value in self._compared(*ref, *tied)]
        return found

    def _compared(
        self, ref: Item, ref_scores: Floats | None, tied: Item, tied_scores: Floats | None
    ) -> Iterator[tuple[str, float]]:
        """Yields whether the gap to the best wrong answer is more than the spread of the correct ones."""
        if ref_scores is None or tied_scores is None:
            yield from dict.fromkeys(("preferred", "preferred hard", "margin"), math.nan).items()
        elif tied.facts["num_correct"] > 1:  # else there is no spread to compare with
            spread, tied_gap = float(np.ptp(tied_scores[: tied.facts["num_correct"]])), gap(tied_scores, tied)
            hard = min(gap(ref_scores, ref), tied_gap)
            yield "preferred", float(tied_gap > spread)
            yield "preferred hard", float(hard > spread)
            if spread > 0 or self.margin == "current":
                yield "margin", math.tanh(hard / spread - 1) if spread > 0 else float(np.sign(hard))

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        sections = base.named({name: parts.get(name) for name in self.expected} | {"Ties": self._ties(parts)})
        return Figures(base.average(sections.values()), sections)

    def _ties(self, parts: Mapping[str, Figure]) -> Figure | None:
        """Returns Σ w · part, None where a part is missing; a missing margin (0.1.4: no prompt has a spread) is 0."""
        own = {"margin": Figure(0.0, 0)} | base.named({name: parts.get(f"Ties/{name}") for name in self.ties_weights})
        if len(own) < len(self.ties_weights):
            return None
        n = own["tied accuracy"].n + own["ref accuracy"].n
        return Figure(sum(weight * own[name].value for name, weight in self.ties_weights.items()), n)


def fractional_credit(scores: Floats) -> float:
    """Returns 1/k where k candidates score highest and the first, the correct one, is among them, else 0.

    Example:

    ```python
    >>> fractional_credit(np.array([1.0, 1.0, 0.0, -1.0])), fractional_credit(np.array([0.0, 1.0, 0.0, 0.0]))
    (0.5, 0.0)
    ```
    """
    highest = scores == scores.max()
    return float(1 / highest.sum()) if highest[0] else 0.0


def gap(scores: Floats, item: Item) -> float:
    """Returns the score of the worst correct answer minus that of the best wrong one."""
    correct, wrong = np.split(scores, [item.facts["num_correct"]])
    return float(correct.min() - wrong.max())


class RMBench(Benchmark):
    """RM-Bench: three styles of a right answer against three styles of a wrong one, in four domains.

    As `compute_accuracy` in `scripts/utils.py` of its code.
    """

    def local_rows(self, path: Path) -> Iterator[Row]:
        files = base.folder_files(path)
        total = [file for file in files if file.name.startswith("total_dataset")]
        for file in total or files:
            yield from base.file_rows(file, next((name for name in self.expected if file.name.startswith(name)), ""))

    def item(self, row: Row) -> Item:
        domain = str(row.cells.get("domain") or row.of)
        if not domain:
            raise DataError(f"{row.place} has no domain; name the file after it: {', '.join(self.expected)}")
        if domain not in self.expected:
            raise row.wrong("domain", f"wanted one of {', '.join(self.expected)}")
        own_id, answers = str(row.cell("id")), [*row.texts("chosen", 3), *row.texts("rejected", 3)]
        return base.made_item(f"{domain}/{own_id}", row.prompt(), domain, answers, own_id=own_id)

    def earned(self, item: Item, scores: Floats) -> Iterable[tuple[str, float]]:
        return [(f"{item.subset}/{level}", value) for level, value in levels(scores).items()]

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        sections, others = super().figures(parts).sections, dict[str, Figure | None]()
        sections = {domain: replace(own, n=own.n // 3) for domain, own in sections.items()}  # three levels a row
        for level in ("hard", "normal", "easy"):
            own = {name: figure for name, figure in parts.items() if name.endswith(f"/{level}")}
            others[level] = super().figures(own).overall
        return Figures(base.average(sections.values()), sections, base.named(others))


def levels(scores: Floats) -> dict[str, float]:
    """Returns the share of right comparisons of each level, from the scores of three right and three wrong answers.

    With M[i, j] = 1 where right answer i scores above wrong answer j, styles ordered concise, detailed, detailed with
    markdown: hard is the mean above the diagonal, normal on it, easy below it.

    Args:
        scores (`(6,)` array): Scores of chosen, then rejected.

    Example:

    ```python
    >>> levels(np.array([1.0, 2.0, 3.0, 0.5, 1.5, 2.5]))
    {'hard': 0.0, 'normal': 1.0, 'easy': 1.0}
    ```
    """
    wins = (scores[:3, None] > scores[None, 3:]).astype(np.float64)
    sums = {"hard": np.triu(wins, 1).sum(), "normal": np.trace(wins), "easy": np.tril(wins, -1).sum()}
    return {level: float(total / 3) for level, total in sums.items()}


class PPECorrectness(Benchmark):
    """PPE's five correctness sets, from files or folders named after them.

    Overall is the mean over the domains of the accuracy on `sampled_conflict_pairs` (indices from 0; a pair that the
    set holds twice counts twice). Besides, for every domain: `auc`, the area under the ROC curve of score against
    correctness within a prompt, averaged over prompts that have both right and wrong responses; and the expected
    correctness of the highest of k random responses, its maximum over k and its value at the last k. These follow the
    paper's text: the official code of the two was not at hand.
    """

    def local_rows(self, path: Path) -> Iterator[Row]:
        for file in base.folder_files(path):
            domain = base.named_after(file, {name: name for name in self.hub}, folders=2)
            if domain is None:
                raise DataError(f"{file} is not named after a domain of PPE; wanted one of {', '.join(self.hub)}")
            yield from base.file_rows(file, domain)

    def item(self, row: Row) -> Item:
        own_id, prompt = str(row.cell("question_id")), row.prompt()
        labels = [bool(label) for label in row.listed("scores", bool | int | float, "true and false")]
        numbers = sorted(int(name[9:]) for name in row.cells if re.fullmatch(r"response_\d+", name))
        if len(numbers) != len(labels) or not labels:
            said = f"has {len(numbers)} responses and {len(labels)} scores; wanted one score a response"
            raise DataError(f"{row.place} {said}")
        answers = [row.text(f"response_{number}") for number in numbers]
        pairs = [_conflict(row, pair, labels) for pair in row.listed("sampled_conflict_pairs", list, "pairs")]
        facts = {"labels": labels, "pairs": pairs}
        item = base.made_item(f"{row.of}/{own_id}", prompt, row.of, answers, facts, own_id)
        return replace(item, prompt_id=f"{row.of}/{item.prompt_id}")

    def earned(self, item: Item, scores: Floats) -> Iterator[tuple[str, float]]:
        labels = np.array(item.facts["labels"])
        for right, wrong in item.facts["pairs"]:
            yield item.subset, float(scores[right] > scores[wrong])
        if labels.any() and not labels.all():
            from scipy.stats import rankdata

            ranks = rankdata(scores)  # a difference of two failures, both −∞, is no number
            yield f"{item.subset}/auc", float(pair_wins(ranks[labels][:, None], ranks[~labels]).mean())
        curve = best_of_n_curve(scores, labels, np.arange(1, len(labels) + 1))[0]
        for k, value in enumerate(curve.tolist(), 1):
            yield f"{item.subset}/best of {k}", value

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        own = super().figures(parts)
        kinds: dict[str, dict[str, Figure | None]] = {"auc": {}, "best of k, max": {}, "best of k, end": {}}
        for domain in self.expected:
            curve = [figure for name, figure in parts.items() if name.startswith(f"{domain}/best of ")]
            kinds["auc"][domain] = parts.get(f"{domain}/auc")
            kinds["best of k, max"][domain] = max(curve, key=_of_the_sample, default=None)
            kinds["best of k, end"][domain] = curve[-1] if curve else None
        others: dict[str, Figure | None] = {}
        for kind, found in kinds.items():
            of = {f"{domain} {kind}": figure for domain, figure in found.items()}
            others |= of | {kind: base.average(found.values())}
        return replace(own, others=base.named(others))

    def is_subset(self, part: str) -> bool:
        return part in self.expected


def _of_the_sample(figure: Figure) -> float:
    return float(np.ravel(figure.value)[0])


def _conflict(row: Row, pair: list[int], labels: Sequence[bool]) -> tuple[int, int]:
    """Returns the indices of the right and the wrong response of a conflict pair."""
    if len(pair) != 2 or not all(type(i) is int and 0 <= i < len(labels) for i in pair):
        raise DataError(f"{row.place}: the conflict pair {pair} is not two indices from 0 to {len(labels) - 1}")
    if labels[pair[0]] == labels[pair[1]]:
        both = "right" if labels[pair[0]] else "wrong"
        raise DataError(f"{row.place}: the conflict pair {pair} is of two {both} ones")
    return (pair[0], pair[1]) if labels[pair[0]] else (pair[1], pair[0])


OWN: dict[str, type[Benchmark]] = {
    "rmb": RMB, "rewardbench2": RewardBench2, "rewardbench2-0.1.4": RewardBench2, "rm-bench": RMBench,
    "ppe-correctness": PPECorrectness,
}  # fmt: skip
"""The class of each benchmark that has a rule of its own."""
