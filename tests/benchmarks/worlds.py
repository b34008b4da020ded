"""Worlds with known votes for the comparisons of losses and uncertainty: pairs, reward models, intervals, sections."""

import atexit
import contextlib
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import yaml
from datasets import Dataset
from numpy.typing import NDArray
from scipy import stats
from transformers import AutoTokenizer

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.data.synthetic.gold import gold_score
from rmtrl.data.synthetic.writing import Prompt, write_answer, write_prompts
from rmtrl.types import Estimate

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
START = ROOT / "outputs" / "tiny" / "sft"
SETTINGS = ROOT / "recipes" / "configs" / "tiny" / "rm.yaml"
_OF_TRAINING = (
    "max_length", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta2", "max_grad_norm",
    "num_train_epochs", "per_device_train_batch_size", "train_sampling_strategy", "gradient_checkpointing",
)  # fmt: skip
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two different answers to one prompt; `gap` is the gold score of the first minus that of the second."""

    prompt: Prompt
    first: str
    second: str
    gap: float

    def sides(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """The two conversations."""
        return conversation(self.prompt, self.first), conversation(self.prompt, self.second)


@dataclass(frozen=True)
class World:
    """Pairs of disjoint prompts, one pair a prompt."""

    train: list[Pair]
    calibration: list[Pair]
    test: list[Pair]


def conversation(prompt: Prompt, answer: str) -> list[dict[str, str]]:
    """A prompt and its answer as messages."""
    return [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer}]


def make_world(name: str, sizes: tuple[int, int, int], *, least_gap: float = 0.0) -> World:
    """Returns pairs to train, calibrate and test on; none whose gold scores are nearer than `least_gap`."""
    rng, pairs = Random(name), []
    for prompt in write_prompts(rng, sum(sizes)):
        while True:
            first, second = write_answer(rng, prompt), write_answer(rng, prompt)
            gap = gold_score(prompt.text, first) - gold_score(prompt.text, second)
            if first != second and abs(gap) >= least_gap:
                break
        pairs.append(Pair(prompt, first, second, gap))
    ends = np.cumsum(sizes)
    return World(pairs[: ends[0]], pairs[ends[0] : ends[1]], pairs[ends[1] :])


def gaps(pairs: Sequence[Pair]) -> Floats:
    """The gold differences, `(N,)`."""
    return np.array([pair.gap for pair in pairs])


def preference_rows(pairs: Sequence[Pair], labels: Floats, rng: np.random.Generator) -> Dataset:
    """Returns training rows; `labels` is the share of votes for the first answer, the side with most is chosen."""
    rows = []
    for pair, label in zip(pairs, labels, strict=True):
        first_wins = label > 0.5 or (label == 0.5 and rng.random() < 0.5)
        answers = (pair.first, pair.second) if first_wins else (pair.second, pair.first)
        chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in answers)
        prompt = [{"role": "user", "content": pair.prompt.text}]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "preference": max(label, 1 - label)})
    return Dataset.from_list(rows)


def train(rows: Dataset, seed: int, *, start: Path | None = None, **settings) -> tuple[RewardScorer, float | None]:
    """Returns the reward model of the tiny recipe's settings, without early stopping, and its tie parameter."""
    recipe = yaml.safe_load(SETTINGS.read_text())
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        args = RewardConfig(
            folder, seed=seed, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
            logging_strategy="no", **({name: recipe[name] for name in _OF_TRAINING} | settings),
        )  # fmt: skip
        start = start or _start()
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            trainer = RewardTrainer(
                str(start), args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(start)
            )
            trainer.train()
            trainer.save_model(folder)
            scorer = RewardScorer.from_pretrained(folder, device="cpu", progress=False)
    return scorer, trainer.tie_parameter_


_copies: list[Path] = []


def _start() -> Path:
    """A copy of the supervised start, made once."""
    if not _copies:
        if not (START / "config.json").exists():
            raise SystemExit(f"no supervised start at {START}; make it with recipes/configs/tiny/sft.yaml")
        folder = Path(tempfile.mkdtemp(prefix="rmtrl-start-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        shutil.copytree(START, folder, dirs_exist_ok=True)
        _copies.append(folder)
    return _copies[0]


def margins(scorer: RewardScorer, pairs: Sequence[Pair]) -> Floats:
    """Score of the first answer minus score of the second, `(N,)`."""
    sides = [pair.sides() for pair in pairs]
    first, second = ([side[i] for side in sides] for i in (0, 1))
    return np.subtract(*np.split(scorer.score(first + second).astype(np.float64), 2))


def paired(statistic: Callable[[list[NDArray[np.int64]]], float], sizes: Sequence[int], draws: int = 1000) -> Estimate:
    """Returns a statistic of the rows of several seeds with an interval that resamples prompts within each seed.

    The models stay as they are: the interval says what other prompts would have given them.
    """
    rng = np.random.default_rng(0)
    value = statistic([np.arange(size) for size in sizes])
    drawn = [statistic([rng.integers(size, size=size) for size in sizes]) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), sum(sizes), 0.95, "percentile bootstrap by prompt within seeds")


def over_seeds(values: Sequence[float]) -> Estimate:
    """Returns the mean over seeds with Student's interval: each seed is a new world and a new model."""
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    mean = float(np.mean(values))
    return Estimate(mean, mean - half, mean + half, n, 0.95, "t over seeds")


def short(estimate: Estimate, *, sign: bool = False, digits: int = 3) -> str:
    """A table's cell: the value and its interval."""
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def write_section(heading: str, lines: Sequence[str], *, save: bool, path: Path | None = None) -> None:
    """Prints a section and, if asked to, puts it into RESULTS.md in place of the one with the same heading."""
    text = "\n".join([f"## {heading}", "", *lines]).rstrip() + "\n"
    print(text)
    if not save:
        return
    path = path or RESULTS
    sections = path.read_text(encoding="utf-8").split("\n## ")
    others = [section for section in sections if section.split("\n", 1)[0] != heading]
    where = next((i for i, section in enumerate(others) if section.startswith("On a GPU")), len(others))
    others.insert(where, text.removeprefix("## "))
    path.write_text("\n## ".join(section.rstrip("\n") + "\n" for section in others), encoding="utf-8")


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def quiet() -> None:
    """Silences what the host libraries print about each of many small models."""
    logging.disable(logging.WARNING)
