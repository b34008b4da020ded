"""`rmtrl data synthesize`: the embedded world, written out."""

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from rmtrl.cli.console import Json, print_json, print_table
from rmtrl.io import write_json, write_rows


def synthesize(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    prompts: Annotated[int, typer.Option(help="Number of prompts.")] = 15000,
    annotators: Annotated[int, typer.Option(help="Number of simulated annotators, at most 5.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    clean: Annotated[bool, typer.Option(help="Plant no defects; label by the gold score.")] = False,
    as_json: Json = False,
) -> None:
    """Write the embedded world: prompts, responses, annotations, pairs, an evaluation set, gold scores, the truth."""
    from rmtrl.data.provenance import manifest, new_folder
    from rmtrl.data.synthetic.world import make_world

    with new_folder(out, marker="truth.json") as folder:
        world = make_world(prompts, annotators=annotators, seed=seed, clean=clean)
        sets: dict[str, Iterable[Mapping[str, Any]]] = {
            "prompts": world.prompts,
            "responses": world.responses,
            "annotations": chain(world.ratings, world.votes),
            "pairs": world.pairs,
            "evaluation": world.evaluation,
            "gold": world.gold,
        }
        rows = {name: write_rows(folder / f"{name}.jsonl", lines) for name, lines in sets.items()}
        write_json(folder / "truth.json", world.truth)
        settings = {"prompts": prompts, "annotators": annotators, "seed": seed, "clean": clean}
        made = manifest(
            sources=[{"data": "the embedded world of rmtrl", "licence": "Apache-2.0", "authorship": "by program"}],
            steps=[{"command": "rmtrl data synthesize", **settings}],
            seeds={"world": seed},
            files=folder,
            deduplicated="prompts are distinct; near-duplicates are planted" if not clean else "prompts are distinct",
            notes="truth.json lists every planted defect; gold.jsonl holds the gold score of every response",
        )
        write_json(folder / "manifest.json", made)
    if as_json:
        print_json({"schema": "rmtrl/world/1", "out": str(out), **settings, "rows": rows})
    else:
        print_table({**rows, "written to": out})
