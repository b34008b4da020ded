"""The plan of an update: each row once, in like company, and no better cut."""

from itertools import pairwise

import pytest
import torch

from rmtrl.ppo.rollout import make_plan


def plan(lengths, n_mini_batches=1, **settings):
    usual = dict(rows_per_pass=4, world_size=1, seed=0, device_type="cpu")
    return make_plan(lengths, n_mini_batches, **(usual | settings))


def lengths(n, seed=0):
    return torch.randint(1, 400, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("n_mini_batches", [1, 2, 6])
def test_every_row_is_in_one_pass_of_one_mini_batch_and_one_process(n_mini_batches, world_size):
    made = plan(lengths(24), n_mini_batches, world_size=world_size)
    assert len(made.mini_batches) == n_mini_batches
    assert {len(made.rows(number)) for number in range(n_mini_batches)} == {24 // n_mini_batches}
    owned = [
        row for number in range(n_mini_batches) for rank in range(world_size)
        for rows in made.own(number, rank, world_size) for row in rows
    ]  # fmt: skip
    assert sorted(owned) == list(range(24))


def test_every_process_has_as_many_passes_of_as_many_rows():
    made = plan(lengths(24), 2, world_size=3)
    for number in range(2):
        sizes = [[len(rows) for rows in made.own(number, rank, 3)] for rank in range(3)]
        assert sizes[0] == sizes[1] == sizes[2]
        assert all(0 < size <= 4 for size in sizes[0])


def cost(passes, widths, call):
    return sum(max(widths[row] for row in rows) * len(rows) + call for rows in passes)


@pytest.mark.parametrize(("device_type", "call"), [("cpu", 96), ("cuda", 2048)])
def test_no_cut_of_the_sorted_rows_costs_less(device_type, call):
    widths = lengths(9, seed=3)
    made = plan(widths, device_type=device_type)
    order = sorted(range(9), key=lambda row: widths[row])
    cheapest = float("inf")
    for cuts in range(2**8):
        ends = [0, *(place + 1 for place in range(8) if cuts >> place & 1), 9]
        passes = [order[start:end] for start, end in pairwise(ends)]
        if max(map(len, passes)) <= 4:
            cheapest = min(cheapest, cost(passes, widths, call))
    assert cost(made.mini_batches[0], widths, call) == cheapest


def test_rows_of_like_length_stand_together():
    made = plan([300, 2, 300, 2], 1)
    assert sorted(map(sorted, made.mini_batches[0])) == [[0, 2], [1, 3]]
    assert len(plan([3, 2, 3, 2], 1).mini_batches[0]) == 1


def test_the_deal_follows_from_the_seed():
    widths = lengths(24)
    assert plan(widths, 3) == plan(widths, 3) != plan(widths, 3, seed=1)
    together = [set(plan(widths, 3, seed=seed).rows(0)) for seed in range(200)]
    share = sum(0 in rows and 1 in rows for rows in together) / 200
    assert share == pytest.approx(1 / 3 * 7 / 23, abs=0.06)  # in the same third by chance alone
