"""The report of a run: one HTML page of what its stages left, the verdict first and provenance last.

Nothing is measured here. What stands is read, the gate judges it, and `report.html` lays it out: text is escaped,
plots are part of the page, and nothing is loaded from elsewhere.
"""

import shlex
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from rmtrl import __version__
from rmtrl.data.messages import conversation_text
from rmtrl.data.provenance import is_same_model
from rmtrl.errors import DataError, extra
from rmtrl.evaluation.evidence import gather
from rmtrl.evaluation.fingerprints import model_fingerprint, stored_fingerprint
from rmtrl.evaluation.gate import Decision, Reason, Thresholds, judge
from rmtrl.evaluation.scoring import TESTED, WORST
from rmtrl.io import read_object, read_sound_rows, replacing
from rmtrl.reporting.tables import cell, label, table

FILE = "report.html"
_UNSEEN = [*range(9), 11, 12, *range(14, 32), *range(127, 160), 0x61C, 0x200E, 0x200F]
_UNSEEN += [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SEEN = {code: f"\\u{code:04x}" for code in _UNSEEN}  # controls, and what turns the direction of text
_PARTS = {"guards": "guard", "drift": "drift"}  # of monitor.json, results of their own


@dataclass(frozen=True)
class Result:
    """A result that stands in a run: the name of its file, from the run's folder, and what that holds."""

    place: str
    stored: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What stands in the folder of a run.

    Args:
        folder (`Path`): The run's, or that of a reward model alone.
        results (`dict[str, list[Result]]`): By kind: `"audit"` has those of the schema `rmtrl/audit/1`.
        plots (`dict[str, list[str]]`): Pictures as data URIs, by the name of their file.
        wrong (`list[dict]`, *optional*): The pairs that the model gets most wrong, in text; None where no file says.
        decision ([`~rmtrl.evaluation.gate.Decision`]): The gate's.
    """

    folder: Path
    results: Mapping[str, list[Result]]
    plots: Mapping[str, list[str]]
    wrong: list[dict[str, Any]] | None
    decision: Decision

    @property
    def model(self) -> Path:
        """The folder of the reward model."""
        return own if (own := self.folder / "rm").is_dir() else self.folder

    def is_of(self, stored: Mapping[str, Any]) -> bool:
        """Returns whether a result is of the weights that stand here, as far as it says of which it is."""
        named = stored_fingerprint(stored)
        return named is None or is_same_model(named, self._fingerprint) is not False

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return model_fingerprint(self.model)

    @cached_property
    def reasons(self) -> dict[str, list[Reason]]:
        """The outcomes of the checks: `passed`, `failed`, `unknown`, and `mind` for what stops nothing."""
        sorted_: dict[str, list[Reason]] = {name: [] for name in ("passed", "failed", "unknown", "mind")}
        for own in self.decision.reasons:
            kind = "unknown" if own.unknown else "failed"
            sorted_["passed" if own.passed else kind if own.stops else "mind"].append(own)
        return sorted_

    @property
    def answer(self) -> str:
        """The verdict in one line."""
        n, failed = len(self.decision.reasons), len(self.reasons["failed"])
        unknown = [own for own in self.decision.reasons if own.unknown]
        if self.decision.ready or failed:
            return "Ready." if self.decision.ready else f"Not ready: {failed} of {n} checks failed."
        little = " or too little" * any(own.lacking for own in unknown)
        return f"Not ready: {len(unknown)} of {n} checks have no evidence{little}."


def read_run(folder: Path, *, policy: str | None = None, thresholds: Thresholds | None = None) -> Run:
    """Returns what stands in a folder and in the folders in it.

    Args:
        folder (`Path`): Of a run, or of a reward model alone.
        policy (`str`, *optional*): As for [`~rmtrl.evaluation.evidence.gather`].
        thresholds ([`~rmtrl.evaluation.gate.Thresholds`], *optional*): What the gate asks; the package's by default.

    Raises:
        DataError: If no evidence stands there, or a file of ours cannot be read.

    Example:

    ```python
    >>> run = read_run(Path("outputs/tiny"))
    >>> run.results["calibration"][0].place
    'rm/calibration.json'
    ```
    """
    results: dict[str, list[Result]] = defaultdict(list)
    plots: dict[str, list[str]] = defaultdict(list)
    for file in _files(folder, "*.json"):
        text = file.read_bytes()
        if b'"rmtrl/' in text or not text.strip():
            _add(results, Result(str(file.relative_to(folder)), read_object(file)))
    if not results:
        raise DataError(f"{folder} holds no result of rmtrl; give the folder of a run, such as outputs/tiny")
    decision = judge(gather(folder, policy), thresholds)
    for file in [*_files(folder, "*.png"), *_files(folder, "plots/*.png")]:
        plots[file.stem].append(f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}")
    files = list(_files(folder, WORST))
    wrong = [
        _texts(*row, str(file.relative_to(folder)))
        for file in files
        if file.stat().st_size
        for row in read_sound_rows(file)
    ]
    return Run(folder, results, plots, wrong if files else None, decision)


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yields the files of a folder and of those in it, but for what is unfinished."""
    for file in sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")]):
        parts = file.relative_to(folder).parts
        if not any(part.startswith((".", "checkpoint-")) or part.endswith(".partial") for part in parts):
            yield file


def _add(results: dict[str, list[Result]], found: Result) -> None:
    kind = str(found.stored.get("schema")).removeprefix("rmtrl/").partition("/")[0]
    results[kind].append(found)
    for name, own in _PARTS.items() if kind == "monitor" else ():
        results[own].append(Result(found.place, found.stored.get(name) or {}))


def _texts(place: str, row: Mapping[str, Any], file: str) -> dict[str, Any]:
    try:
        texts = {side: conversation_text(row[side]) for side in ("prompt", "chosen", "rejected")}
        return {
            **row,
            "margin": row["scores"][0] - row["scores"][1],
            "domain": str(row["domain"]),
            "file": file,
        } | texts
    except (LookupError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"{place} is no pair with prompt, chosen, rejected, scores and domain; audit anew") from error


def render(template: str, run: Run, **more: Any) -> str:
    """Returns a template of this package, filled with a run; what is text is escaped in a page of HTML.

    Args:
        template (`str`): Name of the file.
        run ([`Run`]): What stands.
        more: Other values of the template.

    Raises:
        UsageError: If jinja2 is missing.
        DataError: If a result is of another form than the template knows.
    """
    with extra("report", "a report"):
        from jinja2 import ChainableUndefined, Environment, UndefinedError
    settings: dict[str, Any] = {"undefined": ChainableUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(autoescape=template.endswith(".html"), **settings)
    environment.finalize = lambda value: value.translate(_SEEN) if isinstance(value, str) else value
    environment.filters |= {"cell": cell, "label": label, "table": table, "pairs": _pairs}
    text = (resources.files(__package__) / template).read_text(encoding="utf-8")
    places = [own.place for kind in run.results.values() for own in kind]
    known = {**vars(run), **run.reasons, "places": dict.fromkeys(places), "answer": run.answer}
    test, again = run.model / TESTED, run.folder.parent / f"{run.folder.resolve().name}-again"
    paths = {
        "folder": run.folder,
        "model": run.model,
        "again": again,
        "test": test if test.is_file() else "TEST_PAIRS",
    }
    known |= {name: shlex.quote(str(path)) for name, path in paths.items()}
    known |= {
        "name": run.folder.resolve().name,
        "root": f"{run.folder.resolve()}/",
        "version": __version__,
        "is_of": run.is_of,
    }
    try:
        return environment.from_string(text).render(known | more)
    except (UndefinedError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise DataError(f"a result in {run.folder} is not of this version's form ({error}); make it anew") from error


def _pairs(values: Any) -> str:
    """Returns names and values in one line; of a split the number of its pairs or prompts."""
    if not isinstance(values, Mapping):
        return ""
    counts = {n: v.get("pairs", v.get("prompts")) if isinstance(v, Mapping) else v for n, v in values.items()}
    return ", ".join(f"{name} {cell(value)}" for name, value in counts.items())


def write_report(run: Run, out: Path | None = None) -> Path:
    """Writes the page of a run, at its root where no other file is named, and returns its path.

    Raises:
        DataError: If it cannot be written.

    Example:

    ```python
    >>> write_report(read_run(Path("outputs/tiny")))
    PosixPath('outputs/tiny/report.html')
    ```
    """
    out, page = out or run.folder / FILE, render(FILE, run)
    with replacing(out) as beside:
        beside.write_text(page, encoding="utf-8", errors="replace")
    return out
