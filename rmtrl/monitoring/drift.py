"""Drift: whether what comes now is like what the reward model and its guards were measured on.

Everything watched is a column of rows, and a row belongs to a prompt. All columns of both sides go into one test
([`~rmtrl.metrics.drift.drift_test`]) that exchanges prompts, and its one corrected p is the verdict. Expected accuracy
is what the calibration promises without labels. It assumes that the calibration still holds, and where that broke it
is wrong with a narrow interval: read it beside the verdict, and beside accuracy wherever there are labels.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rmtrl.data.layouts import is_pair
from rmtrl.data.loading import source_rows
from rmtrl.data.messages import conversation_text
from rmtrl.data.normal_form import as_number, prompt_hash
from rmtrl.data.preferences import read_preferences
from rmtrl.errors import DataError, UsageError, placed
from rmtrl.evaluation.scoring import SIDES as CHOSEN_REJECTED
from rmtrl.evaluation.scoring import ScoredPairs, is_number
from rmtrl.io import Row
from rmtrl.metrics import combined_estimate, mean_estimate, pair_wins
from rmtrl.metrics.drift import (
    ColumnTest,
    decile_counts,
    distances_of,
    drift_test,
    effect_estimate,
    known_values,
    psi,
    psi_threshold,
    row_weights,
)
from rmtrl.monitoring.answers import row_answers
from rmtrl.types import Estimate

if TYPE_CHECKING:
    from rmtrl.calibration.calibration import Calibration  # for the annotations alone: it takes half a second

PROMPT, MARGIN, PREFERENCE, DOMAIN = "prompt_id", "margin", "preference", "domain"
ACCURACY, EXPECTED = "accuracy", "expected accuracy"
SIDES = ("reference", "current")
_OF_LABELS = {ACCURACY, EXPECTED}  # derived: what they lack, margins or labels lack

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Watched:
    """One column of both sides.

    Args:
        name (`str`): Of the column.
        reference, current ([`Estimate`] or `dict[str, Estimate]`): Mean of each side, or the share of each category,
            of rows that weigh as in the effect; their intervals resample prompts.
        effect ([`Estimate`]): From [`~rmtrl.metrics.drift.effect_estimate`].
        rows, prompts, missing (`dict[str, int]`): By side: rows with a value, their prompts, rows without.
        distances (`dict[str, float]`): KS, energy and Wasserstein distance of numbers.
        psi (`float`): Population stability index, by deciles of the reference, or by category.
        psi_threshold (`float`): What no change stays below with 95 %, at as many independent units as prompts.
        test ([`~rmtrl.metrics.drift.ColumnTest`]): From the common rearrangements.
    """

    name: str
    reference: Estimate | dict[str, Estimate]
    current: Estimate | dict[str, Estimate]
    effect: Estimate
    rows: dict[str, int]
    prompts: dict[str, int]
    missing: dict[str, int]
    distances: dict[str, float]
    psi: float
    psi_threshold: float
    test: ColumnTest

    @property
    def line(self) -> dict[str, Any]:
        """The values that people read."""
        means = {side: own if isinstance(own := getattr(self, side), Estimate) else "" for side in SIDES}
        ps = {"test": self.test.name, "p": self.test.p, "adjusted p": self.test.adjusted_p}
        effect = "not defined" if np.isnan(self.effect.value) else f"{self.effect.value:+.3f}"
        size = {"effect": effect, "prompts": "/".join(map(str, self.prompts.values()))}
        return {"": self.name, **means, **size, **ps, "PSI": f"{self.psi:.3f} (threshold {self.psi_threshold:.3f})"}


@dataclass(frozen=True)
class Drift:
    """The verdict, and what stands behind it.

    Args:
        alarm (`bool`): Whether the corrected p is at most `alpha`, or a column has lost its values.
        p (`float`): Of no change in any column, corrected for their number.
        alpha (`float`): Rate of false alarms asked for.
        n_permutations (`int`): Rearrangements drawn.
        shared_prompts (`int`): Prompts of both sides, whose two parts change places; the others move whole.
        columns (`tuple[Watched, ...]`): In the order given.
        accuracy, expected_accuracy (`dict[str, Estimate]`): By side, where there are labels and a calibration.
        not_compared (`tuple[str, ...]`): Columns with values on one side alone: an alarm, but of accuracy, which may
            have labels on one side.
    """

    schema: ClassVar = "rmtrl/drift/1"
    json_also: ClassVar = ("warnings",)

    alarm: bool
    p: float
    alpha: float
    n_permutations: int
    shared_prompts: int
    columns: tuple[Watched, ...]
    accuracy: dict[str, Estimate] = field(default_factory=dict)
    expected_accuracy: dict[str, Estimate] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before use, in words."""
        found = [f"{', '.join(self.not_compared)}: on one side alone, not compared"] if self.not_compared else []
        for side in set(self.accuracy) & set(self.expected_accuracy):
            true, said = self.accuracy[side], self.expected_accuracy[side]
            if not (true.low <= said.high and said.low <= true.high):
                gap = f"expected accuracy {said:.3f}, true accuracy {true:.3f}"
                found.append(f"the calibration does not hold on the {side} side: {gap}; calibrate on pairs like these")
        return tuple(found)

    @property
    def words(self) -> dict[str, Any]:
        """The values that people read."""
        beyond = [f"{name} (values on one side alone)" for name in self.not_compared if name not in _OF_LABELS]
        beyond += [own.name for own in self.columns if own.test.adjusted_p <= self.alpha]
        return {
            "verdict": f"DRIFT in {', '.join(beyond)}" if self.alarm else "no drift shown",
            "corrected p": f"{self.p:.3f} (alarm at {self.alpha:g}; {self.n_permutations:,} permutations of prompts, "
            f"{self.shared_prompts:,} exchanged within)",
            "watched": [own.line for own in self.columns],
            **{name: own for name, own in ((ACCURACY, self.accuracy), (EXPECTED, self.expected_accuracy)) if own},
        }  # fmt: skip


