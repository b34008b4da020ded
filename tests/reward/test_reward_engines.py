"""Reward models learn under every engine what one process learns, and are saved so that anything loads them."""

from importlib.util import find_spec

import numpy as np
import pytest
import reward_runs
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmtrl import RewardScorer

pytestmark = [pytest.mark.integration, pytest.mark.engines]

BEST = dict(
    eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
    metric_for_best_model="eval_easy_margin", greater_is_better=False,
)  # fmt: skip
KINDS = {
    "full": BEST,
    "padded": dict(shared_prefix=False, gradient_checkpointing=True),
    "lora": dict(lora=True, gradient_checkpointing=True),
    "mlp": dict(head="mlp"),
    "mean": dict(pooling="mean"),
    "members": dict(n_heads=2, head_init="normal"),
}
needs_deepspeed = pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")
ENGINES = {  # accelerate's name, and the shares of weights and of the optimizer's state that a process holds
    "ddp": ("MULTI", 1.0, 1.0),
    "two_machines": ("FSDP", 0.5, 0.5),
    "fsdp2": ("FSDP", 0.5, 0.5),
    "zero2": ("DEEPSPEED", 1.0, 0.5),
    "zero3": ("DEEPSPEED", 0.5, 0.5),
}
ALL = [pytest.param(name, marks=needs_deepspeed if "zero" in name else ()) for name in ENGINES]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return reward_runs.make_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """A function that returns what one process comes to with a kind of run, trained once."""
    found = {}

    def run(kind):
        if kind not in found:
            out = tmp_path_factory.mktemp(kind)
            (found[kind],) = reward_runs.result(out / "run", folder=str(out / "out"), start=start, **KINDS[kind])
        return found[kind]

    return run


def together(engine, out, **settings):
    """The results of two processes under an engine."""
    machines = 2 if engine == "two_machines" else 1
    return reward_runs.result(out, engine=engine, n_processes=2, n_machines=machines, **settings)


def check_spread(engine, results):
    """Asserts that two processes ran under an engine and that each held its share."""
    name, weights, optimizer = ENGINES[engine]
    for result in results:
        assert result["world_size"] == 2 and name in result["engine"]
        assert result["share_held"] == {"weights": pytest.approx(weights, abs=0.03),
                                        "optimizer": pytest.approx(optimizer, abs=0.06)}  # fmt: skip
    assert [result["local_rank"] for result in results] == [0, 0 if engine == "two_machines" else 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ALL)
def test_two_processes_learn_what_one_learns(alone, start, tmp_path, engine, kind):
    results = together(engine, tmp_path / "run", folder=str(tmp_path / "out"), start=start, **KINDS[kind])
    check_spread(engine, results)
    difference = reward_runs.largest_difference(alone(kind), results[0])
    print(f"{engine} {kind}: {difference:.1e}")
    assert difference <= 1e-5
    check_saved(tmp_path / "out", results[0]["predictions"], plain=kind in ("full", "padded"))


def check_saved(folder, predictions, *, plain):
    """Asserts that what was saved scores as what was trained, in plain transformers too."""
    pairs = reward_runs.pairs("hard")
    texts = [[row["prompt"] + row[side] for row in pairs] for side in ("chosen", "rejected")]
    scorer = RewardScorer.from_pretrained(folder, progress=False)
    scores = np.stack([scorer.score(side) for side in texts], axis=1)
    np.testing.assert_allclose(scores, predictions, atol=1e-5)
    assert np.std(scores) > 0.1
    if plain:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            ids = [tokenizer(text + tokenizer.eos_token, return_tensors="pt") for text in texts[0]]
            logits = [model(**one).logits.item() for one in ids]
        np.testing.assert_allclose(logits, np.array(predictions)[:, 0], atol=1e-5)


@pytest.mark.parametrize("engine", ALL)
def test_a_killed_run_resumes_as_the_same_run(alone, start, tmp_path, engine):
    settings = dict(folder=str(tmp_path / "out"), start=start, engine=engine, n_processes=2, **KINDS["full"])
    settings["n_machines"] = 2 if engine == "two_machines" else 1
    codes, _, _ = reward_runs.run(tmp_path / "killed", kill_at_step=3, **settings)
    assert codes == [-9, -9]
    results = reward_runs.result(tmp_path / "resumed", resume=str(tmp_path / "out" / "checkpoint-2"), **settings)
    check_spread(engine, results)
    assert reward_runs.largest_difference(alone("full"), results[0]) <= 1e-5


@pytest.mark.parametrize("settings", [dict(head="mlp"), dict(pooling="mean"), dict(lora=True)], ids=str)
def test_new_weights_that_fsdp_would_leave_empty_are_refused(start, tmp_path, settings):
    environment = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    codes, _, printed = reward_runs.run(
        tmp_path / "run", folder=str(tmp_path / "out"), start=start, engine="fsdp2", n_processes=2,
        environment=environment, **settings,
    )  # fmt: skip
    assert codes == [1, 1]
    assert all("ModelError: fsdp_cpu_ram_efficient_loading is true" in text for text in printed)


def test_one_new_weight_is_loaded_on_the_first_process_alone(alone, start, tmp_path):
    settings = dict(engine="fsdp2", n_processes=2, environment={"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"})
    results = reward_runs.result(
        tmp_path / "run", folder=str(tmp_path / "out"), start=start, **settings, **KINDS["padded"]
    )
    assert reward_runs.largest_difference(alone("padded"), results[0]) <= 1e-5


@pytest.mark.parametrize("engine", ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_rewards_are_float32_in_bf16(start, tmp_path, engine):
    settings = dict(bf16=True, save=False, shared_prefix=False)  # where the model's own output is the reward
    results = together(engine, tmp_path / "run", folder=str(tmp_path / "out"), start=start, **settings)
    values = np.array(results[0]["predictions"], dtype=np.float32)
    rounded = torch.tensor(values).bfloat16().float().numpy()
    assert (values != rounded).mean() > 0.9
