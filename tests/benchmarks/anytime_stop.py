"""A stop for RL from a trickle of verdicts: how often is it false, and what does it save?

    python tests/benchmarks/anytime_stop.py 1 2 3 4 5 6 7 8 [--save] [--folder outputs/anytime_stop]

PROTOCOL.md says what is varied and what counts as failure. False stops are of simulated runs that are never worse than
their reference. The other part: a reward model of the tiny recipe and, for each seed, one PPO run against it at a low
KL weight with prompts of its own, evaluated every other update on prompts that nothing else has read. Gold and reward
of each answer are stored, and labels are drawn from that bank. A run whose file stands is not made again. A verdict
says which of two answers to a prompt gold prefers.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from baselines import stage
from scipy.stats import binom, norm
from transformers import AutoTokenizer, TrainerControl, TrainerState, set_seed
from workloads import machine
from worlds import ROOT, over_seeds, quiet, say, short, table, write_section

from rmtrl import OveroptimizationCallback, PPOCallback, PPOConfig, PPOTrainer, RewardScorer
from rmtrl.data.synthetic.gold import GoldScorer
from rmtrl.io import write_json
from rmtrl.launch.policy import PPORecipeArguments, read_prompt_splits
from rmtrl.metrics import binomial_estimate
from rmtrl.metrics.anytime import spread, wagered
from rmtrl.ppo.evaluation import PolicyEvaluation, Progress, PromptMeans
from rmtrl.ppo.verdicts import Labels

ALPHA, N_RUNS, N_DRAWS = 0.05, 2000, 200
RM_SEED, KL_COEF, UPDATES, EVERY, N_BANK = 100, 0.02, 40, 2, 320
OF_RUN = dict(kl_coef=KL_COEF, max_steps=UPDATES, per_device_train_batch_size=64, gradient_accumulation_steps=1,
              per_device_eval_batch_size=200, num_eval_generations=1, bf16=False, eval_strategy="steps",
              eval_steps=EVERY, eval_on_start=True, save_strategy="no", logging_strategy="no",
              lr_scheduler_type="constant")  # fmt: skip
REFERENCES = (8, 16, 24, 32)
BUDGETS = (75, 150, 300)
LOOKS = (1, 2, 3, 4, 6, 10)
NEVER, MOST_LOST = 10**6, 0.4


# runs that never fall


def flat(rng: np.random.Generator, runs: int, n: int, ties: float) -> np.ndarray:
    """Verdicts on a policy as good as its reference, `(runs, n)`."""
    return rng.choice([0.0, 0.5, 1.0], size=(runs, n), p=[(1 - ties) / 2, ties, (1 - ties) / 2])


def drifting(rng: np.random.Generator, runs: int, n: int, ties: float) -> np.ndarray:
    """The same of one that is now as good, now better, whichever way the last verdict went."""
    verdicts, odds = np.empty((runs, n)), np.full(runs, 0.5)
    for t in range(n):
        decided, won = rng.random(runs) > ties, rng.random(runs) < odds
        verdicts[:, t] = np.where(decided, won, 0.5)
        odds = np.where(verdicts[:, t] < 0.5, np.minimum(odds + 0.02, 0.6), 0.5)
    return verdicts


def gain_then_plateau(rng: np.random.Generator, runs: int, n: int, ties: float) -> np.ndarray:
    """The same of one that is better for a quarter of the run and then again as good, `(runs, n)`."""
    gain = rng.choice([0.0, 0.5, 1.0], size=(runs, n // 4), p=[(1 - ties) * 0.2, ties, (1 - ties) * 0.8])
    return np.concatenate([gain, flat(rng, runs, n - n // 4, ties)], axis=1)


def ever(verdicts: np.ndarray) -> np.ndarray:
    """Whether the capital of each run is ever 1/alpha or more, with a look after every verdict."""
    wealth, found = spread(), np.zeros(len(verdicts), bool)
    for part in np.array_split(verdicts, max(1, verdicts.shape[1] // 50), axis=1):
        path = wagered(wealth, part)
        found, wealth = found | (path.sum(-1).max(1) >= 1 / ALPHA), path[:, -1]
    return found


def with_moves(seed: int, runs: int, shape: Callable[[int], float], *, ties: float = 0.4, looks: int = 40) -> int:
    """Runs of the watch itself that end in a false stop: a moving reference, rounds, a budget that does not end."""
    quality, stopped = np.array([shape(look) for look in range(looks)]), 0
    rng = np.random.default_rng(seed)
    for _ in range(runs):
        labels = Labels(lambda prompts, now, reference: verdicts_at(rng, now, reference, ties), budget=NEVER,
                        references=tuple(range(5, looks, 5)), seed=int(rng.integers(2**31)))  # fmt: skip
        stopped += any(labels.look(simulated(look, own), first=True)[0] for look, own in enumerate(quality))
    return stopped


def simulated(look: int, quality: float, n: int = 2000) -> PolicyEvaluation:
    """A look at a policy of this quality; an answer is the look and the quality."""
    now = PromptMeans(look, {})
    return PolicyEvaluation("eval", {}, now, Progress(1, 1, now, {}), range(n), [(look, quality)] * n)


def verdicts_at(rng: np.random.Generator, now: list, reference: list, ties: float) -> list[float]:
    """Verdicts whose chance follows the difference of qualities."""
    ahead = np.array([a[1] - b[1] for a, b in zip(now, reference, strict=True)])
    won = rng.random(len(now)) < 0.5 + ahead / 2
    return np.where(rng.random(len(now)) < ties, 0.5, won).tolist()


def false_stops() -> list[str]:
    """Lines of the table of false stops."""
    body = []
    cells = {
        "flat": flat,
        "now as good, now better": drifting,
        "a gain, then as good as the reference": gain_then_plateau,
    }
    for i, (name, make) in enumerate(cells.items()):
        for ties in (0.0, 0.5):
            rng = np.random.default_rng([i, int(10 * ties)])
            found = binomial_estimate(int(ever(make(rng, N_RUNS, 2000, ties)).sum()), N_RUNS)
            body.append([f"{name}, {100 * ties:.0f} % ties", "2,000, after each verdict", short(found)])
    shapes = {
        "flat": lambda look: 0.0,
        "a gain, then a plateau": lambda look: min(look, 10) * 0.05,
        "steps of gain": lambda look: 0.1 * (look // 10),
    }
    for i, (name, shape) in enumerate(shapes.items()):
        found = binomial_estimate(with_moves(i, N_RUNS, shape), N_RUNS)
        body.append([f"{name}; the watch, its reference moving, 40 % ties", "40, of 10 to 50 verdicts", short(found)])
    return table(["runs that never fall", "looks", f"false stops of {N_RUNS:,}"], body)


# runs whose gold falls


class Bank(PPOCallback):
    """Keeps gold, reward and text of every answer of every evaluation."""

    def __init__(self) -> None:
        self.looks: list[dict] = []

    def on_policy_evaluation(self, args, state, control, *, evaluation):
        kept = {name: evaluation.now.by_prompt[name].tolist() for name in ("gold", "reward")}
        texts = [answer if isinstance(answer, str) else answer[0]["content"] for answer in evaluation.answers]
        self.looks.append({"step": evaluation.now.step, **kept, "texts": texts})
        return {}


def run_ppo(folder: Path, start: Path, rm: Path, seed: int) -> list[dict]:
    """Returns the bank of a PPO run, which is made where it is missing."""
    file = folder / "bank.json"
    if not file.exists():
        say(f"{folder.name}: PPO")
        settings = yaml.safe_load((ROOT / "recipes" / "configs" / "tiny" / "ppo.yaml").read_text())
        of_recipe = {name: settings.pop(name) for name in ("dataset_name", "n_prompts")}
        recipe = PPORecipeArguments(split_seed=seed, n_validation=N_BANK, n_test=1, **of_recipe)
        settings |= OF_RUN | {"output_dir": str(folder), "reward_model_path": str(rm), "seed": seed}
        args = PPOConfig(**{name: value for name, value in settings.items() if name != "model_name_or_path"})
        prompts, bank = read_prompt_splits(recipe), Bank()
        set_seed(seed)
        trainer = PPOTrainer(
            args, AutoTokenizer.from_pretrained(start), str(start), train_dataset=prompts["train"],
            reward_model=RewardScorer.from_pretrained(rm, progress=False), eval_dataset=prompts["validation"],
            eval_scorers={"gold": GoldScorer()}, callbacks=[bank],
        )  # fmt: skip
        trainer.train()
        write_json(file, bank.looks)
    return json.loads(file.read_text())


def run_seed(seed: int, folder: Path) -> list[dict]:
    """Returns the bank of a seed: its looks in order."""
    start, rm = folder / "sft", folder / "rm"
    stage("sft_llama", start)
    seeds = ["--seed", str(RM_SEED), "--split_seed", str(RM_SEED)]
    stage("rm_llama", rm, *seeds, "--model_name_or_path", str(start))
    return run_ppo(folder / f"{seed}-ppo", start, rm, seed)


class Drawn:
    """A bank as the watches see it.

    Args:
        looks (`list[dict]`): As [`Bank`] keeps them.
    """

    def __init__(self, looks: list[dict]) -> None:
        self.steps = [look["step"] for look in looks]
        self.gold, self.reward = (np.array([look[name] for look in looks]) for name in ("gold", "reward"))
        self.texts = [look["texts"] for look in looks]
        self.mean = self.gold.mean(1)
        self.peak = int(self.mean.argmax())
        self.gain = float(self.mean[self.peak] - self.mean[0])
        self.n = self.gold.shape[1]
        self.found = [self.evaluation(look) for look in range(len(looks))]

    def evaluation(self, look: int) -> PolicyEvaluation:
        """A look, whose answers are text and gold."""
        now = PromptMeans(self.steps[look], {})
        answers = list(zip(self.texts[look], self.gold[look].tolist(), strict=True))
        return PolicyEvaluation("eval", {}, now, Progress(1, 1, now, {}), range(self.n), answers)

    def lost(self, look: int) -> float:
        """The share of the peak's gain that is gone at a look."""
        return float((self.mean[self.peak] - self.mean[look]) / self.gain)


