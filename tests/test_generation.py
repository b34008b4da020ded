"""Completions: the same whatever stands beside them, drawn from the model's own distribution, ended right."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from transformers import GenerationConfig, LlamaForCausalLM, LogitsProcessorList

from rmtrl.errors import DataError, FreshHeadError, ModelError, RenderingError, UsageError
from rmtrl.generation import (
    Completion,
    Generator,
    SeededSampling,
    TransformersGenerator,
    gumbel_noise,
    sampling_key,
)

PROMPTS = ["red green ?", "one two three sun moon sea ?", "yes", "blue sea sun ?", "good bad one ?"]
CHAT = [[{"role": "user", "content": text}] for text in PROMPTS]


@pytest.fixture
def policy(model):
    torch.manual_seed(1)
    return LlamaForCausalLM(model.config)


@pytest.fixture
def make(policy, tokenizer):
    def generator(**settings):
        return TransformersGenerator(policy, tokenizer, **({"max_new_tokens": 8} | settings))

    return generator


def splitmix(x):
    """SplitMix64's finaliser on Python's integers."""
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_noise_is_that_of_the_published_generator():
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the first number of SplitMix64 with seed 0
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    for key, position in [(0, 0), (-5, 3), (sampling_key("a"), 250)]:
        row = splitmix((splitmix(key & mask) + position * golden) & mask)
        bits = np.array([splitmix((row + i * golden) & mask) >> 32 for i in range(1, 51)], float)
        wanted = -np.log(-np.log1p(-(bits + 0.5) / 2**32))
        got = gumbel_noise(torch.tensor([key]), position, 50)[0]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        at = gumbel_noise(torch.tensor([key, key]), torch.tensor([position, position + 1]), 50)
        assert torch.equal(at[0], got) and not torch.equal(at[1], got)


def test_noise_is_gumbel_and_independent_between_rows_and_positions():
    keys = torch.tensor([sampling_key(0, n) for n in range(40)])
    first, second = gumbel_noise(keys, 0, 1000).numpy(), gumbel_noise(keys, 1, 1000).numpy()
    assert stats.kstest(first.ravel(), stats.gumbel_r.cdf).pvalue > 0.01
    between = [np.corrcoef(first.ravel(), second.ravel())[0, 1], np.corrcoef(first[0], first[1])[0, 1],
               np.corrcoef(first[:, :-1].ravel(), first[:, 1:].ravel())[0, 1]]  # fmt: skip
    assert np.abs(between).max() < 0.1 and np.isfinite(first).all()


def sampled(logits, keys, width=7):
    """The token drawn in each row, after checking that it alone has a score."""
    scores = SeededSampling(keys, prompt_length_tokens=4)(torch.zeros(len(logits), width, dtype=torch.long), logits)
    assert scores.shape == logits.shape and scores.dtype == torch.float32
    assert ((scores == 0).sum(1) == 1).all() and ((scores == -torch.inf).sum(1) == scores.shape[1] - 1).all()
    return scores.argmax(1)


@pytest.mark.parametrize("size", [2, 3, 5, 16, 17, 50, 101])
def test_samples_follow_the_softmax_whatever_the_size(size):
    draws, logits = 20_000, torch.randn(size, generator=torch.Generator().manual_seed(size))
    counts = torch.bincount(sampled(logits.expand(draws, -1), [sampling_key(n) for n in range(draws)]), minlength=size)
    expected = draws * logits.double().softmax(0).numpy()
    assert stats.chisquare(counts.numpy(), expected).pvalue > 0.001


def test_masked_tokens_and_blocks_are_never_sampled():
    logits = torch.full((50,), -torch.inf)  # seven blocks of eight tokens, the last one short
    allowed = torch.tensor([0, 7, 8, 23, 41, 48, 49])  # nothing in the blocks from 24 and from 32
    logits[allowed] = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, 0.0, 1.0])
    draws = 20_000
    counts = torch.bincount(sampled(logits.expand(draws, -1), [sampling_key(n) for n in range(draws)]), minlength=50)
    assert counts[allowed].sum() == draws
    assert stats.chisquare(counts[allowed], draws * logits[allowed].double().softmax(0).numpy()).pvalue > 0.001
    logits[:49] = -torch.inf
    assert sampled(logits[None], [3]).tolist() == [49]


def test_block_and_token_within_it_are_drawn_independently():
    draws = 20_000
    tokens = sampled(torch.zeros(draws, 16), [sampling_key(n) for n in range(draws)])
    table = torch.bincount(tokens, minlength=16).reshape(4, 4)
    assert stats.chi2_contingency(table).pvalue > 0.001
    after = sampled(torch.zeros(draws, 16), [sampling_key(n) for n in range(draws)], width=8)
    assert stats.chi2_contingency(torch.bincount(tokens * 16 + after, minlength=256).reshape(16, 16)).pvalue > 0.001


def test_a_rows_sample_does_not_depend_on_the_rows_beside_it():
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    keys = [sampling_key(n) for n in range(64)]
    together = sampled(logits, keys)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sampled(logits[order], [keys[n] for n in order]), together[order])
    assert [sampled(logits[n : n + 1], keys[n : n + 1]).item() for n in range(64)] == together.tolist()
    assert len(set(together.tolist())) > 50


def test_rounding_of_the_logits_hardly_ever_changes_a_sample():
    generator = torch.Generator().manual_seed(0)
    keys, changed = [sampling_key(n) for n in range(1000)], 0
    for width in range(5, 15):
        logits = 3 * torch.randn(1000, 500, generator=generator)
        rounded = logits + 1e-6 * torch.randn(1000, 500, generator=generator)
        changed += (sampled(logits, keys, width) != sampled(rounded, keys, width)).sum().item()
    assert changed < 10  # of 10,000


def test_completions_depend_on_prompt_and_seed_alone(make):
    whole = make(batch_size=32).generate(PROMPTS, 3, seed=5)
    for batch_size in (1, 4):
        assert make(batch_size=batch_size).generate(PROMPTS, 3, seed=5) == whole
    assert make().generate(PROMPTS[::-1], 3, seed=5) == whole[::-1]
    assert make().generate(PROMPTS[1:2], 2, seed=5) == [whole[1][:2]]
    assert make().generate(PROMPTS, 3, seed=6) != whole
    torch.manual_seed(99)
    assert make().generate(PROMPTS, 3, seed=5) == whole
    assert len({completion.token_ids for own in whole for completion in own}) > 10


def test_samples_follow_the_models_distribution(make, policy, tokenizer):
    ids = torch.tensor([make().encode("red ?")])
    probabilities = (policy(ids).logits[0, -1].double() / 0.7).softmax(-1).detach().numpy()
    made = make(max_new_tokens=1, temperature=0.7, batch_size=500).generate(["red ?"], 2000)[0]
    counts = np.bincount([completion.token_ids[0] for completion in made], minlength=len(probabilities))
    likely = np.argsort(-probabilities)[:8]
    observed, expected = (np.append(own[likely], own.sum() - own[likely].sum()) for own in (counts, probabilities))
    assert stats.chisquare(observed, expected * 2000).pvalue > 0.01


def test_top_p_keeps_the_likeliest(make, policy):
    probabilities = policy(torch.tensor([make().encode("red ?")])).logits[0, -1].softmax(-1)
    ordered = probabilities.sort(descending=True)
    kept = ordered.indices[: int((ordered.values.cumsum(0) < 0.5).sum()) + 1].tolist()
    made = make(max_new_tokens=1, top_p=0.5).generate(["red ?"], 200)[0]
    assert {completion.token_ids[0] for completion in made} <= set(kept)
    assert len({completion.token_ids[0] for completion in made}) > 1


def test_temperature_0_is_greedy(make, policy):
    greedy = make(temperature=0).generate(PROMPTS, 2)
    for prompt, own in zip(PROMPTS, greedy, strict=True):
        ids = torch.tensor([make().encode(prompt)])
        settings = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=policy.config.eos_token_id)
        wanted = policy.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0]
        assert list(own[0].token_ids) == wanted[ids.shape[1] :].tolist() and own[0] == own[1]


def test_an_end_token_ends_and_its_absence_is_truncation(make, policy, tokenizer):
    made = [one for own in make(max_new_tokens=40).generate(PROMPTS[:2], 60) for one in own]
    end = tokenizer.eos_token_id
    ended = [one for one in made if not one.truncated]
    assert 0 < len(ended) < len(made)
    assert all(one.token_ids[-1] == end and one.token_ids.count(end) == 1 for one in ended)
    assert all(len(one.token_ids) == 40 and end not in one.token_ids for one in made if one.truncated)
    assert all(tokenizer.eos_token not in one.text for one in made)
    policy.generation_config.eos_token_id = [end, made[0].token_ids[0]]  # a checkpoint's own end of turn counts too
    assert make().generate(PROMPTS[:1], 1)[0][0].token_ids == made[0].token_ids[:1]


def test_the_checkpoints_own_sampling_settings_do_not_count(make, policy):
    plain = make().generate(PROMPTS, 2)
    policy.generation_config.update(do_sample=True, temperature=0.1, top_k=1, repetition_penalty=5.0)
    assert make().generate(PROMPTS, 2) == plain


@pytest.mark.parametrize(
    "setting",
    [
        {"suppress_tokens": [9]}, {"begin_suppress_tokens": [9]}, {"min_new_tokens": 8}, {"bad_words_ids": [[9]]},
        {"sequence_bias": [[[9], -50.0]]}, {"forced_eos_token_id": 1}, {"min_p": 0.9}, {"stop_strings": ["e"]},
        {"exponential_decay_length_penalty": (1, 9.0)}, {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 3}, {"max_time": 1e-9}, {"guidance_scale": 3.0},
        {"encoder_repetition_penalty": 5.0}, {"num_beam_groups": 2},
    ],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_no_setting_of_the_checkpoint_changes_a_completion(make, policy, setting):
    generator = make()
    plain = generator.generate(PROMPTS, 2)
    own = plain[1][0].token_ids[0]
    known = {name: [own] if value == [9] else [[own]] if value == [[9]] else value for name, value in setting.items()}
    known = known | ({"sequence_bias": [[[own], -50.0]]} if "sequence_bias" in known else {})
    for name, value in known.items():
        setattr(policy.generation_config, name, value)
    stored = policy.generation_config
    before = stored.to_dict()
    assert generator.generate(PROMPTS, 2) == plain
    assert policy.generation_config is stored and stored.to_dict() == before


def test_the_checkpoints_settings_are_put_back_after_an_error(make, policy, monkeypatch):
    stored = policy.generation_config

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(policy, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        make().generate(PROMPTS[:1])
    assert policy.generation_config is stored


def test_an_adapters_completions_and_settings_are_its_bases(make, policy, tokenizer):
    plain = make().generate(PROMPTS, 2)
    adapter = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    policy.generation_config.min_new_tokens = 8
    stored = policy.generation_config
    assert TransformersGenerator(adapter, tokenizer, max_new_tokens=8).generate(PROMPTS, 2) == plain
    assert policy.generation_config is stored and adapter.generation_config is stored
    assert "generation_config" not in vars(adapter)


def test_chats_are_rendered_with_a_generation_prompt(make, tokenizer):
    text = tokenizer.apply_chat_template(CHAT[0], tokenize=False, add_generation_prompt=True)
    assert make().generate(CHAT[:1], 2) == make().generate([text], 2)
    tokenizer.chat_template = None
    with pytest.raises(RenderingError):
        make().generate(CHAT[:1])


def test_training_mode_is_put_back_and_dropout_never_samples(make, policy):
    policy.train()
    policy.config.attention_dropout = 0.5
    assert make().generate(PROMPTS, 2) == make().generate(PROMPTS, 2) and policy.training
    policy.eval()
    make().generate(PROMPTS[:1])
    assert not policy.training


def test_a_checkpoint_is_loaded_and_a_reward_model_is_refused(make, policy, model, tokenizer, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    loaded = TransformersGenerator.from_pretrained(tmp_path / "policy", max_new_tokens=8, device="cpu")
    assert loaded.generate(PROMPTS, 2) == make().generate(PROMPTS, 2)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    with pytest.raises(FreshHeadError):
        TransformersGenerator.from_pretrained(tmp_path / "rm")
    with pytest.raises(ModelError, match="no language model at"):
        TransformersGenerator.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_settings_out_of_range_are_refused(make, settings):
    with pytest.raises(UsageError, match=f"got {next(iter(settings))}"):
        make(**settings)


def test_prompts_that_cannot_be_continued_are_refused(make):
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        make().generate(["red", ""])
    with pytest.raises(DataError, match=r"the model holds 256: no room for 8 more"):
        make().generate(["red " * 300])
    with pytest.raises(UsageError, match="got n 0"):
        make().generate(["red"], 0)
    assert make().generate([], 2) == []


def test_any_class_with_generate_is_a_generator():
    class Echo(Generator):
        def generate(self, prompts, n=1, *, seed=0):
            return [[Completion(str(prompt))] * n for prompt in prompts]

    assert Echo().generate(["a"], 2) == [[Completion("a"), Completion("a")]]
    with pytest.raises(NotImplementedError):
        Generator().generate(["a"])


def test_seeded_sampling_serves_any_loop_over_generate(policy, tokenizer):
    ids = torch.tensor([tokenizer("red green ?")["input_ids"]] * 2)
    keys = [sampling_key(0, episode) for episode in (7, 8)]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)

    def run(rows):
        sampling = SeededSampling([keys[row] for row in rows], ids.shape[1])
        return policy.generate(ids[rows], attention_mask=torch.ones_like(ids[rows]), generation_config=settings,
                               logits_processor=LogitsProcessorList([sampling]))  # fmt: skip

    together, apart = run([0, 1]), [run([0]), run([1])]
    for row in (0, 1):
        assert together[row].tolist()[: apart[row].shape[1]] == apart[row][0].tolist()
    assert together[0].tolist() != together[1].tolist()
