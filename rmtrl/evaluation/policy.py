"""Policies judged on fixed prompts and compared prompt by prompt; samples for overoptimization; best of n."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from rmtrl.data.loading import source_rows
from rmtrl.data.normal_form import TEMPLATE
from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.overoptimization import scored_samples
from rmtrl.evaluation.scoring import check_rendered, joined, score_conversations
from rmtrl.metrics import Floats, mean_estimate, pair_wins
from rmtrl.types import Chat, Conversation, Estimate, Scorer

if TYPE_CHECKING:
    from rmtrl.generation import Completion, Generator  # for the annotations alone: no torch here

ReferenceMetric = Callable[[str, str], float]
"""A score of a completion's text against the prompt's reference answer."""


def exact_match(text: str, reference: str) -> float:
    """Returns 1 where two texts have the same words, without case, punctuation and articles, as SQuAD counts; else 0.

    Example:

    ```python
    >>> exact_match("The Eiffel Tower!", "eiffel tower"), exact_match("Paris, France", "Paris")
    (1.0, 0.0)
    ```
    """
    return float(_words(text) == _words(reference))


def word_f1(text: str, reference: str) -> float:
    """Returns the F1 of the words that two texts share, counted as [`exact_match`] does.

    Example:

    ```python
    >>> word_f1("Paris, France", "Paris")
    0.6666666666666666
    ```
    """
    own, right = Counter(_words(text)), Counter(_words(reference))
    shared, total = (own & right).total(), own.total() + right.total()
    return 2 * shared / total if total else 1.0


def _words(text: str) -> list[str]:
    words = re.sub(r"[^\w\s]|_", "", text.lower()).split()
    return [word for word in words if word not in ("a", "an", "the")]


METRICS: dict[str, ReferenceMetric] = {"exact_match": exact_match, "word_f1": word_f1}

_WINDOW_CANDIDATES = 1000  # ranked at a time: enough to find rows of like length, little to hold
_WINDOW_COMPLETIONS = 2048  # generated and scored at a time


@dataclass(frozen=True)
class PolicyResult:
    """What one policy made of the prompts; its JSON has the figures.

    Args:
        scores (`(P, n)` float64): Score of each completion.
        completions (`list[list[Completion]]`): The completions, by prompt.
        mean (`Estimate`): Mean score, its interval by prompt.
        truncated (`Estimate`): Share of completions cut off before their end.
        length_chars (`Estimate`): Mean length of a completion, in characters.
    """

    scores: Floats = field(repr=False)
    completions: list[list[Completion]] = field(repr=False)
    mean: Estimate
    truncated: Estimate
    length_chars: Estimate


@dataclass(frozen=True)
class PolicyComparison:
    """One policy against another on the same prompts.

    Args:
        difference (`Estimate`): Mean score minus the other's, paired by prompt.
        win_rate (`Estimate`): Share of pairs of completions to one prompt in which this policy's scores higher, a tie
            counting one half.
    """

    difference: Estimate
    win_rate: Estimate


def evaluate_policies(
    policies: Mapping[str, Generator],
    prompts: Sequence[Conversation],
    judge: Scorer | ReferenceMetric,
    *,
    n: int = 1,
    references: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, PolicyResult]:
    """Returns the result of each policy, such as the checkpoints of a run in order, on the same prompts.

    Args:
        policies (`Mapping[str, Generator]`): Policies by name.
        prompts (`Sequence[Conversation]`): Fixed prompts, each once.
        judge ([`~rmtrl.types.Scorer`] or function): Scores conversations; or, with `references`, a function of a
            completion's text and the reference answer.
        n (`int`): Completions of each prompt.
        references (`Sequence[str]`, *optional*): Reference answer of each prompt.
        seed (`int`): Seed of the sampling, the same for every policy.

    Raises:
        DataError: If there are no prompts, one stands twice, references are missing, or a completion cannot be scored.
        ModelError: If a score is no finite number.

    Example:

    ```python
    >>> made = partial(TransformersGenerator.from_pretrained, max_new_tokens=8)
    >>> policies = {name: made(f"outputs/{name}") for name in ("sft", "dpo")}
    >>> evaluate_policies(policies, ["one ?", "two ?"], scorer)["dpo"].mean.n
    2
    ```
    """
    _check_prompts(prompts)
    if not isinstance(judge, Scorer) and len(references or ()) != len(prompts):
        got = f"got {len(references or ())} references for {len(prompts)} prompts"
        raise DataError(f"{got}; a metric that is no Scorer needs one each")
    results = {}
    for name, generator in policies.items():
        completions = [own for _, made in _windows(generator, prompts, n, seed) for own in made]
        if isinstance(judge, Scorer):
            scores = _scored(judge, prompts, completions)
        else:
            pairs = zip(completions, references or (), strict=True)
            scores = np.array([[float(judge(one.text, reference)) for one in own] for own, reference in pairs])
        results[name] = _result(scores, completions)
    return results


def compare_policies(results: Mapping[str, PolicyResult], baseline: str | None = None) -> dict[str, PolicyComparison]:
    """Returns each policy against the baseline, prompt by prompt; intervals resample prompts.

    Args:
        results (`Mapping[str, PolicyResult]`): From [`evaluate_policies`], on the same prompts.
        baseline (`str`, *optional*): Defaults to the first.

    Raises:
        UsageError: If the baseline is none of the policies.
        DataError: If two policies were judged on different numbers of prompts.

    Example:

    ```python
    >>> made = partial(TransformersGenerator.from_pretrained, max_new_tokens=8)
    >>> policies = {name: made(f"outputs/{name}") for name in ("sft", "dpo")}
    >>> results = evaluate_policies(policies, ["one ?", "two ?"], scorer)
    >>> compare_policies(results, baseline="sft")["dpo"].difference.n
    2
    ```
    """
    baseline = next(iter(results)) if baseline is None else baseline
    if baseline not in results:
        raise UsageError(f"got the baseline {baseline}; wanted one of {', '.join(results)}")
    base, compared = results[baseline].scores, {}
    for name, scores in ((name, result.scores) for name, result in results.items() if name != baseline):
        if len(scores) != len(base):
            raise DataError(f"{name} has {len(scores)} prompts and {baseline} {len(base)}; wanted the same")
        difference = mean_estimate(scores.mean(1) - base.mean(1), proportion=False)
        wins = pair_wins(scores[:, :, None], base[:, None, :]).mean((1, 2))
        compared[name] = PolicyComparison(difference, mean_estimate(wins))
    return compared


def policy_lines(asked: Sequence[Asked], results: Mapping[str, PolicyResult]) -> Iterator[dict[str, Any]]:
    """Yields a line a prompt and policy: what it answered, and the scores."""
    for place, one in enumerate(asked):
        for name, own in results.items():
            answers = [made.text for made in own.completions[place]]
            found = {"completions": answers, "scores": own.scores[place].tolist()}
            yield {"id": one.id, "prompt": one.prompt, **one.given, "policy": name, **found}


def sample_scores(
    generator: Generator,
    prompts: Sequence[Conversation],
    n: int,
    proxy: Scorer,
    gold: Scorer,
    *,
    seed: int = 0,
    domains: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Returns n completions of each prompt scored by proxy and by gold: what overoptimization is measured on.

    Args:
        generator ([`~rmtrl.generation.Generator`]): The policy.
        prompts (`Sequence[Conversation]`): P prompts, each once; their names are their places.
        n (`int`): Completions of each prompt.
        proxy, gold ([`~rmtrl.types.Scorer`]): The score that chooses and the score that counts.
        seed (`int`): Seed of the sampling.
        domains (`Sequence[str]`, *optional*): Domain of each prompt.

    Raises:
        DataError: If there are no prompts, one stands twice, or a conversation cannot be scored.
        ModelError: If a score is no finite number.

    Example:

    ```python
    >>> samples = sample_scores(generator, prompts, 64, proxy, gold)
    >>> print(measure_overoptimization(samples).whole.gamma)
    0.312 [0.287, 0.338] (n = 200)
    ```
    """
    _check_prompts(prompts)
    scores: dict[str, list[Floats]] = {"proxy": [], "gold": []}
    truncated: list[bool] = []
    with tqdm(total=len(prompts), desc="Sampling", unit="prompt", delay=2) as progress:
        for part, completions in _windows(generator, prompts, n, seed):
            for name, scorer in (("proxy", proxy), ("gold", gold)):
                scores[name].append(_scored(scorer, part, completions).ravel())
            truncated += [completion.truncated for own in completions for completion in own]
            progress.update(len(part))
    return scored_samples(
        np.repeat(np.arange(len(prompts)), n).astype(str), *map(np.concatenate, scores.values()),
        domain=None if domains is None else np.repeat(np.asarray(domains, str), n), truncated=truncated,
    )  # fmt: skip


