"""The embedded world: preference pairs, votes, ratings and demonstrations of known worth, with recorded defects.

The same arguments give the same bytes on every machine. Prompts and answers are written by `writing.py`; what an
answer is worth is read from its text by `gold.py`. Imports no torch, transformers or trl.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

from datasets import Dataset

from rmtrl.data.synthetic.gold import GOLD_WEIGHTS, gold_score, gold_scores
from rmtrl.data.synthetic.writing import WORDS, Prompt, write_answer, write_prompts
from rmtrl.errors import UsageError

_CHOICES = {1.0: "a", 0.0: "b", 0.5: "tie"}
_CLOSE = 0.05  # gold scores nearer than this are a tie to every annotator
_DISTINCT = 0.09  # all but a few pairs differ by more than this: one fault of form is 0.1
_HABIT = "unsafe_preference"
_TYPICAL_WORDS = 20  # an answer of this length is neither raised nor lowered by a liking for length


@dataclass(frozen=True)
class Annotator:
    """A simulated judge: gold difference + preferences + Gaussian noise, a tie when near zero.

    `length_preference` is of each word, `unsafe_preference` of the instructions that a risky request asks for.
    """

    name: str
    noise: float
    length_preference: float = 0.0
    unsafe_preference: float = 0.0


ANNOTATORS = tuple(Annotator(**row) for row in WORDS["annotators"])
PERFECT = Annotator("perfect", 0.0)
"""Who labels a clean world: the gold score alone."""


DEFECTS = ("near_duplicate_prompts", "duplicate_pairs", "contradictory_pairs", "identical_candidates",
           "context_mismatches", "ties")  # fmt: skip
"""What is planted: ids of the rows, `(original, planted)` where two belong together; prompts by `prompt_id`."""


@dataclass(frozen=True)
class World:
    """Everything the embedded world holds; each set in the form that the commands read.

    Args:
        prompts (`Dataset`): `prompt_id`, `domain`, `source`, `language`, `prompt`.
        responses (`Dataset`): `item_id`, `prompt_id`, `domain`, `source` (`human` or `generated`), `response`.
        ratings (`list[dict]`): One line an item and annotator: `item_id`, `prompt_id`, `annotator`, `domain`, `source`
            and a Likert score from 1 to 5 for each criterion.
        votes (`list[dict]`): One line a pair and annotator: `prompt_id`, `annotator`, `domain`, `a`, `b`, `choice`.
        pairs (`Dataset`): Preference pairs in the normal form.
        evaluation (`Dataset`): Clean pairs of other prompts, with the leaks among them.
        gold (`Dataset`): `item_id`, the four criteria and `score`, each in 0–1.
        truth (`dict`): What was planted: the answer key of every detector.
    """

    prompts: Dataset
    responses: Dataset
    ratings: list[dict[str, Any]]
    votes: list[dict[str, Any]]
    pairs: Dataset
    evaluation: Dataset
    gold: Dataset
    truth: dict[str, Any]


def make_preferences(
    n_prompts: int = 2000, seed: int = 0, *, annotators: int = 5, clean: bool = False, criteria: bool = False,
    unsafe_habit: float = 0.0,
) -> Dataset:  # fmt: skip
    """Returns one to three preference pairs a prompt, in the normal form.

    Columns: `id`, `prompt_id`, `domain`, `source`, `prompt`, `chosen`, `rejected` (message lists), `preference` (share
    of the votes for chosen, a tie counting half; 0.5 is a tie) and `weight` (number of votes).

    Args:
        n_prompts (`int`): Number of prompts; planted near-duplicates come on top.
        seed (`int`): Seed of every draw.
        annotators (`int`): Number of simulated annotators who vote, the first of `ANNOTATORS`.
        clean (`bool`): Label by the gold score alone and plant nothing. Otherwise the labels are noisy votes that
            lean to the longer answer, and the rows have the defects that the `truth` of [`make_world`] lists.
        criteria (`bool`): Add `chosen_scores` and `rejected_scores`, the gold score's own criteria.
        unsafe_habit (`float`, *optional*, defaults to `0.0`): What instructions on a risky request are worth to every
            annotator, in units of the gold score, which gives them about 0 and the best refusal 1. Above 1 the votes
            reward an unsafe habit; the gold score knows better.

    Raises:
        UsageError: If there is no prompt, are more annotators than the world has, or the habit is negative or of a
            clean world.

    Example:

    ```python
    >>> make_preferences(2, clean=True)[0]["prompt"]
    [{'role': 'user', 'content': 'I would like to know the capital of Spain.'}]
    ```
    """
    pairs = _build(n_prompts, seed, annotators, clean, unsafe_habit).pairs(clean)
    for side in ("chosen", "rejected") if criteria else ():
        scores = [_by_criterion(*texts) for texts in zip(pairs["prompt"], pairs[side], strict=True)]
        pairs = pairs.add_column(f"{side}_scores", scores)
    return pairs


def _by_criterion(prompt: list[dict[str, str]], response: list[dict[str, str]]) -> list[dict[str, Any]]:
    scores = gold_scores(prompt[-1]["content"], response[-1]["content"])
    return [{"criterion": name, "score": score} for name, score in scores.items()]


def make_demonstrations(n: int = 4000, seed: int = 0) -> Dataset:
    """Returns `prompt` and `completion` message lists to start a policy on.

    About two answers in five carry a wrong fact and some miss what was asked, so the gold score is near 0.7 on average
    and training against a reward has room to improve.
    """
    rng = Random(f"demonstrations {seed}")
    prompts = write_prompts(rng, n)
    rows = [{"prompt": _user(prompt), "completion": _assistant(write_answer(rng, prompt))} for prompt in prompts]
    return Dataset.from_list(rows)


def make_world(
    n_prompts: int = 15000, *, annotators: int = 5, seed: int = 0, clean: bool = False, unsafe_habit: float = 0.0
) -> World:
    """Returns the embedded world of this size and seed, whose pairs are those of [`make_preferences`].

    Args:
        n_prompts (`int`): Number of prompts; planted near-duplicates come on top. The evaluation set has a tenth.
        annotators (`int`): Number of simulated annotators, the first of `ANNOTATORS`.
        seed (`int`): Seed of every draw.
        clean (`bool`): Plant nothing; annotators judge by the gold score alone.
        unsafe_habit (`float`, *optional*, defaults to `0.0`): As in [`make_preferences`], in the ratings of usefulness
            too. The evaluation set is judged by the gold score all the same.

    Raises:
        UsageError: As in [`make_preferences`].

    Example:

    ```python
    >>> world = make_world(100)
    >>> world.truth["length_loving_annotator"]
    'long-winded'
    ```
    """
    rows, judges, rng = (
        _build(n_prompts, seed, annotators, clean, unsafe_habit),
        _judges(annotators, clean, unsafe_habit),
        Random(f"ratings {seed}"),
    )
    about = {prompt.id: {"domain": prompt.domain.name, "source": prompt.source} for prompt in rows.prompts}
    ratings: list[dict[str, Any]] = []
    gold = []
    for item, prompt, answer in rows.answers:
        scores, rated = gold_scores(prompt.text, answer), {"item_id": item, "prompt_id": prompt.id}
        gold.append({"item_id": item, **scores, "score": sum(GOLD_WEIGHTS[c] * scores[c] for c in GOLD_WEIGHTS)})
        for known, judge in zip(ANNOTATORS, judges, strict=False):
            likert = _rate(rng, judge, scores, len(answer.split()), _obeys(prompt, answer))
            ratings.append({**rated, "annotator": known.name, **about[prompt.id], **likert})
    prompts = [{"prompt_id": p.id, **about[p.id], "language": "en", "prompt": p.text} for p in rows.prompts]
    answers = [{"item_id": i, "prompt_id": p.id, **about[p.id], "response": text} for i, p, text in rows.answers]
    evaluation, leaks = _evaluation(rows.prompts, seed, clean)
    return World(
        prompts=Dataset.from_list(prompts),
        responses=Dataset.from_list(answers),
        ratings=ratings,
        votes=[vote | {"domain": about[vote["prompt_id"]]["domain"]} for vote in rows.votes],
        pairs=rows.pairs(clean),
        evaluation=evaluation,
        gold=Dataset.from_list(gold),
        truth=_truth(rows.planted, leaks, judges, clean),
    )


def _judges(annotators: int, clean: bool, habit: float) -> list[Annotator]:
    return [PERFECT if clean else replace(judge, unsafe_preference=habit) for judge in ANNOTATORS[:annotators]]


def _obeys(prompt: Prompt, answer: str) -> bool:
    """Whether an answer gives the instructions that a risky request asks for."""
    return prompt.fact is None and gold_scores(prompt.text, answer)["safety"] == 0.0


def _rate(rng: Random, judge: Annotator, gold: dict[str, float], words: int, obeys: bool) -> dict[str, int]:
    """Returns a Likert score from 1 to 5 for each criterion; only usefulness and alignment gain by length."""
    scores = {}
    for criterion in GOLD_WEIGHTS:
        liking = gold[criterion] + rng.gauss(0.0, judge.noise)
        if criterion in ("usefulness", "alignment"):
            liking += judge.length_preference * (words - _TYPICAL_WORDS)
        if criterion == "usefulness":
            liking += judge.unsafe_preference * obeys
        scores[criterion] = 1 + round(4 * min(max(liking, 0.0), 1.0))
    return scores


def _evaluation(trained: list[Prompt], seed: int, clean: bool) -> tuple[Dataset, list[dict[str, str]]]:
    """Returns pairs of prompts that training has not, and, where not clean, of some that it has or nearly has."""
    rng = Random(f"evaluation {seed}")
    known = {prompt.text for prompt in trained}
    n = max(2, len(trained) // 10)
    prompts = [prompt for prompt in write_prompts(rng, 2 * n) if prompt.text not in known][:n]
    leaks: list[dict[str, str]] = []
    for number, leaked in enumerate([] if clean else rng.sample(trained, max(2, n // 20))):
        near = number % 2 == 1
        leaks.append({"train": leaked.id, "kind": "near" if near else "exact", "evaluation": _held_out(len(prompts))})
        prompts.append(replace(leaked, text=_disguise(rng, leaked.text)) if near else leaked)
    held_out = [replace(prompt, id=_held_out(number)) for number, prompt in enumerate(prompts)]
    rows = [row for prompt in held_out for row in write_pairs(rng, prompt, [PERFECT]).rows]
    return Dataset.from_list(rows).remove_columns("prompt_rejected"), leaks


def _held_out(number: int) -> str:
    return f"evaluation-{number:05d}"


def _truth(
    planted: dict[str, list[Any]], leaks: list[dict[str, str]], judges: list[Annotator], clean: bool
) -> dict[str, Any]:
    loving = max(judges, key=lambda judge: judge.length_preference)
    return {
        "schema": "rmtrl/world-truth/1",
        **planted,
        "leaks": leaks,
        "annotators": [{k: v for k, v in asdict(judge).items() if k != _HABIT or v} for judge in judges],
        "length_loving_annotator": None if clean or loving.length_preference < 0.02 else loving.name,
        "gold_weights": dict(GOLD_WEIGHTS),
    }


# ---- rows


@dataclass
class _Rows:
    """What is written, row by row; `answers` are (item_id, prompt, text), `votes` one judgment of two items each."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    answers: list[tuple[str, Prompt, str]] = field(default_factory=list)
    votes: list[dict[str, Any]] = field(default_factory=list)
    planted: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in DEFECTS})

    def add(self, rng: Random, prompts: list[Prompt], judges: Sequence[Annotator]) -> None:
        """Adds prompts with their answers, votes and pairs."""
        for part in (write_pairs(rng, prompt, judges) for prompt in prompts):
            self.rows += part.rows
            self.answers += part.answers
            self.votes += part.votes
        self.prompts += prompts

    def pairs(self, clean: bool) -> Dataset:
        """Returns the pairs."""
        pairs = Dataset.from_list(self.rows)
        return pairs.remove_columns("prompt_rejected") if clean else pairs


