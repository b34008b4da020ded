"""The card of a reward model: what hubs read of it, what people read, and whose words are kept."""

import pytest
from huggingface_hub import ModelCard

from rmtrl import RewardConfig, RewardTrainer
from rmtrl.data.provenance import CARD_MARK
from rmtrl.io import read_object
from rmtrl.reporting.cards import write_card
from rmtrl.reporting.report import read_run


def card_of(folder):
    return ModelCard.load(write_card(read_run(folder)))


def test_figures_are_metadata_with_their_intervals(run_folder):
    card = card_of(run_folder)
    test = read_object(run_folder / "rm/metrics.json")["test"]["accuracy"]
    calibration = read_object(run_folder / "rm/calibration.json")
    figures = {(own.dataset_name, own.metric_name): own for own in card.data.eval_results}
    own = figures["pairs.jsonl", "accuracy"]
    assert own.metric_value == test["value"] and own.dataset_split == "test"
    assert own.metric_args == {name: test[name] for name in ("low", "high", "n", "level")}
    after = figures["pairs.jsonl", "ece after calibration"]
    assert after.metric_type == "ece" and after.metric_value == calibration["test_after"]["ece"]["value"]
    assert figures["llmbar", "accuracy"].metric_args["n"] == 90
    assert card.data.base_model == "base/model" and card.data.model_name == "mine-rm"
    assert {"reward-model", "rmtrl", "trl"} <= set(card.data.tags)


def test_people_read_the_verdict_the_use_and_the_origin(run_folder):
    text = card_of(run_folder).text
    assert "**Not ready: " in text
    assert "judged by people: no evidence; wanted at least 0.8" in text and "[nan" not in text
    assert "## Intended use" in text and "RewardScorer.from_pretrained" in text
    assert "f" * 64 in text and "train 240" in text and "cooking 80" in text and "960 of 1,000 pairs kept" in text
    assert read_object(run_folder / "rm/calibration.json")["kind"] in text


def test_benchmarks_of_other_weights_are_no_figures_of_this_model(run_folder, edit):
    (run_folder / "rm/config.json").write_text("{}")
    edit(run_folder / "eval/results.json", lambda stored: stored["models"][0]["model"].update(sha256="0" * 64))
    assert "llmbar" not in {own.dataset_name for own in card_of(run_folder).data.eval_results}


def test_a_model_that_is_not_calibrated_says_so(run_folder):
    (run_folder / "rm/calibration.json").unlink()
    assert "Not calibrated" in card_of(run_folder).text


@pytest.mark.parametrize("before", ["It has been trained using [TRL](https://github.com)", f"old\n{CARD_MARK}\nwords"])
def test_drafts_and_earlier_cards_are_replaced(run_folder, before):
    (run_folder / "rm/README.md").write_text(before)
    assert "Intended use" in card_of(run_folder).text


def test_words_of_a_person_stay(run_folder):
    (run_folder / "rm/README.md").write_text("# My model\n")
    assert write_card(read_run(run_folder)) is None
    assert (run_folder / "rm/README.md").read_text() == "# My model\n"


def test_a_folder_without_reward_model_gets_none(run_folder):
    assert write_card(read_run(run_folder / "ppo")) is None
    assert not (run_folder / "ppo/README.md").exists()


def test_the_trainer_leaves_a_card_with_figures_and_drafts_one_in_training(tmp_path, model, tokenizer, pairs):
    args = RewardConfig(str(tmp_path), max_steps=1, save_steps=1, report_to="none", use_cpu=True, bf16=False)
    (tmp_path / "README.md").write_text(CARD_MARK)
    trainer = RewardTrainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text() == CARD_MARK
    trainer.train()  # new weights: the old figures are not theirs
    assert "trained using [TRL]" in (tmp_path / "README.md").read_text()
    assert CARD_MARK not in (tmp_path / "README.md").read_text()
