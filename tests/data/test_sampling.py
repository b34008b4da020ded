from collections import Counter

import numpy as np
import pytest

from rmtrl.data.sampling import allocate, sample_by_domain
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
