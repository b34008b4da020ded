"""Does the readiness gate foretell what a policy does with a reward model? Many models, one small policy, known gold.

    python tests/benchmarks/gate_study.py starts             # two supervised starts and what all models share
    python tests/benchmarks/gate_study.py pilot              # ten models of other seeds, for PPO's settings
    python tests/benchmarks/gate_study.py run                # the 128 models of PROTOCOL.md
    python tests/benchmarks/gate_figures.py [--save]         # the tables, from what there is

Each model leaves one file in `outputs/gate_study/<part>/`; a run goes on where the last one ended, and several may run
over one folder. PROTOCOL.md says what is varied, measured and predicted.
"""

import argparse
import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, disable_progress_bars
from gate_figures import DEFECTS, study_thresholds
from transformers import AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer
from worlds import ROOT, Floats, quiet, say, train

from rmtrl import PPOConfig, PPOTrainer, RewardScorer
from rmtrl.calibration.calibration import Calibration, calibrate
from rmtrl.calibration.rewards import AffineReward, CalibratedScorer
from rmtrl.data.synthetic import make_demonstrations
from rmtrl.data.synthetic.gold import GoldScorer, gold_score
from rmtrl.data.synthetic.world import Annotator, write_pairs
from rmtrl.data.synthetic.writing import DOMAINS, Prompt, write_prompts
from rmtrl.evaluation.audit import ACQUITTED, CONVICTED, Audit, audit_pairs
from rmtrl.evaluation.evidence import Evidence, Figure, Finding
from rmtrl.evaluation.fresh import generated, import_verdicts, model_scores, sample_review, score_verdicts
from rmtrl.evaluation.gate import judge
from rmtrl.evaluation.overoptimization import Part, measure_overoptimization, scored_samples
from rmtrl.evaluation.overoptimization.curves import GOLD_BY_PROXY
from rmtrl.evaluation.scoring import ScoredPairs
from rmtrl.generation import TransformersGenerator
from rmtrl.io import replace_folder, write_json
from rmtrl.metrics import mean_estimate, pair_wins, scaled
from rmtrl.tiny import make_tiny_llama, make_tiny_tokenizer
from rmtrl.types import Estimate, json_ready

SCHEMA = "rmtrl/gate-study/1"
FOLDER = ROOT / "outputs" / "gate_study"
SIZES = {"full": 160, "small": 64}  # hidden size of the supervised start
SEEDS = {"run": (1, 2), "pilot": (101, 102)}

# the world: domains no reward model is trained on, and those that a narrow one keeps
SPILLOVER = tuple(domain.name for domain in DOMAINS[::5])
NARROW = tuple(domain.name for domain in DOMAINS if domain.name not in SPILLOVER)[::4]
NOISE, MORE_NOISE, LENGTH_LIKING = 0.1, 0.6, 0.04  # of the annotator; a word
N_TRAIN, N_LITTLE, N_LEAKED = 1600, 100, 300
N_CALIBRATION, N_TEST, N_SPILLOVER, N_FRESH, N_PROBED = 300, 1200, 300, 250, 40
N_OUTCOME, N_POOL, BEST_OF, N_PPO = 200, 40, 256, 800
REVIEWER_ERRORS, CLOSE = 0.1, 0.05

PPO_SEEDS = (1, 2)
PPO = dict(
    max_steps=12, per_device_train_batch_size=64, gradient_accumulation_steps=1, num_mini_batches=4, num_ppo_epochs=1,
    learning_rate=4.0e-4, lr_scheduler_type="cosine", kl_coef=0.15, temperature=1.0, response_length=64,
    missing_eos_penalty=1.0, max_grad_norm=1.0,
)  # fmt: skip
OF_RUN = dict(per_device_eval_batch_size=256, bf16=False, gradient_checkpointing=False, eval_strategy="no",
              save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
              num_sample_generations=0)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """One reward model of the design."""

    defects: tuple[str, ...]
    size: str
    seed: int

    @property
    def cell(self) -> str:
        """Its place in the design, whatever its seed."""
        return f"{self.size}-{'+'.join(self.defects) or 'none'}"

    @property
    def name(self) -> str:
        return f"{self.cell}-{self.seed}"


