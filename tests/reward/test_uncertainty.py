"""Members, their mean, their spread, and the rewards that the spread lowers."""

import logging

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.errors import DataError, ModelError, RenderingError, UsageError
from rmtrl.reward.heads import Head, draw_head, install_head, last_layers
from rmtrl.reward.uncertainty import (
    AGGREGATIONS,
    EnsembleScorer,
    HeadEnsembleScorer,
    MCDropoutScorer,
    ScoreDistribution,
)
from rmtrl.types import Scorer


class Table(Scorer):
    """Scores that are given."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, conversations):
        return np.array([self.scores[c] for c in conversations], dtype=np.float32)

    def holds(self, conversations):
        return np.array([c in self.scores for c in conversations])


TABLES = [{"a": 1.0, "b": 0.0, "c": 4.0}, {"a": 2.0, "b": 0.0, "c": 4.0}, {"a": 6.0, "b": 3.0, "c": 4.0}]


@pytest.fixture
def tables():
    return [Table(scores) for scores in TABLES]


@pytest.fixture
def texts(rows):
    return [row["prompt"] + row[side] for row in rows(12) for side in ("chosen", "rejected")]


def with_head(model, tokenizer, **settings):
    head = Head(**settings)
    install_head(model, head)
    draw_head(model, torch.Generator().manual_seed(3))
    return RewardScorer(model, tokenizer, head=head)


# Members


def test_distribution_and_aggregations_by_hand(tables):
    # a: 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7
    distribution = EnsembleScorer(tables, k=2.0).distribution(["a", "c"])
    np.testing.assert_allclose(distribution.mean, [3, 4])
    np.testing.assert_allclose(distribution.std, [7**0.5, 0])
    np.testing.assert_allclose(distribution.lower, [3 - 2 * 7**0.5, 4])
    np.testing.assert_allclose(distribution.upper, [3 + 2 * 7**0.5, 4])
    assert distribution.k == 2.0 and len(distribution.mean) == 2
    wanted = {"mean": [3, 4], "min": [1, 4], "lower": [3 - 7**0.5, 4], "variance": [3 - 0.25 * 7, 4]}
    assert set(wanted) == set(AGGREGATIONS)
    for aggregation, scores in wanted.items():
        scorer = EnsembleScorer(tables, aggregation=aggregation, variance_weight=0.25)
        got = scorer.score(["a", "c"])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, scores, rtol=1e-6)


def test_margins_are_the_spread_of_the_members_margins(tables):
    # a − b: 1, 2, 3
    margins = EnsembleScorer(tables).margins(["a", "b"], ["b", "a"])
    np.testing.assert_allclose(margins.mean, [2, -2])
    np.testing.assert_allclose(margins.std, [1, 1])


def test_fit_takes_off_what_members_differ_by_everywhere(tables):
    shifted = [
        Table({c: s + shift for c, s in t.scores.items()}) for t, shift in zip(tables, (0, 50, -9), strict=True)
    ]
    plain, far = (EnsembleScorer(scorers, aggregation="min").fit(["a", "b", "c"]) for scorers in (tables, shifted))
    np.testing.assert_allclose(plain.offsets_, [5 / 3, 2, 13 / 3])
    np.testing.assert_allclose(far.offsets_ - plain.offsets_, [0, 50, -9], rtol=1e-6)
    np.testing.assert_allclose(far.score(["a", "b", "c"]), plain.score(["a", "b", "c"]), atol=1e-5)
    np.testing.assert_allclose(far.distribution(["a"]).std, plain.distribution(["a"]).std, atol=1e-5)
    unfitted = EnsembleScorer(shifted)
    np.testing.assert_allclose(unfitted.margins(["a"], ["b"]).std, [1], atol=1e-5)
    assert unfitted.distribution(["a"]).std > 20


def test_offsets_that_outweigh_the_disagreement_are_told_once(tables, caplog):
    far = EnsembleScorer([tables[0], Table({c: s + 50 for c, s in TABLES[1].items()})])
    with caplog.at_level(logging.WARNING):
        EnsembleScorer([Table({"a": 1.0, "b": 0.0}), Table({"a": 0.0, "b": 1.0})]).score(["a", "b"])
        assert not caplog.records
        far.score(["a", "b", "c"])
        far.score(["a", "b", "c"])
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "fit(conversations)" in caplog.text
        caplog.clear()
        EnsembleScorer(far.scorers).fit(["a", "b", "c"]).score(["a", "b", "c"])
    assert not caplog.records


def test_the_order_of_members_does_not_matter(tables):
    for aggregation in AGGREGATIONS:
        forth, back = (EnsembleScorer(t, aggregation=aggregation).fit("abc") for t in (tables, tables[::-1]))
        np.testing.assert_allclose(forth.score(["a", "b"]), back.score(["a", "b"]), rtol=1e-6)


def test_pessimism_is_never_above_the_mean_and_equals_it_where_members_agree(tables):
    mean = EnsembleScorer(tables).score(["a", "b", "c"])
    for aggregation in ("min", "lower", "variance"):
        scores = EnsembleScorer(tables, aggregation=aggregation).score(["a", "b", "c"])
        assert (scores[:2] < mean[:2]).all() and scores[2] == mean[2]


def test_the_minimum_of_many_members_is_below_a_lower_quantile():
    draws = np.random.default_rng(0).normal(size=(50, 20))
    scorers = [Table(dict(enumerate(member))) for member in draws]
    lowest = EnsembleScorer(scorers, aggregation="min").score(range(20))
    assert (lowest < np.quantile(draws, 0.1, axis=0)).all()
    lower = EnsembleScorer(scorers, aggregation="lower", k=1.2816).score(range(20))  # the 10 % quantile of a normal
    np.testing.assert_allclose(lower, np.quantile(draws, 0.1, axis=0), atol=0.5)


def test_holds_what_every_member_holds(tables):
    ensemble = EnsembleScorer([*tables, Table({"a": 0.0})])
    assert ensemble.holds(["a", "b"]).tolist() == [True, False]


def test_an_ensemble_is_a_trl_reward_function(model, tokenizer, chats):
    ensemble = HeadEnsembleScorer(with_head(model, tokenizer, members=3), aggregation="lower")
    prompts, completions = list(chats["prompt"]), list(chats["chosen"])
    rewards = ensemble(prompts=prompts, completions=completions, trainer_state=None)
    wanted = ensemble.score([p + c for p, c in zip(prompts, completions, strict=True)])
    np.testing.assert_allclose(rewards, wanted)
    assert ensemble.__name__ == "HeadEnsembleScorer"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"aggregation": "median"}, "median"),
        ({"k": -1.0}, "k=-1"),
        ({"k": float("nan")}, "k=nan"),
        ({"variance_weight": -0.5}, "variance_weight=-0.5"),
    ],
)
def test_settings_that_cannot_be_used(tables, settings, message):
    with pytest.raises(UsageError, match=message):
        EnsembleScorer(tables, **settings)


def test_input_that_cannot_be_used(tables):
    with pytest.raises(UsageError, match="at least two"):
        EnsembleScorer(tables[:1])
    with pytest.raises(DataError, match="2 chosen and 1 rejected"):
        EnsembleScorer(tables).margins(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no conversations"):
        EnsembleScorer(tables).fit([])


def test_no_conversations_give_no_scores(tables, model, tokenizer):
    for scorer in (EnsembleScorer(tables), HeadEnsembleScorer(with_head(model, tokenizer, members=2))):
        assert scorer.score([]).shape == (0,)
        assert isinstance(scorer.distribution([]), ScoreDistribution)


# Heads


@pytest.mark.parametrize("settings", [{}, {"kind": "mlp"}, {"pooling": "mean"}], ids=str)
def test_the_mean_of_the_heads_is_the_score_of_the_model(model, tokenizer, texts, settings):
    scorer = with_head(model, tokenizer, members=5, **settings)
    ensemble = HeadEnsembleScorer(scorer)
    np.testing.assert_allclose(ensemble.score(texts), scorer.score(texts), atol=1e-6)
    members = ensemble.members(texts)
    np.testing.assert_allclose(ensemble.distribution(texts).std, members.std(axis=1, ddof=1))
    assert members.shape == (len(texts), 5) and (members.std(axis=1) > 1e-3).all()
    assert ensemble.holds(["red", "red " * 300]).tolist() == [True, False]


def test_one_head_is_no_ensemble(model, tokenizer):
    with pytest.raises(ModelError, match="n_heads"):
        HeadEnsembleScorer(RewardScorer(model, tokenizer))


# Adapters


def train_adapter(folder, rows, tokenizer, seed, base="base", **settings):
    args = RewardConfig(str(folder / "t"), bf16=False, report_to="none", max_steps=3, learning_rate=3e-2, seed=seed,
                        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, **settings)  # fmt: skip
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(folder / base), args, train_dataset=rows,
        processing_class=tokenizer, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(folder / f"adapter-{seed}")
    return folder / f"adapter-{seed}"


@pytest.mark.parametrize("settings", [{}, {"head": "mlp", "n_heads": 2}], ids=str)
def test_adapters_on_one_base_score_as_separate_models(tmp_path, model, tokenizer, pairs, texts, settings):
    model.save_pretrained(tmp_path / "base")
    paths = [train_adapter(tmp_path, pairs, tokenizer, seed, **settings) for seed in range(3)]
    separate = np.stack([RewardScorer.from_pretrained(path).score(texts) for path in paths], axis=1)
    assert (separate.std(axis=1) > 1e-3).all()
    ensemble = EnsembleScorer.from_adapters(paths, aggregation="min", device="cpu")
    np.testing.assert_allclose(ensemble.members(texts), separate, atol=1e-6)
    np.testing.assert_allclose(
        ensemble.scorers[0].score(texts), separate[:, 0], atol=1e-6
    )  # after the last was active
    np.testing.assert_allclose(ensemble.score(texts), separate.min(axis=1), atol=1e-6)
    with pytest.raises(ModelError, match="load it alone"):
        ensemble.scorers[0].features(texts)


def test_the_base_of_adapters_is_held_once(tmp_path, model, tokenizer, pairs):
    model.save_pretrained(tmp_path / "base")
    paths = [train_adapter(tmp_path, pairs, tokenizer, seed) for seed in range(3)]
    one = RewardScorer.from_pretrained(paths[0]).model.num_parameters()
    ensemble = EnsembleScorer.from_adapters(paths)
    shared = ensemble.scorers[0].model
    assert all(scorer.model is shared for scorer in ensemble.scorers)
    adapter = one - model.num_parameters()
    assert shared.num_parameters() == one + 2 * adapter


def test_adapters_that_cannot_share_are_refused(tmp_path, model, tokenizer, pairs):
    model.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    first = train_adapter(tmp_path, pairs, tokenizer, 0)
    with pytest.raises(UsageError, match="at least two"):
        EnsembleScorer.from_adapters([first])
    with pytest.raises(ModelError, match="no adapter"):
        EnsembleScorer.from_adapters([first, tmp_path / "other"])
    with pytest.raises(ModelError, match="whole model"):
        EnsembleScorer.from_adapters([tmp_path / "other", first])
    with pytest.raises(ModelError, match="different bases or heads"):
        EnsembleScorer.from_adapters([first, train_adapter(tmp_path, pairs, tokenizer, 1, base="other")])
    with pytest.raises(ModelError, match="different bases or heads"):
        EnsembleScorer.from_adapters([first, train_adapter(tmp_path, pairs, tokenizer, 2, n_heads=2)])
    tokenizer.chat_template += " "
    with pytest.raises(RenderingError, match="chat_template"):
        EnsembleScorer.from_adapters([first, train_adapter(tmp_path, pairs, tokenizer, 3)])


# Dropout


def test_dropout_of_the_last_layer_is_the_head_on_thinned_features(model, tokenizer, texts):
    scorer = with_head(model, tokenizer, dropout=0.25)
    dropout = MCDropoutScorer(scorer, n_samples=400)
    members = dropout.members(texts)
    terms = scorer.features(texts).astype(np.float64) * model.score.weight.detach().double().numpy()
    # each unit stays with probability ¾ and counts 4/3: mean Σt, variance Σt²/3
    std = np.sqrt((terms**2).sum(axis=1) / 3)
    assert (np.abs(members.mean(axis=1) - terms.sum(axis=1)) < 5 * std / 20).all()
    np.testing.assert_allclose(dropout.distribution(texts).std, std, rtol=0.2)


@pytest.mark.parametrize("where", ["head", "heads", "lora", "gpt2"])
def test_samples_depend_on_the_seed_and_not_on_batch_or_order(model, tokenizer, texts, where):
    scorer = dropout_scorer(where, model, tokenizer)
    dropout = MCDropoutScorer(scorer, n_samples=3, seed=1)
    members = dropout.members(texts)
    assert (members.std(axis=1) > 1e-4).all()
    np.testing.assert_array_equal(dropout.members(texts), members)
    np.testing.assert_allclose(dropout.members(texts[::-1])[::-1], members, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([dropout.members([text]) for text in texts[:4]]), members[:4], atol=1e-5)
    assert np.abs(MCDropoutScorer(scorer, n_samples=3, seed=2).members(texts) - members).max() > 1e-3


def dropout_scorer(where, model, tokenizer):
    if where == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.3, init_lora_weights=False, task_type="SEQ_CLS"))
    elif where == "gpt2":
        from transformers import GPT2Config, GPT2ForSequenceClassification

        shape = dict(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, num_labels=1, pad_token_id=0)
        model = GPT2ForSequenceClassification(GPT2Config(**shape, initializer_range=0.2))
    else:
        return with_head(model, tokenizer, dropout=0.3, members=2 if where == "heads" else 1)
    return RewardScorer(model, tokenizer)


def test_every_layer_drops_units_of_its_own(new_model, tokenizer, texts):
    one, two = (with_head(new_model(), tokenizer, dropout=0.25, members=members) for members in (1, 2))
    (layer,) = last_layers(one.model)
    for other in last_layers(two.model):
        other.weight.data.copy_(layer.weight.data)
    terms = one.features(texts[:4]).astype(np.float64) * layer.weight.detach().double().numpy()
    std = MCDropoutScorer(two, n_samples=300).distribution(texts[:4]).std
    np.testing.assert_allclose(std, np.sqrt((terms**2).sum(axis=1) / 3 / 2), rtol=0.2)  # the mean of two, independent


def test_one_pass_for_the_last_layer_equals_a_pass_a_sample(model, tokenizer, texts):
    scorer = with_head(model, tokenizer, dropout=0.3)
    at_once = MCDropoutScorer(scorer, n_samples=4).members(texts)
    model.added = torch.nn.Dropout(0.5)  # never called: the long way, with the same units dropped
    np.testing.assert_allclose(MCDropoutScorer(scorer, n_samples=4).members(texts), at_once, atol=1e-5)


def test_the_model_is_left_as_it_was_also_after_an_error(model, tokenizer, texts):
    scorer = dropout_scorer("lora", model, tokenizer)
    before, modes = scorer.score(texts), [module.training for module in scorer.model.modules()]
    dropout = MCDropoutScorer(scorer)
    dropout.score(texts[:2])
    with pytest.raises(DataError, match="conversation 1 has"):
        dropout.score(["red", "red " * 400])
    np.testing.assert_array_equal(scorer.score(texts), before)
    assert [module.training for module in scorer.model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in scorer.model.modules())


def test_dropout_settings_that_cannot_be_used(model, tokenizer):
    with pytest.raises(ModelError, match="head_dropout"):
        MCDropoutScorer(RewardScorer(model, tokenizer))
    scorer = with_head(model, tokenizer, dropout=0.3)
    for settings in ({"n_samples": 1}, {"seed": -1}):
        with pytest.raises(UsageError, match="at least 2 samples"):
            MCDropoutScorer(scorer, **settings)
    assert MCDropoutScorer(scorer).holds(["red", "red " * 300]).tolist() == [True, False]
