"""The `rmtrl` command: one thin function a command; JSON on stdout with `--json`, a table for people without.

Exit code 0: done. 1: the check that was asked for failed. 2: bad usage or input, one line on stderr. 130 and 143:
interrupted, and earlier output is as it was.
"""

import logging
import os
import re
import signal
import sys
from itertools import pairwise
from types import FrameType
from typing import Annotated, Any

import typer

import rmtrl.quiet  # noqa: F401
from rmtrl import __version__
from rmtrl.cli import abtest, annotations, data, evaluation, gate, models, monitoring, reporting, serving, setup
from rmtrl.cli.console import results_alone
from rmtrl.errors import Interrupted, UsageError, exit_on_error, near

SHARED = (["score"], ["evaluate"])
"""Commands whose rows the processes of a launch share."""

PANELS: dict[str, tuple[Any, ...]] = {
    "Data": (data.app, annotations.app),
    "Train": (setup.doctor, setup.recipes),
    "Judge": (
        models.inspect, models.score, evaluation.evaluate, evaluation.calibrate, evaluation.audit, evaluation.overopt,
        gate.fresh, gate.gate, reporting.report,
    ),
    "Use": (models.rerank, models.compare, abtest.app, serving.serve, serving.parity, serving.merge),
    "Watch": (monitoring.guard, monitoring.redteam, monitoring.drift),
}  # fmt: skip
"""Commands in the order of a project, groups of them among the others."""
ELSEWHERE = {
    "train": "recipes copy", "sft": "recipes copy", "ppo": "recipes copy", "benchmark": "evaluate", "predict": "score",
    "best-of-n": "rerank", "calibration": "calibrate", "version": "--version", "help": "--help", "--policy": "--rules",
    "--checkpoint": "--model", "--reward-model": "--model", "--input": "data", "--reference": "--metric",
    "overoptimization": "overopt", "judge": "evaluate", "env": "doctor",
}  # fmt: skip
"""What a command or an option may be looked for as, and is not spelt like."""


class _InOrder(typer.core.TyperGroup):
    """The commands as [`PANELS`] has them, where typer lists groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=list(_named).index)


def _version(asked: bool) -> None:
    if asked:
        print(f"rmtrl {__version__}")
        raise typer.Exit()


_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(cls=_InOrder, no_args_is_help=True, add_completion=False, context_settings=_HELP)


@app.callback()
def _rmtrl(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Reward models you can trust."""


_named: dict[str, Any] = {}
for panel, commands in PANELS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
            _named[str(command.info.name)] = command
        else:
            app.command(rich_help_panel=panel)(command)
            _named[command.__name__] = command
groups = {name: group for name, group in _named.items() if isinstance(group, typer.Typer)}
for registered in (command for group in (app, *groups.values()) for command in group.registered_commands):
    assert registered.callback is not None
    registered.callback = results_alone(registered.callback)


# of click, or of the copy of it that typer carries
_ClickException: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _run() -> int:
    """Returns the exit code of the command; what it cannot take is a [`UsageError`], as any other input error is."""
    n_processes = int(os.environ.get("WORLD_SIZE") or 1)
    if os.environ.get("RANK", "0") != "0":
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: bars are the first process's
    if n_processes > 1:  # read when torch is imported: a lost store is a line of ours, not forty of torch's
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if n_processes > 1 and sys.argv[1:2] not in SHARED:  # they would write the same files at once
        name = " ".join(["rmtrl", *sys.argv[1:2]])
        raise UsageError(f"{name} is for one process and was started in {n_processes}; start it without a launcher")
    try:
        return app(standalone_mode=False, prog_name="rmtrl") or 0
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed
            return 2
        raise UsageError(_said(error)) from error


def _said(error: Any) -> str:
    """Returns an error of the command line in our form: what was got, what was wanted, where to look."""
    context, param = getattr(error, "ctx", None), getattr(error, "param", None)
    options = [name for name in param.opts if name.startswith("-")] if param else []
    given = next((f"{flag} {value}" for flag, value in pairwise(sys.argv) if flag in options), "")
    wanted = (error.message or "").partition(" Did you mean")[0]
    if " is not one of " in wanted:
        choices = wanted.partition(" is not one of ")[2].replace("'", "").split(", ")
        wanted = f"wanted {' or '.join(choices) if len(choices) == 2 else ', '.join(choices)}"
    wanted = re.sub("^.* is not (?=a valid )", "wanted ", wanted).replace("a valid float", "a number")  # typer < 0.29
    wanted = re.sub("^.* is not in the range", "wanted a number", wanted).replace(" x>=", " greater than or equal to ")
    wanted = wanted.split(", unable to")[0].replace("a valid integer", "a whole number").replace("a valid ", "a ")
    wanted = wanted.replace("Input should be a ", "wanted a ").replace("Input should be", "wanted a number")
    if " requires " in wanted and wanted.endswith(" arguments."):
        wanted = f"{wanted.rstrip('.')}, apart by spaces"
    said = f"got {given}; {wanted}" if given and wanted else wanted or str(error.format_message())
    known = [name for own in context.command.params for name in own.opts] if context else []
    if "unexpected extra argument" in wanted and "--model" in known:
        said = f"{said.rstrip('.')}; a model is named with --model"
    if meant := _meant(wanted, context):
        said = f"{said.rstrip('.')}; did you mean {' or '.join(meant)}"
    typed = [name for name in sys.argv[1 : 3 if sys.argv[1:2] and sys.argv[1] in groups else 2] if name[:1] != "-"]
    return f"{said.rstrip('.')}; see {context.command_path if context else ' '.join(['rmtrl', *typed])} --help"


def _meant(wanted: str, context: Any) -> list[str]:
    """Returns the commands or options that an unknown one may stand for, by the line that says so."""
    if not wanted.startswith(("No such option", "No such command")):
        return []
    name, start = wanted.replace("'", "").rstrip(".").split()[-1], ""
    if "option" in wanted:
        flags = [own for param in context.command.params for own in (*param.opts, *param.secondary_opts)]
        known = {own: own if own[0] == "-" else f"{own.upper()} without a flag" for own in flags}
        known |= {other: known[own] for other, own in ELSEWHERE.items() if own in known}
        known = {own.lstrip("-"): said for own, said in known.items()}
    else:
        commands, start = context.command.commands, f"{context.command_path} "
        known = {own: f"{group} {own}" for group, held in commands.items() for own in getattr(held, "commands", ())}
        known |= {own: own for own in commands}
        known |= {other: own for other, own in ELSEWHERE.items() if context.parent is None and other[0] != "-"}
    return list(dict.fromkeys(start + known[own] for own in near(name.lstrip("-"), known)))


def main() -> None:
    """Runs the command line; an input error is one line on stderr and exit code 2, an interruption one line too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    # what runs in the background with its signals ignored goes on ignoring them
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, stop)
    logged = logging.StreamHandler()
    logged.setFormatter(logging.Formatter("rmtrl: warning: %(message)s"))
    logging.getLogger("rmtrl").addHandler(logged)
    try:
        with exit_on_error("rmtrl"):
            raise SystemExit(_run())
    finally:
        logging.getLogger("rmtrl").removeHandler(logged)
        for number, handler in before.items():
            signal.signal(number, handler)
