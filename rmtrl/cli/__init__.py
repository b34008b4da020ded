"""The `rmtrl` command: one thin function a command; JSON on stdout with `--json`, a table for people without.

Exit code 0: done. 1: the check that was asked for failed. 2: bad usage or input, one line on stderr.
"""

import typer

from rmtrl.cli import data, scoring
from rmtrl.errors import exit_on_error

app = typer.Typer(help="Reward models you can trust.", no_args_is_help=True, add_completion=False)
app.add_typer(data.app, name="data")
app.command()(scoring.inspect)
app.command()(scoring.score)


def main() -> None:
    """Runs the command line; an input error is one line on stderr and exit code 2."""
    with exit_on_error("rmtrl"):
        app()
