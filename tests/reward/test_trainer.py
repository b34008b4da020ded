"""`rmtrl.RewardTrainer` against TRL's: the same run where TRL is right, and each of TRL's defects mended."""

import copy

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModelForSequenceClassification
from transformers import BertConfig, BertForSequenceClassification

from rmtrl import RewardConfig, RewardTrainer
from rmtrl.errors import DataError, InvalidPairError, ModelError, RenderingError, UsageError
from rmtrl.reward.rendering import encode

QUIET = dict(
    per_device_train_batch_size=4,
    per_device_eval_batch_size=2,
    max_steps=6,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    disable_tqdm=True,
    learning_rate=1e-3,
)


def config(tmp_path, cls=RewardConfig, **settings):
    return cls(str(tmp_path), **(QUIET | settings))


@pytest.fixture
def trainer(tmp_path, new_model, tokenizer, pairs):
    """Makes a trainer of either class over the same model, tokenizer and data."""

    def make(cls=RewardTrainer, *, args=None, **settings):
        settings = {"train_dataset": pairs, "processing_class": tokenizer, "model": new_model()} | settings
        configs = RewardConfig if cls is RewardTrainer else trl.RewardConfig
        return cls(args=config(tmp_path, configs, **(args or {})), **settings)

    return make


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def half_length(tokenizer, data):
    """A max_length that half of the pairs exceed."""
    longest = [max(len(encode(tokenizer, row["prompt"] + row[s])) for s in ("chosen", "rejected")) for row in data]
    return sorted(longest)[len(longest) // 2 - 1]


# Contract


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_steps": 3},
        {"center_rewards_coefficient": 0.01},
        {"max_length": "half"},
        {"gradient_checkpointing": True, "max_steps": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["standard", "conversational", "margin"])
def test_same_run_as_trl(trainer, tokenizer, pairs, chats, form, args):
    data = {
        "standard": pairs,
        "conversational": chats,
        "margin": pairs.add_column("margin", [0.1 * i for i in range(12)]),
    }
    if "max_length" in args:
        args = args | {"max_length": half_length(tokenizer, data[form])}
    ours, theirs = (
        trainer(
            cls,
            args=args | {"eval_strategy": "steps", "eval_steps": 2},
            train_dataset=data[form],
            eval_dataset=data[form],
        )
        for cls in (RewardTrainer, trl.RewardTrainer)
    )
    assert ours.train_dataset["chosen_ids"] == theirs.train_dataset["chosen_ids"]
    assert ours.train_dataset["rejected_ids"] == theirs.train_dataset["rejected_ids"]
    ours.train(), theirs.train()
    np.testing.assert_allclose(logged(ours, "loss"), logged(theirs, "loss"), rtol=1e-6, atol=2e-7)
    np.testing.assert_allclose(logged(ours, "eval_loss"), logged(theirs, "eval_loss"), rtol=1e-5)
    assert logged(ours, "num_tokens") == logged(theirs, "num_tokens")
    assert logged(ours, "eval_num_tokens") == logged(theirs, "eval_num_tokens")
    np.testing.assert_allclose(logged(ours, "margin"), logged(theirs, "margin"), atol=1e-5)
    assert [set(entry) for entry in ours.state.log_history] == [set(entry) for entry in theirs.state.log_history]


def test_trl_config_and_no_config_are_accepted(tmp_path, monkeypatch, new_model, tokenizer, pairs):
    monkeypatch.chdir(tmp_path)
    RewardTrainer(new_model(), config(tmp_path, trl.RewardConfig), train_dataset=pairs, processing_class=tokenizer)
    assert RewardTrainer(new_model(), train_dataset=pairs, processing_class=tokenizer).args.logging_steps == 10


def test_defaults_are_those_of_trl(tmp_path):
    ours, theirs = RewardConfig(str(tmp_path)), trl.RewardConfig(str(tmp_path), use_cpu=True)
    skip = {"logging_dir", "use_cpu"}
    differing = {k for k, v in theirs.to_dict().items() if k not in skip and ours.to_dict()[k] != v}
    assert differing == set()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="TRL raises only on a machine without accelerator")
def test_config_constructs_without_gpu(tmp_path):
    with pytest.raises(ValueError, match="bf16"):
        trl.RewardConfig(str(tmp_path))
    assert RewardConfig(str(tmp_path)).use_cpu