@dataclass(frozen=True)
class Ranked:
    """The candidates of one prompt with their scores.

    Args:
        candidates (`tuple`): As given.
        scores (`(N,)` float64): One a candidate; NaN where the scorer does not hold it.
        index (`int`, *optional*): Place of the best, the first of equals; `None` where none could be scored.
    """

    candidates: tuple[Conversation, ...]
    scores: Floats
    index: int | None

    @property
    def best(self) -> Conversation | None:
        """The best candidate, `None` where none could be scored."""
        return None if self.index is None else self.candidates[self.index]


def best_of_n(
    scorer: Scorer, prompts: Sequence[Conversation], candidates: Sequence[Sequence[Conversation]]
) -> list[Ranked]:
    """Returns the candidates of each prompt with their scores and the best of them.

    Choosing the best of n spends log n − (n − 1)/n nats of KL; how many the scorer bears is what
    [`~rmtrl.evaluation.overoptimization.measure_overoptimization`] says.

    Args:
        scorer ([`~rmtrl.types.Scorer`]): Anything that scores conversations.
        prompts (`Sequence[Conversation]`): P prompts, message lists or strings.
        candidates (`Sequence[Sequence[Conversation]]`): Candidates of each prompt; a string after a message list
            becomes the assistant's message.

    Raises:
        DataError: If a prompt has no candidates, there are not as many lists as prompts, or a candidate does not fit
            its prompt.
        ModelError: If the scorer returns another number of scores, or one that is no finite number.

    Example:

    ```python
    >>> best_of_n(scorer, ["Is the sky blue?"], [[" Yes.", " No."]])[0].best
    ' Yes.'
    ```
    """
    if len(prompts) != len(candidates):
        raise DataError(f"got {len(prompts)} prompts and {len(candidates)} lists of candidates; wanted as many")
    if empty := [index for index, own in enumerate(candidates) if not len(own) or isinstance(own, str)]:
        raise DataError(f"prompt {empty[0]} has no list of candidates; wanted one candidate or more")
    whole = [joined(prompt, one) for prompt, own in zip(prompts, candidates, strict=True) for one in own]
    parts = np.split(score_conversations(scorer, whole), np.cumsum([len(own) for own in candidates])[:-1])
    best = (None if np.isnan(part).all() else int(np.nanargmax(part)) for part in parts)
    return [Ranked(tuple(own), part, index) for own, part, index in zip(candidates, parts, best, strict=True)]


