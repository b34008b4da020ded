"""The arguments and options that several commands take, each declared once."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rmtrl.errors import DataError
from rmtrl.io import read_object

Data = Annotated[str, typer.Argument(help="Pairs: file (jsonl, json, parquet, csv, tsv, also .gz), folder or hub id.")]
Map = Annotated[list[str] | None, typer.Option("--map", help="Rename a column, new=old (chosen=good); repeatable.")]
Split = Annotated[str, typer.Option(help="Split to read, where the data has several.")]
Model = Annotated[str, typer.Option(help="Folder or hub id of a reward model or adapter, or a server's URL.")]
AnyModel = Annotated[
    str | None, typer.Option(help="Folder or hub id of a reward model or adapter, or a server's URL.")
]
Scores = Annotated[Path | None, typer.Option(help="Scores as `rmtrl score` writes them, instead of a model.")]
Rows = Annotated[Path, typer.Option(help="Write the rows here, as jsonl.")]
AnyRows = Annotated[Path | None, typer.Option(help="Write the rows here, as jsonl.")]
Rejects = Annotated[Path | None, typer.Option(help="Write what cannot be used here, with reasons, as jsonl.")]
Strict = Annotated[bool, typer.Option(help="Exit with code 1 if anything is found.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]
RandomSeed = Annotated[int, typer.Option(help="Seed of every draw.", min=0)]
NewTokens = Annotated[int, typer.Option(help="Longest completion to sample, in tokens.", min=1)]
Temperature = Annotated[float, typer.Option(help="Temperature of the sampling.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Numbers = dict[str, float]


def numbers(said: str) -> Any:
    """Returns an option that takes name=number,name=number, or a JSON file of them."""
    wanted = "name=number,name=number or a JSON file of them"

    def parsed(text: str) -> Numbers:
        try:
            if Path(text).is_file():
                return read_object(Path(text))
            if "=" not in text and Path(text).suffix:
                raise typer.BadParameter(f"there is no such file; wanted {wanted}")
            return {name.strip(): float(value) for name, value in (part.rsplit("=", 1) for part in text.split(","))}
        except DataError as error:
            raise typer.BadParameter(str(error)) from error
        except ValueError as error:
            raise typer.BadParameter(f"wanted {wanted}") from error

    return typer.Option(parser=parsed, metavar="NAME=NUMBER,…", help=said)
