"""The planner's groups and batches, and the scores of every method against plain rows."""

import itertools
import logging

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPTNeoConfig,
    GPTNeoForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    PhiConfig,
    PhiForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from rmtrl import RewardScorer
from rmtrl.reward.batching import Costs, Group, like_lengths, plan_groups
from rmtrl.reward.scoring import run_job, why_sharing_differs
from rmtrl.reward.shared_prefix.forward import why_not_shared

FREE = Costs(cell=0.0, call=0.0, most_tokens=1 << 20)


def random_ids(rng, n):
    return rng.integers(5, 300, n).tolist()


def families(rng, sizes, prefix=40, rest=12):
    """Sequences of several prompts, `sizes[i]` candidates of prompt i, shuffled."""
    sequences = []
    for size in sizes:
        head = random_ids(rng, prefix)
        sequences += [head + random_ids(rng, 1 + int(rng.integers(rest))) for _ in range(size)]
    return [sequences[i] for i in rng.permutation(len(sequences))]


def test_siblings_are_grouped_and_every_sequence_is_in_one_group():
    rng = np.random.default_rng(0)
    sequences = families(rng, [2, 5, 1, 3])
    groups = plan_groups(sequences, pad_token_id=0, costs=FREE)
    assert sorted(i for group in groups for i in group.members) == list(range(11))
    assert sorted(len(group.members) for group in groups) == [1, 2, 3, 5]
    assert {len(g.members): g.method for g in groups} == {1: "plain", 2: "packed", 3: "cached", 5: "cached"}
    for group in groups:
        assert len({tuple(sequences[i][: group.prefix]) for i in group.members}) == 1


def test_a_template_all_share_does_not_hide_the_prompts():
    rng = np.random.default_rng(1)
    head = random_ids(rng, 20)
    sequences = [head + ids for ids in families(rng, [2] * 6)]
    groups = plan_groups(sequences, pad_token_id=0, costs=FREE)
    assert sorted(len(group.members) for group in groups) == [2] * 6
    assert all(group.prefix >= 60 for group in groups)


def test_cuts_share_as_many_tokens_as_any():
    rng = np.random.default_rng(2)
    for _ in range(20):
        sequences = sorted([rng.integers(1, 3, int(rng.integers(2, 9))).tolist() for _ in range(7)])

        def shared(members, sequences=sequences):
            heads = [sequences[i][:-1] for i in members]  # the token a reward is read at is not shared
            return next((n for n in range(min(map(len, heads)), 0, -1) if len({tuple(h[:n]) for h in heads}) == 1), 0)

        best = max(
            sum((stop - start - 1) * shared(range(start, stop)) for start, stop in itertools.pairwise((0, *cuts, 7)))
            for size in range(7)
            for cuts in itertools.combinations(range(1, 7), size)
        )
        groups = plan_groups(sequences, pad_token_id=0, costs=FREE)
        assert sum((len(g.members) - 1) * g.prefix for g in groups) == best


def test_short_prompts_before_long_answers_are_scored_as_plain_rows():
    rng = np.random.default_rng(3)
    head = random_ids(rng, 10)
    sequences = [head + random_ids(rng, 900) for _ in range(2)]
    (first, second) = plan_groups(sequences, pad_token_id=0, costs=Costs(1 / (6 * 256), 32.0, 8192))
    assert first.method == second.method == "plain"


def test_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 300, 200).tolist()
    batches = like_lengths(lengths, Costs(0.001, 50.0, most_tokens=256, most_rows=7))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(b) == 1 or (len(b) <= 7 and len(b) * max(lengths[i] for i in b) <= 256) for b in batches)


def test_batches_take_no_more_time_than_any_others_of_like_length():
    lengths, costs = [3, 9, 8, 4, 20, 5], Costs(0.01, 6.0, most_tokens=1000)
    order = sorted(lengths, reverse=True)

    def time(cuts):
        return sum(costs.rows(stop - start, order[start]) for start, stop in itertools.pairwise((0, *cuts, 6)))

    best = min(time(cuts) for size in range(6) for cuts in itertools.combinations(range(1, 6), size))
    batches = like_lengths(lengths, costs)
    assert sum(costs.rows(len(b), max(lengths[i] for i in b)) for b in batches) == pytest.approx(best)


