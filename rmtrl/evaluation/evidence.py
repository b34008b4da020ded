"""What is known of a reward model before a policy is trained on it, each figure with its interval and its source."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rmtrl.data.provenance import is_same_model
from rmtrl.errors import DataError, UsageError, placed
from rmtrl.evaluation.audit import ACQUITTED, CONVICTED, NO_MATCHED
from rmtrl.evaluation.fingerprints import model_fingerprint, stored_fingerprint
from rmtrl.evaluation.scoring import is_number
from rmtrl.io import read_object
from rmtrl.metrics import binomial_estimate, scaled
from rmtrl.types import Estimate, json_ready

SCHEMA = "rmtrl/evidence/1"
FINDINGS = ("length_audit", "lineage")
OTHER_MODEL = "another"
WORSENED = "made these pairs surely worse"
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")


def condition(name: str, value: Any) -> str:
    """Returns in words what a figure was measured under."""
    said = {"null_ece": "a perfect model would show", "n_max": "best of up to"}.get(name, name.replace("_", " "))
    return f"{said} {f'{value:.3g}' if isinstance(value, float) else value}"


@dataclass(frozen=True)
class Figure:
    """A figure, where it is from and what it was measured under.

    Args:
        estimate ([`Estimate`]): The figure.
        source (`str`): File or person it comes from.
        conditions (`dict[str, Any]`): What its meaning depends on: `reviewed_by` of a fresh-policy accuracy,
            `convention` and `n_max` of γ, `null_ece` of an ECE; `model` is `"another"` where it was measured on
            another model, `data` is `"train"` where on the training pairs, and `calibration` is `WORSENED` where it
            made them surely worse: the gate takes none of these.
    """

    estimate: Estimate
    source: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        said = "; ".join(condition(name, value) for name, value in self.conditions.items())
        return f"{self.estimate}{f' ({said})' if said else ''}"


@dataclass(frozen=True)
class Finding:
    """The outcome of a check that is no figure.

    Args:
        passed (`bool`, *optional*): None where it could not be told.
        said (`str`): The outcome in words.
        source (`str`): File or person it comes from.
    """

    passed: bool | None
    said: str
    source: str = ""


def _known(words: str, least: float = -math.inf, most: float = math.inf, *place: str) -> Any:
    """Returns the field of a figure or finding: its name in words, its range, its place in the files of a run."""
    return field(default=None, metadata={"words": words, "range": (least, most), "place": place})


Measured = Figure | Finding | None


@dataclass(frozen=True)
class Evidence:
    """Everything the gate asks for; None where nobody has measured it, a finding where somebody could not.

    Args:
        overlap: Prompts that stand in two splits; 0 is the only good value.
        test_accuracy: Share of unseen pairs in which the better answer scores higher.
        length_matched_accuracy: The same of pairs whose answers are about equally long.
        fresh_accuracy: The same of pairs of the current policy against human verdicts.
        ece: Expected calibration error after calibration, on pairs the calibrator has not seen.
        nll_gain: Nats by which calibration lowers the negative log-likelihood on them.
        gamma: Degree of overoptimization.
        spillover_accuracy: Accuracy on domains kept out of training.
        length_audit: Verdict of the length audit.
        lineage: Whether reward model and policy come from the same base.
    """

    overlap: Measured = _known("prompts in both training and test", 0)
    test_accuracy: Measured = _known("accuracy on pairs it has not seen", 0, 1, "metrics.json", "test", "accuracy")
    length_matched_accuracy: Measured = _known(
        "accuracy where both answers are about as long", 0, 1, "audit.json", "figures", "accuracy_matched"
    )
    fresh_accuracy: Measured = _known(
        "accuracy on the policy's own answers, judged by people", 0, 1, "fresh.json", "accuracy"
    )
    ece: Measured = _known("error of its stated confidence", 0, 1)
    nll_gain: Measured = _known("gain by calibration (nats)")
    gamma: Measured = _known(
        "share of the gain lost when it is pushed hard (gamma)", 0, math.inf, "overoptimization.json", "whole", "gamma"
    )
    spillover_accuracy: Measured = _known(
        "accuracy in domains kept out of training", 0, 1, "metrics.json", "spillover", "accuracy"
    )
    length_audit: Finding | None = _known("what it pays for length")
    lineage: Finding | None = _known("common origin with the policy")

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of an evidence file; ends of intervals that nobody knows are None."""
        known: dict[str, Any] = {name: item for name, item in vars(self).items() if item is not None}
        for name in [name for name, item in known.items() if isinstance(item, Figure)]:
            known[name] = vars(known[name].estimate) | {"source": known[name].source, **known[name].conditions}
        return dict(json_ready({"schema": SCHEMA, **known}))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Evidence":
        """Returns the evidence of a file of schema `rmtrl/evidence/1`.

        A figure is `{"value", "low", "high", "n"}`; an accuracy may leave out `low` and `high` and gets Wilson's
        interval. `source` and conditions, such as `"reviewed_by": "human"`, stand beside them. A finding is
        `{"passed", "said"}`, and so is a figure that could not be measured, its `passed` null.

        Raises:
            DataError: If it is of another schema, a name is not known, or a figure is not whole.

        Example:

        ```python
        >>> stored = {"schema": "rmtrl/evidence/1", "test_accuracy": {"value": 0.92, "n": 500}}
        >>> print(Evidence.from_dict(stored).test_accuracy)
        0.920 [0.893, 0.941] (n = 500)
        ```
        """
        if stored.get("schema") != SCHEMA:
            got = f"got evidence of the schema {stored.get('schema', 'none')}; wanted {SCHEMA}"
            raise DataError(f"{got}, or the folder of the run that the file is of")
        if unknown := sorted(set(stored) - NAMES - {"schema"}):
            raise DataError(f"evidence does not know {', '.join(unknown)}; it knows {', '.join(sorted(NAMES))}")
        given = {name: item for name, item in stored.items() if name != "schema" and item is not None}
        read: dict[str, Any] = {
            name: _finding(name, item) if name in FINDINGS or _is_untold(item) else _figure(name, item)
            for name, item in given.items()
        }
        return cls(**read)