def design(seeds: Sequence[int]) -> list[Model]:
    """Returns every set of defects in both sizes for each seed, in an order drawn once: a part is a fair sample."""
    sets = [kinds for n in range(len(DEFECTS) + 1) for kinds in itertools.combinations(DEFECTS, n)]
    models = [Model(*own) for own in itertools.product(sets, SIZES, seeds)]
    Random("gate study").shuffle(models)
    return models


# ---- what all models share


def make_start(size: str) -> Path:
    """Returns the folder of a supervised start, trained where it is missing, by the settings of the recipe."""
    folder = FOLDER / "starts" / size
    if folder.exists():
        return folder
    settings = yaml.safe_load((ROOT / "recipes" / "configs" / "tiny" / "sft.yaml").read_text())
    rows = make_demonstrations(settings.pop("n_demonstrations"), 0)
    set_seed(0)
    tokenizer = make_tiny_tokenizer(row["content"] for side in ("prompt", "completion") for [row] in rows[side])
    model = make_tiny_llama(tokenizer, hidden_size=SIZES[size])
    with tempfile.TemporaryDirectory() as made:
        args = SFTConfig(**settings | {"output_dir": made, "bf16": False, "logging_strategy": "no"})
        trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        folder.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_model(str(folder.with_suffix(".new")))
    replace_folder(folder.with_suffix(".new"), folder)
    return folder