def drift(
    reference: Mapping[str, ArrayLike], current: Mapping[str, ArrayLike], *, calibration: "Calibration | None" = None,
    held_out: Collection[str] = (), alpha: float = 0.05, n_permutations: int = 999, seed: int = 0,
) -> Drift:  # fmt: skip
    """Returns whether current rows differ from those of reference, as one verdict over all their columns.

    Args:
        reference, current (`Mapping[str, (N,) array]`): Columns of each side. `prompt_id` is needed; any other is
            watched: numbers (NaN is missing), true and false, text ("" is missing). Of pairs, `margin` is the score of
            the first answer less that of the second, and watched in size; `preference` the share of votes for the
            first, NaN without label: with it accuracy is watched too. `domain` is text.
        calibration ([`~rmtrl.calibration.Calibration`], *optional*): For expected accuracy, the mean of max(p, 1 − p)
            (CBPE, as NannyML has it). Its interval resamples prompts, and takes in that of the temperature.
        held_out (`Collection[str]`): Domains that accuracy is of; all by default.
        alpha (`float`): Rate of false alarms.
        n_permutations, seed: As in [`~rmtrl.metrics.drift.drift_test`].

    Raises:
        UsageError: If a side has no prompts or nothing in common with the other, or too few to reach `alpha`.

    Example:

    ```python
    >>> rng = np.random.default_rng(0)
    >>> rows = [{"prompt_id": np.arange(300) // 3 + 100 * i, "score": rng.normal(i / 2, 1, 300)} for i in (0, 1)]
    >>> found = drift(*rows)
    >>> found.alarm, found.columns[0].test.adjusted_p
    (True, 0.001)
    ```
    """
    domains = {str(name) for own in (reference, current) for name in np.asarray(own.get(DOMAIN, ()))}
    if unknown := [name for name in held_out if name not in domains]:
        raise UsageError(
            f"got the domain {unknown[0]} to hold out; the rows have {', '.join(sorted(domains)) or 'none'}"
        )
    sides = {name: _derived(own, calibration, held_out) for name, own in zip(SIDES, (reference, current), strict=True)}
    first, second = sides.values()
    columns, lost = _joined(first, second)
    prompts = columns.pop(PROMPT).astype(str)
    if not columns or not (first.keys() & second.keys()) - {PROMPT}:
        raise UsageError(f"the sides have no column in common but {PROMPT}; wanted scores, lengths, domains or guards")
    side = np.arange(len(prompts)) >= len(first[PROMPT])
    test = drift_test(columns, prompts, side, n_permutations=n_permutations, alpha=alpha, seed=seed)
    return Drift(
        alarm=test.p <= alpha or bool(set(lost) - _OF_LABELS), p=test.p, alpha=alpha, n_permutations=n_permutations,
        shared_prompts=len(np.intersect1d(prompts[side], prompts[~side])),
        columns=tuple(_watched(name, own, prompts, side, test.tests[name]) for name, own in columns.items()),
        accuracy={name: _mean(own[ACCURACY], own[PROMPT]) for name, own in sides.items() if ACCURACY in own},
        expected_accuracy={
            name: expected_accuracy(own[MARGIN], own[PROMPT], calibration)
            for name, own in sides.items() if calibration and MARGIN in own and known_values(own[MARGIN]).any()
        },
        not_compared=lost,
    )  # fmt: skip


