"""Accuracy on what the policy writes now: pairs of its own completions, judged blind by people.

A static test set is of the policy that wrote it. Pairs are drawn at random, shown in random order without scores, and
the key that tells which completion stood where stays apart. What people say is compared with the reward model's order.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from rmtrl.data.normal_form import TEMPLATE
from rmtrl.errors import DataError
from rmtrl.evaluation.scoring import is_number, read_pair_scores, score_pairs
from rmtrl.metrics import mean_estimate, pair_wins
from rmtrl.types import Chat, Conversation, Estimate

if TYPE_CHECKING:
    from rmtrl.generation import Generator  # for the annotations alone: no torch here

KEY_SCHEMA = "rmtrl/fresh-key/1"
VERDICTS = ("a", "b", "tie")
REVIEWERS = ("human", "model")
PAIRS = 200
"""Drawn for review where nobody says how many."""
_SIGN = {"a": 1, "tie": 0, "b": -1}
_TEXTS = ("prompt", "a", "b")
_CUT = ("truncated_a", "truncated_b")


@dataclass(frozen=True)
class Review:
    """Pairs to be judged, and the key to them.

    Args:
        rows (`tuple[dict, ...]`): One a pair, for people: `id`, `prompt`, `a`, `b`, an empty `verdict`; where it is
            known, `truncated_a` and `truncated_b`: whether the completion was cut off before its end.
        key (`dict[str, Any]`): Seed, policy, and of each pair its prompt and which completions stood at a and b; not
            for people who judge.
    """

    rows: tuple[dict[str, Any], ...]
    key: dict[str, Any]


def generated(
    generator: Generator, prompts: Sequence[Conversation], *, n: int = 2, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns rows `{"prompt", "completions", "truncated"}` of what a policy writes, for [`sample_review`].

    Args:
        generator ([`~rmtrl.generation.Generator`]): The policy.
        prompts (`Sequence[Conversation]`): Conversations that end where the policy is to answer.
        n (`int`): Completions of each prompt.
        seed (`int`): Seed of the sampling.
    """
    rows = []
    for prompt, own in zip(prompts, generator.generate(prompts, n, seed=seed), strict=True):
        given = {name: value for name in TEMPLATE if isinstance(prompt, Chat) and (value := getattr(prompt, name))}
        said = {"completions": [one.text for one in own], "truncated": [one.truncated for one in own]}
        rows.append({"prompt": prompt, **given, **said})
    return rows


def sample_review(
    rows: Iterable[Mapping[str, Any]], n: int | None = None, *, seed: int = 0, policy: str = ""
) -> Review:
    """Returns n pairs of the policy's completions, one a prompt, blind and in random order.

    Args:
        rows (`Iterable[Mapping]`): `{"prompt", "completions"}` each, where known `prompt_id`, and `truncated`: of each
            completion, whether it was cut off; `tools` and `chat_template_kwargs` of the prompt stay with it. Rows
            without two different completions are skipped and counted.
        n (`int`, *optional*): Pairs to draw; without it 200, or all where there are fewer.
        seed (`int`): Decides which prompts, which completions and which side.
        policy (`str`): Name of the policy, kept in the key.

    Raises:
        DataError: If a row is not of this form, or there are fewer than n usable prompts.

    Example:

    ```python
    >>> review = sample_review([{"prompt": "Hi", "completions": ["Hello!", "What?"]}], 1)
    >>> sorted(review.rows[0])
    ['a', 'b', 'id', 'prompt', 'reviewer', 'verdict']
    ```
    """
    usable: dict[str, tuple[Mapping[str, Any], list[int]]] = {}
    skipped: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        _check_generation(row, number)
        different = sorted({_text(one): i for i, one in reversed(list(enumerate(row["completions"])))}.values())
        asked = [row["prompt"], given] if (given := _given(row)) else row["prompt"]
        prompt_id = str(row.get("prompt_id") or _sha256(_text(asked))[:16])
        if len(different) < 2 or prompt_id in usable:
            skipped["fewer than two different completions" if len(different) < 2 else "repeated prompt"] += 1
            continue
        usable[prompt_id] = row, different
    if not usable:
        said = f"none of the {skipped.total():,} rows has two different completions"
        raise DataError(f"{said}; sample two or more of each prompt, at a temperature above 0")
    n = min(PAIRS, len(usable)) if n is None else n
    if not 1 <= n <= len(usable):
        most = f"{len(usable)}, the prompts with two different completions"
        raise DataError(f"got {n} pairs to draw (--n); wanted 1 to {most}")
    review, pairs = [], []
    rng = np.random.default_rng(seed)
    for number, prompt_id in enumerate(sorted(usable, key=lambda name: _sha256(f"{seed}:{name}"))[:n], 1):
        row, different = usable[prompt_id]
        i, j = (different[k] for k in rng.permutation(len(different))[:2])
        shown = {"id": f"fresh-{number:04}", "prompt": row["prompt"], **_given(row)}
        shown |= {"a": row["completions"][i], "b": row["completions"][j], "verdict": "", "reviewer": ""}
        if cut := row.get("truncated"):
            shown |= dict(zip(_CUT, (cut[i], cut[j]), strict=True))
        review.append(shown)
        pairs.append({"id": shown["id"], "prompt_id": prompt_id, "a": i, "b": j, "sha256": _seal(shown)})
    key = {"schema": KEY_SCHEMA, "policy": policy, "seed": seed, "skipped": dict(skipped), "pairs": pairs}
    return Review(tuple(review), key)