def test_config_refuses_an_unknown_policy(tmp_path):
    with pytest.raises(ValueError, match="pair_validation"):
        RewardConfig(str(tmp_path), pair_validation="maybe")


# Metrics


def true_rewards(trainer, dataset):
    """Rewards of the tokenised pairs, one sequence at a time."""
    trainer.model.eval()
    with torch.no_grad():
        return np.array(
            [[trainer.model(torch.tensor([ids])).logits.item() for ids in pair]
             for pair in zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)]
        )  # fmt: skip


def test_metrics_are_exact_where_trl_averages_batches(trainer, rows):
    data = Dataset.from_list(rows(5, seed=4))
    ours = trainer(eval_dataset=data)
    rewards = true_rewards(ours, ours.eval_dataset)
    metrics = ours.evaluate()
    margin = rewards[:, 0] - rewards[:, 1]
    assert metrics["eval_accuracy"] == pytest.approx((margin > 0).mean())
    assert metrics["eval_min_reward"] == pytest.approx(rewards.min(), abs=1e-5)
    assert metrics["eval_max_reward"] == pytest.approx(rewards.max(), abs=1e-5)
    assert metrics["eval_margin"] == pytest.approx(margin.mean(), abs=1e-5)
    assert metrics["eval_loss"] == pytest.approx(np.log1p(np.exp(-margin)).mean(), abs=1e-5)
    theirs = trainer(trl.RewardTrainer, eval_dataset=data)
    assert abs(theirs.evaluate()["eval_min_reward"] - rewards.min()) > 1e-4


def test_a_tie_counts_one_half(trainer, pairs, model):
    torch.nn.init.zeros_(model.score.weight)
    assert trainer(model=model, eval_dataset=pairs).evaluate()["eval_accuracy"] == 0.5
    assert trainer(trl.RewardTrainer, model=model, eval_dataset=pairs).evaluate()["eval_accuracy"] == 0.0


def test_each_evaluation_set_has_its_own_prefix(trainer, rows):
    sets = {"a": Dataset.from_list(rows(5, seed=1)), "b": Dataset.from_list(rows(5, seed=2))}
    args = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3,
            "metric_for_best_model": "eval_a_accuracy", "load_best_model_at_end": True}  # fmt: skip
    ours = trainer(args=args, eval_dataset=sets)
    ours.train()
    assert {"eval_a_accuracy", "eval_b_accuracy", "eval_a_margin", "eval_b_loss"} <= set().union(
        *ours.state.log_history
    )
    assert ours.state.best_metric is not None
    with pytest.raises(KeyError, match="eval_a_accuracy"):
        trainer(trl.RewardTrainer, args=args, eval_dataset=sets).train()


def test_domains_have_their_own_accuracy(trainer, pairs):
    data = pairs.add_column("domain", ["law", "math", "law"] * 4)
    ours = trainer(train_dataset=data, eval_dataset=data)
    margin = np.diff(true_rewards(ours, ours.eval_dataset))[:, 0]
    metrics = ours.evaluate()
    for name in ("law", "math"):
        rows = np.array(data["domain"]) == name
        assert metrics[f"eval_accuracy/{name}"] == pytest.approx((margin[rows] < 0).mean())


def test_predict_keeps_every_row_of_raw_data(trainer, rows):
    data = Dataset.from_list(rows(5, seed=4))
    ours = trainer()
    output = ours.predict(data)
    prepared = ours._prepare_dataset(data, ours.processing_class, ours.args, "test")
    np.testing.assert_allclose(output.predictions, true_rewards(ours, prepared), atol=1e-5)
    assert output.predictions.shape == (5, 2) and output.label_ids.tolist() == [0] * 5
    assert "test_accuracy" in output.metrics
    theirs = trainer(trl.RewardTrainer)
    with pytest.raises(ValueError):
        theirs.predict(data)
    tokenised = theirs._prepare_dataset(data, theirs.processing_class, theirs.args, "test")
    assert len(theirs.predict(tokenised).predictions) != 10


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_predictions_stand_in_the_order_of_the_rows(trainer, rows, strategy):
    ours = trainer(args={"train_sampling_strategy": strategy})
    data = Dataset.from_list(rows(9, seed=3))
    rewards = true_rewards(ours, ours._prepare_dataset(data, ours.processing_class, ours.args, "test"))
    np.testing.assert_allclose(ours.predict(data).predictions, rewards, atol=1e-5)
    np.testing.assert_allclose(ours.pairs_.chosen, rewards[:, 0], atol=1e-5)


