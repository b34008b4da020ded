"""A watch for overoptimization in training: the judge's score falls while the reward that is trained on does not."""

import logging
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import linregress, norm, studentized_range, t
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from rmtrl.errors import UsageError
from rmtrl.metrics import change_estimate, too_few
from rmtrl.ppo.evaluation import PolicyEvaluation, PPOCallback, PromptMeans
from rmtrl.ppo.verdicts import Evidence, Labels
from rmtrl.types import Estimate, json_ready

logger = logging.getLogger(__name__)


@lru_cache
def simultaneous_level(evaluations: int, level: float = 0.95) -> float:
    """Returns the level that each paired interval needs for those of all pairs of evaluations to hold together.

    By the range of as many independent means (Tukey's honestly significant difference).

    Args:
        evaluations (`int`): Evaluations, 2 or more.
        level (`float`): Coverage of all pairs together.

    Example:

    ```python
    >>> [round(simultaneous_level(n), 4) for n in (2, 5, 20)]
    [0.95, 0.9936, 0.9996]
    ```
    """
    return float(2 * norm.cdf(studentized_range.ppf(level, evaluations, np.inf) / np.sqrt(2)) - 1)


class OveroptimizationCallback(PPOCallback, ExportableState):
    """Warns, or ends the training, once the judge's score falls while the reward that is trained on does not.

    With a judge (one of `eval_scorers`: a gold or held-out scorer) an evaluation is suspect if the judge's mean fell
    since its own best evaluation, the paired interval wholly below 0, while the proxy's did not fall over the same
    updates (its 95 % interval reaches 0). After `patience` suspect evaluations in a row there is an alarm.

    Looking often finds falls that are none: with a plain 95 % interval four of five runs of 20 evaluations that change
    nothing would raise an alarm. So the judge's interval is that of [`simultaneous_level`] over all pairs of the
    evaluations planned (99.96 % each of 20), which keeps the share of false alarms in a run that changes nothing at
    5 % or less for each evaluation set: 1 to 3 % in simulations of 20 evaluations on 16 and 100 prompts, with normal,
    binary and heavy-tailed scores that are independent from evaluation to evaluation. Of 20 evaluations on 100
    prompts each finds a fall of 0.37 standard deviations of the paired changes every other time, of 0.5 mostly.

    Without a judge (`judge=None`) two weaker alarms are left, both of them rules of thumb that the proxy alone can
    give, at the same level; a policy can be overoptimized without either and well with one:

    - spread: the rewards of one prompt's responses lie less than half as far apart as at the start
      (needs `num_eval_generations` above 1); such a policy says one thing, and a reward that hardly varies teaches
      little (Razin et al. 2025, https://huggingface.co/papers/2503.15477);
    - length: responses grew, and more than half of the reward's gain goes with it from prompt to prompt (Singhal et
      al. 2023, https://huggingface.co/papers/2310.03716, found 70 to 90 % in usual runs): the gain at equal length,
      the intercept of its line over the change of length, is below half of it.

    With `labels` a few verdicts a look, of people, a judge or held-out labels, say whether the policy is worse than
    its start or a later checkpoint: see [`~rmtrl.ppo.verdicts.Labels`], which needs no plan of evaluations. Once it
    surely is, each evaluation is suspect. `judge`, `proxy` and `n_evaluations` play no part then. Logged are
    `{prefix}_labels` asked for so far; `_labels_won`, `_tied` and `_lost` against the present reference, that of
    `_labels_reference_step`; and `_labels_capital`. The evidence is kept in the checkpoints.

    In TRL's trainers, such as GRPOTrainer, [`~rmtrl.ppo.watch.PolicyWatch`] hands it their evaluations.

    A limit on KL is `max_kl` of [`PPOConfig`]: how much is too much depends on reward model and policy. Logged are
    `{prefix}_overoptimization_suspected` and `{prefix}_overoptimization_alarm` (0 or 1), and the judge's change since
    its best as `{prefix}_{judge}_since_best`, with the ends of its interval. The count goes on after a resume, since
    it is read from the log. To end with the best policy rather than the last, set `load_best_model_at_end=True` and
    `metric_for_best_model="eval_gold"`.

    Args:
        judge (`str`, *optional*):
            Name of the scorer that judges; `None` for none.
        labels ([`Labels`] or what it takes, *optional*):
            Verdicts, in place of the judge.
        action (`str`, *optional*, defaults to `"warn"`):
            `"warn"`, or `"stop"` to end the training too.
        patience (`int`, *optional*, defaults to `1`):
            Suspect evaluations in a row that make an alarm.
        proxy (`str`, *optional*, defaults to `"reward"`):
            What is trained on. With `normalize_rewards` the reward's unit moves; name the reward model among
            `eval_scorers` then, and here.
        n_evaluations (`int`, *optional*):
            Evaluations planned. Where absent: what `eval_strategy` and the number of updates come to.

    Raises:
        UsageError: If a setting cannot be used, or there is no such scorer.

    Example:

    ```python
    >>> trainer = PPOTrainer(
    ...     args, tokenizer, policy, reward_model=reward_model, train_dataset=prompts, eval_dataset=held_out,
    ...     eval_scorers={"gold": gold}, callbacks=[OveroptimizationCallback("gold", action="stop")],
    ... )
    ```
    """

    def __init__(
        self, judge: str | None = "gold", *, labels: Any = None, action: Literal["warn", "stop"] = "warn",
        patience: int = 1, proxy: str = "reward", n_evaluations: int | None = None,
    ) -> None:  # fmt: skip
        if action not in ("warn", "stop"):
            raise UsageError(f"`action` must be 'warn' or 'stop', got {action!r}")
        if patience < 1:
            raise UsageError(f"`patience` must be 1 or more, got {patience}")
        self.labels = labels if labels is None or isinstance(labels, Labels) else Labels(labels)
        self.judge, self.action, self.patience, self.proxy = judge if labels is None else None, action, patience, proxy
        self.n_evaluations = n_evaluations

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps: the settings, and what the verdicts have shown."""
        names = ("judge", "action", "patience", "proxy", "n_evaluations")
        settings = {name: getattr(self, name) for name in names} | ({"labels": False} if self.labels else {})
        evidence = json_ready(self.labels.evidence) if self.labels else {}
        return {"args": settings, "attributes": {"evidence": evidence}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        """Takes up what the checkpoint kept that the run goes on from."""
        kept: Any = state.stateful_callbacks
        stored = kept.setdefault(type(self).__name__, self.state())  # a list where there are several watches
        for one in stored if isinstance(stored, list) else [stored]:
            if self.labels and one["attributes"]["evidence"]:
                self.labels.evidence = {name: Evidence(**own) for name, own in one["attributes"]["evidence"].items()}

    def on_policy_evaluation(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, evaluation: PolicyEvaluation
    ) -> dict[str, float]:
        """Returns whether overoptimization is suspected and whether there is an alarm, and what it is judged by."""
        if self.labels:
            finding, logs = self.labels.look(evaluation, first=state.is_world_process_zero)
        elif self.judge is None:
            finding, logs = self._proxy_alone(evaluation, self._level(args, state, evaluation)), dict[str, float]()
        else:
            level = self._level(args, state, evaluation)
            finding, logs = self._against_judge(self.judge, evaluation, level)
        key = f"{evaluation.prefix}_overoptimization_suspected"
        before = [row[key] for row in state.log_history if key in row]
        run = 1 + len(list(takewhile(bool, reversed(before)))) if finding else 0
        alarm = run >= self.patience
        if alarm and self.action == "stop":
            control.should_training_stop = True
        if run == self.patience and state.is_world_process_zero:
            ending = "; training ends" if self.action == "stop" else ""
            logger.warning(f"{evaluation.prefix}: {finding}{self._best(args, evaluation)}{ending}")
        return logs | {"overoptimization_suspected": float(bool(finding)), "overoptimization_alarm": float(alarm)}

    def _level(self, args: TrainingArguments, state: TrainerState, evaluation: PolicyEvaluation) -> float:
        """Returns the level of one interval; says what keeps the watch from seeing anything."""
        scores, made = evaluation.progress.best, evaluation.progress.n_evaluations
        missing = [name for name in (self.judge, self.proxy) if name is not None and name not in scores]
        if missing:
            raise UsageError(
                f"got {missing[0]!r} to watch, and an evaluation scores {', '.join(scores)}; name one of "
                "eval_scorers, or judge=None"
            )
        level = simultaneous_level(max(2, self.n_evaluations or _planned(args, state), made))
        n = len(evaluation.now.by_prompt[self.proxy])
        if made == 1 and too_few(n, level) and state.is_world_process_zero:
            needed = int(np.ceil(1 - np.log2(1 - level)))
            logger.warning(
                f"{evaluation.prefix}: {n} prompts are too few to find a fall; evaluate on {needed} or more"
            )
        return level

    def _against_judge(self, judge: str, evaluation: PolicyEvaluation, level: float) -> tuple[str, dict[str, float]]:
        """Returns what is to be said, nothing if all is well, and the judge's change since its best."""
        now, best = evaluation.now, evaluation.progress.best[judge]
        fall = change_estimate(now.by_prompt[judge] - best.by_prompt[judge], level=level)
        rise = change_estimate(now.by_prompt[self.proxy] - best.by_prompt[self.proxy])
        logs = {f"{judge}_since_best": fall.value}
        if np.isfinite(fall.low):
            logs |= {f"{judge}_since_best_low": fall.low, f"{judge}_since_best_high": fall.high}
        if not fall.high < 0 <= rise.high:
            return "", logs
        return (
            f"overoptimization from step {best.step} to {now.step}: {judge} {_said(fall)}, {self.proxy} "
            f"{_said(rise)}, KL {best.mean('kl'):.2f} then and {now.mean('kl'):.2f} now"
        ), logs

    def _proxy_alone(self, evaluation: PolicyEvaluation, level: float) -> str:
        """Returns what is to be said, nothing if all is well."""
        now, start = evaluation.now, evaluation.progress.start
        found = "; ".join(filter(None, [_spread_sign(now, start, level), self._length_sign(now, start, level)]))
        since = f"from step {start.step} to {now.step}"
        return f"a weak sign of overoptimization, from the proxy alone, {since}: {found}" if found else ""

    def _length_sign(self, now: PromptMeans, start: PromptMeans, level: float) -> str:
        gains, growths = (now.by_prompt[name] - start.by_prompt[name] for name in (self.proxy, "length_tokens"))
        gain, growth = change_estimate(gains, level=level), change_estimate(growths, level=level)
        if min(gain.low, growth.low) <= 0 or np.ptp(growths) == 0:
            return ""
        line = linregress(growths, gains)
        at_equal_length = line.intercept + t.ppf((1 + level) / 2, len(gains) - 2) * line.intercept_stderr
        if at_equal_length >= gain.value / 2:
            return ""
        return (
            f"more than half of the gain in {self.proxy}, {_said(gain)}, goes with length, {_said(growth)} tokens: "
            f"at equal length it is {line.intercept:+.3g}, at most {at_equal_length:+.3g}"
        )

    def _best(self, args: TrainingArguments, evaluation: PolicyEvaluation) -> str:
        if self.judge is None:
            return ""
        step = evaluation.progress.best[self.judge].step
        folder = Path(str(args.output_dir)) / f"checkpoint-{step}"
        return f"; {self.judge} was best at step {step}" + (f", saved as {folder}" if folder.is_dir() else "")


def _spread_sign(now: PromptMeans, start: PromptMeans, level: float) -> str:
    name = "within_prompt_std"
    if name not in now.by_prompt or name not in start.by_prompt:
        return ""
    over_half = change_estimate(now.by_prompt[name] - start.by_prompt[name] / 2, level=level)
    if over_half.high >= 0:
        return ""
    return (
        f"the reward's spread within a prompt fell from {start.mean(name):.3g} to {now.mean(name):.3g}: less half "
        f"of the former {_said(over_half)}"
    )


def _planned(args: TrainingArguments, state: TrainerState) -> int:
    """Returns how many evaluations of a set the training makes."""
    if args.eval_strategy == "no":
        return int(args.eval_on_start)
    steps = args.eval_strategy == "steps" and state.eval_steps
    return int(args.eval_on_start) + int(state.max_steps // steps if steps else np.ceil(state.num_train_epochs))


def _said(change: Estimate) -> str:
    level = f"{100 * change.level:.2f}".rstrip("0").rstrip(".")
    return f"{change.value:+.3g} ({level} % interval {change.low:+.3g} to {change.high:+.3g}, n = {change.n:,})"
