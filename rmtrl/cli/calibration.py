"""`rmtrl calibrate`: what a reward model's scores are worth as probabilities, and the temperature that mends them."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Json, Map, Split, print_json, print_table, read_pairs
from rmtrl.errors import DataError, SplitLeakageError, UsageError
from rmtrl.io import write_json

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray


def calibrate(
    data: Annotated[
        str | None, typer.Argument(help="Calibration pairs (file, folder, hub id); with --scores their prompts.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id of a reward model.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Scores of the pairs, as `rmtrl score` writes them.")] = None,
    test: Annotated[
        str | None, typer.Option(help="Pairs (with --scores: their scores) that the figures are reported on.")
    ] = None,
    test_data: Annotated[str | None, typer.Option(help="Pairs of the --test scores, to know their prompts.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write calibration.json here.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the model here with its temperature in the head's weights.")
    ] = None,
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Fit a temperature and a rising curve on held-out pairs, choose by what holds on unseen prompts, and say so."""
    from rmtrl.calibration.calibration import calibrate as fit
    from rmtrl.calibration.calibration import summary
    from rmtrl.evaluation.fingerprints import model_fingerprint

    if (model is None) == (scores is None):
        raise UsageError("wanted either --model or --scores, and one of them")
    if model is not None and data is None:
        raise UsageError("got --model without pairs to score; name the calibration pairs")
    if export is not None and model is None:
        raise UsageError("got --export without --model; there is no model to export")
    if test_data is not None and (scores is None or test is None):
        raise UsageError("got --test-data, the pairs of test scores, without --scores and --test; name these too")
    named = [data, test if model is not None else test_data]
    pairs = [None if name is None else read_pairs(name, split, columns) for name in named]
    if model is not None:
        _check_overlap([rows["prompt_id"] for rows in pairs if rows is not None])
        sets = _score_all(
            model, [(str(name), rows) for name, rows in zip(named, pairs, strict=True) if rows is not None]
        )
    else:
        files = zip((scores, test), pairs, strict=True)
        sets = [_join(Path(path), rows) for path, rows in files if path is not None]
        _check_overlap([one.prompts for one in sets if one.is_known])
    first = sets[0]
    result = fit(first.chosen, first.rejected, first.prompts, first.domains, labels=first.labels)
    for other in sets[1:]:
        result = result.with_test(other.chosen, other.rejected, other.prompts, labels=other.labels)
    known = {name: one.data for name, one in zip(("calibration", "test"), sets, strict=False)}
    result = result.with_data(known, None if model is None else model_fingerprint(model))
    if out is not None:
        write_json(out, result.as_dict())
    if export is not None:
        from rmtrl.calibration.export import export_temperature

        export_temperature(str(model), export, calibration=result)
    dropped = sum(one.dropped for one in sets)
    if as_json:
        print_json({**result.as_dict(), "model": model, "dropped": dropped})
    else:
        print_table(
            summary(result) | {"pairs without scores": dropped}
            | ({"written to": out} if out else {}) | ({"exported to": export} if export else {})
        )  # fmt: skip
    for warning in (*result.warnings, *_unknown_prompts(sets)):
        print(f"rmtrl: warning: {warning}", file=sys.stderr)


@dataclass(frozen=True)
class _Scored:
    """Scored pairs; `domains` and `labels` are None where nobody knows them."""

    chosen: list[float]
    rejected: list[float]
    prompts: list[str]
    domains: list[str] | None
    labels: list[float] | None
    data: dict[str, Any]
    dropped: int

    @property
    def is_known(self) -> bool:
        """Whether the pairs were named, and with them the prompts."""
        return "fingerprint" in self.data


def _unknown_prompts(sets: Sequence[_Scored]) -> list[str]:
    unknown = [name for name, one in zip(("calibration", "test"), sets, strict=False) if not one.is_known]
    if not unknown:
        return []
    said = f"the pairs of the {' and '.join(unknown)} scores were not named, so each counts as a prompt of its own: "
    said += "intervals may be too small"
    if len(sets) > 1:
        said += ", and prompts in both sets go unseen; name them as DATA and --test-data"
    return [said]


def _check_overlap(prompts: Sequence[Iterable[str]]) -> None:
    shared = set(prompts[0]) & set(prompts[-1]) if len(prompts) > 1 else set()
    if shared:
        raise SplitLeakageError(
            f"{len(shared):,} prompts are in both the calibration and the test pairs; split with rmtrl data split"
        )


def _score_all(model: str, sets: "Sequence[tuple[str, Dataset]]") -> list[_Scored]:
    import numpy as np

    from rmtrl.evaluation.scoring import score_pairs
    from rmtrl.reward.scorer import RewardScorer

    scorer = RewardScorer.from_pretrained(model, progress=False)
    return [_of(name, np.concatenate(list(score_pairs(scorer, pairs, name))), pairs) for name, pairs in sets]


def _join(path: Path, pairs: "Dataset | None") -> _Scored:
    """Returns the scores of a file with what the pairs of the same ids say."""
    from rmtrl.evaluation.scoring import ScoredPairs

    scored = ScoredPairs.of_file(path, pairs)
    return _of(str(path), scored.scores, scored.pairs if scored.named else None, scored.pairs["id"])


def _of(name: str, scores: "NDArray[np.float64]", pairs: "Dataset | None", ids: Sequence[str] = ()) -> _Scored:
    """Returns the pairs that have scores; without pairs each of the ids is a prompt of its own."""
    import numpy as np

    from rmtrl.data.provenance import fingerprint

    whole = np.flatnonzero(np.isfinite(scores).all(axis=1)).tolist()
    if not whole:
        raise DataError(
            f"none of the {len(scores):,} pairs of {name} has scores; they may all be over the model's length"
        )

    def column(key: str) -> list[Any] | None:
        return [pairs[key][i] for i in whole] if pairs is not None and key in pairs.column_names else None

    known = {"name": name, "pairs": len(whole)}
    return _Scored(
        chosen=scores[whole, 0].tolist(),
        rejected=scores[whole, 1].tolist(),
        prompts=column("prompt_id") or [ids[i] for i in whole],
        domains=column("domain"),
        labels=column("preference"),
        data=known | ({"fingerprint": fingerprint(pairs)} if pairs is not None else {}),
        dropped=len(scores) - len(whole),
    )