def _joined(first: Columns, second: Columns) -> tuple[Columns, tuple[str, ...]]:
    """Returns the columns of both sides and what is missing in them, and the names of those of one side alone."""
    n, columns, missing, lost = [len(own[PROMPT]) for own in (first, second)], Columns(), Columns(), list[str]()
    for name in {**first, **second}:
        kind = (first if name in first else second)[name].dtype.kind
        none = "" if kind in "USO" else np.nan
        sides = [own.get(name, np.full(of, none)) for own, of in zip((first, second), n, strict=True)]
        known = [known_values(own) for own in sides]
        on = [bool(own.any()) for own in known]
        if all(on):
            columns[name] = np.concatenate(sides)
        elif any(on):
            lost.append(name)
        gone = ~np.concatenate(known)
        twice = any(np.array_equal(gone, own) for own in missing.values())
        if any(on) and gone.any() and not twice and name not in _OF_LABELS:
            missing[f"{name} missing"] = gone
    return columns | missing, tuple(sorted(lost))


def expected_accuracy(margins: ArrayLike, prompts: ArrayLike, calibration: "Calibration") -> Estimate:
    """Returns the mean of max(p, 1 − p): the accuracy of pairs without labels, as far as the calibration holds.

    Args:
        margins (`(N,)` array): Score of one answer less that of the other; NaN is left out.
        prompts (`(N,)` array): Prompt of each pair, which is what is resampled.
        calibration ([`~rmtrl.calibration.Calibration`]): Of a temperature its interval counts too, by MOVER; of a
            curve the pairs alone.

    Example:

    ```python
    >>> rng = np.random.default_rng(0)
    >>> fitted = calibrate(rng.normal(1, 1, 500), rng.normal(0, 1, 500), range(500))
    >>> expected_accuracy([0.0, 0.0], ["a", "b"], fitted).value
    0.5
    ```
    """
    size = np.abs(np.asarray(margins, np.float64))
    m, groups = size[~np.isnan(size)], np.asarray(prompts)[~np.isnan(size)]
    found = _mean(calibration.calibrator.predict_proba(m), groups)
    if calibration.kind != "temperature" or not calibration.is_measured:
        return replace(found, method=f"{found.method}; the calibration's own uncertainty is not in it")
    t = calibration.temperature_estimate
    low, high = (float(special.expit(m / end).mean()) - found.value for end in (t.high, t.low))
    whole = combined_estimate([found, Estimate(0.0, low, high, 0)], (1, 1))
    method = f"{found.method}; with the interval of the temperature (MOVER)"
    return replace(whole, low=max(whole.low, 0.5), high=min(whole.high, 1.0), method=method)


def _derived(given: Mapping[str, ArrayLike], calibration: "Calibration | None", held_out: Collection[str]) -> Columns:
    """Returns the columns to watch, with what margins say beside them."""
    columns = {name: np.asarray(values) for name, values in given.items()}
    n, counts = len(columns.get(PROMPT, ())), sorted({len(values) for values in columns.values()})
    if counts != [n] or n == 0:
        raise UsageError(f"got columns of {counts} values, {n} of them {PROMPT}; wanted as many of each, one or more")
    if MARGIN in columns:
        margin, label = columns[MARGIN].astype(float), columns.pop(PREFERENCE, np.full(n, np.nan)).astype(float)
        counted = np.isin(columns.get(DOMAIN, np.full(n, "")), list(held_out)) if held_out else np.ones(n, np.bool_)
        counted &= ~np.isnan(margin + label) & (label != 0.5)
        columns[MARGIN] = np.abs(margin)
        if counted.any():
            columns[ACCURACY] = np.where(counted, pair_wins(margin * (label - 0.5), np.zeros(n)), np.nan)
        if calibration is not None:
            p = calibration.calibrator.predict_proba(np.nan_to_num(columns[MARGIN]))
            columns[EXPECTED] = np.where(np.isnan(margin), np.nan, p)
    return columns


def _mean(values: NDArray[Any], prompts: NDArray[Any], weights: NDArray[Any] | None = None) -> Estimate:
    known = known_values(values)
    x, w = values[known].astype(float), None if weights is None else weights[known]
    return mean_estimate(x, prompts[known], weights=w, proportion=bool(((x >= 0) & (x <= 1)).all()))


def _watched(
    name: str, values: NDArray[Any], prompts: NDArray[Any], side: NDArray[np.bool_], test: ColumnTest
) -> Watched:
    known = known_values(values)
    x, groups, current, distances = values[known], prompts[known], side[known], {}
    w = row_weights(groups, current)
    parts, means = [~current, current], list[Any]()
    if x.dtype.kind in "US":
        kinds = np.unique(x)
        means = [{str(kind): _mean(x[part] == kind, groups[part], w[part]) for kind in kinds} for part in parts]
        counts = np.stack([(x[part][:, None] == kinds).sum(axis=0) for part in parts])
    else:
        x = x.astype(float)
        means = [_mean(x[part], groups[part], w[part]) for part in parts]
        counts = decile_counts(x[~current], x[current])
        distances = distances_of(x[~current], x[current], w[~current], w[current])
    counted, n_prompts = [int(part.sum()) for part in parts], [len(np.unique(groups[part])) for part in parts]
    missing = [int((~known & part).sum()) for part in (~side, side)]
    rows, of, without = (dict(zip(SIDES, own, strict=True)) for own in (counted, n_prompts, missing))
    stability = psi(counts[0], counts[1]), psi_threshold(n_prompts[0], n_prompts[1], counts.shape[1])
    effect = effect_estimate(x, groups, current)
    return Watched(name, means[0], means[1], effect, rows, of, without, distances, *stability, test)


