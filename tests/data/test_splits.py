from collections import Counter, defaultdict

import pytest
from datasets import Dataset

from rmtrl.data.splits import check_overlap, make_splits
from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import DataError, SplitLeakageError, UsageError


def pairs(n_prompts=200, rows=lambda i: 1 + i % 3, domains=("code", "safety", "chat")):
    table = [(f"p{i}", domains[i % len(domains)]) for i in range(n_prompts) for _ in range(rows(i))]
    ids = [str(i) for i in range(len(table))]
    return Dataset.from_dict({"id": ids, "prompt_id": [p for p, _ in table], "domain": [d for _, d in table]})


def members(splits):
    return {name: set(dataset["prompt_id"]) for name, dataset in splits.as_dict().items()}


def test_what_is_held_out_is_not_trained_on():
    groups = {"a-b": "support-17", "a-c": "support-17", "d-e": "safety-04", "f-g": "access-09"}
    domains = [prompt_id.split("-")[0] for prompt_id in groups.values()]
    dataset = Dataset.from_dict({"id": list(groups), "prompt_id": list(groups.values()), "domain": domains})
    splits = make_splits(dataset, ratios=(1, 0, 0, 0), holdout_domains=["support"])
    assert (splits.train["id"][:], splits.spillover["id"][:]) == (["d-e", "f-g"], ["a-b", "a-c"])
    assert not any(splits.overlap().values())


@pytest.mark.parametrize("values", [["code", "nowhere"], ["code", "safety", "chat"]])
def test_holding_out_nothing_known_or_everything_is_an_error(values):
    with pytest.raises(DataError, match="domain"):
        make_splits(pairs(), holdout_domains=values)


def test_no_prompt_is_in_two_splits_and_no_row_is_lost():
    dataset = pairs()
    splits = make_splits(dataset)
    assert set(splits.overlap().values()) == {0} and len(splits.overlap()) == 6
    assert sum(splits.sizes().values()) == len(dataset)
    check_overlap(splits.as_dict())


def test_shares_hold_within_a_prompt_overall_and_in_every_domain():
    dataset = pairs(rows=lambda i: 1)
    splits = make_splits(dataset)
    assert splits.sizes() == {"train": 140, "validation": 20, "calibration": 20, "test": 20}
    for name, share in zip(splits.as_dict(), (0.7, 0.1, 0.1, 0.1), strict=True):
        counts = Counter(splits.as_dict()[name]["domain"])
        for domain, total in Counter(dataset["domain"]).items():
            assert abs(counts[domain] - share * total) <= 2


def test_domains_of_one_prompt_do_not_all_fall_to_train():
    splits = make_splits(pairs(100, rows=lambda i: 1, domains=[f"d{i}" for i in range(100)]))
    assert splits.sizes() == {"train": 70, "validation": 10, "calibration": 10, "test": 10}


def test_order_of_rows_does_not_matter_but_the_seed_does():
    dataset = pairs()
    assert members(make_splits(dataset)) == members(make_splits(dataset.shuffle(seed=3)))
    assert members(make_splits(dataset)) != members(make_splits(dataset, seed=1))


def test_the_same_rows_on_every_machine():
    assert sorted(make_splits(pairs(20, rows=lambda i: 1)).test["prompt_id"]) == ["p6", "p9"]


def test_train_size_is_exact_and_the_rest_joins_test():
    dataset = pairs(rows=lambda i: 1)
    whole, capped = make_splits(dataset), make_splits(dataset, train_size=100)
    assert capped.sizes() == {"train": 100, "validation": 20, "calibration": 20, "test": 60}
    assert members(capped)["train"] < members(whole)["train"] and not any(capped.overlap().values())
    with pytest.raises(DataError, match="train_size is 150 but train's share is 140"):
        make_splits(dataset, train_size=150)


def test_a_share_of_zero_leaves_the_split_empty():
    assert make_splits(pairs(rows=lambda i: 1), ratios=(0.8, 0, 0, 0.2)).sizes()["validation"] == 0


def test_ratios_must_be_shares():
    with pytest.raises(UsageError, match="sum 1"):
        make_splits(pairs(), ratios=(0.7, 0.1, 0.1, 0.2))


def test_too_few_prompts_is_an_error():
    with pytest.raises(DataError, match="3 prompts leave .*empty; wanted about 10,"):
        make_splits(pairs(3))


def test_leak_names_both_splits_and_a_prompt():
    a, b = Dataset.from_dict({"prompt_id": ["x", "y"]}), Dataset.from_dict({"prompt_id": ["y", "z"]})
    with pytest.raises(SplitLeakageError, match="1 prompt is in both train and test, for example y"):
        check_overlap({"train": a, "validation": b.select([1]), "test": b.select([0])})


def test_a_cluster_of_near_duplicates_is_one_prompt():
    pairs = make_preferences(200, clean=True)
    clusters = [f"cluster-{int(prompt_id[-5:]) // 10}" for prompt_id in pairs["prompt_id"]]
    splits = make_splits(pairs.add_column("cluster_id", clusters))
    homes = defaultdict(set)
    for name, part in splits.as_dict().items():
        for cluster in part["cluster_id"]:
            homes[cluster].add(name)
    assert len(homes) == 20 and all(len(names) == 1 for names in homes.values())


def test_clusters_that_two_sets_share_are_an_error():
    row = {"id": "1", "prompt_id": "a", "domain": "d", "source": "s", "prompt": "p", "chosen": "c", "rejected": "r"}
    first = Dataset.from_list([row | {"cluster_id": "a"}])
    second = Dataset.from_list([row | {"prompt_id": "b", "cluster_id": "a"}])
    with pytest.raises(SplitLeakageError, match="in both train and test"):
        check_overlap({"train": first, "test": second})
    check_overlap({"train": first, "test": second.remove_columns("cluster_id")})


def test_sealed_is_a_share_of_all_and_the_ratios_of_the_rest():
    splits = make_splits(make_preferences(1000, clean=True), sealed=0.2)
    sizes = splits.sizes()
    n = sum(sizes.values())
    assert sizes["sealed"] / n == pytest.approx(0.2, abs=0.01)
    assert sizes["train"] / (n - sizes["sealed"]) == pytest.approx(0.7, abs=0.01)
    assert not any(splits.overlap().values()) and "sealed/train" not in splits.overlap()


def test_held_out_domains_are_in_spillover_alone():
    pairs = make_preferences(200, clean=True)
    splits = make_splits(pairs, holdout_domains=["physics", "music"])
    assert set(splits.spillover["domain"]) == {"physics", "music"}
    rest = [part for name, part in splits.as_dict().items() if name != "spillover"]
    assert not {"physics", "music"} & {domain for part in rest for domain in part["domain"]}
    assert sum(map(len, rest)) + len(splits.spillover) == len(pairs)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"sealed": 1.0}, "got sealed 1.0"), ({"holdout_domains": ["magic"]}, "no pair has the domain magic")],
)
def test_settings_of_further_splits_that_cannot_be_used(settings, said):
    with pytest.raises((DataError, UsageError), match=said):
        make_splits(make_preferences(40, clean=True), **settings)
    with pytest.raises(DataError, match="every domain is held out"):
        pairs = make_preferences(40, clean=True)
        make_splits(pairs, holdout_domains=set(pairs["domain"]))