def _check_generation(row: Mapping[str, Any], number: int) -> None:
    completions, cut = row.get("completions"), row.get("truncated")
    if not isinstance(row.get("prompt"), str | list) or not isinstance(completions, list):
        raise DataError(f'row {number} is no generation; wanted {{"prompt": …, "completions": [two or more]}}')
    if cut is not None and (not isinstance(cut, list) or [type(c) for c in cut] != [bool] * len(completions)):
        raise DataError(f"row {number} has truncated {str(cut)[:40]}; wanted true or false for each completion")


def _given(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tools and template variables of a row's prompt."""
    return {name: row[name] for name in TEMPLATE if row.get(name)}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _seal(row: Mapping[str, Any]) -> str:
    """Returns a hash of what a reviewer is shown."""
    return _sha256(_text([*(row.get(name) for name in _TEXTS), *_given(row).values()]))


@dataclass(frozen=True)
class Verdicts:
    """Judged pairs.

    Args:
        rows (`tuple[dict, ...]`): One a pair: `id`, `prompt_id`, `prompt`, `a`, `b`, `verdict` (`a`, `b` or `tie`),
            `reviewer`, `reviewed_by`, `policy`, and `truncated_a`, `truncated_b` where the review has them.
        missing (`int`): Pairs of the key without a verdict.
    """

    rows: tuple[dict[str, Any], ...]
    missing: int


def import_verdicts(
    rows: Iterable[Mapping[str, Any]],
    key: Mapping[str, Any],
    *,
    reviewed_by: str,
    reviewer: str = "",
    allow_missing: bool = False,
) -> Verdicts:
    """Returns the verdicts of a review, checked against its key.

    A row gives `verdict` (`a`, `b` or `tie`) or two numbers `rating_a` and `rating_b`, of which the higher wins, or
    both, where they agree. Reviews by several people are imported one by one; [`score_verdicts`] joins them.

    Args:
        rows (`Iterable[Mapping]`): The reviewed rows.
        key (`Mapping`): Key of [`sample_review`].
        reviewed_by (`str`): `"human"` or `"model"`: who judged, on the importer's word.
        reviewer (`str`): Name for rows that give none.
        allow_missing (`bool`): Whether pairs may be without verdict; they are counted.

    Raises:
        DataError: If a verdict is missing, unreadable or against its ratings, an id unknown or given twice, the text
            of a pair changed, or nobody signed.
    """
    if reviewed_by not in REVIEWERS:
        raise DataError(f"got the reviewer kind {reviewed_by!r}; wanted {' or '.join(REVIEWERS)}")
    known, seen = _known_pairs(key), set[str]()
    judged: dict[str, dict[str, Any]] = {}
    for row in rows:
        id = str(row.get("id"))
        if id not in known:
            raise DataError(f"the review has the id {id!r}, which the key does not know; give the key of this review")
        if id in seen:
            raise DataError(f"the review has {id!r} twice; wanted one verdict a pair")
        seen.add(id)
        if _seal(row) != known[id]["sha256"]:
            raise DataError(f"the text of {id!r} is not the one that was sampled; judge it as it was")
        verdict, name = _verdict(row), str(row.get("reviewer") or reviewer).strip()
        if verdict and not name:
            raise DataError(f"{id!r} has a verdict and no reviewer; name one in the row or with --reviewer")
        if verdict:
            own = {name: row[name] for name in (*_TEXTS, *TEMPLATE, *_CUT) if name in row}
            who = {"reviewer": name, "reviewed_by": reviewed_by, "policy": key.get("policy", "")}
            judged[id] = {"id": id, "prompt_id": known[id]["prompt_id"], **own, "verdict": verdict, **who}
    missing = [id for id in known if id not in judged]
    if missing and (not allow_missing or not judged):
        said = f"{len(missing):,} of {len(known):,} pairs have no verdict, the first is {missing[0]!r}"
        raise DataError(f"{said}; judge them all, or allow missing ones")
    return Verdicts(tuple(judged[id] for id in known if id in judged), len(missing))


def _known_pairs(key: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the pairs of a key by id."""
    schema, pairs = key.get("schema"), key.get("pairs")
    if schema != KEY_SCHEMA or not isinstance(pairs, list):
        raise DataError(f"got a key of the schema {schema!r}; wanted {KEY_SCHEMA!r}, as fresh sample writes it")
    if not all(isinstance(pair, Mapping) and {"id", "prompt_id", "sha256"} <= set(pair) for pair in pairs):
        raise DataError("the key has a pair without id, prompt_id or sha256; take it as fresh sample wrote it")
    return {str(pair["id"]): pair for pair in pairs}


def is_judged(row: Mapping[str, Any]) -> bool:
    """Returns whether somebody has judged a row of a review, by a verdict or by a rating."""
    return bool(str(row.get("verdict") or "").strip()) or any(row.get(f"rating_{side}") is not None for side in "ab")


def _verdict(row: Mapping[str, Any]) -> str:
    verdict, ratings = str(row.get("verdict") or "").strip().lower(), [row.get(f"rating_{side}") for side in "ab"]
    if verdict and verdict not in VERDICTS:
        raise DataError(f"{row['id']!r} has the verdict {verdict!r}; wanted {', '.join(VERDICTS)}, or nothing")
    if ratings == [None, None]:
        return verdict
    if not all(map(is_number, ratings)):
        raise DataError(f"{row['id']!r} has the ratings {ratings}; wanted two finite numbers")
    first, second = ratings
    rated = "tie" if first == second else "a" if first > second else "b"  # type: ignore[operator]
    if verdict not in ("", rated):
        raise DataError(f"{row['id']!r} has the verdict {verdict!r} and the ratings {ratings}; wanted one answer")
    return rated


@dataclass(frozen=True)
class FreshResult:
    """How well a reward model orders what the policy writes now; the content of `fresh.json`.

    Args:
        accuracy ([`Estimate`]): Share of decided pairs that the model orders as the majority of their reviewers does,
            a tie of scores one half; n counts pairs, the interval is by prompt.
        reviewed_by (`str`): `"human"` or `"model"`; the gate counts the first only.
        pairs (`int`): Pairs judged, however many judged each.
        ties (`int`): Pairs without a majority for a or b, which have no better side.
        tied_scores (`int`): Decided pairs whose scores are equal.
        a_preferred (`float`): Share of decided pairs in which a won; far from one half, position decided.
        policy (`str`): Policy that wrote the pairs.
        reviewers (`dict[str, int]`): Verdicts of each reviewer.
        truncated (`int`): Pairs with a completion that was cut off, as far as the verdicts say.
    """

    accuracy: Estimate
    reviewed_by: str
    pairs: int
    ties: int
    tied_scores: int
    a_preferred: float
    policy: str
    reviewers: dict[str, int]
    truncated: int = 0


def check_verdicts(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns `id`, `prompt` and `reviewer` of each verdict, and its `lead`: 1 for a, −1 for b, 0 for a tie.

    Args:
        rows (`Sequence[Mapping]`): Rows of [`Verdicts`].

    Raises:
        DataError: If a row is not whole, a reviewer judges a pair twice, an id stands for two texts or a text under
            two ids, no pair is decided, or human and model verdicts or several policies are mixed.
    """
    found = pd.DataFrame([_verdict_cells(row) for row in rows])
    for id, who in found.loc[found.duplicated(["id", "by"]), ["id", "by"]].itertuples(index=False):
        raise DataError(f"the verdicts have {id!r} by {who!r} twice; wanted one verdict of each reviewer")
    for id in _several(found, "id", "seal"):
        raise DataError(f"the verdicts have two texts under the id {id!r}; score each review apart")
    for pair in _several(found, "pair", "id"):
        first, second, *_ = found.loc[found["pair"] == pair, "id"].unique()
        raise DataError(f"{second!r} and {first!r} are the same pair; wanted one id a pair")
    for name in ("reviewed_by", "policy"):
        kinds = sorted({str(row.get(name)) for row in rows})
        if len(kinds) > 1:
            raise DataError(f"the verdicts mix {name} {' and '.join(kinds)}; score them apart")
    if not found.groupby("id")["lead"].sum().any():
        raise DataError(f"none of the {found['id'].nunique():,} pairs is decided; wanted verdicts a or b")
    return found


def _several(found: pd.DataFrame, name: str, of: str) -> list[str]:
    """Returns the names that stand with more than one value of the other column, each once."""
    counts = found.groupby(name, sort=False)[of].nunique()
    return list(counts[counts > 1].index)


def _verdict_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is counted of a verdict; raises where it is not whole."""
    wanted = "as rmtrl fresh import writes them"
    for name in ("id", "prompt_id", "reviewer", *_TEXTS):
        value, kinds = row.get(name), (str, list) if name in _TEXTS else (str, int)
        if type(value) not in kinds or (name not in _TEXTS and not str(value).strip()):
            raise DataError(f"got {str(dict(row))[:60]} without {name}; wanted verdicts, {wanted}")
    verdict, by = row.get("verdict"), row.get("reviewed_by")
    if verdict not in VERDICTS or by not in REVIEWERS:
        known = f"{', '.join(VERDICTS)} by {' or '.join(REVIEWERS)}"
        raise DataError(f"{row['id']!r} has the verdict {verdict!r} by {by!r}; wanted {known}, {wanted}")
    reviewer = str(row["reviewer"]).strip()
    return {
        "id": str(row["id"]), "prompt": str(row["prompt_id"]), "reviewer": reviewer, "by": reviewer.casefold(),
        "lead": _SIGN[verdict], "cut": any(row.get(flag) is True for flag in _CUT), "seal": _seal(row),
        "pair": _text([_text(row["prompt"]), *sorted(_text(row[side]) for side in "ab")]),  # whichever side is a
    }  # fmt: skip


def model_scores(rows: Sequence[Mapping[str, Any]], scorer: Any, *, source: str) -> NDArray[np.float64]:
    """Returns a reward model's scores of a and b, `(N, 2)`.

    Args:
        rows (`Sequence[Mapping]`): Rows of [`Verdicts`].
        scorer: As in [`~rmtrl.evaluation.scoring.score_pairs`].
        source (`str`): Their file, for errors.

    Raises:
        DataError: If one is longer than the model holds.
    """
    scores = score_pairs(scorer, rows, source, sides=("a", "b"))
    for index in np.flatnonzero(np.isnan(scores).any(axis=1))[:1]:
        most = f"the model's {scorer.most_tokens} tokens"
        raise DataError(f"{source} row {index + 1} is longer than {most}; leave it out")
    return scores


def stored_scores(rows: Sequence[Mapping[str, Any]], path: Path) -> NDArray[np.float64]:
    """Returns the scores of a and b that a file has, `(N, 2)`.

    Raises:
        DataError: If it lacks some.
    """
    ids, found = [str(row["id"]) for row in rows], read_pair_scores(path)
    if absent := [id for id in ids if not np.isfinite(found.get(id, np.nan)).all()]:
        raise DataError(f"{path} has no scores of {len(absent):,} verdicts, the first is of {absent[0]!r}; score all")
    return np.array([found[id] for id in ids])


def score_verdicts(rows: Sequence[Mapping[str, Any]], scores_a: ArrayLike, scores_b: ArrayLike) -> FreshResult:
    """Returns how often a reward model's order of two completions is that of the reviewers.

    Where several people judged a pair, the majority of those who preferred a side decides it, and the pair counts
    once; without a majority it is a tie.

    Args:
        rows (`Sequence[Mapping]`): Rows of [`Verdicts`].
        scores_a, scores_b (`(N,)` arrays): The model's scores of both completions.

    Raises:
        DataError: If scores are missing or not finite; and as [`check_verdicts`] says.
    """
    found = check_verdicts(rows)
    a, b = np.asarray(scores_a, float), np.asarray(scores_b, float)
    if not len(rows) == len(a) == len(b):
        raise DataError(f"got {len(a)} and {len(b)} scores of {len(rows)} verdicts; wanted two finite ones each")
    for bad in np.flatnonzero(~np.isfinite(a - b))[:1]:
        raise DataError(f"the scores of {rows[bad]['id']!r} are {a[bad]:g} and {b[bad]:g}; wanted finite ones")
    by_pair = found.assign(margin=a - b).groupby("id", sort=False)
    pairs = by_pair.agg({"prompt": "first", "margin": "first", "lead": "sum", "cut": "any"})
    decided = pairs[pairs["lead"] != 0]
    wins = pair_wins(decided["margin"] * np.sign(decided["lead"]), np.zeros(len(decided)))
    return FreshResult(
        accuracy=mean_estimate(wins, decided["prompt"]), reviewed_by=str(rows[0]["reviewed_by"]), pairs=len(pairs),
        ties=len(pairs) - len(decided), tied_scores=int((wins == 0.5).sum()),
        a_preferred=float((decided["lead"] > 0).mean()), policy=str(rows[0].get("policy")),
        reviewers=dict(Counter(found["reviewer"])), truncated=int(pairs["cut"].sum()),
    )  # fmt: skip
