"""Policies judged on fixed prompts: generated, scored, compared prompt by prompt; and samples for overoptimization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.overoptimization import Samples
from rmtrl.evaluation.scoring import joined, score_conversations
from rmtrl.metrics import mean_estimate, pair_wins
from rmtrl.types import Conversation, Estimate, Scorer

if TYPE_CHECKING:
    from rmtrl.generation import Completion, Generator  # for the annotations alone: no torch here

Floats = NDArray[np.float64]
ReferenceMetric = Callable[[str, str], float]
"""A score of a completion's text against the prompt's reference answer."""

_WINDOW_COMPLETIONS = 2048  # generated and scored at a time


@dataclass(frozen=True)
class PolicyResult:
    """What one policy made of the prompts.

    Args:
        scores (`(P, n)` float64): Score of each completion.
        completions (`list[list[Completion]]`): The completions, by prompt.
        mean (`Estimate`): Mean score, its interval by prompt.
        truncated (`Estimate`): Share of completions cut off before their end.
        length_chars (`Estimate`): Mean length of a completion, in characters.
    """

    scores: Floats
    completions: list[list[Completion]]
    mean: Estimate
    truncated: Estimate
    length_chars: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as a plain dictionary for JSON, without the completions."""
        return {name: getattr(self, name).as_dict() for name in ("mean", "truncated", "length_chars")}


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

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as a plain dictionary for JSON."""
        return {"difference": self.difference.as_dict(), "win_rate": self.win_rate.as_dict()}


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
    >>> policies = {step: TransformersGenerator.from_pretrained(f"outputs/ppo/{step}") for step in ("100", "200")}
    >>> results = evaluate_policies(policies, prompts, scorer)
    >>> print(compare_policies(results, baseline="100")["200"].difference)
    0.312 [0.254, 0.371] (n = 500)
    ```
    """
    _check_prompts(prompts)
    score = _judged_by(judge, prompts, references)
    results = {}
    for name, generator in policies.items():
        completions = _generate(generator, prompts, n, seed)
        results[name] = _result(score(completions), completions)
    return results


def compare_policies(
    results: Mapping[str, PolicyResult], baseline: str | None = None, *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, PolicyComparison]:
    """Returns each policy against the baseline, prompt by prompt; intervals resample prompts.

    Args:
        results (`Mapping[str, PolicyResult]`): From [`evaluate_policies`], on the same prompts.
        baseline (`str`, *optional*): Defaults to the first.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.

    Raises:
        UsageError: If the baseline is none of the policies.
        DataError: If two policies were judged on different numbers of prompts.
    """
    baseline = next(iter(results)) if baseline is None else baseline
    if baseline not in results:
        raise UsageError(f"got the baseline {baseline}; wanted one of {', '.join(results)}")
    base = results[baseline].scores
    compared = {}
    for name, result in results.items():
        if name == baseline:
            continue
        if len(result.scores) != len(base):
            raise DataError(f"{name} has {len(result.scores)} prompts and {baseline} {len(base)}; wanted the same")
        difference = result.scores.mean(1) - base.mean(1)
        wins = pair_wins(result.scores[:, :, None], base[:, None, :]).mean((1, 2))
        compared[name] = PolicyComparison(
            mean_estimate(difference, proportion=False, n_resamples=n_resamples, seed=seed),
            mean_estimate(wins, n_resamples=n_resamples, seed=seed),
        )
    return compared


def sample_scores(
    generator: Generator,
    prompts: Sequence[Conversation],
    n: int,
    proxy: Scorer,
    gold: Scorer,
    *,
    seed: int = 0,
    domains: Sequence[str] | None = None,
) -> Samples:
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
    window = max(1, _WINDOW_COMPLETIONS // n)
    for start in tqdm(range(0, len(prompts), window), desc="Sampling", unit="window", delay=2):
        part = prompts[start : start + window]
        completions = generator.generate(part, n, seed=seed)
        for name, scorer in (("proxy", proxy), ("gold", gold)):
            scores[name].append(_scored(scorer, part, completions).ravel())
        truncated += [completion.truncated for own in completions for completion in own]
    return Samples(
        np.repeat(np.arange(len(prompts)), n).astype(str),
        np.concatenate(scores["proxy"]),
        np.concatenate(scores["gold"]),
        domain=None if domains is None else np.repeat(np.asarray(domains, str), n),
        truncated=np.array(truncated, dtype=np.bool_),
    )


def _check_prompts(prompts: Sequence[Conversation]) -> None:
    seen: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        if (first := seen.setdefault(repr((prompt, getattr(prompt, "__dict__", None))), index)) != index:
            raise DataError(f"prompts {first} and {index} are equal and would count twice; give each prompt once")
    if not seen:
        raise DataError("got no prompts; wanted one or more")


def _generate(generator: Generator, prompts: Sequence[Conversation], n: int, seed: int) -> list[list[Completion]]:
    window = max(1, _WINDOW_COMPLETIONS // n)
    return [
        own
        for start in range(0, len(prompts), window)
        for own in generator.generate(prompts[start : start + window], n, seed=seed)
    ]


def _judged_by(
    judge: Scorer | ReferenceMetric, prompts: Sequence[Conversation], references: Sequence[str] | None
) -> Callable[[list[list[Completion]]], Floats]:
    if isinstance(judge, Scorer):
        return lambda completions: _scored(judge, prompts, completions)
    if references is None or len(references) != len(prompts):
        raise DataError(
            f"got {0 if references is None else len(references)} references for {len(prompts)} prompts; a metric that "
            "is no Scorer needs one each"
        )

    def score(completions: list[list[Completion]]) -> Floats:
        return np.array([[float(judge(completion.text, reference)) for completion in own]
                         for own, reference in zip(completions, references, strict=True)])  # fmt: skip

    return score


def _scored(scorer: Scorer, prompts: Sequence[Conversation], completions: Sequence[Sequence[Completion]]) -> Floats:
    """Returns the scores of completions, `(P, n)`."""
    conversations = [
        joined(prompt, completion.text) for prompt, own in zip(prompts, completions, strict=True) for completion in own
    ]
    scores = score_conversations(scorer, conversations)
    unscored = int(np.isnan(scores).sum())
    if unscored:
        raise DataError(f"{unscored:,} of {len(scores):,} conversations are longer than the scorer holds; generate "
                        "fewer tokens or leave long prompts out")  # fmt: skip
    return scores.reshape(len(prompts), -1)


def _result(scores: Floats, completions: list[list[Completion]]) -> PolicyResult:
    lengths = np.array([[float(len(completion.text)) for completion in own] for own in completions])
    cut = np.array([[float(completion.truncated) for completion in own] for own in completions])
    return PolicyResult(
        scores, completions, mean_estimate(scores.mean(1), proportion=False), mean_estimate(cut.mean(1)),
        mean_estimate(lengths.mean(1), proportion=False),
    )  # fmt: skip
