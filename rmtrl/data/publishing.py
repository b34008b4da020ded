"""Folders of data as they are published: every set in a file, with what rebuilds it and what it was made from."""

import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset

from rmtrl.data.clusters import with_clusters
from rmtrl.data.provenance import CARD_MARK, fingerprint, manifest, new_folder
from rmtrl.data.splits import check_overlap, group_column, make_splits
from rmtrl.data.synthetic.world import make_world
from rmtrl.errors import DataError, UsageError, placed
from rmtrl.io import read_object, read_sound_rows, write_json, write_row_files, write_rows

_SEALED, _OPENINGS = "sealed.jsonl.gz", "sealed_openings.json"


def publish_splits(
    pairs: Dataset, out: Path, *, source: str, near_duplicates: float | None = None, licence: str = "",
    notes: str = "", **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Returns the record of a folder of splits that it writes: a file a split, `splits.json`, a manifest and a card.

    Args:
        pairs (`Dataset`): Pairs in the normal form.
        out (`Path`): Folder to write; an earlier one of splits is replaced, its openings stay counted.
        source (`str`): Where the pairs are from; a manifest of ours beside that file is carried along.
        near_duplicates (`float`, *optional*): Jaccard index from which prompts count as one; 0.8 where the pairs have
            no `cluster_id`. 0: only equal ids count as one.
        licence, notes (`str`): For the manifest.
        settings: As in [`~rmtrl.data.splits.make_splits`], but `stratify` is `"domain"` or `"none"`, and
            `holdout_domains` is a text with commas between the names.

    Raises:
        DataError, UsageError: As `make_splits` and [`~rmtrl.data.provenance.new_folder`].
    """
    if near_duplicates is None:
        near_duplicates = 0.0 if "cluster_id" in pairs.column_names else 0.8
    grouped = with_clusters(pairs, threshold=near_duplicates) if near_duplicates else pairs
    held = [name for name in settings["holdout_domains"].split(",") if name]
    stratify = None if settings["stratify"] == "none" else settings["stratify"]
    made = make_splits(grouped, **settings | {"stratify": stratify, "holdout_domains": held})
    splits = made.as_dict()
    check_overlap(splits)
    settings |= {"near_duplicates": near_duplicates, "seed": settings.pop("seed")}  # the order decides the bytes
    record: dict[str, Any] = {
        "schema": "rmtrl/splits/1",
        "input": {"rows": len(pairs), "fingerprint": fingerprint(pairs)},
        "settings": settings,
        "grouped_by": group_column(grouped),
        "splits": {
            name: {"file": _file(name), "rows": len(rows), "prompts": len(set(rows["prompt_id"])),
                   "domains": len(set(rows["domain"])), "fingerprint": fingerprint(rows)}
            for name, rows in splits.items()
        },
        "overlap": made.overlap(),
    }  # fmt: skip
    checked = "by the cluster_id given" if record["grouped_by"] == "cluster_id" else "not checked"
    if near_duplicates:
        checked = f"near-duplicates at {near_duplicates} are in one split"
    with new_folder(out, marker="splits.json") as folder:
        for name, rows in splits.items():
            write_rows(folder / _file(name), rows)
        write_json(folder / "splits.json", record)
        (folder / "README.md").write_text(_card(record, out.resolve().name, source, licence, notes), encoding="utf-8")
        written = manifest(
            sources=[{"data": source, "licence": licence, **record["input"]}],
            steps=[{"command": "rmtrl data split", **settings}],
            seeds={"split": settings["seed"]}, files=folder, deduplicated=checked, notes=notes,
            inputs=_manifest_beside(source),
        )  # fmt: skip
        write_json(folder / "manifest.json", written)
        if (out / _OPENINGS).exists():  # what was counted stays counted
            shutil.copy(out / _OPENINGS, folder / _OPENINGS)
    return record


def unseal(folder: Path, out: Path, *, purpose: str) -> dict[str, Any]:
    """Returns the openings of a folder's sealed split, with this one, and writes its pairs.

    Args:
        folder (`Path`): Folder of [`publish_splits`].
        out (`Path`): File for the pairs.
        purpose (`str`): Why it is opened.

    Raises:
        DataError: If there is no sealed split, or it cannot be read or written; then it does not count as opened.
        UsageError: If the purpose is empty.
    """
    if not (folder / _SEALED).exists():
        raise DataError(f"{folder} has no sealed split; make one with rmtrl data split --sealed 0.05")
    if not purpose.strip():
        raise UsageError("got an empty --purpose; say what figure the sealed split is opened for")
    file = folder / _OPENINGS
    before = read_object(file)["openings"] if file.exists() else []
    opening = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "purpose": purpose}
    counted = {"schema": "rmtrl/sealed-openings/1", "openings": [*before, opening]}
    with placed(f"cannot open {folder / _SEALED} into {out}"):  # the count stands before anybody can read the pairs
        write_row_files({file: [counted], out: (row for _, row in read_sound_rows(folder / _SEALED))})
    return counted


def publish_world(
    out: Path, *, prompts: int = 15000, annotators: int = 5, seed: int = 0, clean: bool = False,
    unsafe_habit: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Returns the record of a folder of the embedded world that it writes: a file a set, `truth.json`, a manifest.

    Args:
        out (`Path`): Folder to write; an earlier world is replaced.
        prompts, annotators, seed, clean, unsafe_habit: As in [`~rmtrl.data.synthetic.world.make_world`].
    """
    settings: dict[str, Any] = {"prompts": prompts, "annotators": annotators, "seed": seed, "clean": clean}
    settings |= {"unsafe_habit": unsafe_habit} if unsafe_habit else {}
    with new_folder(out, marker="truth.json") as folder:
        world = make_world(prompts, annotators=annotators, seed=seed, clean=clean, unsafe_habit=unsafe_habit)
        sets: dict[str, Iterable[Mapping[str, Any]]] = {
            "prompts": world.prompts, "responses": world.responses, "annotations": chain(world.ratings, world.votes),
            "pairs": world.pairs, "evaluation": world.evaluation, "gold": world.gold,
        }  # fmt: skip
        rows = {name: write_rows(folder / f"{name}.jsonl", lines) for name, lines in sets.items()}
        write_json(folder / "truth.json", world.truth)
        written = manifest(
            sources=[{"data": "the embedded world of rmtrl", "licence": "Apache-2.0", "authorship": "by program"}],
            steps=[{"command": "rmtrl data synthesize", **settings}],
            seeds={"world": seed}, files=folder,
            deduplicated="prompts are distinct" + ("" if clean else "; near-duplicates are planted"),
            notes="truth.json lists every planted defect; gold.jsonl holds the gold score of every response",
        )  # fmt: skip
        write_json(folder / "manifest.json", written)
    return {"schema": "rmtrl/world/1", "out": str(out), **settings, "rows": rows}


def _card(record: Mapping[str, Any], name: str, source: str, licence: str, notes: str) -> str:
    """Returns the card of a folder of splits: its head names every file but the sealed one to those who load it."""
    from huggingface_hub import DatasetCardData

    splits = record["splits"]
    files = [{"split": key, "path": own["file"]} for key, own in splits.items() if key != "sealed"]
    config = {"config_name": "default", "data_files": files}
    known: dict[str, Any] = {"license": "other", "license_name": licence} if licence else {}
    head = DatasetCardData(pretty_name=name, tags=["preference", "rmtrl"], configs=[config], **known).to_yaml()
    names = ("rows", "prompts", "domains", "fingerprint")
    rows = [["split", *names], ["---"] * 5, *([key, *map(own.get, names)] for key, own in splits.items())]
    sealed = "- `sealed.jsonl.gz` is for one final figure: open it with `rmtrl data unseal`, and do not publish it.\n"
    return (
        f"---\n{head}\n---\n{CARD_MARK}\n\n# {name}\n\nPairs of answers, the preferred one as `chosen`, split by "
        f"`{record['grouped_by']}` so that no prompt, and no near copy of one, stands in two splits.\n\n"
        + "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
        + f"\n- From {source}, {record['input']['rows']:,} pairs, fingerprint `{record['input']['fingerprint']}`.\n"
        "- Choose checkpoints on validation, calibrate on calibration, and report on test alone.\n"
        + sealed * ("sealed" in splits)
        + "- `splits.json` says how they were made, `manifest.json` from what.\n"
        + f"\n{notes}\n" * bool(notes)
    )


def _file(name: str) -> str:
    return _SEALED if name == "sealed" else f"{name}.jsonl"


def _manifest_beside(source: str) -> dict[str, Any] | None:
    """Returns our manifest in the folder of a file; None where there is none, or another program's."""
    file = Path(source).expanduser()
    try:
        found = read_object(file.parent / "manifest.json") if file.is_file() else {}
    except DataError:
        return None
    return found if str(found.get("schema")).startswith("rmtrl/manifest/") else None
