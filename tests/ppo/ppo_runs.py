"""Small PPO runs in processes of their own, which can be killed, and what they logged."""

import os
import signal
import sys

import processes
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

WORDS = ["red", "green", "blue", "one", "two", "three", "sun", "moon", "sea", "good", "bad", "yes", "no", "thanks"]
TIMINGS = ("_runtime", "_per_second")


class Value(torch.nn.Module):
    """A value model that is nobody's class."""

    def __init__(self, vocab_size):
        super().__init__()
        self.embedding, self.linear = torch.nn.Embedding(vocab_size, 8), torch.nn.Linear(8, 1)

    def forward(self, input_ids, attention_mask):
        return self.linear(self.embedding(input_ids).cumsum(1))[..., 0]


def token_reward(completion_ids, **columns):
    """A reward that every token moves."""
    return [sum(ids) % 7 - 3 for ids in completion_ids]


def noisy_reward(completion_ids, **columns):
    """A reward that draws from the process's random state."""
    return [sum(ids) % 7 - 3 + float(torch.rand(())) for ids in completion_ids]


def reward_that_fails_on_one_process(completion_ids, **columns):
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError("no such reward")
    return token_reward(completion_ids)


def new_tokenizer():
    from rmtrl.tiny import make_tiny_tokenizer

    return make_tiny_tokenizer([" ".join(WORDS)] * 20, vocab_size=320)


def new_policy(tokenizer, **settings):
    """A small Llama with tied embeddings; about a sixth of its tokens are end tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                 num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2,
                 pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
                 tie_word_embeddings=True)  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(shape | settings)))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.3
        model.model.embed_tokens.weight[tokenizer.eos_token_id, 0] = 3.0
    return model


def new_trainer(folder, kind="full", reward=token_reward, policy=None, **settings):
    """A trainer of a kind: all weights, adapters on two bases or on one, or a value model that is any module."""
    from datasets import Dataset
    from peft import LoraConfig

    from rmtrl import PPOConfig, PPOTrainer

    usual = dict(bf16=False, use_cpu=True, report_to="none", gradient_checkpointing=False, disable_tqdm=True,
                 num_sample_generations=0, response_length=6, per_device_train_batch_size=2, logging_steps=1,
                 gradient_accumulation_steps=4, num_mini_batches=2, num_ppo_epochs=2, max_steps=6, learning_rate=1e-2,
                 per_device_eval_batch_size=4, warmup_steps=2, save_strategy="no")  # fmt: skip
    tokenizer = new_tokenizer()
    generator = torch.Generator().manual_seed(0)
    lengths = [2 + n % 5 for n in range(13)]
    prompts = Dataset.from_dict(
        {"prompt": [" ".join(WORDS[i] for i in torch.randint(14, (n,), generator=generator)) for n in lengths]}
    )
    own = {}
    if kind in ("lora", "backbone"):
        usual["one_backbone"] = kind == "backbone"
        own["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    if kind == "module":
        torch.manual_seed(1)
        own["value_model"] = Value(len(tokenizer))
    torch.manual_seed(2)
    return PPOTrainer(
        PPOConfig(str(folder), **(usual | settings)), tokenizer, new_policy(tokenizer) if policy is None else policy,
        reward_model=reward, train_dataset=prompts, eval_dataset=prompts.select(range(5)), **own,
    )  # fmt: skip


def figures(logs):
    """The rows of a log without what depends on the clock."""
    return [{key: value for key, value in row.items() if key != "eps" and not key.endswith(TIMINGS)} for row in logs]


def largest_difference(one, other):
    """The largest difference of two runs' figures and ends, relative above 1; their names have to be the same."""
    rows, twins = [*figures(one["log"]), one["ends"]], [*figures(other["log"]), other["ends"]]
    assert [sorted(row) for row in rows] == [sorted(row) for row in twins]
    pairs = [(row[key], twin[key]) for row, twin in zip(rows, twins, strict=True) for key in row]
    assert [a is None for a, _ in pairs] == [b is None for _, b in pairs]
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs if a is not None)