# ---- files


def read_watched(
    source: str, scores: Path | None = None, *, watch: Collection[str] = (), labels: bool = True
) -> Columns:
    """Returns the columns of a file of pairs or of scored rows, as [`drift`] takes them.

    Of pairs: scores and lengths are means of the two answers, and chosen is the better one. Rows have `prompt_id`,
    `prompt` or `id`, and what they have of `score` (a number), `scores` (two, the better one first unless `preference`
    says otherwise; of samples, in no order without it), answers (the mean length of several), `length_chars` and
    `domain`; null is missing.

    Args:
        source (`str`): File, folder or hub id.
        scores (`Path`, *optional*): Scores of the pairs, as `rmtrl score` writes them.
        watch (`Collection[str]`): Further columns, of numbers or true and false: guards, criteria.
        labels (`bool`): Whether which answer is first says which is better.

    Raises:
        DataError: If a row has no prompt, or a value of another kind; the message names it.
    """
    found = []
    for place, row in _rows(source, scores):
        with placed(place):
            found.append(_row(row, watch))
    columns: Columns = {}
    for name in dict.fromkeys(name for row in found for name in row):
        kind, absent = (str, "") if name in (PROMPT, DOMAIN) else (float, np.nan)
        given = (row.get(name) for row in found)
        columns[name] = np.array([absent if value is None else value for value in given], kind)
    if not labels:
        columns.pop(PREFERENCE, None)
    return columns


def _rows(source: str, scores: Path | None) -> Iterator[tuple[str, Row]]:
    """Yields where each row stands and the row; of a pair its scores and the mean length of its answers."""
    if not is_pair(next(source_rows(source))[1]):
        if scores is not None:
            raise UsageError(f"got the scores {scores} for {source}, which holds no pairs; put scores into its rows")
        yield from source_rows(source)
        return
    pairs, found = read_preferences(source), dict[str, list[float]]()
    if scores:
        scored = ScoredPairs.of_file(scores, pairs)
        scored = scored.where(scored.whole)
        found = dict(zip(scored.pairs["id"], scored.scores.tolist(), strict=True))
    for row in pairs:
        length = sum(len(conversation_text(row[side])) for side in CHOSEN_REJECTED) / 2
        known = {DOMAIN: "" if row[DOMAIN] == "unknown" else row[DOMAIN], "length_chars": length}
        yield f"{source}, pair {row['id']}", {**row, **known, "scores": found.get(row["id"])}


def _row(row: Row, watch: Collection[str]) -> dict[str, Any]:
    """Returns what is watched of a row."""
    asked = row.get("prompt") and prompt_hash(row["prompt"])
    prompt = next((str(own) for own in (row.get(PROMPT), asked, row.get("id")) if own not in (None, "")), None)
    if prompt is None:
        raise DataError("no prompt; wanted prompt_id, prompt or id: rows of one prompt are moved as one")
    if lacking := [name for name in watch if name not in row]:
        raise DataError(f"no {lacking[0]}; the row has {', '.join(row)}")
    found: dict[str, Any] = {PROMPT: prompt, DOMAIN: row.get(DOMAIN)}
    if answers := row_answers(row):
        found["length_chars"] = sum(map(len, answers)) / len(answers)
    found |= {name: _number(name, row[name]) for name in ("score", "length_chars", *watch) if name in row}
    if (two := row.get("scores")) is not None:
        if not (isinstance(two, list) and len(two) == 2 and all(map(is_number, two))):
            raise DataError(f"scores is {str(two)[:40]!r}; wanted two numbers, the better answer's first")
        label = None if answers else 1.0  # two samples of an answer are in no order
        found |= {"score": sum(two) / 2, MARGIN: two[0] - two[1], PREFERENCE: row.get(PREFERENCE, label)}
    return found


def _number(name: str, value: Any) -> float | None:
    """Returns a cell as a number, which in a CSV file is the text of one; true is 1, and null and "" are None."""
    value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
    found = float(value) if isinstance(value, bool) else as_number(name, value)
    if found is not None and not is_number(found):
        raise DataError(f"{name} is {found}; wanted a finite number, or null where it is missing")
    return found