SIZES = dict(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_labels=1, pad_token_id=0, initializer_range=0.3, max_position_embeddings=512)  # fmt: skip
GROUPED = dict(num_key_value_heads=2, head_dim=8)
MODELS = {
    "llama": (LlamaForSequenceClassification, LlamaConfig(**SIZES)),
    "qwen2": (Qwen2ForSequenceClassification, Qwen2Config(**SIZES, num_key_value_heads=2)),
    "qwen3": (Qwen3ForSequenceClassification, Qwen3Config(**SIZES, **GROUPED)),
    "mistral": (MistralForSequenceClassification, MistralConfig(**SIZES, **GROUPED, sliding_window=16)),
    "gemma2": (Gemma2ForSequenceClassification, Gemma2Config(**SIZES, **GROUPED, sliding_window=16)),
    "gemma3": (Gemma3TextForSequenceClassification, Gemma3TextConfig(**SIZES, **GROUPED, sliding_window=16)),
    "phi": (PhiForSequenceClassification, PhiConfig(**SIZES)),
    "gpt_neox": (GPTNeoXForSequenceClassification, GPTNeoXConfig(**SIZES)),
}


# transformers gives Gemma 2 no SDPA
@pytest.mark.parametrize(
    ("name", "attention"), [(n, a) for n in MODELS for a in ("sdpa", "eager") if (n, a) != ("gemma2", "sdpa")]
)
def test_every_method_gives_the_score_of_a_row_alone(name, attention, tokenizer, caplog):
    kind, config = MODELS[name]
    torch.manual_seed(0)
    config._attn_implementation = attention
    model = kind(config).eval()
    sequences = families(np.random.default_rng(5), [2, 2, 6, 1], prefix=30, rest=30)
    with torch.no_grad():
        alone = np.array([model(input_ids=torch.tensor([ids])).logits.item() for ids in sequences])
    scorer = RewardScorer(model, tokenizer)
    with caplog.at_level(logging.WARNING):
        scores = scorer.score_ids(sequences)
    assert "computed each time" not in caplog.text
    np.testing.assert_allclose(scores, alone, atol=1e-5 * max(1, np.abs(alone).max()))
    pad = scorer.tokenizer.pad_token_id
    for method in ("packed", "cached"):  # both, whatever the planner would choose
        members = [i for i, ids in enumerate(sequences) if ids[:30] == sequences[0][:30]][:2]
        job = (method, [Group(members, 30, method)])
        for found, values in run_job(model, job, sequences, pad_token_id=pad, costs=FREE):
            np.testing.assert_allclose(values[:, 0], alone[found], atol=1e-5 * max(1, np.abs(alone).max()))


def test_a_model_that_cannot_share_is_scored_in_plain_rows_and_says_so_once(tokenizer, caplog):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    sequences = families(np.random.default_rng(6), [3, 2])
    with torch.no_grad():
        alone = np.array([model(input_ids=torch.tensor([ids])).logits.item() for ids in sequences])
    scorer = RewardScorer(model, tokenizer)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(scorer.score_ids(sequences), alone, atol=1e-5)
        scorer.score_ids(sequences)
    said = [record.message for record in caplog.records if "computed each time" in record.message]
    assert len(said) == 1 and "BertForSequenceClassification has no head named `score`" in said[0]


def test_a_model_whose_shared_scores_would_differ_is_found_out(tokenizer, monkeypatch, caplog):
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "num_labels": 1, "pad_token_id": 0}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, initializer_range=0.3)).eval()
    plain = model.forward
    # a model that takes positions and does not use them
    monkeypatch.setattr(model, "forward", lambda position_ids=None, **inputs: plain(**inputs))
    sequences = families(np.random.default_rng(7), [2, 4])
    with torch.no_grad():
        alone = np.array([plain(input_ids=torch.tensor([ids])).logits.item() for ids in sequences])
    with caplog.at_level(logging.WARNING):
        scores = RewardScorer(model, tokenizer).score_ids(sequences)
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert "scores of packed rows differ" in caplog.text