KNOWN: Mapping[str, Mapping[str, Any]] = {item.name: item.metadata for item in fields(Evidence)}
NAMES = set(KNOWN)


def collect(files: Mapping[str, Mapping[str, Any]], model_fingerprint: Mapping[str, Any] | None = None) -> Evidence:
    """Returns the evidence that the files of a run hold.

    A file outlives the model that it was measured on when the run is trained again. So the fingerprint in
    `calibration.json`, `audit.json`, `overoptimization.json` and `fresh.json` is compared with the model's, and a
    figure of another model is marked as such; the source says where a file names none. Likewise a figure on the
    training pairs, by the fingerprints in `rmtrl.json`.

    Args:
        files (`Mapping[str, Mapping]`): Parsed content by file name: `metrics.json` and `rmtrl.json` of the reward
            model, `calibration.json`, `audit.json`, `overoptimization.json`, `fresh.json`, `lineage.json`. What is
            absent is no evidence.
        model_fingerprint (`Mapping[str, Any]`, *optional*): What the model is now, from
            `rmtrl.evaluation.fingerprints`.

    Raises:
        DataError: If a figure in them is not whole.

    Example:

    ```python
    >>> print(collect({"fresh.json": {"accuracy": {"value": 0.8, "n": 50}, "reviewed_by": "model"}}).fresh_accuracy)
    0.800 [0.670, 0.888] (n = 50) (reviewed_by model)
    ```
    """
    places = {name: known["place"] for name, known in KNOWN.items() if known.get("place")}
    found: dict[str, Any] = {name: _from(file, _of(files.get(file), *path)) for name, (file, *path) in places.items()}
    found["overlap"] = _overlap(files.get("rmtrl.json", {}))
    found["length_audit"] = _length_audit(files.get("audit.json", {}))
    if found["length_audit"] and not found["length_matched_accuracy"]:
        found["length_matched_accuracy"] = {"passed": None, "said": NO_MATCHED, "source": "audit.json"}
    found |= _calibrated(files.get("calibration.json", {}))
    if found["fresh_accuracy"] and (reviewed_by := files["fresh.json"].get("reviewed_by")):
        found["fresh_accuracy"]["reviewed_by"] = reviewed_by
    for item in filter(None, found.values()):
        if (file := item.get("source", "").partition(",")[0]) in _OF_A_MODEL:
            _mark(item, files[file], model_fingerprint, _of(files.get("rmtrl.json"), "splits"))
    if lineage := files.get("lineage.json"):
        found["lineage"] = {"source": "lineage.json", **lineage}
    return Evidence.from_dict({"schema": SCHEMA, **found})


_OF_A_MODEL = ("audit.json", "calibration.json", "fresh.json", "overoptimization.json")