def test_predict_gives_nan_for_a_pair_over_max_length(trainer, rows):
    long = rows(1)[0] | {"chosen": " good" * 60}
    output = trainer(args={"max_length": 40}).predict(Dataset.from_list([*rows(2), long, *rows(2, seed=9)]))
    assert np.isnan(output.predictions).any(axis=1).tolist() == [False, False, True, False, False]


def test_predict_does_not_leak_into_the_next_evaluation(trainer, rows):
    a, b = Dataset.from_list(rows(5, seed=4)), Dataset.from_list(rows(5, seed=8))
    ours = trainer(eval_dataset=a)
    before = ours.evaluate()["eval_margin"]
    ours.predict(b)
    assert ours.evaluate()["eval_margin"] == before


def test_compute_metrics_sees_every_pair(trainer, rows):
    def share_right(prediction):
        return {"right": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}

    metrics = trainer(eval_dataset=Dataset.from_list(rows(5, seed=4)), compute_metrics=share_right).evaluate()
    assert metrics["eval_right"] == metrics["eval_accuracy"]


# Rows


def test_over_long_pairs_are_counted(trainer, tokenizer, pairs, caplog):
    args = {"max_length": half_length(tokenizer, pairs)}
    ours, theirs = trainer(args=args), trainer(trl.RewardTrainer, args=args)
    assert ours.dropped_pairs["train"] == 12 - len(theirs.train_dataset) > 0
    assert f"{ours.dropped_pairs['train']} of 12 pairs of the train set are longer" in caplog.text


def test_no_pair_left_is_a_clear_error(trainer):
    with pytest.raises(DataError, match="all 12 pairs of the train set are longer than max_length = 2 .* raise"):
        trainer(args={"max_length": 2})


def test_counts_of_dropped_pairs_survive_evaluation(trainer, tokenizer, pairs):
    ours = trainer(args={"max_length": half_length(tokenizer, pairs)}, eval_dataset=pairs)
    before = dict(ours.dropped_pairs)
    ours.evaluate()
    ours.evaluate(ours.eval_dataset)
    assert ours.dropped_pairs == before and before["eval"] > 0


def test_domains_may_be_missing(trainer, pairs):
    data = pairs.add_column("domain", ["law", None, "math"] * 4)
    metrics = trainer(train_dataset=data, eval_dataset=data).evaluate()
    assert "eval_accuracy/unknown" in metrics


def test_other_columns_and_the_old_name_of_the_tokenizer_are_one_line(trainer, pairs, tokenizer):
    with pytest.raises(DataError, match="train set has the columns q, good, bad; wanted prompt, chosen and rejected"):
        trainer(train_dataset=Dataset.from_list([{"q": "a", "good": "b", "bad": "c"}]))
    with pytest.raises(UsageError, match="TRL call it processing_class="):
        trainer(tokenizer=tokenizer)


def test_empty_set_is_a_clear_error(trainer, pairs):
    with pytest.raises(DataError, match="train set is empty"):
        trainer(train_dataset=pairs.select([]))


def test_group_by_length_works(trainer):
    args = {"train_sampling_strategy": "group_by_length", "max_steps": 2}
    trainer(args=args).train()
    with pytest.raises((ValueError, KeyError)):
        trainer(trl.RewardTrainer, args=args).train()


# Pairs that cannot teach a preference


@pytest.fixture
def with_bad_pairs(rows):
    """Eight pairs; the sides of two are identical and one has an empty response."""
    good = rows(8)
    good[1] |= {"rejected": good[1]["chosen"]}
    good[4] |= {"rejected": good[4]["chosen"]}
    good[6] |= {"rejected": "  "}
    return Dataset.from_list(good)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pairs_are_counted_and_trained_on_by_default(trainer, with_bad_pairs, workers, caplog):
    args = {"max_steps": 2, "logging_steps": 2, "dataloader_num_workers": workers}
    ours, theirs = (
        trainer(cls, args=args, train_dataset=with_bad_pairs) for cls in (RewardTrainer, trl.RewardTrainer)
    )
    ours.train(), theirs.train()
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), rel=1e-6)
    assert logged(ours, "invalid_pairs/identical_candidates") == [2.0]
    assert logged(ours, "invalid_pairs/empty_response") == [1.0]
    assert "identical_candidates" in caplog.text