@dataclass(frozen=True)
class Asked:
    """A prompt of a file.

    Args:
        id (`Any`): Its id there, or its place from 0.
        place (`str`): Where it stands, for errors.
        prompt (`Conversation`): With its `tools` and `chat_template_kwargs`.
        given (`dict[str, Any]`): These, as its row has them.
        candidates (`list`, *optional*): Its candidates, where the file has them.
        reference (`str`, *optional*): The right answer, where its row has one.
    """

    id: Any
    place: str
    prompt: Conversation
    given: dict[str, Any]
    candidates: list[Conversation] | None
    reference: str | None = None

    def line(self, ranked: Ranked) -> dict[str, Any]:
        """Returns the line of the prompt with its candidates, their scores and the best of them."""
        found = {"best": ranked.best, "index": ranked.index, "scores": ranked.scores.tolist()}
        return {"id": self.id, "prompt": self.prompt, **self.given, **found, "candidates": list(ranked.candidates)}


def read_prompts(source: str, *, candidates: bool) -> list[Asked]:
    """Returns the prompts of a file, a folder or a hub set.

    Args:
        source (`str`): What to read.
        candidates (`bool`): Whether each must have candidates.

    Raises:
        DataError: If it cannot be read, or a row lacks one or has another form.
    """
    asked = []
    for number, (place, row) in enumerate(source_rows(source)):
        prompt, own = row.get("prompt"), row.get("candidates") if candidates else None
        if not prompt or not isinstance(prompt, str | list):
            raise DataError(f"{place} has the prompt {str(prompt)[:40]!r}; wanted a text or messages")
        if candidates and not (isinstance(own, list) and own and all(isinstance(one, str | list) for one in own)):
            raise DataError(
                f"{place} has the candidates {str(own)[:40]!r}; wanted a list of texts, or --policy to sample them"
            )
        id = str(number) if row.get("id") is None else row["id"]
        given = {name: row[name] for name in TEMPLATE if row.get(name)}
        reference = None if row.get("reference") is None else str(row["reference"])
        asked.append(Asked(id, place, Chat.of(prompt, row), given, own, reference))
    return asked


