"""Verdicts on the policy in training against a reference, and what they prove however often one looks."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list

from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.fresh import sample_review
from rmtrl.io import read_object, read_sound_rows, write_row_files
from rmtrl.metrics.anytime import spread, wagered
from rmtrl.ppo.evaluation import PolicyEvaluation
from rmtrl.reward.judge import JudgeScorer
from rmtrl.types import Conversation, Scorer, checked_scores

logger = get_logger(__name__)

Conversations = Sequence[Conversation]
Compare = Callable[[Conversations, Conversations, Conversations], Sequence[float | None]]
"""From prompts, the policy's answers and the reference's to a verdict each: 1, 0.5, 0, or None where there is none."""


@dataclass
class Evidence:
    """What the verdicts on one set of prompts have shown; a checkpoint keeps it.

    Args:
        prompts_key (`int`): Names the prompts.
        step (`int`): Updates before the last look; a step is looked at once, also after a resume.
        reference_step (`int`): Updates before the reference.
        reference (`list`): The reference's answers.
        wealth (`list[float]`): What lies on each stake, as in [`~rmtrl.metrics.anytime.wagered`].
        n_prompts (`int`): Prompts used up, each once.
        n_labels (`int`): Verdicts asked for.
        counts (`list[int]`): Verdicts since the reference was taken: won, tied, lost.
        lead (`float`): Verdicts won less verdicts lost since the last step at which the reference could move.
        alarm (`str`): What is to be said from the look on at which the policy was surely worse.
        read (`list[str]`): Files of verdicts that have been counted.
    """

    prompts_key: int
    step: int
    reference_step: int
    reference: list[Conversation]
    wealth: list[float] = field(default_factory=lambda: spread().tolist())
    n_prompts: int = 0
    n_labels: int = 0
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    lead: float = 0.0
    alarm: str = ""
    read: list[str] = field(default_factory=list)

    @property
    def capital(self) -> float:
        """The evidence that the policy is worse: 1 at the start, and 20 or more with chance 1/20 where it never is."""
        return float(sum(self.wealth))

    def add(self, verdicts: Sequence[float]) -> None:
        """Takes verdicts in."""
        x = np.asarray(verdicts, np.float64)
        self.wealth = [self.wealth, *wagered(self.wealth, x).tolist()][-1]
        self.lead += float((2 * x - 1).sum())
        self.counts = [n + int(own.sum()) for n, own in zip(self.counts, (x > 0.5, x == 0.5, x < 0.5), strict=True)]


class Labels:
    """Asks for a few verdicts at each look and says when the policy is surely worse than its reference.

    The null: at no look is the policy of that moment worse than its reference of that moment, which means that on a
    prompt drawn anew its answer wins half of the time or more, a tie being half a win. In a run of which this is true
    there is an alarm with chance `alpha` at most, whatever the number of looks and labels, and whoever decides by what
    was seen so far when to look, to ask again or to move the reference: see [`~rmtrl.metrics.anytime.wagered`].

    Each prompt of the evaluation set is used once, in random order, so that each verdict is on a new one; the set
    needs as many prompts as labels. Equal answers are ties that nobody is asked about. While the capital stands above
    1, which is where it leans against the policy, a look asks again, up to `rounds` times in all.

    The reference is the run's first evaluation. A policy that falls from its best seldom falls below its start, or
    late. So `references` names steps beforehand: at the first look from each on, the policy becomes the reference if
    it won more verdicts than it lost since the step before. What the bets had lost by then is the share of `alpha`
    that is spent; what remains is that of the new reference. It is said.

    Args:
        labels:
            Whose verdicts: a [`JudgeScorer`], asked in both orders; any other [`Scorer`] of prompts and answers
            (held-out labels, gold, a larger reward model), whose higher score wins; a function of prompts, answers
            and reference answers that returns 1, 0.5, 0 or, without verdict, None for each; or a folder for people.
            There each look writes `eval/step-…/review.jsonl` with its `key.json`, and counts every
            `eval/step-…/verdicts.jsonl` that `rmtrl fresh import` has written since, whenever it comes.
        references (`Sequence[int]`): Steps at which the policy may become the reference.
        per_look (`int`): Prompts that a look asks about at a time.
        rounds (`int`): How often it asks at most; people are asked once.
        budget (`int`): Most labels of the run, for each evaluation set.
        alpha (`float`): Chance of an alarm in a run that is never worse, for each evaluation set.
        seed (`int`): Of the order of prompts.

    Raises:
        UsageError: If a setting cannot be used, or a verdict is none.

    Example:

    ```python
    >>> callback = OveroptimizationCallback(labels=Labels(judge, references=(20, 40, 60)), action="stop")
    ```
    """

    def __init__(
        self, labels: "Compare | Scorer | str | Path", *, references: Sequence[int] = (), per_look: int = 10,
        rounds: int = 5, budget: int = 300, alpha: float = 0.05, seed: int = 0,
    ) -> None:  # fmt: skip
        if not (min(per_look, rounds, budget) >= 1 and 0 < alpha < 1):
            got = f"per_look {per_look}, rounds {rounds}, budget {budget}, alpha {alpha:g}"
            raise UsageError(f"got {got}; wanted 1 or more of each, and alpha between 0 and 1")
        self.source = _source(labels)
        self.references, self.budget, self.alpha, self.seed = tuple(references), budget, alpha, seed
        self.per_look, self.rounds = per_look, 1 if isinstance(self.source, Path) else rounds
        self.evidence: dict[str, Evidence] = {}

    def look(self, found: PolicyEvaluation, *, first: bool) -> tuple[str, dict[str, float]]:
        """Returns what is to be said, nothing if all is well, and what is logged.

        Args:
            found ([`PolicyEvaluation`]): The policy of the moment.
            first (`bool`): Whether this process asks; the others are told what it was answered.
        """
        step, key = found.now.step, found.progress.prompts_key
        own = self.evidence.setdefault(found.prefix, Evidence(key, step, step, list(found.answers)))
        if own.prompts_key != key:
            self._move(own, found, "other prompts or scorers than before")
        if not own.alarm and own.step != step:
            self._ask(own, found, first)
        if any(own.step < named <= step for named in self.references):
            if own.lead > 0 and not own.alarm:
                self._move(own, found, f"{own.lead:g} more verdicts won than lost")
            own.lead = 0.0
        own.step = step
        won, tied, lost = own.counts
        logs = {"labels": own.n_labels, "labels_won": won, "labels_tied": tied, "labels_lost": lost}
        return own.alarm, {**logs, "labels_capital": own.capital, "labels_reference_step": own.reference_step}

    def _ask(self, own: Evidence, found: PolicyEvaluation, first: bool) -> None:
        """Takes in verdicts, up to the budget of a look."""
        order = np.random.default_rng(self.seed).permutation(len(found.prompts))
        for _ in range(self.rounds):
            n = min(self.per_look, self.budget - own.n_labels)
            drawn = order[own.n_prompts : own.n_prompts + n]
            asked = [i for i in drawn if found.answers[i] != own.reference[i]]
            own.n_prompts, own.n_labels = own.n_prompts + len(drawn), own.n_labels + len(asked)
            [(verdicts, read)] = broadcast_object_list([self._verdicts(own, found, asked) if first else ([], [])])
            own.add([*verdicts, *[0.5] * (len(drawn) - len(asked))])
            own.read += read
            own.alarm = self._said(own) if own.capital >= 1 / self.alpha else ""
            spent = own.n_labels >= self.budget or own.n_prompts >= len(order)
            if spent and len(drawn) and not own.alarm:
                used = f"{own.n_labels} of {self.budget} labels, {own.n_prompts} of {len(order)} prompts, each once"
                logger.warning(f"{found.prefix}: these verdicts are the last: {used}")
            if own.alarm or spent or own.capital <= 1:
                return

    def _verdicts(self, own: Evidence, found: PolicyEvaluation, asked: list[int]) -> tuple[list[float], list[str]]:
        """Returns the verdicts that have come, and the files that they come from."""
        parts = [[part[i] for i in asked] for part in (found.prompts, found.answers, own.reference)]
        if not isinstance(self.source, Path):
            return (_checked(self.source(*parts), len(asked)) if asked else []), []
        come = _come(self.source / found.prefix, own.read)
        if asked:
            _write_review(self.source / found.prefix / f"step-{found.now.step}", *parts)
        return [verdict for verdicts in come.values() for verdict in verdicts], list(come)

    def _said(self, own: Evidence) -> str:
        won, tied, lost = own.counts
        counts = f"of {won + tied + lost} verdicts on the two {won} won, {tied} tied, {lost} lost"
        most = f"{1 / self.alpha:g} comes up in {100 * self.alpha:g} % at most of the runs that are never worse"
        return (
            f"the policy is worse than that of step {own.reference_step}: {counts}; capital {own.capital:.3g}, {most}"
        )

    def _move(self, own: Evidence, found: PolicyEvaluation, why: str) -> None:
        """Takes the present policy for the reference; what has been lost of the capital stays lost."""
        own.prompts_key, own.reference_step = found.progress.prompts_key, found.now.step
        own.wealth, own.reference = spread(min(1.0, own.capital)).tolist(), list(found.answers)
        own.counts, own.lead = [0, 0, 0], 0.0
        left = f"{100 * self.alpha * own.capital:.2g} of the {100 * self.alpha:g} % for false alarms are left"
        logger.warning(f"{found.prefix}: the reference is now the policy of step {found.now.step} ({why}); {left}")


def _source(labels: Any) -> Compare | Path:
    """Returns a function that gives verdicts, or the folder where people do."""
    if isinstance(labels, str | Path):
        return Path(labels)
    if isinstance(labels, JudgeScorer):
        return lambda *parts: labels.compare(*parts).preferred.tolist()
    if isinstance(labels, Scorer):
        return lambda *parts: _of_scores(labels, *parts)
    if not callable(labels):
        said = "; restore_callback_states_from_checkpoint cannot bring one back" if labels is False else ""
        raise UsageError(f"got {type(labels).__name__} for labels; wanted a scorer, a function or a folder{said}")
    return labels


def _of_scores(scorer: Scorer, prompts: Conversations, now: Conversations, reference: Conversations) -> list[float]:
    found = scorer(prompts=[*prompts, *prompts], completions=[*now, *reference])
    first, second = checked_scores(found, 2 * len(prompts), sample="answer").reshape(2, -1)
    return [float(verdict) for verdict in (1 + np.sign(first - second)) / 2]


def _checked(verdicts: Any, n: int) -> list[float]:
    """Returns those that there are of n verdicts."""
    found = [np.nan if verdict is None else float(verdict) for verdict in verdicts]
    if len(found) != n:
        raise UsageError(f"the labels returned {len(found)} verdicts for {n} prompts; wanted one each, None for none")
    return [verdict for verdict in found if not np.isnan(verdict)]


def _write_review(folder: Path, prompts: Conversations, now: Conversations, reference: Conversations) -> None:
    """Writes pairs for people where the look has none yet."""
    rows = [{"prompt": prompt, "completions": [a, b], "prompt_id": str(i)}
            for i, (prompt, a, b) in enumerate(zip(prompts, now, reference, strict=True))]  # fmt: skip
    if not (folder / "key.json").exists():
        review = sample_review(rows, len(rows), seed=int(folder.name.removeprefix("step-")), policy=folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_row_files({folder / "review.jsonl": review.rows, folder / "key.json": [review.key]})


def _come(folder: Path, read: Sequence[str]) -> dict[str, list[float]]:
    """Returns the verdicts for the policy of each file that has come since; one that cannot be read waits."""
    found = {}
    for path in sorted(folder.glob("step-*/verdicts.jsonl")):
        name = f"{path.parent.name}/{path.name}"
        if name not in read:
            try:
                found[name] = _of_review(path, read_object(path.with_name("key.json")))
            except DataError as error:
                logger.warning(f"{path} is not counted until it is mended: {error}")
    return found


def _of_review(path: Path, key: Mapping[str, Any]) -> list[float]:
    """Returns the mean verdict on each pair."""
    sides = {pair["id"]: "ab"[pair["a"]] for pair in key["pairs"]}  # where the policy's answer stood
    votes = defaultdict(list)
    for where, row in read_sound_rows(path):
        if row.get("id") not in sides or row.get("verdict") not in ("a", "b", "tie"):
            raise DataError(f"{where} is no verdict on a pair of {path.with_name('key.json')}; import it anew")
        tie = row["verdict"] == "tie"
        votes[row["id"]].append(0.5 if tie else float(row["verdict"] == sides[row["id"]]))
    return [float(np.mean(own)) for own in votes.values()]
