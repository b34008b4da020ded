from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from rmtrl.data.design import allocate, sample_by_domain
from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import DataError, UsageError


def test_prompts_are_shared_out_by_prevalence_times_stress():
    available = {"chat": 500, "medicine": 500}
    assert allocate(100, available, {"chat": 9, "medicine": 1}, {}) == {"chat": 90, "medicine": 10}
    assert allocate(100, available, {"chat": 9, "medicine": 1}, {"medicine": 3}) == {"chat": 75, "medicine": 25}


def test_what_a_small_domain_lacks_goes_to_the_others():
    assert allocate(10, {"a": 2, "b": 50, "c": 50}, {"a": 8, "b": 1, "c": 1}, {}) == {"a": 2, "b": 4, "c": 4}


@pytest.mark.parametrize("n", [1, 7, 50, 119])
def test_exactly_n_prompts_are_drawn(n):
    available = {"a": 40, "b": 40, "c": 39}
    drawn = allocate(n, available, {"a": 0.5, "b": 0.3, "c": 0.2}, {"c": 2})
    assert sum(drawn.values()) == n and all(drawn[name] <= available[name] for name in drawn)


def test_a_sample_holds_whole_prompts_and_its_weights_restore_the_prevalence():
    pairs = make_preferences(400, clean=True)
    sample = sample_by_domain(pairs, 100, stress={"geography": 4.0})
    ids = set(sample.pairs["prompt_id"])
    assert len(ids) == 100
    assert Counter(sample.pairs["prompt_id"]) == Counter(p for p in pairs["prompt_id"] if p in ids)
    drawn = {name: part["drawn"] for name, part in sample.drawn.items()}
    assert drawn["geography"] > 3 * np.median(list(drawn.values()))
    mass = {name: part["drawn"] * part["weight"] for name, part in sample.drawn.items()}
    assert np.allclose(np.array(list(mass.values())) / sum(mass.values()), 1 / 20, atol=1e-4)


def test_another_seed_draws_others_and_the_order_of_rows_does_not_matter():
    pairs = make_preferences(200, clean=True)
    first = set(sample_by_domain(pairs, 50).pairs["prompt_id"])
    assert first == set(sample_by_domain(pairs.select(range(len(pairs) - 1, -1, -1)), 50).pairs["prompt_id"])
    assert first != set(sample_by_domain(pairs, 50, seed=1).pairs["prompt_id"])


def test_what_cannot_be_drawn_is_said():
    pairs = make_preferences(40, clean=True)
    with pytest.raises(DataError, match="got 41 prompts to draw; wanted 1 to 40"):
        sample_by_domain(pairs, 41)
    with pytest.raises(DataError, match="no pair has the domain magic"):
        sample_by_domain(pairs, 4, stress={"magic": 2.0})
    with pytest.raises(UsageError, match="negative"):
        sample_by_domain(pairs, 4, stress={"geography": -1.0})


def mixed(n=300):
    """Three prompts a cluster, each of another domain."""
    return Dataset.from_list([{"prompt_id": f"p{k}", "cluster_id": f"c{k // 3}", "domain": "abc"[k % 3]}
                              for k in range(n) for _ in range(2)])  # fmt: skip


def test_prompts_are_drawn_one_by_one_whatever_their_cluster():
    sample = sample_by_domain(mixed(), 100, stress={"a": 3.0})
    assert len(set(sample.pairs["prompt_id"])) == 100 and len(sample.pairs) == 200
    written = Counter(sample.pairs["domain"])
    assert {name: part["drawn"] for name, part in sample.drawn.items()} == {"a": 60, "b": 20, "c": 20}
    assert {name: part["pairs"] for name, part in sample.drawn.items()} == written == {"a": 120, "b": 40, "c": 40}
    assert set(sample_by_domain(mixed(), 50, prevalence={"c": 1.0}).pairs["domain"]) == {"c"}


def test_a_prompt_of_several_domains_is_counted_by_its_rows():
    pairs = Dataset.from_list([{"prompt_id": f"p{k}", "domain": domain} for k in range(9) for domain in "ab"])
    drawn = sample_by_domain(pairs, 4).drawn
    assert {name: (part["drawn"], part["pairs"]) for name, part in drawn.items()} == {"a": (4, 4), "b": (0, 4)}
    with pytest.raises(DataError, match="no prompt counts as b, which stands beside a"):
        sample_by_domain(pairs, 4, prevalence={"b": 1.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_finite(value):
    with pytest.raises(UsageError, match=f"weight of a is {value}; wanted a finite number of"):
        sample_by_domain(mixed(9), 4, prevalence={"a": value})