def _mark(
    item: dict[str, Any], stored: Mapping[str, Any], model_fingerprint: Mapping[str, Any] | None, splits: Any
) -> None:
    """Adds to an item what its file says of model and data."""
    named = stored_fingerprint(stored)
    same = None if named is None or model_fingerprint is None else is_same_model(named, model_fingerprint)
    data = _of(stored, "data", "fingerprint")
    split = [name for name in splits or () if data and _of(splits, name, "fingerprint") == data]
    said = [] if same is not None else ["names no model" if named is None else "model not compared"]
    item["source"] = "; ".join([item["source"], *said, *(f"{name} pairs of the run" for name in split)])
    if same is False:
        item["model"] = OTHER_MODEL
    if "train" in split:
        item["data"] = "train"
    wrong = "of another model" if same is False else "of the training pairs" if "train" in split else ""
    if wrong and "passed" in item:
        item |= {"passed": None, "said": f"no evidence: {wrong}, got {item['said']}"}


def _length_audit(audit: Mapping[str, Any]) -> dict[str, Any] | None:
    if "verdict" not in audit:
        return None
    passed = {ACQUITTED: True, CONVICTED: False}.get(str(audit["verdict"]))  # None: not enough evidence
    reasons = audit["reasons"] if isinstance(audit.get("reasons"), list | tuple) else ()
    return {"passed": passed, "said": "; ".join(map(str, [audit["verdict"], *reasons])), "source": "audit.json"}


def _of(values: Any, *path: str) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _from(source: str, estimate: Any) -> dict[str, Any] | None:
    """Returns the figure of a file; one of another form is refused later, with the figure's name."""
    if estimate is None:
        return None
    return {**(estimate if isinstance(estimate, Mapping) else {"value": estimate}), "source": source}


