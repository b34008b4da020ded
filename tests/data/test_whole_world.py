"""Every planted defect of the embedded world is found by the detector made for it; a clean world has none."""

import pytest
from world_votes import judged

from rmtrl.data.annotations.bias import annotator_bias
from rmtrl.data.clusters import with_clusters
from rmtrl.data.contamination import contamination
from rmtrl.data.splits import make_splits
from rmtrl.data.synthetic import make_world
from rmtrl.data.validation import validate


@pytest.fixture(scope="module", params=[1500, pytest.param(15000, marks=pytest.mark.slow)])
def world(request):
    return make_world(request.param)


def rejected(result, reason):
    rows = zip(result.rejects["id"], result.rejects["reason"], strict=True)
    return {id for id, found in rows if found == reason}


def test_every_planted_defect_of_a_pair_is_rejected_for_its_reason(world):
    result, truth = validate(world.pairs, ties="keep"), world.truth
    assert rejected(result, "context_mismatch") == set(truth["context_mismatches"])
    assert rejected(result, "identical_candidates") == set(truth["identical_candidates"])
    assert rejected(result, "contradictory_pair") == {id for pair in truth["contradictory_pairs"] for id in pair}
    duplicates = rejected(result, "duplicate_pair")
    assert len(duplicates) == len(truth["duplicate_pairs"])
    assert all(len(duplicates & set(pair)) == 1 for pair in truth["duplicate_pairs"])
    assert result.n == len(result.kept) + len(result.rejects) == len(world.pairs)
    ties = set(truth["ties"]) - set(truth["identical_candidates"])
    assert ties and rejected(validate(world.pairs), "tie_or_abstention") == ties


def test_near_duplicate_prompts_share_a_cluster_and_a_split(world):
    pairs = with_clusters(world.pairs)
    cluster = dict(zip(pairs["prompt_id"], pairs["cluster_id"], strict=True))
    assert all(cluster[original] == cluster[twin] for original, twin in world.truth["near_duplicate_prompts"])
    parts = make_splits(pairs).as_dict()
    home = {prompt_id: name for name, part in parts.items() for prompt_id in part["prompt_id"]}
    assert all(home[original] == home[twin] for original, twin in world.truth["near_duplicate_prompts"])


def test_every_leak_into_the_evaluation_set_is_found(world):
    found = contamination(world.pairs, {"evaluation": world.evaluation}).evaluations["evaluation"]
    for kind in ("exact", "near"):
        planted = {leak["evaluation"] for leak in world.truth["leaks"] if leak["kind"] == kind}
        # a disguise in other case or punctuation alone is an exact copy
        overlap = set(found.overlaps[kind].prompt_ids) | (
            set(found.overlaps["exact"].prompt_ids) if kind == "near" else set()
        )
        assert planted and planted <= overlap


def test_the_annotator_who_loves_length_is_named_alone(world):
    flags = {bias.annotator: bias.flags for bias in annotator_bias(judged(world)) if bias.flags}
    assert flags == {world.truth["length_loving_annotator"]: ("prefers_longer",)}


@pytest.mark.parametrize("n_prompts", [1500, pytest.param(15000, marks=pytest.mark.slow)])
def test_a_clean_world_has_no_rejects(n_prompts):
    world = make_world(n_prompts, clean=True)
    result = validate(world.pairs)
    assert len(result.rejects) == 0 and len(result.kept) == len(world.pairs) and result.warnings == ()
    assert not any(bias.flags for bias in annotator_bias(judged(world)))
    found = contamination(world.pairs, {"evaluation": world.evaluation}).evaluations["evaluation"]
    assert found.overlaps["exact"].count == 0
