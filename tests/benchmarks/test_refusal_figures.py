"""The refusal guard on people's labels."""

from refusals import MODELS, measure


def test_the_guard_finds_refusals_of_models_it_was_not_fitted_on(real_data):
    found = measure(real_data)
    for model in MODELS:
        guard, matching = (found[f"{model}/all"][name]["balanced_accuracy"] for name in ("guard", "string_matching"))
        assert guard.n == matching.n == 450 and guard.value > matching.value
    assert found["mistralinstruct/all"]["string_matching"]["sensitivity"].value < 0.3
