"""What a trained reward model is worth: the figures of one split, and the lines a person reads at the end of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmtrl.metrics import (
    Floats,
    combined_estimate,
    length_bias,
    mean_estimate,
    mean_estimates,
    pair_wins,
    worst_group_accuracy,
)
from rmtrl.metrics.ceiling import Ceiling
from rmtrl.types import Estimate, PairRewards


def pair_figures(
    pairs: PairRewards, prompt_ids: Sequence[str], domains: Sequence[str], ceiling: Ceiling | None = None
) -> dict[str, Any]:
    """Returns the figures of one split: estimates with intervals by prompt, extremes, and accuracy by domain.

    Args:
        pairs ([`PairRewards`]): The N pairs of the split.
        prompt_ids (`Sequence[str]`): Prompt of each pair; pairs of one prompt are resampled together.
        domains (`Sequence[str]`): Domain of each pair.
        ceiling ([`~rmtrl.metrics.ceiling.Ceiling`], *optional*): Of the labels of these pairs.
    """
    decided = pairs.label != 0.5
    pairs, groups, names = pairs.decided, np.asarray(prompt_ids)[decided], np.asarray(domains)[decided]
    wins = pair_wins(pairs.chosen, pairs.rejected)
    by_length = pair_wins(pairs.chosen_length_tokens, pairs.rejected_length_tokens)
    rewards, accuracy = np.concatenate([pairs.chosen, pairs.rejected]), mean_estimate(wins, groups)
    return {
        "ties": int((~decided).sum()),
        "accuracy": accuracy,
        **({} if ceiling is None else {"ceiling": ceiling, "closed": ceiling.closed_by(accuracy)}),
        "length_accuracy": mean_estimate(by_length, groups),
        "accuracy_over_length": mean_estimate(wins - by_length, groups, proportion=False),
        "loss": mean_estimate(pairs.loss, groups, proportion=False),
        "margin": mean_estimate(pairs.margin, groups, proportion=False),
        "margin_histogram": _histogram(pairs.margin),
        "reward": {key: float(getattr(rewards, key)()) for key in ("min", "mean", "std", "max")},
        "length_bias": length_bias(
            pairs.chosen, pairs.rejected, pairs.chosen_length_tokens, pairs.rejected_length_tokens
        ),
        "accuracy_by_domain": mean_estimates(wins, names, groups),
        "length_accuracy_by_domain": mean_estimates(by_length, names, groups),
        "worst_domain": dict([worst_group_accuracy(wins, names, groups)]),
    }


def _histogram(values: Floats, bins: int = 30) -> dict[str, list[Any]]:
    """Returns edges and counts of about so many equal bins, with 0 at an edge: what is below it is wrong."""
    width = float(np.ptp(np.append(values, 0.0))) / bins or 1.0
    first, last = np.floor(np.append(values, 0.0).min() / width), np.floor(np.append(values, 0.0).max() / width) + 1
    counts, edges = np.histogram(values, np.arange(first, last + 1) * width)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def summary(folder: str, counts: Mapping[str, Any], sizes: Mapping[str, int], figures: Mapping[str, Any]) -> str:
    """Returns about ten lines that say how good the model is and what to do next.

    Args:
        folder (`str`): Where the model is.
        counts (`Mapping`): `ValidationResult.as_dict()` of the data.
        sizes (`Mapping`): Pairs of each split.
        figures (`Mapping`): [`pair_figures`] of `"validation"` and `"test"`.
    """
    test, validation = figures["test"], figures["validation"]
    rejected = ", ".join(f"{count} {reason}" for reason, count in counts["reasons"].items() if count) or "none"
    bias, reward = test["length_bias"], test["reward"]
    (worst,) = test["worst_domain"].items()
    return "\n".join(
        [
            f"reward model         {folder}",
            f"pairs                {counts['kept']:,} of {counts['n']:,} kept; rejected: {rejected}",
            f"splits by prompt     {', '.join(f'{name} {size:,}' for name, size in sizes.items())}; no prompt in two",
            f"validation accuracy  {validation['accuracy']}  (the checkpoint was chosen on it)",
            f"test accuracy        {test['accuracy']}",
            *([f"ceiling              {test['ceiling']}{_closed(test['closed'])}"] if "ceiling" in test else []),
            f"length alone         {test['length_accuracy']}",
            f"worst domain         {worst[0]}: {worst[1]}",
            f"margin, rewards      {test['margin']}; rewards {reward['min']:.2f} to {reward['max']:.2f}, "
            f"mean {reward['mean']:.2f}",
            f"length bias          Spearman {bias.get('length_spearman', float('nan')):.2f}; accuracy "
            f"{bias.get('accuracy_chosen_longer', float('nan')):.2f} where chosen is longer, "
            f"{bias.get('accuracy_chosen_shorter', float('nan')):.2f} where it is shorter",
            *overfitting(figures),
            f"verdict              {_verdict(test)}",
            f"next                 rmtrl inspect --model {folder} PAIRS.jsonl",
            f"                     rmtrl score --model {folder} PAIRS.jsonl --out scores.jsonl",
        ]
    )


def overfitting(figures: Mapping[str, Any]) -> list[str]:
    """Returns what accuracy on pairs trained on, held out, and of domains held out says of overfitting; two lines.

    A difference of two accuracies counts where its interval, from those of both, excludes 0. Nothing is said without
    figures of `"train"` and `"spillover"`.

    Args:
        figures (`Mapping`): [`pair_figures`] of `"train"`, `"test"` and `"spillover"`.

    Example:

    ```python
    >>> overfitting({})
    []
    ```
    """
    if not {"train", "test", "spillover"} <= set(figures):
        return []
    accuracy = {name: figures[name]["accuracy"] for name in ("train", "test", "spillover")}
    memory = combined_estimate((accuracy["train"], accuracy["test"]), (1, -1))
    domains = combined_estimate((accuracy["test"], accuracy["spillover"]), (1, -1))
    spread = figures["train"]["reward"]["std"] / max(figures["test"]["reward"]["std"], 1e-12)
    said = [
        f"overfitting: {memory:+.3f} better on pairs it was trained on; "
        "fewer epochs, a lower learning rate or more pairs"
        if memory.low > 0
        else "no overfitting shown",
        f"does not carry over to held-out domains: {domains:+.3f} lost"
        if domains.low > 0
        else "carries over to held-out domains as far as n shows",
    ]
    shown = ", ".join(f"{name} {estimate}" for name, estimate in accuracy.items())
    return [
        f"train to spillover   {shown}; spread of rewards train / test {spread:.2f}",
        f"overfitting          {'; '.join(said)}",
    ]


def _closed(share: Estimate | None) -> str:
    return f"; {share:.2f} of the way there from a coin" if share else ""


def _verdict(test: Mapping[str, Any]) -> str:
    accuracy, over = test["accuracy"], test["accuracy_over_length"]
    few = f", on {accuracy.n} pairs alone: the gate counts no fewer than 100" if accuracy.n < 100 else ""
    if accuracy.low <= 0.5:
        return "not better than a coin at this n: more pairs, more steps or another learning rate"
    if over.low <= 0:
        return f"not shown to beat length alone (difference {over:+.3f})"
    return f"beats a coin, and length alone by {over:+.3f}{few}"
