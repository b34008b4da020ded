"""Under every engine two processes learn what one learns, in shares of the weights where it cuts them."""

import ppo_runs
import processes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

pytestmark = [pytest.mark.integration, pytest.mark.engines]

NAMES = {"ddp": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
SHARES = {"fsdp2": "DTensor", "zero3": "ds_id"}
KINDS = {
    "full": dict(kind="full", normalize_rewards=True, kl_target=2.0, kl_horizon=50),
    "lora": dict(kind="lora", num_mini_batches=1, missing_eos_penalty=1.0),
    "backbone": dict(kind="backbone"),
    # of as many rows the processes score unequal numbers of batches
    "adapter reward": dict(kind="backbone", batch_tokens=24),
    "module": dict(kind="module", max_approx_kl=0.003, entropy_coef=0.01, whiten_rewards=True),
}
# plain gradient descent, so that a gradient of the wrong size is a wrong step, clipped at about half of the norms
RUN = dict(max_steps=3, eval_strategy="steps", eval_steps=2, optim="sgd", learning_rate=0.1, max_grad_norm=1.5)


def needs(engine):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")


def lora(**settings):
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings)


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory):
    """A function that returns a kind's settings: its policy's folder, where needed a reward model's on it."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = ppo_runs.new_tokenizer()
    ppo_runs.new_policy(tokenizer).save_pretrained(folder / "base")
    torch.manual_seed(3)
    model = LlamaForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    get_peft_model(model, lora(task_type="SEQ_CLS")).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    reward = {"reward": str(folder / "reward")}
    return lambda kind: KINDS[kind] | {"policy": str(folder / "base")} | (reward if kind == "adapter reward" else {})


def cells(*usual):
    """Every kind under every engine, of which some are usual."""
    every = [(engine, kind) for kind in KINDS for engine in processes.ENGINES]
    return [pytest.param(*cell, marks=[] if cell in usual else pytest.mark.slow) for cell in every]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, settings_of):
    """A function that runs a kind in one process, once for all engines."""
    done = {}

    def run(kind):
        if kind not in done:
            folder, settings = tmp_path_factory.mktemp("alone"), RUN | settings_of(kind)
            done[kind] = ppo_runs.result(folder / "one", folder=str(folder), gradient_accumulation_steps=4, **settings)
        return done[kind]

    return run


@pytest.mark.parametrize(
    "engine, kind", cells(("ddp", "full"), ("zero2", "full"), ("zero3", "lora"), ("fsdp2", "adapter reward"))
)
def test_two_processes_of_an_engine_are_one(tmp_path, alone, settings_of, engine, kind):
    needs(engine)
    one, settings = alone(kind), RUN | settings_of(kind)
    two = ppo_runs.result(
        tmp_path / "two", folder=str(tmp_path / "out"), n_processes=2, engine=engine, gradient_accumulation_steps=2,
        **settings,
    )  # fmt: skip
    assert (one["world_size"], two["world_size"], two["engine"]) == (1, 2, f"DistributedType.{NAMES[engine]}")
    assert (one["shares"], two["shares"]) == ("whole", SHARES.get(engine, "whole"))
    assert (two["gathered alone"] > 1) == (engine == "fsdp2")  # layer by layer
    # an evaluation of five prompts takes a row more where each of two processes needs as many
    assert one["sampled"] == [rows[: len(own)] for own, rows in zip(one["sampled"], two["sampled"], strict=True)]
    assert len(one["sampled"]) == 5  # three updates, two evaluations
    difference = ppo_runs.largest_difference(one, two)
    print(f"{kind}, {engine}: {difference}")
    assert difference <= 1e-5
    updates = [row for row in two["log"] if "objective/kl" in row]
    assert max(row["policy/grad_norm"] for row in updates) > RUN["max_grad_norm"]
    steps = [row["policy/optimizer_steps"] for row in updates]
    assert (min(steps) < 4 and kind != "lora") == (kind == "module")  # where max_approx_kl ended an update early
    if engine == "ddp":
        assert two["synchronised"] == sum(steps)  # once a step, whatever its passes


@pytest.mark.parametrize("engine, kind", cells(("fsdp2", "full"), ("zero3", "backbone")))
def test_a_killed_run_goes_on(tmp_path, settings_of, engine, kind):
    """Evaluation, best checkpoint and saved models are those of the run that was not killed."""
    needs(engine)
    settings = dict(
        settings_of(kind), n_processes=2, engine=engine, gradient_accumulation_steps=2, max_steps=4,
        save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        logging_steps=3, num_generations=2, save_to=str(tmp_path / "saved"),
    )  # fmt: skip
    settings.setdefault("reward", ppo_runs.noisy_reward)
    whole = ppo_runs.result(tmp_path / "whole", folder=str(tmp_path / "a"), **settings)
    codes, _, printed = ppo_runs.run(tmp_path / "killed", folder=str(tmp_path / "b"), kill_at_step=3, **settings)
    assert codes == [-9, -9], printed
    resumed = ppo_runs.result(tmp_path / "resumed", folder=str(tmp_path / "b"), resume=True, **settings)
    assert (whole["shares"], resumed["world_size"]) == (SHARES.get(engine, "whole"), 2)
    difference = ppo_runs.largest_difference(whole, resumed)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")  # with an adapter its base, then the adapter
    with torch.no_grad():
        logits = saved(torch.arange(12)[None]).logits.flatten()
    apart = float((logits - torch.tensor(resumed["logits"])).abs().max())
    print(f"{kind}, {engine}: resumed {difference}, saved {apart}")
    assert difference <= 1e-6
    assert apart <= 1e-5
    (stored,) = (tmp_path / "saved" / "value_model").glob("*.safetensors")
    heads = [float(w.sum()) for name, w in load_file(stored).items() if "score" in name or "linear" in name]
    assert sorted(heads) == pytest.approx(sorted(resumed["value heads"]), abs=1e-5)
    assert whole["ends"]["best step"] in (2, 4)


def test_log_probabilities_are_float32_in_bf16(tmp_path):
    codes, rounded, printed = ppo_runs.run(
        tmp_path / "two", ppo_runs.rounded, n_processes=2, engine="fsdp2", folder=str(tmp_path / "out"),
        gradient_accumulation_steps=2,
    )  # fmt: skip
    assert codes == [0, 0], printed
    assert rounded == [False, False]


def test_models_are_loaded_whole_and_those_in_shares_refused(tmp_path, settings_of):
    needs("zero3")
    folders = {name: settings_of("adapter reward")[name] for name in ("policy", "reward")}
    codes, results, printed = ppo_runs.run(
        tmp_path / "two", ppo_runs.loaded, n_processes=2, engine="zero3", folder=str(tmp_path / "out"), **folders
    )
    assert codes == [0, 0], printed
    for lines, whole in results:
        assert [line.split(" was loaded in shares, by ZeRO-3")[0] for line in lines] == ["model", "reward_model"]
        assert whole == [True, True]
