"""An adapter becomes a plain checkpoint whose scores are its own, or nothing is written."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from rmtrl import RewardScorer
from rmtrl.reward.merging import merge_adapter

TEXTS = ["red ? good", "blue ? bad sea", "sun ? yes yes yes no"]


@pytest.fixture
def adapter(tmp_path, checkpoint, tokenizer):
    """Folder of a reward model that is an adapter with a head of its own on a base in a folder."""
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(base, lora)
    with torch.no_grad():
        model.base_model.model.score.modules_to_save["default"].weight.normal_()
    model.save_pretrained(tmp_path / "lora")
    tokenizer.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "rmtrl.json").write_text('{"schema": "rmtrl/checkpoint/1", "tie_parameter": 0.5}')
    return tmp_path / "lora"


def test_the_merged_model_has_the_adapters_scores_and_no_adapter(rmtrl, adapter, checkpoint, tmp_path):
    out = tmp_path / "merged"
    code, printed, err = rmtrl("merge", adapter, "--out", out, "--json")
    assert code == 0, err
    before, base = (RewardScorer.from_pretrained(path).score(TEXTS) for path in (adapter, checkpoint))
    after = RewardScorer.from_pretrained(out).score(TEXTS)
    assert np.abs(after - before).max() < 1e-5 < np.abs(after - base).max()
    assert json.loads(printed)["difference"] < 1e-5
    assert " ".join(sorted(json.loads(printed))) == "adapter difference out schema"
    assert not list(out.glob("adapter*")) and json.loads((out / "rmtrl.json").read_text())["tie_parameter"] == 0.5
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "regression" and config["architectures"] == ["LlamaForSequenceClassification"]
    plain, info = AutoModelForSequenceClassification.from_pretrained(out, num_labels=1, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert rmtrl("merge", adapter, "--out", out)[0] == 0  # an earlier merge is replaced
    code, _, err = rmtrl("merge", adapter, "--out", checkpoint)
    assert code == 2 and "name a new or an empty folder" in err


def test_what_cannot_be_merged_is_one_line(rmtrl, adapter, checkpoint, tokenizer, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    prompts = get_peft_model(base, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))
    prompts.save_pretrained(tmp_path / "prompts")
    tokenizer.save_pretrained(tmp_path / "prompts")
    cases = {checkpoint: "is a whole model", tmp_path / "prompts": "PROMPT_TUNING, which cannot be merged"}
    for folder, said in cases.items():
        code, out, err = rmtrl("merge", folder, "--out", tmp_path / "out")
        assert (code, out) == (2, "") and said in err and err.count("rmtrl: error: ") == 1, err
        assert not (tmp_path / "out").exists()


def test_scores_that_are_not_equal_leave_nothing(rmtrl, adapter, tmp_path):
    code, _, err = rmtrl("merge", adapter, "--out", tmp_path / "out", "--dtype", "bfloat16")
    assert code == 2 and "off by" in err and "bfloat16" in err and not (tmp_path / "out").exists()
    assert rmtrl("merge", adapter, "--out", tmp_path / "out", "--dtype", "bfloat16", "--tolerance", 0.5)[0] == 0


def test_a_quantised_base_is_refused(adapter, tmp_path, four_bit_in_float32):
    from transformers import BitsAndBytesConfig

    from rmtrl.errors import ModelError

    with pytest.raises(ModelError, match="is quantised, and merging would round it"):
        merge_adapter(adapter, tmp_path / "out", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