def by_gold(prompts: list, now: list, reference: list) -> list[float]:
    """Verdicts of gold."""
    return [0.5 + 0.5 * np.sign(a[1] - b[1]) for a, b in zip(now, reference, strict=True)]


def trickle(bank: Drawn, budget: int, draw: int, *, references: tuple[int, ...] = REFERENCES, rounds: int = 5):
    """Returns the look of the stop, the last without one; whether there is one; the labels; the reference's look."""
    per_look = max(1, round(budget / len(bank.found)))
    labels = Labels(by_gold, references=references, per_look=per_look, rounds=rounds, budget=budget, seed=draw)
    said = [bool(labels.look(found, first=True)[0]) for found in bank.found]  # after the first nobody is asked
    look = said.index(True) if said[-1] else len(said) - 1
    own = labels.evidence["eval"]
    return look, said[-1], own.n_labels, bank.steps.index(own.reference_step)


def fixed_looks(bank: Drawn, budget: int, draw: int, n_looks: int):
    """The same of as many looks at times fixed beforehand, a one-sided exact sign test at alpha / looks each.

    Each look has an equal share of the labels; the reference moves at a look if the policy won more than it lost.
    """
    last = len(bank.found) - 1
    order, used, spent, reference = np.random.default_rng(draw).permutation(bank.n), 0, 0, 0
    for k in range(1, n_looks + 1):
        look = round(last * k / n_looks)
        prompts = order[used : used + budget // n_looks]
        used += len(prompts)
        ahead = np.sign(bank.gold[look, prompts] - bank.gold[reference, prompts])
        spent += sum(bank.texts[look][i] != bank.texts[reference][i] for i in prompts)
        won, lost = int((ahead > 0).sum()), int((ahead < 0).sum())
        if binom.sf(lost - 1, won + lost, 0.5) <= ALPHA / n_looks:
            return look, True, spent, reference
        if won > lost:
            reference = look
    return last, False, spent, reference


def todays(bank: Drawn, budget: int, draw: int, every: int):
    """The same of the callback with gold as judge, at every so many looks, on as many prompts as the labels allow."""
    looks = range(0, len(bank.found), every)
    chosen = np.random.default_rng(draw).permutation(bank.n)[: max(2, budget // len(looks))]
    callback, progress = OveroptimizationCallback(n_evaluations=len(looks)), None
    args, state, control = PPOConfig("unused", bf16=False, report_to="none"), TrainerState(), TrainerControl()
    for k, look in enumerate(looks):
        own = {"gold": bank.gold[look, chosen], "reward": bank.reward[look, chosen], "kl": np.zeros(len(chosen))}
        now = PromptMeans(bank.steps[look], own)
        progress = progress.after(now) if progress else Progress(1, 1, now, {"gold": now, "reward": now})
        found = PolicyEvaluation("eval", {}, now, progress)
        if callback.on_policy_evaluation(args, state, control, evaluation=found)["overoptimization_alarm"]:
            return look, True, (k + 1) * len(chosen), bank.steps.index(progress.best["gold"].step)
    return looks[-1], False, len(looks) * len(chosen), looks[-1]


def ways() -> dict[str, Callable]:
    """The ways to look: functions of a bank, a budget and a draw."""
    found: dict[str, Callable] = {
        "verdicts, any time": trickle,
        "verdicts, any time, the start as reference": lambda *own: trickle(*own, references=()),
        "verdicts, any time, one round a look": lambda *own: trickle(*own, rounds=1),
    }
    for n in LOOKS:
        found[f"{n} fixed look{'s' * (n > 1)}"] = lambda *own, n=n: fixed_looks(*own, n)
    return found | {
        f"today's, every {every} looks": lambda *own, every=every: todays(*own, every) for every in (1, 3, 6)
    }


def measured(banks: list[Drawn], way: Callable, budget: int) -> dict[str, list[float]]:
    """Returns means over draws of each run, such as the share lost at the stop, and by who goes back from it."""
    found: dict[str, list[float]] = {name: [] for name in ("labels", "lost", "back", "early", "never")}
    for bank in banks:
        ends = [way(bank, budget, draw) for draw in range(N_DRAWS)]
        of_draws = {
            "labels": [labels for _, _, labels, _ in ends],
            "lost": [bank.lost(look) for look, *_ in ends],
            "back": [bank.lost(reference if stopped else look) for look, stopped, _, reference in ends],
            "early": [stopped and look < bank.peak for look, stopped, *_ in ends],
            "never": [not stopped for _, stopped, *_ in ends],
        }
        for name, own in of_draws.items():
            found[name].append(float(np.mean(own)))
    return found


def needed(bank: Drawn) -> str:
    """Returns how many labels at one look would tell it from the peak every other time, and which.

    The look is the first after the peak with 40 % of the gain lost, the test a one-sided sign test at alpha that knows
    the peak beforehand: z² P(decided) / (wins less losses)².
    """
    look = next((k for k in range(bank.peak, len(bank.found)) if bank.lost(k) > MOST_LOST), None)
    if look is None:
        return "-"
    ahead = np.sign(bank.gold[look] - bank.gold[bank.peak])
    if ahead.mean() >= 0:
        return f"no number, at {bank.steps[look]}"
    return f"{norm.ppf(1 - ALPHA) ** 2 * (ahead != 0).mean() / ahead.mean() ** 2:,.0f} at {bank.steps[look]}"


def of_bank(seed: int, bank: Drawn) -> list[str]:
    """A line on a run."""
    mean, last = bank.mean, len(bank.found) - 1
    against = [np.sign(bank.gold[look] - bank.gold[bank.peak]).mean() for look in (0, last)]
    return [str(seed), f"{mean[0]:.3f}", f"{mean[bank.peak]:.3f} at {bank.steps[bank.peak]}", f"{mean[last]:.3f}",
            f"{bank.lost(last):.1f}", *(f"{own:+.2f}" for own in against), needed(bank)]  # fmt: skip


def frontier(banks: dict[int, Drawn]) -> list[str]:
    """Lines of the tables of runs and of ways to look."""
    header = ["seed", "gold at the start", "at its peak, update", "at the end", "share of the gain lost at the end",
              "wins less losses of the start against the peak", "of the end",
              "labels that tell the first look with 40 % lost from the peak"]  # fmt: skip
    lines = table(header, [of_bank(seed, bank) for seed, bank in banks.items()])
    body, lost = [], {}
    for name, way in ways().items():
        for budget in BUDGETS:
            found = measured(list(banks.values()), way, budget)
            lost[name, budget] = np.array(found["lost"])
            shown = {"labels": 0, "lost": 2, "back": 2}
            cells = (short(over_seeds(found[column]), digits=digits) for column, digits in shown.items())
            shares = (f"{np.mean(found[column]):.2f}" for column in ("early", "never"))
            body.append([name, str(budget), *cells, *shares])
            say(" | ".join(body[-1]))
    header = ["way", "labels allowed", "labels asked for", "share of the peak's gain lost at the stop",
              "lost by who goes back to the reference", "stopped before the peak", "never stopped"]  # fmt: skip
    return [*lines, "", *table(header, body), "", *compared(lost)]


def compared(lost: dict[tuple[str, int], np.ndarray]) -> list[str]:
    """Lines of the table of differences at 300 labels, paired by run."""
    first = lost["verdicts, any time", 300]
    rows = [[name, short(over_seeds((first - own).tolist()), sign=True, digits=2)]
            for (name, budget), own in lost.items() if budget == 300 and own is not first]  # fmt: skip
    return table(["verdicts at any time against, 300 labels", "difference of the share lost, paired by run"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "anytime_stop")
    parser.add_argument("--save", action="store_true", help="put the figures into RESULTS.md")
    arguments = parser.parse_args()
    quiet()
    banks = {seed: Drawn(run_seed(seed, arguments.folder)) for seed in arguments.seeds}
    lines = [
        f"`tests/benchmarks/anytime_stop.py {' '.join(map(str, arguments.seeds))}`; {machine()}. What is varied and "
        "what was to be found: PROTOCOL.md. Some six minutes a run and five for the tables, beside other work.",
        "", *false_stops(), "", *frontier(banks),
    ]  # fmt: skip
    write_section("A stop that stays valid", lines, save=arguments.save)


if __name__ == "__main__":
    main()
