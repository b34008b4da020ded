"""The same conversations scored on every route that a reward model is used by, for one chat template.

`python tests/reward/routes.py` writes the table of examples/templates/README.md.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Json, List
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, pipeline
from trl import GRPOConfig, GRPOTrainer

from rmtrl import ComposedReward, RewardConfig, RewardScorer, RewardTrainer
from rmtrl.data.templates import in_parts
from rmtrl.errors import RenderingError
from rmtrl.ppo.prompts import read_prompts
from rmtrl.ppo.reward_model import TokenReward, as_reward
from rmtrl.reward.rendering import encode_prompt

_ANSWERS = ("yes.", " no, the sea is blue\n", "<think>\nred ?\n</think>\n\ngood", "one two three")
QUIET = dict(bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, gradient_checkpointing=False)


def turn(role, content):
    return {"role": role, "content": content}


def conversations(tokenizer):
    """Prompts of one turn, of three, and with a system message where the template takes one; an answer each."""
    ask, go_on = turn("user", "is the sun red ?"), turn("user", "and the moon ?")
    prompts = [[ask], [ask, turn("assistant", "yes."), go_on], [turn("system", "be good"), ask], [go_on]]
    pairs = [(prompt, [turn("assistant", answer)]) for prompt, answer in zip(prompts, _ANSWERS, strict=True)]
    return [(prompt, answer) for prompt, answer in pairs if _renders(tokenizer, prompt)]


def _renders(tokenizer, prompt):
    try:
        return bool(encode_prompt(tokenizer, prompt))
    except RenderingError:
        return False


def make_model(tokenizer, kind=LlamaForSequenceClassification, **settings):
    torch.manual_seed(0)
    shape = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2,
                 pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                 bos_token_id=tokenizer.bos_token_id)  # fmt: skip
    return kind(LlamaConfig(**(shape | settings)))


def plain_texts(tokenizer, pairs):
    """What the template makes of prompt and answer, with the content in parts where it passes over text."""
    texts = []
    for prompt, answer in pairs:
        text = None
        for form in (list, in_parts):
            try:
                text = tokenizer.apply_chat_template(form(prompt + answer), tokenize=False)
            except Exception:  # a vision template fails on text
                continue
            if answer[0]["content"].strip()[-4:] in text:
                break
        texts.append(text)
    return texts


def scores(tokenizer):
    """Returns the route of PPO, `"ids"` or `"text"`, and the scores of the same conversations by each route."""
    model = make_model(tokenizer, num_labels=1).eval()
    scorer = RewardScorer(model, tokenizer, progress=False)
    pairs = conversations(tokenizer)
    prompts, answers = [list(side) for side in zip(*pairs, strict=True)]
    whole = [prompt + answer for prompt, answer in pairs]
    found = {}
    texts = plain_texts(tokenizer, pairs)
    with torch.no_grad():
        ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
        found["plain transformers"] = [float(model(input_ids=own).logits[0, 0]) for own in ids]
    classify = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, function_to_apply="none", device="cpu"
    )
    found["pipeline"] = [own["score"] for own in classify(texts, add_special_tokens=False)]
    found["RewardScorer"] = scorer.score(whole).tolist()
    found["predict"] = _predicted(model, tokenizer, prompts, answers)
    route, found["PPO, its route"] = _ppo(scorer, tokenizer, prompts, answers)
    found["PPO, text"] = scorer(prompts=prompts, completions=answers)
    found["GRPO, ComposedReward"] = _grpo(scorer, tokenizer, prompts, answers)
    adapter, merged = _adapter(tokenizer, whole)
    return route, found, (adapter, merged)


def _predicted(model, tokenizer, prompts, answers):
    chats = Features(dict.fromkeys(("prompt", "chosen", "rejected"), List(Json())))
    other = [[turn("assistant", "bad")]] * len(prompts)
    data = Dataset.from_dict({"prompt": prompts, "chosen": answers, "rejected": other}, features=chats)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(model, RewardConfig(folder, max_length=None, **QUIET), train_dataset=data,
                                processing_class=tokenizer)  # fmt: skip
        return trainer.predict(data).predictions[:, 0].tolist()


def _ppo(scorer, tokenizer, prompts, answers):
    """Scores the answers as a policy samples them: prompt tokens, tokens of the answer, the end of its turn."""
    data = Dataset.from_dict({"prompt": prompts}, features=Features({"prompt": List(Json())}))
    read = read_prompts(data, tokenizer, max_length=None)
    reward, network = as_reward(scorer, tokenizer, read)
    assert isinstance(reward, TokenReward) and network is scorer.model
    sampled = [
        [*tokenizer(answer[0]["content"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for answer in answers
    ]
    got = reward(
        read.prompts, answers, prompt_ids=read.ids, completion_ids=sampled, truncated=[False] * len(sampled)
    )  # fmt: skip
    return reward.route, got


def _grpo(scorer, tokenizer, prompts, answers):
    """Returns the rewards that TRL's trainer works out for these answers."""
    data = Dataset.from_dict({"prompt": prompts}, features=Features({"prompt": List(Json())}))
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(folder, num_generations=2, per_device_train_batch_size=2, **QUIET)
        trainer = GRPOTrainer(make_model(tokenizer, LlamaForCausalLM, num_hidden_layers=1), [ComposedReward(scorer)],
                              args, train_dataset=data, processing_class=tokenizer)  # fmt: skip
        ids = [tokenizer(answer[0]["content"])["input_ids"] for answer in answers]
        return trainer._calculate_rewards([{}] * len(prompts), prompts, answers, ids)[:, 0].tolist()


def _adapter(tokenizer, whole):
    """Returns the scores of a LoRA model and of the same model merged."""
    config = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(make_model(tokenizer, num_labels=1), config).eval()
    own = RewardScorer(adapted, tokenizer, progress=False).score(whole)
    return own, RewardScorer(adapted.merge_and_unload(), tokenizer, progress=False).score(whole)


def largest_difference(found):
    values = np.array(list(found.values()))
    return float(np.abs(values - values[0]).max())


def table():
    from templates import NAMES, tokenizer_of

    rows = ["| template | PPO passes | largest difference |", "|---|---|---|"]
    for name in NAMES:
        route, found, (adapter, merged) = scores(tokenizer_of(name))
        difference = max(largest_difference(found), float(np.abs(adapter - merged).max()))
        rows.append(f"| {name} | {route} | {difference:.0e} |")
    return "\n".join(rows)


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1]))
    readme = Path(__file__).parents[2] / "examples" / "templates" / "README.md"
    head = readme.read_text(encoding="utf-8").split("| template |")[0]
    readme.write_text(head + table() + "\n", encoding="utf-8")
