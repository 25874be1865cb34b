"""The verbs of `dd`, and how a call ends: exit codes, and one line instead of a traceback."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

import dd
from dd.cli.common import STRICT, examples
from dd.errors import Interrupted, RunError, UsageError, close_matches, printable

VERBS = (
    "run",
    "plan",
    "eval",
    "compare",
    "diff",
    "report",
    "sets",
    "pull",
    "push",
    "import",
    "sweep",
    "export",
    "show",
    "methods",
    "recipes",
    "protocols",
    "data",
    "experts",
    "new",
    "doctor",
    "completion",
)
_HINTS = {
    "list": ("methods", "recipes", "protocols", "data", "sets"),
    "buffer": ("experts",),
    "load": ("import", "eval"),
    "download": ("pull",),
    "evaluate": ("eval",),
    "publish": ("push",),
    "distill": ("run",),
    "train": ("run",),
}
_LONGEST = 1500  # maximum length of an error line, which may quote its input
# errors caused by a path that the user gave, rather than by dd
_OF_A_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EROFS)


class Verbs(click.Group):
    """Command group that imports the module of a verb on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of use."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a verb, or None."""
        file = "import_" if cmd_name == "import" else cmd_name  # a word of Python names no module
        return import_module(f"dd.cli.{file}").command if cmd_name in VERBS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Reject an unknown verb, with suggestions."""
        word = args[0]
        if word in VERBS or word.startswith("-"):
            return super().resolve_command(ctx, args)
        if "=" in word:
            raise UsageError(f"write the verb first: dd run {' '.join(args)}")
        meant = _HINTS.get(word.lower()) or close_matches(word, VERBS, cutoff=0.5) or VERBS
        raise UsageError(f"unknown verb {word!r}; did you mean {' or '.join(meant)}?  `dd --help` shows what each does")


@click.group(
    cls=Verbs,
    context_settings=STRICT,
    subcommand_metavar="VERB ...",
    epilog=examples("dd run method=datm ipc=10", "dd run method=mtt dataset=cifar10 ipc=1 preset=smoke"),
    invoke_without_command=True,
)
@click.version_option(dd.__version__, prog_name="dd-workbench", message="%(prog)s %(version)s")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Distil image datasets, and evaluate the result against honest references."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run_command_line(args: Sequence[str]) -> int:
    """Run one call and return its exit code; usage and run errors are printed on stderr, as JSON with `--json`."""
    as_json = "--json" in args
    try:
        code = group.main(list(args), prog_name="dd", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _end(error.format_message(), 2, as_json)
    except UsageError as error:
        return _end(str(error), 2, as_json)
    except RunError as error:
        return _end(str(error), 1, as_json)
    except Interrupted as stop:
        return _end(str(stop), stop.exit_code, as_json)
    except (click.Abort, KeyboardInterrupt):
        return _end("interrupted", 130, as_json)
    except BrokenPipeError:  # the reader closed the pipe, as in `dd methods | head -1`
        for stream in (sys.stdout, sys.stderr):  # discard what is still buffered, to avoid a traceback at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1
    except Exception as error:
        return _unexpected(error, as_json)


def _end(message: str, code: int, as_json: bool) -> int:
    if as_json:
        sys.stderr.write(json.dumps({"error": message, "problems": message.splitlines(), "exit_code": code}) + "\n")
        return code
    lines = [_shortened(line, _LONGEST) for line in printable(message).splitlines()] or [""]
    if len(lines) == 1:
        sys.stderr.write(f"dd: {lines[0]}\n")
    else:
        sys.stderr.write(f"dd: {len(lines)} problems\n" + "".join(f"  {line}\n" for line in lines))
    return code


def _unexpected(error: Exception, as_json: bool) -> int:
    if isinstance(error, MemoryError | RuntimeError):
        from dd.runs.memory import asked_for

        if asked := asked_for(error):
            return _end(f"out of memory: {asked}; a smaller batch needs less", 1, as_json)
    if isinstance(error, OSError):
        from dd.io.atomic import no_room

        if words := no_room(error):
            return _end(f"{words} on the disk; free some space, then run the same command", 1, as_json)
        if error.filename is not None and error.errno in _OF_A_PATH:
            return _end(f"{_shortened(str(error.filename))}: {error.strerror}", 2, as_json)
    if not as_json:
        sys.stderr.write(printable("".join(traceback.format_exception(error))))
    if place := _of_a_plug_in(error):
        return _end(f"{type(error).__name__}: {' '.join(str(error).split())}; the error is in {place}", 1, as_json)
    report = "this is a bug in dd: please report it with these lines and the output of `dd doctor`"
    return _end(f"{type(error).__name__}: {' '.join(str(error).split())}; {report}", 1, as_json)


def _of_a_plug_in(error: Exception) -> str:
    """Return where in the code of a method that is not ours an error arose; "" if no such code was running."""
    registry = sys.modules.get("dd.engine.registry")
    files = {str(file) for file in (registry.files() or ())} if registry else set()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else ""


def _shortened(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[: most * 3 // 5]}...{text[3 - most * 2 // 5 :]}"