def test_dropped_pairs_weigh_nothing(trainer, with_bad_pairs):
    args = {"max_steps": 1, "per_device_train_batch_size": 8, "pair_validation": "drop", "learning_rate": 1e-2}
    ours = trainer(args=args, train_dataset=with_bad_pairs)
    sound = trainer(args=args, train_dataset=with_bad_pairs.select([0, 2, 3, 5, 7]))
    ours.train(), sound.train()
    for key, share in {"loss": 5 / 8, "grad_norm": 5 / 8, "accuracy": 1, "margin": 1}.items():
        assert logged(ours, key) == pytest.approx([share * value for value in logged(sound, key)], rel=1e-5)


def test_dropped_pairs_weigh_nothing_however_the_step_is_cut(trainer, with_bad_pairs):
    whole = {"max_steps": 1, "pair_validation": "drop", "per_device_train_batch_size": 8}
    cut = whole | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    runs = [trainer(args=args, train_dataset=with_bad_pairs) for args in (whole, cut)]
    for run in runs:
        run.train()
    for key in ("loss", "grad_norm"):
        assert logged(runs[0], key) == pytest.approx(logged(runs[1], key), rel=1e-4)


def test_a_margin_that_is_no_number_does_not_reach_the_weights(trainer, pairs):
    data = pairs.add_column("margin", [float("nan"), *[0.5] * 11])
    ours = trainer(args={"pair_validation": "drop", "max_steps": 3}, train_dataset=data)
    ours.train()
    assert all(torch.isfinite(parameter).all() for parameter in ours.model.parameters())
    assert sum(logged(ours, "invalid_pairs/non_finite_margin")) == 1


def test_a_set_of_which_nothing_is_left_is_one_line(trainer, pairs):
    bad = Dataset.from_list([row | {"rejected": row["chosen"] if i % 3 else " "} for i, row in enumerate(pairs)])
    with pytest.raises(DataError, match="all 12 pairs of the train set are invalid .4 empty_response, 8 identical"):
        trainer(args={"pair_validation": "drop"}, train_dataset=bad)
    trainer(args={"pair_validation": "drop"}, train_dataset=Dataset.from_list([*bad, pairs[0]]))
    trainer(train_dataset=bad, args={"max_steps": 1}).train()


def test_raise_stops_at_the_first_bad_pair(trainer, with_bad_pairs):
    with pytest.raises(InvalidPairError, match="identical_candidates|empty_response"):
        trainer(args={"pair_validation": "raise"}, train_dataset=with_bad_pairs).train()


