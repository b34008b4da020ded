import json

import pytest
from human_pairs import compare


@pytest.mark.slow
def test_reward_models_learn_from_human_pairs_as_well_as_with_trl(real_data):
    result = compare(real_data / "hh-rlhf" / "harmless-base-test.jsonl.gz", [1, 2, 3])
    print(json.dumps(result, indent=2))
    assert all(seed["n_train"] == 1800 for seed in result["seeds"])
    assert sum(seed["ours"] for seed in result["seeds"]) / 3 >= 0.62
    assert result["difference"]["high"] >= 0.0
