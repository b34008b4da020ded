"""Draws whole prompts across domains by prevalence, with more of the domains where mistakes cost most."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from datasets import Dataset

from rmtrl.errors import DataError, UsageError


@dataclass(frozen=True)
class Sample:
    """Sampled pairs and what was drawn of each domain.

    Args:
        pairs (`Dataset`): Rows of the drawn prompts, with `sampling_weight`: weighted by it, a figure over the sample
            stands for the stated prevalence again.
        drawn (`dict[str, dict]`): By domain: `available` and `drawn` prompts, the `weight` of each, and the `pairs`
            that are rows of the sample. A prompt of several domains counts as the first of them by name.
    """

    pairs: Dataset
    drawn: dict[str, dict[str, Any]]


def allocate(
    n: int, available: Mapping[str, int], prevalence: Mapping[str, float], stress: Mapping[str, float]
) -> dict[str, int]:
    """Returns how many of n prompts each domain gives: prevalence × stress factor, by largest remainder.

    Args:
        n (`int`): Prompts to draw.
        available (`Mapping[str, int]`): Prompts of each domain; none gives more, and what it lacks goes to the others.
        prevalence (`Mapping[str, float]`): Weight of each domain, of any sum.
        stress (`Mapping[str, float]`): Factor for domains to draw more of; 1 where absent.

    Example:

    ```python
    >>> allocate(100, {"chat": 500, "medicine": 500}, {"chat": 9, "medicine": 1}, {"medicine": 3})
    {'chat': 75, 'medicine': 25}
    ```
    """
    given: dict[str, int] = {}
    weights = {name: prevalence[name] * stress.get(name, 1.0) for name in available if prevalence.get(name, 0) > 0}
    while weights:  # a domain that cannot give its share gives all it has, and the rest is shared anew
        left = n - sum(given.values())
        scale = left / sum(weights.values())
        short = [name for name, weight in weights.items() if weight * scale > available[name]]
        if not short:
            shares = {name: weight * scale for name, weight in weights.items()}
            given |= {name: math.floor(share) for name, share in shares.items()}
            rest = sorted(shares, key=lambda name: (given[name] - shares[name], name))
            for name in [name for name in rest if given[name] < available[name]][: n - sum(given.values())]:
                given[name] += 1
            break
        for name in short:
            given[name] = available[name]
            del weights[name]
    return {name: given.get(name, 0) for name in available}


def sample_by_domain(
    dataset: Dataset,
    n: int,
    *,
    prevalence: Mapping[str, float] | None = None,
    stress: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Sample:
    """Returns about n prompts with all their rows, drawn from the domains by prevalence.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        n (`int`): Prompts to draw.
        prevalence (`Mapping[str, float]`, *optional*): Weight of each domain in the population; the data's own by
            default.
        stress (`Mapping[str, float]`, *optional*): Factor by which to draw more of a high-stakes domain.
        seed (`int`): Another seed draws others.

    Raises:
        UsageError: If a weight or factor is negative or not finite.
        DataError: If a named domain does not occur, or n is below 1 or above the number of prompts.

    Example:

    ```python
    >>> sample_by_domain(pairs, 100, stress={"medicine": 3.0}).drawn["medicine"]["drawn"]
    14
    ```
    """
    stress = stress or {}
    domain_of: dict[str, str] = {}
    keys, domains = (dataset.with_format(None)[name][:] for name in ("prompt_id", "domain"))
    for key, domain in zip(keys, domains, strict=True):
        domain_of[key] = min(domain, domain_of.get(key, domain))
    available = Counter(domain_of.values())
    weights = dict(prevalence) if prevalence else {name: float(count) for name, count in available.items()}
    _check(n, available, weights, stress, set(domains))
    wanted = allocate(n, available, weights, stress)
    by_domain: dict[str, list[str]] = defaultdict(list)
    for key in sorted(domain_of, key=lambda key: _hash(seed, key)):
        by_domain[domain_of[key]].append(key)
    taken = {key for domain, keys in by_domain.items() for key in keys[: wanted[domain]]}
    total, drawn = sum(weights.get(name, 0.0) for name in available), sum(wanted.values())
    weight = {
        name: (weights.get(name, 0.0) / total) / (count / drawn) if count else 0.0 for name, count in wanted.items()
    }
    rows = [row for row, key in enumerate(keys) if key in taken]
    sampled = dataset.select(rows).select_columns([n for n in dataset.column_names if n != "sampling_weight"])
    written = Counter(domains[row] for row in rows)
    return Sample(
        sampled.add_column("sampling_weight", [weight[domain_of[keys[row]]] for row in rows]),
        {
            name: {
                "available": available[name],
                "drawn": wanted.get(name, 0),
                "pairs": written[name],
                "weight": round(weight.get(name, 0.0), 6),
            }
            for name in sorted({*available, *written})
        },  # fmt: skip
    )


def _hash(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()


def _check(
    n: int, available: Mapping[str, int], weights: Mapping[str, float], stress: Mapping[str, float], domains: set[str]
) -> None:
    unknown = sorted((set(weights) | set(stress)) - set(available))
    if beside := [name for name in unknown if name in domains]:
        raise DataError(f"no prompt counts as {', '.join(beside)}, which stands beside {', '.join(sorted(available))}")
    if unknown:
        raise DataError(f"no pair has the domain {', '.join(unknown)}; the data has {', '.join(sorted(available))}")
    for name, value in chain(weights.items(), stress.items()):
        if not 0 <= value < math.inf:
            said = "negative" if value < 0 else value
            raise UsageError(f"the weight of {name} is {said}; wanted a finite number of 0 or more")
    possible = sum(count for name, count in available.items() if weights.get(name, 0) * stress.get(name, 1) > 0)
    if not 1 <= n <= possible:
        raise DataError(f"got {n} prompts to draw; wanted 1 to {possible}, which is what the domains hold")