def _overlap(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns 0 for a finished run of the recipe, which stops where a prompt stands in two splits."""
    if record.get("schema") != "rmtrl/reward-model/1" or not isinstance(record.get("splits"), Mapping):
        return None
    pairs = [_of(split, "pairs") for split in record["splits"].values()]
    n = _of(record, "data", "groups") or sum(count for count in pairs if type(count) is int)
    return {"value": 0, "low": 0, "high": 0, "n": n, "method": "counted", "source": "rmtrl.json"}


def _calibrated(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ECE and NLL gain on a test split, else of cross-fitted calibrators; figures in-sample are none."""
    after, where = calibration.get("test_after"), "test"
    if not after and calibration.get("after_is") == "cross-fitted":
        after, where = calibration.get("after"), "cross-fitted"
    source = f"calibration.json, {where}"
    found = {"ece": _from(source, _of(after, "ece"))}
    if found["ece"] and is_number(null := _of(after, "null_ece", "value")):
        found["ece"]["null_ece"] = round(null, 4)
    if not isinstance(change := calibration.get("nll_change"), Mapping):
        return found
    gain = scaled(_estimate("nll_gain", change), -1)
    found["nll_gain"] = _from(source, asdict(gain))
    worse = {"calibration": WORSENED} if gain.high < 0 else {}
    return {name: item and item | worse for name, item in found.items()}


def _figure(name: str, item: Any) -> Figure:
    if not isinstance(item, Mapping):
        raise DataError(f'the evidence {name} is {item!r}; wanted {{"value", "low", "high", "n"}}')
    own = {field.name for field in fields(Estimate)} | {"source"}
    return Figure(_estimate(name, item), str(item.get("source", "")), {k: v for k, v in item.items() if k not in own})


def _estimate(name: str, item: Mapping[str, Any]) -> Estimate:
    value, n, level = item.get("value"), item.get("n"), item.get("level", 0.95)
    if not is_number(value) or type(n) is not int or not is_number(n) or n < 1:
        raise DataError(f"the evidence {name} has value {value!r} and n {n!r}; wanted a number and a count above 0")
    if not is_number(level) or not 0 < level < 1:
        raise DataError(f"the evidence {name} has the level {level!r}; wanted a number between 0 and 1, such as 0.95")
    value, (least, most) = float(value), KNOWN[name]["range"]  # type: ignore[arg-type]
    if not least <= value <= most:
        wanted = "a share from 0 to 1" if most == 1 else "0 or more"
        raise DataError(f"the evidence {name} is {value:g}; wanted {wanted}")
    if name.endswith("accuracy") and not {"low", "high"} <= set(item):
        interval = binomial_estimate(round(value * n), n, kind="wilson")
        return replace(interval, value=value, low=min(interval.low, value), high=max(interval.high, value))
    ends = [math.nan if item.get(end, "") is None else item.get(end) for end in ("low", "high")]
    if not all(is_number(end) or end != end for end in ends):
        raise DataError(f"the evidence {name} has no interval; wanted low and high beside the value")
    low, high = map(float, ends)  # type: ignore[arg-type]
    if low > value or high < value:
        raise DataError(f"the evidence {name} is {value:g}, outside its interval {low:g} to {high:g}; mend the file")
    if low < least or high > most:
        raise DataError(f"the evidence {name} has the interval {low:g} to {high:g}; wanted {least:g} to {most:g}")
    return Estimate(value, low, high, n, float(level), str(item.get("method", "")))


def _is_untold(item: Any) -> bool:
    """Returns whether an item says why there is no figure, where somebody has looked for one."""
    return isinstance(item, Mapping) and item.get("passed", "") is None


def _finding(name: str, item: Any) -> Finding:
    if not isinstance(item, Mapping) or not isinstance(item.get("passed"), bool | None):
        raise DataError(f'the evidence {name} is {str(item)[:60]}; wanted {{"passed": true or false, "said": "…"}}')
    return Finding(item.get("passed"), str(item.get("said", "")), str(item.get("source", "")))


# ---- lineage


@dataclass(frozen=True)
class Origin:
    """What is known of where a model comes from.

    Args:
        names (`tuple[str, ...]`): Its own names, then those of what it was trained from, youngest first.
        shape (`dict[str, Any]`): Architecture: kind, width, layers, heads.
        vocabulary (`str`): Hash of the tokenizer's vocabulary, tokens added later left out; empty where unknown.
    """

    names: tuple[str, ...]
    shape: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: str = ""


Files = Mapping[str, Mapping[str, Any]]
"""Parsed `config.json`, `adapter_config.json`, `rmtrl.json` and `tokenizer.json` of a model, as far as they exist."""


def origin(name: str, read: Callable[[str], Files], deep: int = 8) -> Origin:
    """Returns the origin of a model from the files beside its weights and those of its ancestors.

    A model says what it was trained from: an adapter's base, the start that its record names, the name in its
    configuration. An adapter has its shape from them.

    Args:
        name (`str`): Folder or hub id.
        read (`Callable[[str], Files]`): Returns the files of a model by its name, none where they cannot be read.
        deep (`int`): Generations to follow.

    Example:

    ```python
    >>> files = {"adapter_config.json": {"base_model_name_or_path": "meta-llama/Llama-3.1-8B"}}
    >>> origin("my/adapter", {"my/adapter": files, "meta-llama/Llama-3.1-8B": {}}.__getitem__).names
    ('my/adapter', 'meta-llama/Llama-3.1-8B')
    ```
    """
    files = read(name)
    record, config = files.get("rmtrl.json", {}), files.get("config.json", {})
    said = (
        files.get("adapter_config.json", {}).get("base_model_name_or_path"),
        (record.get("model") or {}).get("model_name_or_path"),
        config.get("_name_or_path"),
    )
    parents = [str(parent) for parent in said if parent and parent != name]
    config = config.get("text_config") or config  # of models that see pictures too
    shape = {key: config[key] for key in _SHAPE if key in config}
    vocabulary = (files.get("tokenizer.json", {}).get("model") or {}).get("vocab")
    written_as = (record.get("config") or {}).get("output_dir")
    known = str(Path(name).resolve()) if Path(name).is_dir() else name
    names = [known, *([str(written_as)] if written_as else []), *parents]
    for ancestor in (origin(parent, read, deep - 1) for parent in dict.fromkeys(parents) if deep):
        names += ancestor.names
        shape = shape or dict(ancestor.shape)
    return Origin(tuple(dict.fromkeys(names)), shape, _hash(vocabulary) if vocabulary else "")


def _hash(vocabulary: Any) -> str:
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def compare_origins(reward_model: Origin, policy: Origin) -> Finding:
    """Returns whether two models come from the same base; not passed is a warning, and so is what nothing tells.

    A reward model judges best what its own lineage writes: on RewardBench 2
    (https://huggingface.co/papers/2506.01937) those of another lineage than the policy scored well and
    trained it worse.

    They do where one is among the ancestors of the other, or both have an ancestor in common. They do not where their
    architectures or vocabularies differ. Equal shapes under other names prove nothing: a base and its instruct model
    look alike.

    Args:
        reward_model, policy ([`Origin`]): The two models.

    Example:

    ```python
    >>> compare_origins(Origin(("rm", "llama")), Origin(("sft", "llama"))).passed
    True
    ```
    """
    shared = [name for name in reward_model.names if name in policy.names]
    shapes = {key: (reward_model.shape[key], policy.shape[key]) for key in reward_model.shape if key in policy.shape}
    differing = [f"{key} {one} and {other}" for key, (one, other) in shapes.items() if one != other]
    if reward_model.vocabulary and policy.vocabulary and reward_model.vocabulary != policy.vocabulary:
        differing.append("vocabularies")
    names = f"reward model {reward_model.names[0]} and policy {policy.names[0]}"
    if differing:
        return Finding(False, f"{names} differ in {', '.join(differing)}: train the reward model on the policy's base")
    if shared:
        return Finding(True, f"{names} both come from {shared[0]}")
    return Finding(None, f"{names} name no common base: say what they were trained from")


# ---- the files of a run


# written with the weights, so those of the reward model's own folder; the files of other stages have these names too
_OWN = {"metrics.json": "rmtrl/reward-metrics/1", "rmtrl.json": "rmtrl/reward-model/1"}
_MEASURED = {f"{name}.json": f"rmtrl/{name}/1" for name in ("calibration", "audit", "overoptimization", "fresh")}
_MEASURED |= {"lineage.json": ""}  # a person's own
_ORIGIN = ("config.json", "adapter_config.json", "rmtrl.json", "tokenizer.json")


def gather(run: Path, policy: str | None = None) -> Evidence:
    """Returns the evidence of a file, or of the files in a run's folder and its reward model's.

    Args:
        run (`Path`): File of evidence, folder of a reward model, or folder of a run with it in `rm`.
        policy (`str`, *optional*): Policy to train, whose lineage is compared; the folder `sft` of the run by default.

    Raises:
        DataError: If there is no evidence.
        UsageError: If a policy is given with a file, which states the lineage itself.
    """
    if runs := [] if _holds(run) else [str(own) for own in sorted(run.glob("[!.]*/")) if _holds(own)]:
        raise DataError(f"{run} is a folder of runs; give one of them: {', '.join(runs[:5])}")
    if not run.is_dir():
        stored = read_object(run)
        with placed(str(run)):
            evidence = Evidence.from_dict(stored)
        if policy is None:
            return evidence
        raise UsageError(f"got --policy and the evidence file {run}; state the lineage in the file, or give a folder")
    model = run / "rm" if (run / "rm").is_dir() else run
    looked = [(folder, name) for folder in (run, model) for name in _MEASURED] + [(model, name) for name in _OWN]
    files = {name: _stored(folder / name) for folder, name in looked if (folder / name).is_file()}
    if not files:
        raise DataError(
            f"{run} holds none of {', '.join((*_OWN, *_MEASURED))}; give the folder of a run or of a reward model"
        )
    # hashing the weights takes a while: only where there is something to compare it with
    named = any(stored_fingerprint(stored) for stored in files.values())
    with placed(str(run)):
        evidence = collect(files, model_fingerprint(model) if named else None)
    policy = policy or next((str(path) for path in (run / "sft", model.parent / "sft") if path.is_dir()), None)
    if policy is None:
        return evidence
    lineage = compare_origins(*(origin(name, _files_of) for name in (str(model), policy)))
    return replace(evidence, lineage=replace(lineage, source=policy))


def _stored(path: Path) -> dict[str, Any]:
    """Returns what a file of a run holds; raises where it is of another schema than its name says."""
    stored, wanted = read_object(path), {**_OWN, **_MEASURED}[path.name]
    got = str(stored.get("schema", "none"))
    if wanted and not got.startswith("rmtrl/" if path.name in _OWN else wanted):
        raise DataError(f"{path} has the schema {got}; wanted {wanted}: make it anew, or take it away")
    return stored


def _holds(run: Path) -> bool:
    """Returns whether a folder is a run's or a model's, by what a reward model was measured to be."""
    return any((run / own / name).is_file() for own in ("", "rm") for name in (*_OWN, *_MEASURED))


def _files_of(name: str) -> Files:
    """Returns the files that tell a model's origin, as far as its folder stands on this machine."""
    return {file: read_object(Path(name) / file) for file in _ORIGIN if (Path(name) / file).is_file()}