# Adapters


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize("target_modules", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_adapter_trains_and_saves_its_head(trainer, new_model, tmp_path, task_type, target_modules):
    peft_config = LoraConfig(r=2, task_type=task_type, target_modules=target_modules)
    ours = trainer(peft_config=peft_config)
    before = head_weight(ours.model)
    ours.train()
    after = head_weight(ours.model)
    assert not torch.equal(before, after)
    ours.save_model(tmp_path / "adapter")
    loaded = PeftModelForSequenceClassification.from_pretrained(new_model(), tmp_path / "adapter")
    assert torch.equal(head_weight(loaded), after)
    assert not any("lora" in name and "score" in name for name, _ in ours.model.named_parameters())
    assert peft_config.task_type == task_type


def head_weight(model):
    return next(p for n, p in model.named_parameters() if n.endswith("score.modules_to_save.default.weight")).clone()


def test_trl_leaves_the_head_of_an_adapter_without_task_type_random(trainer):
    theirs = trainer(trl.RewardTrainer, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    assert not any("score" in name and p.requires_grad for name, p in theirs.model.named_parameters())


def test_an_adapter_loaded_for_inference_is_evaluated(trainer, new_model, pairs, tmp_path):
    trained = trainer(peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    trained.save_model(tmp_path / "adapter")
    loaded = PeftModelForSequenceClassification.from_pretrained(new_model(), tmp_path / "adapter")
    assert trainer(model=loaded, eval_dataset=pairs).evaluate()["eval_loss"] > 0


def test_peft_model_with_a_frozen_head_is_refused(trainer, new_model):
    from peft import get_peft_model

    with pytest.raises(ModelError, match="score head is frozen"):
        trainer(model=get_peft_model(new_model(), LoraConfig(r=2, target_modules=["q_proj"])))


def test_a_cloned_chat_template_does_not_list_a_head_the_model_has_not(trainer, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"extra_special_tokens": ["<|new|>"]}, replace_extra_special_tokens=False)
    other.save_pretrained(tmp_path / "other")
    args = {"chat_template_path": str(tmp_path / "other"), "max_steps": 1}
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    ours, theirs = (
        trainer(cls, args=args, processing_class=copy.deepcopy(tokenizer), peft_config=copy.deepcopy(peft_config))
        for cls in (RewardTrainer, trl.RewardTrainer)
    )
    assert set(ours.model.peft_config["default"].modules_to_save) == {"classifier", "score"}
    assert "lm_head" in theirs.model.peft_config["default"].modules_to_save
    ours.train()


# Precision and special tokens


def test_head_and_loss_compute_in_float32_under_bf16(trainer, new_model):
    def distinct(cls):
        made = trainer(cls, args={"bf16": True}, model=new_model(initializer_range=0.02))
        with made.compute_loss_context_manager(), torch.no_grad():
            made.model.eval()
            batch = made.data_collator([made.train_dataset[i] for i in range(12)])
            loss, outputs = made.compute_loss(made.accelerator.prepare_model(made.model), batch, return_outputs=True)
        return loss.dtype, outputs.logits, made

    dtype, logits, ours = distinct(RewardTrainer)
    assert dtype == torch.float32 and (logits != logits.bfloat16().float()).any()
    _, logits, _ = distinct(trl.RewardTrainer)
    assert (logits == logits.bfloat16().float()).all()


def test_end_token_is_not_swallowed_by_pad(trainer, tokenizer, pairs):
    tokenizer.pad_token = tokenizer.eos_token
    theirs = trainer(trl.RewardTrainer, processing_class=copy.deepcopy(tokenizer))
    ours = trainer(processing_class=copy.deepcopy(tokenizer))
    assert ours.model.config.pad_token_id == ours.processing_class.pad_token_id != ours.processing_class.eos_token_id
    assert ours.data_collator.collator.collator.pad_token_id == ours.processing_class.pad_token_id

    def reads_the_end(made):
        ids = torch.tensor([made.train_dataset["chosen_ids"][0]])
        changed = ids.clone()
        changed[0, -1] = 7
        made.model.eval()
        embedding = made.model.get_input_embeddings()(ids).detach().requires_grad_()
        made.model.config.use_cache = False
        pooled = made.model.model(inputs_embeds=embedding).last_hidden_state
        non_pad = (ids != made.model.config.pad_token_id).int()
        last = (torch.arange(ids.shape[1]) * non_pad).argmax(-1)
        pooled[0, last].sum().backward()
        return bool(embedding.grad[0, -1].abs().sum() > 0)

    assert reads_the_end(ours)
    assert not reads_the_end(theirs)


def test_a_tokenizer_with_one_special_token_gets_a_pad_token(trainer, tokenizer, new_model, tmp_path):
    tokenizer.add_special_tokens(
        {"pad_token": "<|end|>", "extra_special_tokens": []}, replace_extra_special_tokens=True
    )
    tokenizer.get_vocab = lambda: {k: v for k, v in type(tokenizer).get_vocab(tokenizer).items() if k != "<|pad|>"}
    ours = trainer(processing_class=tokenizer)
    assert ours.processing_class.pad_token_id != ours.processing_class.eos_token_id
    ours.train()


def test_tokenizer_without_end_token_trains(trainer, tokenizer, pairs):
    tokenizer.eos_token = None
    with pytest.raises(TypeError):
        trainer(trl.RewardTrainer, processing_class=tokenizer)
    ours = trainer(processing_class=tokenizer)
    ours.train()
    row = pairs[0]
    assert ours.train_dataset[0]["chosen_ids"] == tokenizer(row["prompt"] + row["chosen"])["input_ids"]


def test_encoder_trains(trainer, tokenizer):
    bert = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            num_labels=1,
            pad_token_id=0,
        )
    )
    trainer(model=bert).train()


def test_conversations_without_chat_template_are_a_clear_error(trainer, tokenizer, chats):
    tokenizer.chat_template = None
    with pytest.raises(RenderingError, match="no chat template"):
        trainer(processing_class=tokenizer, train_dataset=chats)


def test_differences_are_printed_once(trainer, tokenizer, capsys):
    tokenizer.pad_token = tokenizer.eos_token
    trainer(processing_class=tokenizer)
    assert capsys.readouterr().err.count("rmtrl differs from TRL here: pad token") == 1