def train(folder, *, resume=None, kill_at_step=None, kill_at_file=None, batch_tokens=None, save_to=None, **settings):
    """Trains and returns all that a run comes to; or ends as `kill -9` does: after a step, or amid a checkpoint."""
    if kill_at_file is not None:
        _kill_at_file(*kill_at_file)
    from rmtrl.ppo.models import whole_weights

    trainer = new_trainer(folder, **settings)
    if batch_tokens is not None:
        trainer.reward.scorer.batch_tokens = batch_tokens
    trainer.add_callback(Kill(kill_at_step, trainer))
    sampled, sample = [], trainer.sample

    def record(*arguments):
        episodes = sample(*arguments)
        sampled.append(episodes.completion_ids)
        return episodes

    trainer.sample = record
    ending = trainer.train(resume_from_checkpoint=resume).metrics
    with whole_weights(trainer.accelerator, trainer.model_wrapped) as model:
        weights = [weight.sum().item() for weight in model.parameters() if weight.requires_grad]
        values = model.value_model.named_parameters()
        heads = [w.sum().item() for name, w in values if w.requires_grad and ("score" in name or "linear" in name)]
        logits = model.policy(torch.arange(12)[None].to(trainer.args.device)).logits.flatten().tolist()
    if save_to is not None:
        trainer.save_model(save_to)
    state, reward = trainer.state, getattr(trainer.reward, "state_dict", dict)()
    return {
        "log": state.log_history[:-1],  # the last row is of this process's own updates
        "train_loss": ending["train_loss"],
        "ends": {"kl_coef": trainer.kl_controller.kl_coef, "random": torch.rand(()).item(), "best": state.best_metric,
                 "best step": state.best_global_step, "tokens": state.num_input_tokens_seen} | reward
                | {f"weights {n}": value for n, value in enumerate(weights)},
        "sampled": sampled,
        "world_size": trainer.accelerator.num_processes,
        "logits": logits,
        "value heads": heads,
        "shares": _shares(trainer),
        "gathered alone": sum(hasattr(part, "unshard") for part in trainer.model.modules()),
        "engine": str(trainer.accelerator.distributed_type),
        "synchronised": len(trainer.callback_handler.callbacks[-1].synchronised),
    }  # fmt: skip


def rounded(folder, **settings):
    """Whether all log probabilities of a rollout in bf16 are numbers of bf16."""
    trainer = new_trainer(folder, bf16=True, max_steps=1, **settings)
    made, rollout = [], trainer.rollout
    trainer.rollout = lambda *given, **named: made.append(rollout(*given, **named)) or made[-1]
    trainer.train()
    return bool((made[0].logprobs == made[0].logprobs.bfloat16()).all())


def watched(folder, **settings):
    """How much the labels were asked, and the evidence, in a process; verdicts differ by rank, were each to ask."""
    from rmtrl import OveroptimizationCallback
    from rmtrl.ppo.verdicts import Labels

    asked = []

    def by_rank(prompts, now, reference):
        asked.extend(prompts)
        return [float(os.environ["RANK"])] * len(prompts)

    labels = Labels(by_rank, per_look=2, rounds=1)
    trainer = new_trainer(
        folder, eval_strategy="steps", eval_steps=1, eval_on_start=True, learning_rate=0.1, **settings
    )
    trainer.add_callback(OveroptimizationCallback(labels=labels))
    trainer.train()
    return {"asked": len(asked), "evidence": vars(labels.evidence["eval"])}


def loaded(folder, policy, reward):
    """What trainers say of models in shares, and whether those that we load are whole, once ZeRO-3 is known of."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments

    from rmtrl import RewardScorer
    from rmtrl.errors import ModelError
    from rmtrl.ppo.models import load_policy

    kept = [TrainingArguments(folder)]  # as long as it lives transformers knows of ZeRO-3
    models = load_policy(policy), RewardScorer.from_pretrained(reward).model
    shared = {"policy": AutoModelForCausalLM.from_pretrained(policy),
              "reward": AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)}  # fmt: skip
    kept.clear()
    lines = []
    for name, model in shared.items():
        try:
            new_trainer(folder, **{name: model})
        except ModelError as error:
            lines.append(str(error))
    return lines, [_cut(model.parameters()) == {"whole"} for model in models]


def _shares(trainer):
    """How an engine cut the weights of policy, value model and reference, which has to be the same for all."""
    weights = [w for model in (trainer.model, trainer.ref_model) if model is not None for w in model.parameters()]
    kinds = _cut(weights)
    return kinds.pop() if len(kinds) == 1 else sorted(kinds)


def _cut(weights):
    return {"ds_id" if hasattr(w, "ds_id") else "DTensor" if hasattr(w, "full_tensor") else "whole" for w in weights}


class Kill(TrainerCallback):
    """Ends the process at a step, and counts how often processes share gradients."""

    def __init__(self, step, trainer):
        self.step, self.trainer, self.synchronised = step, trainer, []

    def on_train_begin(self, args, state, control, **kwargs):
        if isinstance(self.trainer.model_wrapped, DistributedDataParallel):
            self.trainer.model_wrapped.register_comm_hook(None, self.share)

    def share(self, state, bucket):
        if bucket.is_last():
            self.synchronised.append(bucket.index())
        return allreduce_hook(None, bucket)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_file(step, number):
    """Ends the process before it opens the `number`-th file of the checkpoint of a step."""
    seen = []

    def watch(event, arguments):
        if event == "open" and f"checkpoint-{step}/" in str(arguments[0]) and str(arguments[1])[:1] in "wx":
            seen.append(arguments[0])
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def run(out, function=train, **settings):
    """Returns exit codes, results and what was printed of new processes, see [`processes.run`]."""
    return processes.run(out, function, **settings)


def result(out, **settings):
    """The result of one new process, or of the first of several, which has to be that of all."""
    codes, results, printed = run(out, **settings)
    assert set(codes) == {0}, [text[-2000:] for text in printed]
    assert all(figures(other["log"]) == figures(results[0]["log"]) for other in results)
    return results[0]
