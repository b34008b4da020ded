"""The examples of the public names, run in a folder that holds what they name."""

import doctest
import importlib
import inspect
import json
import re
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM

import rmtrl
from rmtrl.data.preferences import to_normal_form
from rmtrl.reward.heads import Head, draw_head, install_head
from rmtrl.types import Scorer

EXAMPLES = Path(__file__).parents[1] / "examples"
PARSED_ONLY = {"JudgeScorer": "a judge behind HTTP", "RemoteScorer": "a server of vLLM"}


def examples(docstring):
    return "\n".join(re.findall(r"```python\n(.*?)```", inspect.cleandoc(docstring or ""), re.DOTALL))


def documented(name):
    """A public name and what it has of its own that is public, with an example."""
    thing = getattr(rmtrl, name)
    found = {name: thing}
    for own, member in vars(thing).items() if inspect.isclass(thing) else ():
        if not own.startswith("_"):
            found[f"{name}.{own}"] = getattr(thing, own) if isinstance(member, classmethod) else member
    return {full: text for full, own in found.items() if (text := examples(own.__doc__))}


@pytest.fixture(scope="module")
def world(tmp_path_factory, model_and_tokenizer, rows):
    """A folder with the models and files that examples name."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(EXAMPLES, folder / "examples")
    outputs = folder / "outputs"
    model, tokenizer = model_and_tokenizer()
    for name in ("tiny/rm", "rm", *(f"rm-{seed}" for seed in range(4))):
        model.save_pretrained(outputs / name), tokenizer.save_pretrained(outputs / name)
    (outputs / "tiny" / "rm" / "metrics.json").write_text(
        '{"schema": "rmtrl/reward-metrics/1", "test": {"accuracy": {"value": 0.5, "n": 9}}}'
    )
    for name, head in (("rm-20-heads", Head(members=20)), ("rm-dropout", Head(dropout=0.1))):
        model, _ = model_and_tokenizer()
        install_head(model, head), draw_head(model)
        model.save_pretrained(outputs / name), tokenizer.save_pretrained(outputs / name)
        (outputs / name / "rmtrl.json").write_text(json.dumps({"head": asdict(head)}))
    scores = np.random.default_rng(0).normal(size=(2, 40))
    (outputs / "rm" / "calibration.json").write_text(json.dumps(rmtrl.calibrate(*scores).as_dict()))
    for seed in range(8):
        base = AutoModelForSequenceClassification.from_pretrained(outputs / "rm")
        get_peft_model(base, LoraConfig(r=2, task_type="SEQ_CLS")).save_pretrained(outputs / f"lora-{seed}")
        tokenizer.save_pretrained(outputs / f"lora-{seed}")
    for name in ("tiny/sft", "sft", "dpo"):
        torch.manual_seed(len(name))
        policy = LlamaForCausalLM(model.config)
        policy.save_pretrained(outputs / name), tokenizer.save_pretrained(outputs / name)
    (folder / "pairs.jsonl").write_text('{"question": "Why? ", "chosen": "Because.", "rejected": "No."}\n')
    given = [json.dumps({"prompt_id": f"p{i // 8}", "proxy": i % 7 / 3, "gold": i % 5}) for i in range(64)]
    (folder / "samples.jsonl").write_text("\n".join(given))
    return folder


class Length(Scorer):
    """A score that needs no model."""

    def score(self, conversations):
        return np.array([len(str(own)) for own in conversations], np.float32)


@pytest.fixture
def names(world, monkeypatch, rows, model_and_tokenizer):
    """What the examples use and do not make."""
    monkeypatch.chdir(world)
    model, tokenizer = model_and_tokenizer()
    pairs = Dataset.from_list(rows(40))
    whole = [row["prompt"] + row["chosen"] for row in rows(40)]
    others = [row["prompt"] + row["rejected"] for row in rows(40)]
    policy = LlamaForCausalLM.from_pretrained("outputs/tiny/sft")
    splits = rmtrl.make_splits(to_normal_form(pairs), ratios=(0.4, 0.2, 0.2, 0.2))
    return {
        "np": np, "torch": torch, "Path": Path, "partial": partial, "Dataset": Dataset,
        "tokenizer": tokenizer, "policy": policy,
        "model": model, "dataset": pairs, "pairs": to_normal_form(pairs), "splits": splits, "conversations": whole[:1],
        "reference_conversations": whole, "chosen": whole, "rejected": others, "gold": Length(), "scorer": Length(),
        "prompts": pairs.select_columns(["prompt"]).select(range(8)),
        "held_out": pairs.select_columns(["prompt"]).select(range(20, 24)),
        "args": rmtrl.PPOConfig("outputs/ppo"), "reward_model": "outputs/tiny/rm",
        "GRPOTrainer": lambda *given, **named: None,
        **{name: getattr(rmtrl, name) for name in rmtrl.__all__},
    }  # fmt: skip


class Said(doctest.OutputChecker):
    """An example that shows no output may print what it likes, such as the log of a training."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("name", rmtrl.__all__)
def test_every_public_name_has_an_example_that_runs(name, names, capsys):
    home = importlib.import_module(getattr(rmtrl, name).__module__)
    found = documented(name)
    assert name in found, f"{name} has no example"
    for full, text in found.items():
        test = doctest.DocTestParser().get_doctest(text, {**names, **vars(home)}, full, full, 0)
        assert test.examples
        if name in PARSED_ONLY:
            compile("".join(example.source for example in test.examples), full, "exec")
            continue
        runner = doctest.DocTestRunner(Said(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        said = []
        runner.run(test, out=said.append)
        assert not runner.summarize(verbose=False).failed, "".join(said)


def test_few_examples_are_only_parsed():
    assert set(PARSED_ONLY) <= set(rmtrl.__all__) and len(PARSED_ONLY) <= 8
