"""Overoptimization measured from samples, over all prompts, by domain and over training, and what is said of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import ArrayLike

from rmtrl.data.loading import load_rows
from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.overoptimization.curves import (
    CONVENTION,
    GOLD_BY_PROXY,
    Part,
    ScalingFit,
    fit_scaling,
    measure_part,
    n_grid,
    why_not,
)
from rmtrl.metrics import Floats

SCHEMA = "rmtrl/overoptimization/1"
_POOR_FIT = 0.9  # r² below which the form does not describe the curve
_NUMBERS, _NAMES = ("int", "uint", "float", "double", "null"), ("int", "uint", "string", "large_string")
_SCORE = (*_NUMBERS, "bool"), "a number, or true or false,"  # correctness, true or false, counts as 1 and 0
_NUMBER, _NAME = (_NUMBERS, "a number"), (_NAMES, "a text or a whole number")
_KINDS = {"prompt_id": _NAME, "proxy": _SCORE, "gold": _SCORE, "domain": _NAME, "step": _NUMBER, "kl": _NUMBER,
          "truncated": (("bool",), "true or false")}  # fmt: skip
_SCORES = {"proxy", "gold", "kl"}
_LARGEST, _SMALLEST = 1e100, 1e-100  # squares of what lies beyond are infinite, or 0


def scored_samples(
    prompt_id: ArrayLike, proxy: ArrayLike, gold: ArrayLike, *, domain: ArrayLike | None = None, **more: Any
) -> pd.DataFrame:
    """Returns scored samples, M of them, several a prompt, checked, a row each.

    Args:
        prompt_id (`(M,)` array): Prompt of each sample.
        proxy (`(M,)` array): Score that chooses.
        gold (`(M,)` array): Score that counts.
        domain (`(M,)` array, *optional*): Domain; one a prompt.
        more (`(M,)` arrays): Where known `step`, the training step of the policy that the sample is from, `kl`, the KL
            of that policy from the first one in nats, and `truncated`, whether the completion was cut off.

    Raises:
        DataError: If the columns differ in length, a score is no finite number or beyond 1e100, all scores of one
            kind are equal or within 1e-100, there are fewer than two prompts, or a prompt stands in two domains.

    Example:

    ```python
    >>> len(scored_samples(np.repeat(["a", "b"], 4), np.arange(8.0), np.arange(8.0) % 3))
    8
    ```
    """
    named = {} if domain is None else {"domain": np.asarray(domain, str)}
    given = {"prompt_id": prompt_id, "proxy": proxy, "gold": gold, **named, **more}
    lengths = {name: len(np.asarray(column)) for name, column in given.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the columns differ in length: {lengths}; wanted one value a sample in each")
    samples = pd.DataFrame({"step": 0, "domain": "", **given})
    n_prompts = samples["prompt_id"].nunique()
    if n_prompts < 2:
        raise DataError(f"got samples of {n_prompts} prompt; wanted 2 or more: intervals resample prompts")
    for name in _SCORES & set(samples):
        _check_scores(name, samples[name].to_numpy())
    if len(samples[["prompt_id", "domain"]].drop_duplicates()) > n_prompts:
        raise DataError("a prompt stands in two domains; wanted one domain a prompt")
    return samples


def samples_of(rows: Dataset, source: str) -> pd.DataFrame:
    """Returns the samples of rows, as [`read_samples`] gives them; `source` is their file, for errors.

    Raises:
        DataError: If a score is no number, or a prompt, domain or step has no name; and as [`scored_samples`].
    """
    frame, values = rows.with_format(None).to_pandas(), {}
    for name, column in frame.items():
        kinds, wanted = _KINDS[name]
        if not str(getattr(rows.features[name], "dtype", "list")).startswith(kinds):
            got = str(next(value for value in column if value is not None))[:40]
            raise DataError(f"{source} has the {name} {got!r}; wanted {wanted} in every row")
        if name not in _SCORES and column.isna().any():
            raise DataError(f"{source} has {int(column.isna().sum()):,} rows without {name}; name it in every row")
        kind = np.float64 if name in _SCORES else str if name in ("prompt_id", "domain") else None
        values[name] = column.to_numpy(dtype=kind, **({"na_value": np.nan} if name in _SCORES else {}))
    return scored_samples(**values)


def read_samples(source: str, columns: Mapping[str, str]) -> Dataset:
    """Returns the columns of samples in a file, folder or hub set, those of `columns` renamed, new name to old name.

    Raises:
        DataError: If it cannot be read, or lacks a column.
        UsageError: If an old name is none of the file.
    """
    rows = load_rows(source)
    for new, old in columns.items():
        if old not in rows.column_names:
            raise UsageError(f"got --map {new}={old}; {source} has the columns {', '.join(rows.column_names)}")
        if new != old:
            rows = rows.remove_columns([new] if new in rows.column_names else []).rename_column(old, new)
    if missing := [name for name in ("prompt_id", "proxy", "gold") if name not in rows.column_names]:
        raise DataError(
            f"{source} has no column {missing[0]} but {', '.join(rows.column_names)}; wanted prompt_id, proxy and "
            f"gold: rename with --map {missing[0]}=…"
        )
    return rows.select_columns([name for name in _KINDS if name in rows.column_names])


def _check_scores(name: str, scores: Floats) -> None:
    faulty = np.flatnonzero(~np.isfinite(scores))
    if len(faulty):
        raise DataError(
            f"{len(faulty):,} of {len(scores):,} samples have no finite {name} (the first is sample {faulty[0]}, from "
            f"0: {scores[faulty[0]]}); score them or leave them out"
        )
    spread = 1.0 if name == "kl" else np.ptp(scores)
    if spread == 0:
        raise DataError(f"all {len(scores):,} {name} scores are {scores[0]}; equal scores choose nothing")
    if np.abs(scores).max() > _LARGEST or spread < _SMALLEST:
        raise DataError(
            f"the {name} scores go from {scores.min():.3g} to {scores.max():.3g}; wanted values of {_LARGEST:g} at "
            f"most that differ by {_SMALLEST:g} or more: rescale them"
        )


@dataclass(frozen=True)
class Overoptimization:
    """The whole measurement; see [`measure_overoptimization`].

    Args:
        whole (`Part`): All prompts, at the last step where there are several.
        domains (`dict[str, Part]`): By domain.
        held_out (`dict[str, Part]`): `"in domain"` and `"held out"`, where domains were named as held out.
        steps (`dict[str, Part]`): By training step, in order.
        rl (`ScalingFit`, *optional*): Mean gold over the steps against √KL, where the samples say their KL.
        n_samples (`int`): Samples, of all steps.
        samples_per_prompt (`tuple[int, int]`): Fewest and most.
        notes (`tuple[str, ...]`): What was done about uneven data, a sentence each.
    """

    json_also: ClassVar = ("convention",)
    schema: ClassVar = SCHEMA
    convention: ClassVar = CONVENTION

    whole: Part
    domains: dict[str, Part]
    held_out: dict[str, Part]
    steps: dict[str, Part]
    rl: ScalingFit | None
    n_samples: int
    samples_per_prompt: tuple[int, int]
    notes: tuple[str, ...]


def measure_overoptimization(
    samples: pd.DataFrame | str,
    *,
    n_max: int | None = None,
    held_out: Sequence[str] = (),
    points: int = 32,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Overoptimization:
    """Returns how far choosing by the proxy raises gold, and where it stops doing so.

    Every prompt's curve comes from all of its samples, unbiased at each n, so prompts may have unequally many; n goes
    to the fewest. Where the samples are of several training steps, the last one is the whole, and each is a part.

    Args:
        samples (`DataFrame` or `str`): From [`scored_samples`], or a file of them.
        n_max (`int`, *optional*): Largest n, 3 or more; defaults to the fewest samples of a prompt.
        held_out (`Sequence[str]`): Domains the proxy was not trained on.
        points (`int`): Values of n at most.
        n_resamples (`int`): Bootstrap resamples over prompts.
        seed (`int`): Seed of the resampling.

    Raises:
        DataError: If γ does not exist over the whole, or a prompt has fewer than 3 samples.
        UsageError: If `n_max` is above the samples of a prompt or below 3, or a held-out domain is none of the data.

    Example:

    ```python
    >>> rng = np.random.default_rng(0)
    >>> gold = rng.normal(size=12_800)
    >>> proxy = 0.8 * gold + 0.6 * rng.normal(size=12_800)
    >>> samples = scored_samples(np.repeat(np.arange(200), 64), proxy, gold)
    >>> print(measure_overoptimization(samples).whole.gamma)
    0.204 [0.193, 0.216] (n = 200)
    ```
    """
    samples = samples_of(read_samples(samples, {}), samples) if isinstance(samples, str) else samples
    prompts = _by_prompt(samples)
    domains, steps = (prompts[name].unique().tolist() for name in ("domain", "step"))
    n_max, notes = _largest_n(prompts, n_max)
    if unknown := [name for name in held_out if name not in domains]:
        raise UsageError(f"no sample is of the held-out domain {unknown[0]}; the domains are {', '.join(domains)}")
    if cut := int(samples["truncated"].sum()) if "truncated" in samples else 0:
        notes.append(f"{cut:,} of {len(samples):,} samples were cut off before their end")
    last, ns = prompts[prompts["step"] == steps[-1]], n_grid(n_max, points)
    if why := why_not(last["proxy"], last["gold"]):
        raise DataError(f"the samples{' of the last step' if steps[1:] else ''} have {why}: nothing can be measured")
    if steps[1:]:
        notes.append(f"the whole is step {steps[-1]}, the last of {len(steps)}")

    def parts(groups: Iterable[tuple[Any, pd.DataFrame]]) -> dict[str, Part]:
        found = {}
        for name, rows in groups:
            sides = rows["proxy"].tolist(), rows["gold"].tolist()
            if why := why_not(*sides):
                notes.append(f"{name} is left out: {why}")
            else:
                found[str(name)] = measure_part(*sides, ns, n_resamples=n_resamples, seed=seed)
        return found

    whole = parts([("whole", last)])["whole"]
    if whole.gamma is None:
        raise DataError(whole.why_no_gamma)
    away = last["domain"].isin(held_out)
    return Overoptimization(
        whole=whole,
        domains=parts(last.groupby("domain")) if domains[1:] else {},
        held_out=parts([("in domain", last[~away]), ("held out", last[away])]) if held_out else {},
        steps=parts(prompts.groupby("step")) if steps[1:] else {},
        rl=_over_training(samples, notes),
        n_samples=len(samples),
        samples_per_prompt=(int(prompts["size"].min()), int(prompts["size"].max())),
        notes=tuple(notes),
    )


def _by_prompt(samples: pd.DataFrame) -> pd.DataFrame:
    """Returns step, prompt, domain, size, proxy and gold scores of every prompt, in the order of the steps."""
    groups = samples.groupby(["step", "prompt_id"])
    prompts = groups.agg(domain=("domain", "first"), size=("gold", "size"), proxy=("proxy", list), gold=("gold", list))
    return prompts.reset_index()


def _largest_n(prompts: pd.DataFrame, n_max: int | None) -> tuple[int, list[str]]:
    """Returns the largest n and what there is to say of prompts with unequally many samples."""
    sizes = prompts["size"].to_numpy()
    fewest, most, name = int(sizes.min()), sizes.max(), prompts["prompt_id"][sizes.argmin()]
    if n_max is not None and n_max > fewest:
        short = f"{int((sizes < n_max).sum()):,} of {len(sizes):,} prompts have fewer samples ({name} has {fewest})"
        raise UsageError(f"got n_max {n_max}, and {short}; wanted {fewest} or less, or more samples of those prompts")
    if n_max is None and fewest < 3:
        raise DataError(f"prompt {name} has {fewest} samples; wanted 3 or more of every prompt")
    notes = [f"prompts have {fewest} to {most} samples: each curve uses all of its own"] if fewest < most else []
    if n_max is None and fewest < (median := np.median(sizes)):
        notes.append(f"n ends at {fewest}, the fewest ({name}); the median prompt has {int(median)}")
    if constant := sum(min(own) == max(own) for own in prompts["proxy"]):
        alike = f"the proxy scores all samples alike in {constant:,} of {len(sizes):,} prompts"
        notes.append(f"{alike}: it chooses nothing")
    return fewest if n_max is None else n_max, notes


def _over_training(samples: pd.DataFrame, notes: list[str]) -> ScalingFit | None:
    """Returns the form of reinforcement learning fitted to mean gold by step; the step of least KL is the origin."""
    if "kl" not in samples or samples["step"].nunique() < 2:
        return None
    kl, gold = samples.groupby("step")[["kl", "gold"]].mean().to_numpy().T
    start = int(kl.argmin())
    if kl[start] < 0 or len(kl) < 3:
        notes.append("no fit over training: it needs three steps, and mean KL of 0 or more")
        return None
    if kl[start] > 0.01:
        notes.append(f"training starts at a KL of {kl[start]:.3g}, not 0: the fit over training counts from there")
    return fit_scaling(np.sqrt(kl), gold - gold[start], "rl")


def verdict(part: Part) -> str:
    """Returns in one or two sentences whether the proxy may be pushed, and how far.

    Example:

    ```python
    >>> print(verdict(measure_overoptimization(samples).whole))
    gamma 0.20 at n = 64 (0: chooses as well as gold, 1: no better than chance): about 80 % of the gain is kept. …
    ```
    """
    said, gamma, end, n_max = "", part.gamma, part.gains[GOLD_BY_PROXY][-1], f"n = {part.n_max:,}"
    if gamma is not None:
        kept = f"about {100 * (1 - gamma.value):.0f} % of the gain is kept"
        meaning = kept if gamma.value < 1 else "choosing by the proxy lowers gold"
        said = (
            f"gamma {gamma.value:.2f} at {n_max} (0: chooses as well as gold, 1: no better than chance): {meaning}. "
        )
    if part.turned_over and part.drawdown_data is not None:
        return (
            f"{said}Gold turned over at n = {part.peak_n_data.value:,.0f} (fit: {part.peak_n.value:,.0f}) and lost "
            f"{100 * part.drawdown_data.value:.0f} % of its gain by {n_max}: do not choose harder than the peak by "
            "this proxy."
        )
    if end.high < 0:
        return f"{said}The harder one chooses by this proxy, the lower gold: do not optimise it."
    if end.low <= 0:
        return f"{said}At {n_max} gold is not above that of one sample beyond doubt."
    return f"{said}Gold has not turned over up to {n_max}; nothing is known of larger n."


def report(result: Overoptimization) -> dict[str, Any]:
    """Returns the values of a measurement that people read: figures, curves, fits, parts and verdict."""
    part, none = result.whole, "gold is never above that of one sample"
    fits = part.fits | ({"over training": result.rl} if result.rl else {})
    poor = [name for name, fit in fits.items() if fit.r_squared < _POOR_FIT]
    powers = 2 ** np.arange(part.n_max.bit_length())
    shown = sorted({*np.abs(part.ns - powers[:, None]).argmin(1).tolist(), len(part.ns) - 1})
    groups = {"domain": result.domains, "domains": result.held_out, "step": result.steps}
    return {
        "prompts": part.n_prompts,
        "gold of one sample": part.start["gold"],
        "proxy of one sample": part.start["proxy"],
        "gamma": part.gamma,
        "gamma is at": f"n_max {part.n_max:,}, k {part.k:.4f}; {CONVENTION}",
        "resamples without gamma, left out": part.undefined_resamples or None,
        "peak by fit": f"n = {part.peak_n:,.0f}, gain {part.peak:.3f}",
        "peak in the data": f"n = {part.peak_n_data:,.0f}",
        "drawdown by fit": part.drawdown or none,
        "drawdown in the data": part.drawdown_data or none,
        "proxy ahead of gold by": f"{part.gap:.3f} standard deviations at n = {part.n_max:,}",
        "gain over one sample": [
            {"n": int(part.ns[i]), "KL": float(part.kl[i])} | {k: f"{own[i]:+.3f}" for k, own in part.gains.items()}
            for i in shown
        ],
        "fits": fits,
        **{kind: {name: _row(own) for name, own in parts.items()} for kind, parts in groups.items()},
        "notes": [*result.notes, *(f"the form does not describe {name}: trust the data" for name in poor)],
        "verdict": [verdict(part)],
    }  # fmt: skip


def _row(part: Part) -> dict[str, Any]:
    shown = {"gamma": part.gamma, "gold gain at n_max": part.gains[GOLD_BY_PROXY][-1], "drawdown": part.drawdown}
    words = {name: f"{own:.3f}" if own else "none" for name, own in shown.items()}
    return {"prompts": part.n_prompts, **words, "turned over": part.turned_over}
