"""The embedded world in full: prompts, responses, every annotator's judgments, pairs, an evaluation set, the truth.

What `rmtrl data synthesize` writes. The pairs are those of [`make_preferences`] with the same arguments.
"""

from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from datasets import Dataset

from rmtrl.data.synthetic.gold import GOLD_WEIGHTS, gold_scores
from rmtrl.data.synthetic.pairs import (
    ANNOTATORS,
    PERFECT,
    Annotator,
    PlantedDefects,
    build_world,
    disguise,
    pairs_of,
    write_pairs,
)
from rmtrl.data.synthetic.writing import Prompt, write_prompts

CRITERIA = tuple(GOLD_WEIGHTS)
_TYPICAL_WORDS = 20  # an answer of this length is neither raised nor lowered by a liking for length


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


def make_world(n_prompts: int = 15000, *, annotators: int = 5, seed: int = 0, clean: bool = False) -> World:
    """Returns the embedded world of this size and seed; the same arguments give the same rows on every machine.

    Args:
        n_prompts (`int`): Number of prompts; planted near-duplicates come on top. The evaluation set has a tenth.
        annotators (`int`): Number of simulated annotators, the first of `ANNOTATORS`.
        seed (`int`): Seed of every draw.
        clean (`bool`): Plant nothing; annotators judge by the gold score alone.

    Raises:
        UsageError: If there is no prompt, or are more annotators than the world has.

    Example:

    ```python
    >>> world = make_world(100)
    >>> world.truth["length_loving_annotator"]
    'long-winded'
    ```
    """
    world = build_world(n_prompts, seed, annotators, clean)
    judges = [PERFECT if clean else judge for judge in ANNOTATORS[:annotators]]
    rng = Random(f"ratings {seed}")
    golds = [gold_scores(prompt.text, answer) for _, prompt, answer in world.answers]
    ratings = [
        {"item_id": item, "prompt_id": prompt.id, "annotator": name, "domain": prompt.domain.name,
         "source": prompt.source, **_rate(rng, judge, gold, len(answer.split()))}
        for (item, prompt, answer), gold in zip(world.answers, golds, strict=True)
        for name, judge in zip((annotator.name for annotator in ANNOTATORS), judges, strict=False)
    ]  # fmt: skip
    domains = {prompt.id: prompt.domain.name for prompt in world.prompts}
    evaluation, leaks = _evaluation(world.prompts, seed, clean)
    return World(
        prompts=Dataset.from_list([_prompt_row(prompt) for prompt in world.prompts]),
        responses=Dataset.from_list(
            [
                {"item_id": item, "prompt_id": prompt.id, "domain": prompt.domain.name, "source": prompt.source,
                 "response": answer}
                for item, prompt, answer in world.answers
            ]
        ),
        ratings=ratings,
        votes=[vote | {"domain": domains[vote["prompt_id"]]} for vote in world.votes],
        pairs=pairs_of(world, clean),
        evaluation=evaluation,
        gold=Dataset.from_list(
            [
                {"item_id": item, **gold, "score": sum(GOLD_WEIGHTS[c] * gold[c] for c in CRITERIA)}
                for (item, _, _), gold in zip(world.answers, golds, strict=True)
            ]
        ),
        truth=_truth(world.planted, leaks, judges, clean),
    )  # fmt: skip


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    return {"prompt_id": prompt.id, "domain": prompt.domain.name, "source": prompt.source, "language": "en",
            "prompt": prompt.text}  # fmt: skip


def _rate(rng: Random, judge: Annotator, gold: dict[str, float], words: int) -> dict[str, int]:
    """Returns a Likert score from 1 to 5 for each criterion; only usefulness and alignment gain by length."""
    scores = {}
    for criterion in CRITERIA:
        liking = gold[criterion] + rng.gauss(0.0, judge.noise)
        if criterion in ("usefulness", "alignment"):
            liking += judge.length_preference * (words - _TYPICAL_WORDS)
        scores[criterion] = 1 + round(4 * min(max(liking, 0.0), 1.0))
    return scores


def _evaluation(trained: list[Prompt], seed: int, clean: bool) -> tuple[Dataset, list[dict[str, str]]]:
    """Returns pairs of prompts that training has not, and, where not clean, of some that it has or nearly has."""
    rng = Random(f"evaluation {seed}")
    known = {prompt.text for prompt in trained}
    n = max(2, len(trained) // 10)
    prompts = [prompt for prompt in write_prompts(rng, 2 * n) if prompt.text not in known][:n]
    leaks: list[dict[str, str]] = []
    if not clean:
        for number, leaked in enumerate(rng.sample(trained, max(2, n // 20))):
            near = number % 2 == 1
            prompts.append(Prompt(**(vars(leaked) | {"text": disguise(rng, leaked.text) if near else leaked.text})))
            leaks.append({"train": leaked.id, "kind": "near" if near else "exact"})
    rows = []
    for number, prompt in enumerate(prompts):
        id = f"evaluation-{number:05d}"
        if number >= len(prompts) - len(leaks):
            leaks[number - (len(prompts) - len(leaks))]["evaluation"] = id
        rows += write_pairs(rng, Prompt(**(vars(prompt) | {"id": id})), (PERFECT,)).rows
    return Dataset.from_list(rows).remove_columns("prompt_rejected"), leaks


def _truth(
    planted: PlantedDefects, leaks: list[dict[str, str]], judges: list[Annotator], clean: bool
) -> dict[str, Any]:
    loving = max(judges, key=lambda judge: judge.length_preference)
    return {
        "schema": "rmtrl/world-truth/1",
        **asdict(planted),
        "leaks": leaks,
        "annotators": [asdict(judge) for judge in judges],
        "length_loving_annotator": None if clean or loving.length_preference < 0.02 else loving.name,
        "gold_weights": dict(GOLD_WEIGHTS),
    }
