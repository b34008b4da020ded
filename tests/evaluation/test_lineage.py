"""Lineage: same base, another base, or no telling."""

from rmtrl.evaluation import evidence
from rmtrl.evaluation.evidence import Origin, compare_origins

SHAPE = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def files(base=None, vocabulary=None, **config):
    return {
        "config.json": {**SHAPE, **config},
        "rmtrl.json": {"model": {"model_name_or_path": base}, "config": {"output_dir": None}},
        "tokenizer.json": {"model": {"vocab": vocabulary or {"a": 0}}, "added_tokens": [{"content": base}]},
    }


def origin(name, own, **ancestors):
    """The origin of a model, from its files and those of its ancestors by name."""
    return evidence.origin(name, lambda asked: {name: own, **ancestors}.get(asked, {}))


def test_models_trained_from_the_same_base_share_it():
    found = compare_origins(origin("rm", files("llama")), origin("sft", files("llama")))
    assert found.passed is True and "come from llama" in found.said


def test_a_reward_model_trained_from_the_policy_shares_it():
    known = {"sft": files("llama")}
    rm = origin("rm", files("sft"), **known)
    assert compare_origins(rm, origin("sft", files("llama"))).passed is True
    assert compare_origins(rm, origin("ppo", files("sft"), **known)).passed is True


def test_ancestors_are_followed():
    rm = origin("rm", files("sft"), sft=files("llama"))
    assert rm.names == ("rm", "sft", "llama")
    assert compare_origins(rm, origin("dpo", files("llama"))).passed is True


def test_an_adapter_takes_base_and_shape_from_its_base():
    own = {"adapter_config.json": {"base_model_name_or_path": "llama"}}
    adapter = origin("rm", own, llama={"config.json": SHAPE})
    assert adapter.shape == SHAPE and compare_origins(adapter, origin("sft", files("llama"))).passed is True


def test_a_folder_that_was_moved_is_known_by_where_it_was_written():
    sft = origin("/tmp/copy", {"rmtrl.json": {"model": {}, "config": {"output_dir": "outputs/sft"}}})
    assert compare_origins(origin("rm", files("outputs/sft")), sft).passed is True


def test_another_architecture_differs_and_says_where():
    found = compare_origins(origin("rm", files("x")), origin("policy", files("y", hidden_size=128)))
    assert found.passed is False
    assert "hidden_size 64 and 128" in found.said and "train the reward model on the policy's base" in found.said


def test_another_vocabulary_differs_and_added_tokens_do_not():
    one = origin("rm", files("x", {"a": 0, "b": 1}))
    assert compare_origins(one, origin("policy", files("y", {"a": 0}))).passed is False
    assert compare_origins(one, origin("policy", files("x", {"b": 1, "a": 0}))).passed is True


def test_equal_shapes_under_other_names_prove_nothing():
    found = compare_origins(origin("rm", files("base")), origin("policy", files("instruct")))
    assert found.passed is None and "name no common base" in found.said
    assert compare_origins(Origin(("a",)), Origin(("b",))).passed is None


def test_the_comparison_does_not_depend_on_which_is_which():
    one, other = origin("rm", files("x")), origin("policy", files("y", num_hidden_layers=3))
    assert compare_origins(one, other).passed is compare_origins(other, one).passed is False


def test_a_model_that_sees_pictures_has_its_shape_in_the_text_part():
    assert origin("vlm", {"config.json": {"model_type": "x", "text_config": SHAPE}}).shape == SHAPE


def test_a_model_without_files_has_a_name_alone():
    assert origin("org/model", {}) == Origin(("org/model",))
