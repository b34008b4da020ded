"""Callbacks that read the rewards of a reward trainer: margins, length bias, centring.

| key (`eval_`-prefixed in evaluation) | callback | what it is |
|---|---|---|
| `margin_std`, `margin_min`, `margin_max` | [`MarginCallback`] | spread and extremes of chosen minus rejected |
| `accuracy_low`, `accuracy_high` | [`MarginCallback`], evaluation | 95 % interval, pair by pair (Wilson) |
| `margin_histogram` (tracker only) | [`MarginCallback`] | its distribution |
| `length_spearman` | [`LengthBiasCallback`] | rank correlation of reward and response length, pairs centred |
| `accuracy_chosen_longer`, `accuracy_chosen_shorter` | [`LengthBiasCallback`] | accuracy on the two kinds of pairs |
| `length_gap` | [`LengthBiasCallback`] | the first minus the second |
| `length_accuracy` | [`LengthBiasCallback`] | accuracy of length alone |
| `chosen_longer` | [`LengthBiasCallback`] | share of pairs whose chosen response is longer |
| `center_mean`, `center_std` | [`CenterRewardCallback`] | mean and spread of all rewards |
| `center_loss` | [`CenterRewardCallback`] | mean squared sum of the two rewards, without its coefficient |
| `reward_histogram` (tracker only) | [`CenterRewardCallback`] | distribution of all rewards |
"""

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import rewrite_logs

from rmtrl.metrics import binomial_estimate, length_bias, pair_wins, reward_metrics
from rmtrl.reward.pairs import REASONS
from rmtrl.types import PairRewards


class RewardCallback(TrainerCallback):
    """A callback that [`RewardTrainer`] hands the rewards of every logging window and evaluation set.

    The pairs are gathered over all processes and the call is made on each of them, so a callback computes the same
    numbers everywhere and needs no communication of its own.

    Example:

    ```python
    >>> class TieCallback(RewardCallback):
    ...     def on_rewards(self, args, state, control, *, pairs, prefix):
    ...         return {"ties": float((pairs.margin == 0).mean())}
    ```
    """

    def on_rewards(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, pairs: PairRewards, prefix: str
    ) -> dict[str, float]:
        """Returns scalars for the log, keyed without prefix.

        Args:
            args, state, control: As in every [`~transformers.TrainerCallback`] event.
            pairs ([`PairRewards`]): The pairs trained on since the last log, or the whole evaluation set; never empty.
            prefix (`str`): `""` in training, `"eval_"` (or the set's own) in evaluation.
        """
        raise NotImplementedError


def invalid_logs(pairs: PairRewards, prefix: str) -> dict[str, float]:
    """Returns how many pairs are invalid, by reason."""
    codes, counts = np.unique(pairs.reason[pairs.reason > 0], return_counts=True)
    return {f"{prefix}invalid_pairs/{REASONS[c - 1]}": float(n) for c, n in zip(codes, counts, strict=True)}


def pair_logs(pairs: PairRewards, prefix: str, domains: Sequence[str]) -> dict[str, float]:
    """Returns the figures of pairs that a trainer logs; those of training have the loss that the host stepped on.

    Args:
        pairs ([`PairRewards`]): Sound ones.
        prefix (`str`): See [`RewardCallback.on_rewards`].
        domains (`Sequence[str]`): Names of the domains.
    """
    decided = pairs.decided
    logs = reward_metrics(decided, domains) if len(decided) else {}
    if len(decided) < len(pairs):
        logs["ties"] = float(len(pairs) - len(decided))
    if len(pairs) and prefix:
        logs["loss"] = float(pairs.loss.mean())
    return {f"{prefix}{key}": value for key, value in logs.items()}


def log_histogram(state: TrainerState, name: str, values: NDArray[np.float64]) -> None:
    """Sends a histogram to the wandb run, if one is open; it must never enter the log history, which is JSON."""
    wandb = sys.modules.get("wandb")  # opened by the trainer's own integration, or not in use
    if wandb is None or wandb.run is None or not state.is_world_process_zero:
        return
    key = next(iter(rewrite_logs({name: 0.0})))  # the trainer's own naming: eval/…, test/…, train/…
    wandb.log({key: wandb.Histogram(values)}, commit=False)


class MarginCallback(RewardCallback):
    """Logs the spread, the extremes and the histogram of the margin, and in evaluation the interval of its sign.

    Example:

    ```python
    >>> trainer = RewardTrainer("outputs/tiny/sft", train_dataset=dataset, callbacks=[MarginCallback()])
    ```
    """

    def on_rewards(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, pairs: PairRewards, prefix: str
    ) -> dict[str, float]:
        """Returns `margin_std`, `margin_min` and `margin_max`, in evaluation `accuracy_low` and `accuracy_high` too.

        The interval takes each pair for a prompt of its own: where prompts have several pairs it is too narrow.
        """
        margin, decided, logs = pairs.margin, pairs.decided, {}
        if prefix and len(decided):
            wins = pair_wins(decided.chosen, decided.rejected)
            own = binomial_estimate(round(wins.sum()), len(wins), kind="wilson")
            logs = {"accuracy_low": own.low, "accuracy_high": own.high}
        log_histogram(state, f"{prefix}margin_histogram", margin)
        return logs | {
            "margin_std": float(margin.std()),
            "margin_min": float(margin.min()),
            "margin_max": float(margin.max()),
        }


class LengthBiasCallback(RewardCallback):
    """Logs how far rewards follow the length of the response, in tokens; see [`rmtrl.metrics.length_bias`].

    Example:

    ```python
    >>> trainer = RewardTrainer("outputs/tiny/sft", train_dataset=dataset, callbacks=[LengthBiasCallback()])
    ```
    """

    def on_rewards(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, pairs: PairRewards, prefix: str
    ) -> dict[str, float]:
        """Returns the keys of [`rmtrl.metrics.length_bias`]."""
        return length_bias(pairs.chosen, pairs.rejected, pairs.chosen_length_tokens, pairs.rejected_length_tokens)


class CenterRewardCallback(RewardCallback):
    """Logs where the rewards stand and the centre loss (Eisenstein et al. 2023, Eq. 2) on its own.

    Example:

    ```python
    >>> trainer = RewardTrainer("outputs/tiny/sft", train_dataset=dataset, callbacks=[CenterRewardCallback()])
    ```
    """

    def on_rewards(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, pairs: PairRewards, prefix: str
    ) -> dict[str, float]:
        """Returns `center_mean`, `center_std` and `center_loss`."""
        rewards = np.concatenate([pairs.chosen, pairs.rejected])
        log_histogram(state, f"{prefix}reward_histogram", rewards)
        return {
            "center_mean": float(rewards.mean()),
            "center_std": float(rewards.std()),
            "center_loss": float(np.mean((pairs.chosen + pairs.rejected) ** 2)),
        }