def rerank(
    scorer: Any, asked: Sequence[Asked], generator: Generator | None = None, *, n: int = 8, seed: int = 0
) -> Iterator[tuple[Asked, Ranked]]:
    """Yields each prompt with its candidates ranked; a window of them is sampled and scored at a time.

    Args:
        scorer ([`~rmtrl.reward.scorer.ModelScorer`]): A reward model.
        asked (`Sequence[Asked]`): The prompts.
        generator ([`~rmtrl.generation.Generator`], *optional*): A policy that makes n candidates of each.
        n, seed (`int`): Candidates of each, and the seed of their sampling.

    Raises:
        RenderingError: If a candidate cannot be rendered.
        DataError: If no prompt has a candidate that the scorer holds.
    """
    most = n if generator else max(len(one.candidates or ()) for one in asked)
    size, held = max(1, _WINDOW_CANDIDATES // most), False
    with tqdm(total=len(asked), desc="Reranking", unit="prompt", delay=2) as progress:
        for window in (asked[start : start + size] for start in range(0, len(asked), size)):
            prompts = [one.prompt for one in window]
            candidates: list[Any] = [one.candidates for one in window]
            if generator:
                candidates = [[made.text for made in own] for own in generator.generate(prompts, n, seed=seed)]
            for one, ranked in zip(window, best_of_n(scorer, prompts, candidates), strict=True):
                whole = [joined(one.prompt, candidate) for candidate in ranked.candidates]
                check_rendered(scorer, [whole[i] for i in np.flatnonzero(np.isnan(ranked.scores))], one.place)
                held = held or ranked.index is not None
                yield one, ranked
            progress.update(len(window))
    if not held:
        raise DataError(f"none of the {len(asked):,} prompts has a candidate that the model holds")


def _check_prompts(prompts: Sequence[Conversation]) -> None:
    seen: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        if (first := seen.setdefault(repr((prompt, getattr(prompt, "__dict__", None))), index)) != index:
            raise DataError(f"prompts {first} and {index} are equal and would count twice; give each prompt once")
    if not seen:
        raise DataError("got no prompts; wanted one or more")


def _windows(
    generator: Generator, prompts: Sequence[Conversation], n: int, seed: int
) -> Iterator[tuple[Sequence[Conversation], list[list[Completion]]]]:
    """Yields prompts with their completions, a bounded number at a time."""
    window = max(1, _WINDOW_COMPLETIONS // n)
    for start in range(0, len(prompts), window):
        part = prompts[start : start + window]
        yield part, generator.generate(part, n, seed=seed)


def _scored(scorer: Scorer, prompts: Sequence[Conversation], completions: Sequence[Sequence[Completion]]) -> Floats:
    """Returns the scores of completions, `(P, n)`."""
    conversations = [
        joined(prompt, completion.text) for prompt, own in zip(prompts, completions, strict=True) for completion in own
    ]
    scores = score_conversations(scorer, conversations)
    if unscored := int(np.isnan(scores).sum()):
        raise DataError(f"{unscored:,} of {len(scores):,} conversations are longer than the scorer holds; generate "
                        "fewer tokens or leave long prompts out")  # fmt: skip
    return scores.reshape(len(prompts), -1)


def _result(scores: Floats, completions: list[list[Completion]]) -> PolicyResult:
    """Returns the figures of one policy; intervals resample prompts."""
    lengths = [np.mean([len(one.text) for one in own]) for own in completions]
    truncated = mean_estimate([np.mean([one.truncated for one in own]) for own in completions])
    mean, length = (mean_estimate(values, proportion=False) for values in (scores.mean(1), lengths))
    return PolicyResult(scores, completions, mean, truncated, length)
