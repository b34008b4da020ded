"""A reward model in PPO scores what it was trained on: the policy's tokens, or the text by its own template."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from templates import tokenizer_of
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rmtrl import ComposedReward, PPOTrainer, RewardScorer
from rmtrl.ppo.prompts import read_prompts
from rmtrl.ppo.reward_model import TokenReward, as_reward, closes_cut_turns

CHATS = Dataset.from_dict(
    {"prompt": [[{"role": "user", "content": text}] for text in ("is the sun red ?", "the sea ?", "one two", "moon")]}
)


def make(tokenizer, kind, **settings):
    torch.manual_seed(1)
    shape = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                 num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
                 pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, 
                 bos_token_id=None)  # fmt: skip
    return kind(LlamaConfig(**(shape | settings)))


class Watched(PPOTrainer):
    def score(self, rollout):
        self.seen = rollout.episodes, super().score(rollout)
        return self.seen[1]


@pytest.mark.parametrize(
    ("name", "route"), [("qwen3", "text"), ("llama3", "ids"), ("phi3", "text"), ("gemma", "text")]
)
@pytest.mark.parametrize("judge", ["model", "composed", "eval_scorer"])
def test_training_scores_what_the_reward_model_was_taught(new_config, name, route, judge, caplog):
    tokenizer = copy.deepcopy(tokenizer_of(name))
    policy = make(tokenizer, LlamaForCausalLM)
    with torch.no_grad():  # many of its tokens end the turn
        policy.get_input_embeddings().weight[:, 0], policy.lm_head.weight[:, 0] = 5.0, 0.0
        policy.lm_head.weight[tokenizer.eos_token_id, 0] = 1.6
    model = make(tokenizer, LlamaForSequenceClassification, num_labels=1).eval()
    scorer = RewardScorer(model, tokenizer, progress=False)
    rewards = {"model": model, "composed": ComposedReward(scorer), "eval_scorer": lambda completions, **_: [0.0] * 4}
    trainer = Watched(
        args=new_config(total_episodes=4, per_device_train_batch_size=4, gradient_accumulation_steps=1,
                        num_mini_batches=1, num_ppo_epochs=1, response_length=12),
        processing_class=tokenizer, model=policy, reward_model=rewards[judge], train_dataset=CHATS,
        eval_dataset=CHATS, eval_scorers={"judge": scorer} if judge == "eval_scorer" else None,
    )  # fmt: skip
    assert sum("the reward model " in record.message for record in caplog.records) == 1
    trainer.train()
    episodes, scores = trainer.seen
    got = scores.scores.tolist()
    if judge == "eval_scorer":
        got = trainer.score_with(trainer.eval_scorers["judge"], trainer.train_prompts, episodes)[0].tolist()
    texts = tokenizer.batch_decode(episodes.completion_ids, skip_special_tokens=True)
    assert not all(episodes.truncated)
    for row, text in enumerate(texts):
        prompt = trainer.train_prompts.prompts[episodes.indices[row]]
        rendered = scorer.encode([*prompt, {"role": "assistant", "content": text}])
        sampled = [*episodes.prompt_ids[row], *episodes.completion_ids[row]]
        reads = sampled + rendered[-1:] if episodes.truncated[row] else sampled
        own = route == "ids" and tokenizer.decode(reads) == tokenizer.decode(rendered)
        seen = rendered[:-1] if route == "ids" and episodes.truncated[row] else rendered
        with torch.no_grad():
            wanted = float(model(input_ids=torch.tensor([sampled if own else seen])).logits[0, 0])
        assert got[row] == pytest.approx(wanted, abs=1e-5)


def sample(reward, read, tokenizer, answer, ids, truncated=False):
    message = [{"role": "assistant", "content": answer}]
    given = dict(prompt_ids=read.ids[:1], completion_ids=[ids], truncated=[truncated])
    return reward(read.prompts[:1], [message], **given)[0]


def test_a_sample_that_the_template_would_change_is_rendered(new_config):
    assert new_config().device.type == "cpu"  # which knows of processes
    tokenizer = tokenizer_of("llama3")  # which trims white space
    scorer = RewardScorer(make(tokenizer, LlamaForSequenceClassification, num_labels=1), tokenizer, progress=False)
    read = read_prompts(CHATS, tokenizer, max_length=None)
    reward, _ = as_reward(scorer, tokenizer, read)
    assert reward.route == "ids" and not closes_cut_turns(reward)
    ids = tokenizer("yes. \n")["input_ids"]
    clean = scorer.score([[*read.prompts[0], {"role": "assistant", "content": "yes."}]])[0]
    assert sample(reward, read, tokenizer, "yes. \n", [*ids, tokenizer.eos_token_id]) == pytest.approx(clean, abs=1e-6)
    finished = scorer.encode([*read.prompts[0], {"role": "assistant", "content": "yes."}])
    still_open = scorer.score_ids([finished[:-1]])[0]
    for text in ("yes. \n", " yes."):  # cut off, it stays open
        got = sample(reward, read, tokenizer, text, tokenizer(text)["input_ids"], True)
        assert got == pytest.approx(still_open, abs=1e-6)
    # one that is cut off stays open, and one of other tokens for the same text is scored as it was sampled
    open_ids = tokenizer("yes.")["input_ids"]
    pieces = [tokenizer.convert_tokens_to_ids(piece) for piece in "yes."]
    for own, cut in ((open_ids, True), ([*pieces, tokenizer.eos_token_id], False)):
        wanted = scorer.score_ids([[*read.ids[0], *own]])[0]
        assert sample(reward, read, tokenizer, "yes.", own, cut) == pytest.approx(wanted, abs=1e-6)


def test_text_ends_with_the_token_it_was_trained_to_end_with(tokenizer, new_reward_model):
    """A policy may stop at another token, which no text of the training set ended with."""
    scorer = RewardScorer(new_reward_model(), tokenizer, progress=False)
    read = read_prompts(Dataset.from_dict({"prompt": ["sun moon ?"]}), tokenizer, max_length=None)
    reward = TokenReward(scorer, read)
    assert reward.route == "ids"
    answer = tokenizer(" good sea")["input_ids"]
    wanted = scorer.score(["sun moon ? good sea"])[0]
    for last in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|user|>")):
        got = reward(
            ["sun moon ?"], [" good sea"], prompt_ids=read.ids, completion_ids=[[*answer, last]], truncated=[False]
        )
        np.testing.assert_allclose(got, [wanted], atol=1e-6)


def test_prompts_of_token_ids_are_scored_as_they_are(tokenizer, new_reward_model):
    ids = tokenizer("<|user|>sun moon<|end|><|assistant|>")["input_ids"]
    read = read_prompts(Dataset.from_dict({"input_ids": [ids]}), tokenizer, max_length=None)
    scorer = RewardScorer(new_reward_model(), tokenizer, progress=False)
    reward = TokenReward(scorer, read)
    answer = [*tokenizer("sea")["input_ids"], tokenizer.eos_token_id]
    got = reward(read.prompts, ["sea"], prompt_ids=read.ids, completion_ids=[answer], truncated=[False])
    np.testing.assert_allclose(got, scorer.score_ids([[*ids, *answer]]), atol=1e-6)


@pytest.mark.parametrize(("prompt", "answer"), [("sun moon? ", "good sea"), ("sun ?", " good sea")])
def test_text_is_scored_by_the_tokens_that_it_was_trained_with(tokenizer, new_reward_model, prompt, answer):
    """A space that ends a prompt goes with the word after it once the two are one text."""
    scorer = RewardScorer(new_reward_model(), tokenizer, progress=False)
    read = read_prompts(Dataset.from_dict({"prompt": [prompt]}), tokenizer, max_length=None)
    reward = TokenReward(scorer, read)
    answered = tokenizer(answer)["input_ids"]
    ids = [*answered, tokenizer.eos_token_id]
    got = reward([prompt], [answer], prompt_ids=read.ids, completion_ids=[ids], truncated=[False])
    np.testing.assert_allclose(got, scorer.score([prompt + answer]), atol=1e-6)
    assert (tokenizer(prompt + answer)["input_ids"] == [*read.ids[0], *answered]) != prompt.endswith(" ")