def test_scores_do_not_depend_on_the_order_or_on_the_other_sequences(model, tokenizer):
    sequences = families(np.random.default_rng(8), [1, 2, 2, 7, 20], prefix=50, rest=25)
    scorer = RewardScorer(model, tokenizer)
    scores = scorer.score_ids(sequences)
    order = np.random.default_rng(9).permutation(len(sequences))
    np.testing.assert_array_equal(scorer.score_ids([sequences[i] for i in order]), scores[order])
    half = scorer.score_ids(sequences[:16])
    np.testing.assert_allclose(half, scores[:16], atol=1e-5)


def test_repeated_and_nested_sequences_are_scored(model, tokenizer):
    head = random_ids(np.random.default_rng(10), 20)
    sequences = [head, head, head[:10], [*head, 7], head[:1], [*head, 7]]
    with torch.no_grad():
        alone = np.array([model(input_ids=torch.tensor([ids])).logits.item() for ids in sequences])
    np.testing.assert_allclose(RewardScorer(model, tokenizer).score_ids(sequences), alone, atol=1e-5)


def test_many_short_rows_are_planned_quickly_and_as_well_as_before():
    lengths = np.random.default_rng(0).integers(1, 4, 30_000).tolist()
    costs = Costs(0.001, 32.0, most_tokens=8192)
    batches = like_lengths(lengths, costs)  # seconds would be minutes with every start tried
    assert sorted(i for batch in batches for i in batch) == list(range(30_000))
    assert all(not costs.too_many(len(b), max(lengths[i] for i in b)) for b in batches)
    assert len(batches) <= sum(lengths) // 8192 + 4


def test_more_candidates_than_are_searched_at_once_are_one_group():
    rng = np.random.default_rng(11)
    head = random_ids(rng, 60)
    sequences = [head + random_ids(rng, 5) for _ in range(300)]
    (group,) = plan_groups(sequences, pad_token_id=0, costs=Costs(0.0006, 32.0, 8192))
    assert len(group.members) == 300 and group.method == "cached"


def test_positions_by_length_and_windows_by_row_are_refused_by_name(tokenizer):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    dynamic = LlamaForSequenceClassification(LlamaConfig(**SIZES, rope_parameters=rope))
    assert "by the length of the row" in why_not_shared(dynamic)
    neo = GPTNeoConfig(vocab_size=320, hidden_size=32, num_layers=2, attention_types=[[["global", "local"], 1]],
                       num_heads=4, num_labels=1, pad_token_id=0)  # fmt: skip
    assert "window_size" in why_not_shared(GPTNeoForSequenceClassification(neo))
    assert why_not_shared(LlamaForSequenceClassification(LlamaConfig(**SIZES))) is None


def test_sixteen_bits_are_trusted_only_for_architectures_compared_in_float32(tokenizer):
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "num_labels": 1, "pad_token_id": 0}
    gpt2 = GPT2ForSequenceClassification(GPT2Config(**sizes)).eval()
    assert why_sharing_differs(gpt2, 0) is None
    assert "was not compared in float32" in why_sharing_differs(gpt2.to(torch.bfloat16), 0)
    llama = LlamaForSequenceClassification(LlamaConfig(**SIZES)).eval()
    assert why_sharing_differs(llama.to(torch.bfloat16), 0) is None


def test_arrays_of_ids_are_scored(model, tokenizer):
    scorer = RewardScorer(model, tokenizer)
    ids = random_ids(np.random.default_rng(12), 9)
    np.testing.assert_array_equal(scorer.score_ids([np.array(ids), torch.tensor(ids)]), scorer.score_ids([ids, ids]))