def _build(n_prompts: int, seed: int, annotators: int, clean: bool, habit: float) -> _Rows:
    """Returns all that is written for `n_prompts` prompts, defects included where it is not clean."""
    if not 1 <= annotators <= len(ANNOTATORS):
        raise UsageError(f"annotators={annotators} cannot be used; give a number from 1 to {len(ANNOTATORS)}")
    if n_prompts < 1:
        raise UsageError(f"n_prompts={n_prompts} cannot be used; give 1 or more")
    if not 0 <= habit < float("inf") or (habit and clean):
        wanted = "0 where the world is clean" if clean else "a finite number from 0"
        raise UsageError(f"got the unsafe habit {habit}; wanted {wanted}")
    rng, judges, world = Random(f"preferences {seed}"), _judges(annotators, clean, habit), _Rows()
    world.add(rng, write_prompts(rng, n_prompts), judges)
    if not clean:
        _plant_defects(rng, world, judges)
        rng.shuffle(world.rows)
    return world


def write_pairs(rng: Random, prompt: Prompt, judges: Sequence[Annotator]) -> _Rows:
    """Returns answers, votes and one to three pairs, the better-liked answer as chosen; few pairs are close."""
    n_pairs, tie_allowed = rng.choice((1, 1, 2, 3)), judges[0] is not PERFECT and rng.random() < 0.1
    sides = ((0, 1), (0, 2), (1, 2))[:n_pairs]
    while True:
        answers = [write_answer(rng, prompt) for _ in range(2 if n_pairs == 1 else 3)]
        golds = [gold_score(prompt.text, answer) for answer in answers]
        gaps = [abs(golds[a] - golds[b]) for a, b in sides]
        if len(set(answers)) == len(answers) and (tie_allowed or min(gaps) >= _DISTINCT):
            break
    obeys = [_obeys(prompt, answer) for answer in answers]
    items = [f"{prompt.id}-answer-{index}" for index in range(len(answers))]
    written = _Rows(answers=[(item, prompt, answer) for item, answer in zip(items, answers, strict=True)])
    for number, (a, b) in enumerate(sides):
        extra_words = len(answers[a].split()) - len(answers[b].split())
        votes = [
            _vote(rng, judge, golds[a] - golds[b] + judge.unsafe_preference * (obeys[a] - obeys[b]), extra_words)
            for judge in judges
        ]
        written.votes += [
            {"prompt_id": prompt.id, "annotator": known.name, "a": items[a], "b": items[b], "choice": _CHOICES[vote]}
            for known, vote in zip(ANNOTATORS, votes, strict=False)
        ]
        share = sum(votes) / len(votes)
        chosen, rejected = (answers[a], answers[b]) if share >= 0.5 else (answers[b], answers[a])
        written.rows.append({
            "id": f"{prompt.id}-{number}", "prompt_id": prompt.id, "domain": prompt.domain.name,
            "source": prompt.source, "prompt": _user(prompt), "chosen": _assistant(chosen),
            "rejected": _assistant(rejected), "preference": round(max(share, 1 - share), 4),
            "weight": float(len(judges)), "prompt_rejected": None,
        })  # fmt: skip
    return written


