"""`rmtrl report`: what a run is worth, on one page."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_outputs, show
from rmtrl.errors import UsageError
from rmtrl.io import read_text


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as outputs/tiny, or of a reward model.")],
    out: Annotated[Path | None, typer.Option(help="Page to write; report.html in the folder by default.")] = None,
    thresholds: Annotated[Path | None, typer.Option(help="YAML file of thresholds, as for `rmtrl gate`.")] = None,
    policy: Annotated[str | None, typer.Option(help="Policy to train, as for `rmtrl gate`.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Write a page of HTML on what a run is worth, verdict first; its reward model gets a card."""
    from rmtrl.evaluation.gate import Thresholds
    from rmtrl.reporting.cards import write_card
    from rmtrl.reporting.report import read_run, write_report

    if out is not None and out.suffix != ".html":
        raise UsageError(f"got --out {out}; wanted a name that ends in .html")
    check_outputs([thresholds], {"--out": out})
    asked = Thresholds.from_yaml(read_text(thresholds)) if thresholds else None
    found = read_run(run, policy=policy, thresholds=asked)
    page, card = write_report(found, out), write_card(found)
    checks = {name: [own.check for own in reasons] for name, reasons in found.reasons.items()}
    results = {kind: [own.place for own in results] for kind, results in found.results.items() if results}
    files = {"out": str(page), "card": card and str(card)}
    whole = {"schema": "rmtrl/report/1", "run": str(run), "ready": found.decision.ready, "checks": checks}
    said: dict[str, Any] = {"verdict": found.answer}
    for kind, name in {"failed": "failed", "unknown": "no evidence", "passed": "passed", "mind": "to mind"}.items():
        why = {own.asks: own.lacking if kind == "unknown" else "" for own in found.reasons[kind]}
        said[name] = [f"{asks} ({lacking})" if lacking else asks for asks, lacking in why.items()]
    show({**whole, "results": results, **files}, as_json, words={**said, **files})
