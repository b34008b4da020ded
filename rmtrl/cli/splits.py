"""`rmtrl data split` and `rmtrl data unseal`: leak-free splits published with what rebuilds them."""

import gzip
import shutil
import zlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from rmtrl.cli.console import Data, Json, Map, Split, print_json, print_table, read_pairs
from rmtrl.errors import DataError, UsageError
from rmtrl.io import read_object, replacing, write_json, write_rows

SCHEMA = "rmtrl/splits/1"
_OPENINGS = "sealed_openings.json"


def split(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write: a file a split, splits.json, manifest.json.")],
    ratios: Annotated[
        tuple[float, float, float, float], typer.Option(help="Shares of train, validation, calibration and test.")
    ] = (0.7, 0.1, 0.1, 0.1),
    stratify: Annotated[str, typer.Option(help="`domain`: each in proportion in every split; `none`.")] = "domain",
    holdout_domains: Annotated[str, typer.Option(help="Domains kept out of all splits, as spillover: a,b")] = "",
    sealed: Annotated[float, typer.Option(help="Share set aside, compressed, whose openings are counted.")] = 0.0,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            help="Prompts at least this alike (Jaccard) count as one; 0: only equal ids do. "
            "0.8 where the data has no cluster_id, which else says what counts as one."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed orders the prompts otherwise.")] = 0,
    licence: Annotated[str, typer.Option(help="Licence and limits of use, for the manifest.")] = "",
    notes: Annotated[str, typer.Option(help="Curator's notes, for the manifest.")] = "",
    columns: Map = None,
    from_split: Split = "train",
    as_json: Json = False,
) -> None:
    """Split pairs by prompt, near-duplicates together, and publish the splits with what rebuilds them."""
    from rmtrl.data.clusters import with_clusters
    from rmtrl.data.provenance import fingerprint, manifest, new_folder
    from rmtrl.data.splits import check_overlap, group_column, make_splits

    if stratify not in ("domain", "none"):
        raise UsageError(f"got --stratify {stratify}; wanted domain or none")
    pairs = read_pairs(data, from_split, columns)
    if near_duplicates is None:
        near_duplicates = 0.0 if "cluster_id" in pairs.column_names else 0.8
    grouped = with_clusters(pairs, threshold=near_duplicates) if near_duplicates else pairs
    splits = make_splits(
        grouped,
        ratios=ratios,
        stratify="domain" if stratify == "domain" else None,
        seed=seed,
        sealed=sealed,
        holdout_domains=[name for name in holdout_domains.split(",") if name],
    )
    check_overlap(splits.as_dict())
    settings = {"ratios": list(ratios), "stratify": stratify, "holdout_domains": holdout_domains, "sealed": sealed,
                "near_duplicates": near_duplicates, "seed": seed}  # fmt: skip
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "input": {"rows": len(pairs), "fingerprint": fingerprint(pairs)},
        "settings": settings,
        "grouped_by": group_column(grouped),
        "splits": {
            name: {"file": _file(name), "rows": len(rows), "prompts": len(set(rows["prompt_id"])),
                   "domains": len(set(rows["domain"])), "fingerprint": fingerprint(rows)}
            for name, rows in splits.as_dict().items()
        },
        "overlap": splits.overlap(),
    }  # fmt: skip

    with new_folder(out, marker="splits.json") as folder:
        for name, rows in splits.as_dict().items():
            write_rows(folder / _file(name), rows)
        write_json(folder / "splits.json", record)
        made = manifest(
            sources=[{"data": data, "licence": licence, **record["input"]}],
            steps=[{"command": "rmtrl data split", **settings}],
            seeds={"split": seed},
            files=folder,
            deduplicated=f"near-duplicates at {near_duplicates} are in one split"
            if near_duplicates
            else "by the cluster_id given"
            if record["grouped_by"] == "cluster_id"
            else "not checked",
            notes=notes,
            inputs=_manifest_beside(data),
        )
        write_json(folder / "manifest.json", made)
        if (out / _OPENINGS).exists():  # what was counted stays counted
            shutil.copy(out / _OPENINGS, folder / _OPENINGS)
    if as_json:
        print_json({**record, "out": str(out)})
    else:
        sizes = {
            name: f"{part['rows']:,} rows, {part['prompts']:,} prompts" for name, part in record["splits"].items()
        }
        print_table({**sizes, "overlap": sum(record["overlap"].values()), "written to": out})


def unseal(
    folder: Annotated[Path, typer.Argument(help="Folder written by `rmtrl data split --sealed`.")],
    purpose: Annotated[str, typer.Option(help="Why it is opened; kept with the count.")],
    out: Annotated[Path, typer.Option(help="Write the sealed pairs here, as jsonl.")],
    as_json: Json = False,
) -> None:
    """Open the sealed split for a final figure; every opening is counted and kept with its purpose."""
    sealed, openings_file = folder / _file("sealed"), folder / _OPENINGS
    if not sealed.exists():
        raise DataError(f"{folder} has no sealed split; make one with rmtrl data split --sealed 0.05")
    if not purpose.strip():
        raise UsageError("got an empty --purpose; say what figure the sealed split is opened for")
    openings = read_object(openings_file)["openings"] if openings_file.exists() else []
    openings.append({"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "purpose": purpose})
    with replacing(out) as beside:
        try:
            with gzip.open(sealed, "rb") as source, beside.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot open {sealed} into {out}: {error}") from error
        # counted before anybody can read it
        write_json(openings_file, {"schema": "rmtrl/sealed-openings/1", "openings": openings})
    if as_json:
        print_json({"schema": "rmtrl/sealed-openings/1", "openings": openings, "out": str(out)})
    else:
        print_table({"openings so far": len(openings), "written to": out})


def _file(name: str) -> str:
    return f"{name}.jsonl.gz" if name == "sealed" else f"{name}.jsonl"


def _manifest_beside(data: str) -> dict[str, Any] | None:
    path = Path(data).expanduser().parent / "manifest.json"
    if not Path(data).expanduser().is_file() or not path.is_file():
        return None
    try:
        found = read_object(path)
    except DataError:
        return None  # another program's
    return found if str(found.get("schema")).startswith("rmtrl/manifest/") else None