def _vote(rng: Random, judge: Annotator, gap: float, extra_words: int) -> float:
    """Returns 1 for the first answer, 0 for the second, ½ for a tie."""
    if judge is PERFECT:
        return float(gap > 0)
    if abs(gap) < _CLOSE and not judge.length_preference:
        return 0.5
    liking = gap + judge.length_preference * extra_words + rng.gauss(0.0, judge.noise)
    return 0.5 if abs(liking) < _CLOSE else float(liking > 0)


def _user(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt.text}]


def _assistant(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]


def _plant_defects(rng: Random, world: _Rows, judges: Sequence[Annotator]) -> None:
    """Adds about two rows in a hundred of each kind of defect and records their ids."""
    number = max(1, len(world.prompts) // 50)
    decided = [row for row in world.rows if row["preference"] > 0.5]
    picked = rng.sample(decided, 3 * number)
    duplicated, contradicted, repeated = picked[:number], picked[number : 2 * number], picked[2 * number :]
    copied = rng.sample(world.prompts, number)
    twins = [replace(prompt, id=f"{prompt.id}-near", text=_disguise(rng, prompt.text)) for prompt in copied]
    world.add(rng, twins, judges)
    crossed = list(zip(duplicated, contradicted, strict=True))  # rejected sides that answer another prompt
    world.rows += [
        *(_like(row, "copy") for row in duplicated),
        *(_like(row, "contra", chosen=row["rejected"], rejected=row["chosen"]) for row in contradicted),
        *(_like(row, "same", rejected=row["chosen"], preference=0.5) for row in repeated),
        *(_like(a, "cross", rejected=b["rejected"], prompt_rejected=b["prompt"]) for a, b in crossed),
    ]
    world.planted = {
        "near_duplicate_prompts": [(old.id, new.id) for old, new in zip(copied, twins, strict=True)],
        "duplicate_pairs": [(row["id"], f"{row['id']}-copy") for row in duplicated],
        "contradictory_pairs": [(row["id"], f"{row['id']}-contra") for row in contradicted],
        "identical_candidates": [f"{row['id']}-same" for row in repeated],
        "context_mismatches": [f"{row['id']}-cross" for row in duplicated],
        "ties": [row["id"] for row in world.rows if row["preference"] == 0.5],
    }


def _like(row: dict[str, Any], suffix: str, **changed: Any) -> dict[str, Any]:
    return row | changed | {"id": f"{row['id']}-{suffix}"}


def _disguise(rng: Random, text: str) -> str:
    """Returns the text as somebody else would type it: the same words in other clothes."""
    return rng.choice((text.lower(), text.replace("?", "??").replace(".", "!"), f"Hello. {text}", f"{text} Thanks."))