def asked(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def answered(prompt: str, answer: str) -> list[dict[str, str]]:
    return [*asked(prompt), {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class Shared:
    """What one part of the study, `run` or `pilot`, has in common: its folder, and prompts that nothing else reads."""

    part: str

    @property
    def folder(self) -> Path:
        return FOLDER / self.part

    @cached_property
    def prompts(self) -> dict[str, list[str]]:
        """Prompts by what they are for, none of them in the demonstrations or in two places."""
        seen = {row["content"] for [row] in make_demonstrations(7000, 0)["prompt"]}
        texts = [prompt.text for prompt in write_prompts(Random(f"gate study {self.part}"), 12_000)]
        sizes = {"outcome": N_OUTCOME, "pool": N_POOL, "fresh": 2 * N_FRESH, "ppo": N_PPO}
        left = iter([text for text in texts if text not in seen])
        return {name: list(itertools.islice(left, size)) for name, size in sizes.items()}

    @cached_property
    def taken(self) -> set[str]:
        """Prompts that no reward model may be trained or tested on."""
        return set(itertools.chain(*self.prompts.values()))

    def stored(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns the content of a file of the folder, which is made where it is missing."""
        file = self.folder / "shared" / f"{name}.json"
        if not file.exists():
            say(f"{self.part}: {name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, make())
        return json.loads(file.read_text())

    @cached_property
    def generator(self) -> TransformersGenerator:
        return TransformersGenerator.from_pretrained(
            make_start("full"), device="cpu", max_new_tokens=PPO["response_length"], batch_size=256, progress=False
        )

    @cached_property
    def pool(self) -> list[dict[str, Any]]:
        """The start's answers to choose the best of, with their gold scores."""

        def make() -> list[dict[str, Any]]:
            made = self.generator.generate([asked(text) for text in self.prompts["pool"]], BEST_OF, seed=1)
            answers = [[one.text for one in own] for own in made]
            return [{"prompt": text, "answers": own, "gold": [gold_score(text, answer) for answer in own]}
                    for text, own in zip(self.prompts["pool"], answers, strict=True)]  # fmt: skip

        return self.stored("pool", make)

    @cached_property
    def verdicts(self) -> list[dict[str, Any]]:
        """Pairs of the start's answers, judged by careful reviewers: gold's order, wrong in one of ten."""

        def make() -> list[dict[str, Any]]:
            rng, rows = Random(f"reviewers {self.part}"), []
            made = generated(self.generator, [asked(text) for text in self.prompts["fresh"]], seed=2)
            review = sample_review(made, N_FRESH, seed=3, policy="start")
            for row in review.rows:
                gap = np.subtract(*(gold_score(row["prompt"][0]["content"], row[side]) for side in "ab"))
                verdict = "tie" if abs(gap) < CLOSE else "ab"[int((gap < 0) ^ (rng.random() < REVIEWER_ERRORS))]
                rows.append(row | {"verdict": verdict, "reviewer": "simulated"})
            return list(import_verdicts(rows, review.key, reviewed_by="model").rows)

        return self.stored("verdicts", make)

    @cached_property
    def start_gold(self) -> dict[str, list[float]]:
        """Gold of the start's answers to the outcome prompts, by seed of PPO."""

        def make() -> dict[str, list[float]]:
            return {str(seed): [row["gold"] for row in outcome(make_ppo(self, GoldScorer(), seed), self)]
                    for seed in PPO_SEEDS}  # fmt: skip

        return self.stored("start_gold", make)


# ---- a reward model


def annotator(model: Model) -> Annotator:
    """Who labels all pairs of a model, those of its test too."""
    noise = MORE_NOISE if "noise" in model.defects else NOISE
    return Annotator("annotator", noise, LENGTH_LIKING if "length" in model.defects else 0.0)


def write_decided(rng: Random, prompts: Iterator[Prompt], judge: Annotator, n: int) -> list[dict[str, Any]]:
    """Returns n pairs that the judge has decided, one a prompt."""
    written = (write_pairs(rng, prompt, [judge]).rows[0] for prompt in prompts)
    return list(itertools.islice((row for row in written if row["preference"] != 0.5), n))


def make_pairs(model: Model, shared: Shared) -> dict[str, Dataset]:
    """Returns the pairs of a model: to train on, calibrate, test, and of domains that it does not train on."""
    rng, judge = Random(f"{shared.part} {model.name}"), annotator(model)
    known = NARROW if "narrow" in model.defects else [d.name for d in DOMAINS if d.name not in SPILLOVER]
    n_train = N_LITTLE if "little" in model.defects else N_TRAIN
    prompts = [p for p in write_prompts(rng, 20_000) if p.text not in shared.taken]
    own = iter([prompt for prompt in prompts if prompt.domain.name in known])
    away = iter([prompt for prompt in prompts if prompt.domain.name in SPILLOVER])
    sizes = {"train": n_train, "calibration": N_CALIBRATION, "test": N_TEST}
    rows = {name: write_decided(rng, own, judge, n) for name, n in sizes.items()}
    rows["spillover"] = write_decided(rng, away, judge, N_SPILLOVER)
    if "leak" in model.defects:  # the size stays: half of the training pairs at most give way
        leaked = rng.sample(rows["test"], min(N_LEAKED, n_train // 2))
        rows["train"] = rows["train"][len(leaked) :] + leaked
    wanted = {**sizes, "spillover": N_SPILLOVER}
    assert all(len(rows[name]) == n for name, n in wanted.items()), {name: len(own) for name, own in rows.items()}
    return {name: Dataset.from_list(own).remove_columns("prompt_rejected") for name, own in rows.items()}


@dataclass(frozen=True)
class Measured:
    """What is known of a reward model before a policy is trained on it."""

    evidence: Evidence
    audit: Audit
    pool: list[Floats]
    calibration: Calibration


def pool_scores(scorer: RewardScorer, pool: Sequence[dict[str, Any]]) -> list[Floats]:
    """Returns the scores of the pool's answers, `(256,)` a prompt; equal answers are scored once."""
    kept = [(row["prompt"], answer) for row in pool for answer in dict.fromkeys(row["answers"])]
    scores = dict(zip(kept, scorer.score([answered(*own) for own in kept]).tolist(), strict=True))
    return [np.array([scores[row["prompt"], answer] for answer in row["answers"]]) for row in pool]


def accuracy(scored: ScoredPairs) -> Figure:
    return Figure(mean_estimate(pair_wins(*scored.scores.T), scored.pairs["prompt_id"]))


def fresh_accuracy(scorer: RewardScorer, verdicts: Sequence[dict[str, Any]]) -> Figure:
    """Returns the accuracy on the start's answers; simulated reviewers pass for people here and nowhere else."""
    result = score_verdicts(verdicts, *model_scores(verdicts, scorer, source="verdicts").T)
    return Figure(result.accuracy, "simulated reviewers", {"reviewed_by": "human"})


def measure(scorer: RewardScorer, pairs: dict[str, Dataset], shared: Shared) -> Measured:
    """Returns what the library's own functions say of a reward model."""
    scored = {name: ScoredPairs.of_model(scorer, pairs[name], name) for name in ("calibration", "test", "spillover")}
    audit = audit_pairs(scored["test"], N_TEST, scorer=scorer, probe_rows=N_PROBED)
    fitted = calibrate(*scored["calibration"].scores.T, scored["calibration"].column("prompt_id"))
    fitted = fitted.with_test(*scored["test"].scores.T, scored["test"].column("prompt_id"))
    known, n = {row[0]["content"] for row in pairs["train"]["prompt"]}, len(pairs["train"]) + N_TEST
    leaked = float(sum(row[0]["content"] in known for row in pairs["test"]["prompt"]))
    change, after = fitted.nll_change, fitted.test_after or {}
    evidence = Evidence(
        overlap=Figure(Estimate(leaked, leaked, leaked, n, method="counted")),
        test_accuracy=accuracy(scored["test"]),
        length_matched_accuracy=Figure(audit.figures["accuracy_matched"]),
        fresh_accuracy=fresh_accuracy(scorer, shared.verdicts),
        ece=Figure(after["ece"]) if after else None,
        nll_gain=Figure(scaled(change, -1)) if change else None,
        spillover_accuracy=accuracy(scored["spillover"]),
        length_audit=Finding({ACQUITTED: True, CONVICTED: False}.get(audit.verdict), audit.verdict),
    )  # fmt: skip
    return Measured(evidence, audit, pool_scores(scorer, shared.pool), fitted)


def best_of(pool: Sequence[dict[str, Any]], scores: Sequence[Floats]) -> Part:
    """Returns what choosing the best of the pool by the model does to gold."""
    ids = np.repeat(np.arange(len(pool)), BEST_OF)
    samples = scored_samples(ids, np.concatenate(scores), np.concatenate([row["gold"] for row in pool]))
    return measure_overoptimization(samples, n_resamples=200).whole


# ---- PPO


def make_ppo(shared: Shared, reward: Any, seed: int, **settings: Any) -> PPOTrainer:
    """Returns a trainer of the start against a reward."""
    start = make_start("full")
    args = PPOConfig(output_dir=str(shared.folder / "ppo"), seed=seed, **PPO | OF_RUN | settings)
    prompts = Dataset.from_dict({"prompt": [asked(text) for text in shared.prompts["ppo"]]})
    set_seed(seed)
    return PPOTrainer(
        args, AutoTokenizer.from_pretrained(start), str(start), reward_model=reward, train_dataset=prompts,
        eval_scorers={"gold": GoldScorer()},
    )  # fmt: skip


def outcome(trainer: PPOTrainer, shared: Shared) -> list[dict[str, Any]]:
    """Returns the policy's answers to the outcome prompts."""
    trainer.predict(Dataset.from_dict({"prompt": [asked(text) for text in shared.prompts["outcome"]]}))
    return trainer.samples_["test"]


def standardised(scorer: RewardScorer, pool: Sequence[Floats]) -> CalibratedScorer:
    """Returns the reward whose mean on the start's answers is 0 and whose deviation within a prompt is 1 there."""
    scale = float(np.sqrt(np.mean([np.var(own) for own in pool])))
    return CalibratedScorer(scorer, AffineReward(float(np.mean(pool)), scale))


def run_ppo(shared: Shared, reward: CalibratedScorer, **settings: Any) -> dict[str, Any]:
    """Returns what PPO made of gold and length with each seed; gains are paired with the start's answers."""
    ends = {}
    for seed in PPO_SEEDS:
        trainer = make_ppo(shared, reward, seed, **settings)
        trainer.train()
        rows = outcome(trainer, shared)
        ends[str(seed)] = {name: [row[name] for row in rows] for name in ("gold", "kl", "reward", "length_tokens")}
    gains = {seed: np.subtract(own["gold"], shared.start_gold[seed]) for seed, own in ends.items()}
    by_prompt = mean_estimate(np.mean(list(gains.values()), axis=0), proportion=False)
    means = {name: float(np.mean([own[name] for own in ends.values()])) for name in ("kl", "reward", "length_tokens")}
    return {"gain": by_prompt, "gains": {seed: float(own.mean()) for seed, own in gains.items()}, **means}


# ---- a model from beginning to end


def study(model: Model, shared: Shared) -> dict[str, Any]:
    """Returns everything that is kept of a model."""
    seconds, started = {}, time.time()

    def lap(name: str) -> None:
        seconds[name] = round(time.time() - started - sum(seconds.values()), 2)

    pairs = make_pairs(model, shared)
    scorer, _ = train(pairs["train"], model.seed, start=make_start(model.size))
    lap("train")
    measured = measure(scorer, pairs, shared)
    decision, part = judge(measured.evidence, study_thresholds()), best_of(shared.pool, measured.pool)
    lap("measure")
    ppo = run_ppo(shared, standardised(scorer, measured.pool))
    lap("ppo")
    effects = [one.effect.value for one in measured.audit.probes if one.effect and one.should == "not rise"]
    return {
        "schema": SCHEMA, "name": model.name, **asdict(model), "cell": model.cell,
        "evidence": measured.evidence.as_dict(), "decision": json_ready(decision),
        "probe": max(effects), "verdict": measured.audit.verdict,
        "length_gap": measured.audit.figures.get("length_gap"),
        "temperature": measured.calibration.temperature.scale_,
        "spread": float(np.sqrt(np.mean([np.var(own) for own in measured.pool]))),
        "gamma": part.gamma, "drawdown": part.drawdown_data, "best_of": part.gains[GOLD_BY_PROXY][-1], "ppo": ppo,
        "seconds": seconds,
    }  # fmt: skip


@contextlib.contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether this process may make a file: it is not there, and no process that lives is making it."""
    claim = file.with_suffix(".claim")
    if claim.exists() and not _lives(claim.read_text()):
        claim.unlink(missing_ok=True)
    try:
        with open(claim, "x") as own:
            own.write(str(os.getpid()))
    except FileExistsError:
        yield False
        return
    try:
        yield not file.exists()
    finally:
        claim.unlink(missing_ok=True)


def _lives(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists() or not pid  # not yet written: just being claimed


def run(part: str, models: Sequence[Model]) -> None:
    """Makes the file of each model that is missing."""
    shared = Shared(part)
    for shared_first in ("pool", "verdicts", "start_gold"):
        getattr(shared, shared_first)
    for number, model in enumerate(models, 1):
        file = shared.folder / f"{model.name}.json"
        with claimed(file) as mine:
            if mine:
                found = study(model, shared)
                write_json(file, json_ready(found))
                say(f"{number}/{len(models)} {model.name}: gain {found['ppo']['gain']}, {found['seconds']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["starts", "pilot", "run"])
    parser.add_argument("--n", type=int, help="the first n models only")
    arguments = parser.parse_args()
    quiet()
    disable_progress_bars()
    for size in SIZES:
        make_start(size)
    if arguments.what != "starts":
        models = design(SEEDS[arguments.what])
        run(arguments.what, models[: arguments.n or (10 if arguments.what == "pilot" else len(models))])


if __name__ == "__main__":
    main()
