"""`dd sweep`: run many trials and select the best on held-out images."""

from typing import TYPE_CHECKING

import click

from dd.cli.common import (
    LENIENT,
    console,
    emit,
    examples,
    json_option,
    log_to_stderr,
    plain_table,
    print_table,
    settings,
)
from dd.errors import UsageError

if TYPE_CHECKING:
    from dd.sweeps import Swept

_DIGITS = 4


@click.command(
    "sweep",
    context_settings=LENIENT,
    epilog=examples(
        "dd new sweep method=dm", "dd sweep sweep-dm.yaml trials=20", "dd sweep sweep-dm.yaml trials=20 workers=2"
    ),
    short_help="Search settings by held-out accuracy.",
)
@click.argument("file", type=click.UNPROCESSED)
@settings
@json_option
@click.option("--worker", is_flag=True, hidden=True, help="Run trials without reporting.")
def command(file: str, settings: tuple[str, ...], as_json: bool, worker: bool) -> None:
    """Run the trials of the sweep in FILE (YAML, as W&B's agents read it), then score the winner on test images, once.

    Keys: trials=N, their total number; workers=N, processes on this machine; and settings for all trials, as for
    `dd run`.

    The same command resumes.  Started again, also on other machines with the same folder of runs or in the processes
    of torchrun, it takes part.
    """
    import shlex

    from dd.recipes import parse_overrides

    if "=" in file:
        raise UsageError(f"name the file first: dd sweep FILE {file}")
    words = parse_overrides(settings)
    asked = {key: whole_number(key, words.pop(key)) for key in ("trials", "workers") if key in words}
    log_to_stderr()
    from dd.sweeps import sweep
    from dd.sweeps.local import work

    line = shlex.join(["dd", "sweep", file, *settings])
    if worker:
        work(file, words, trials=asked.get("trials"), command=line)
        return
    swept = sweep(file, words, trials=asked.get("trials"), workers=asked.get("workers", 1), command=line)
    if swept is not None:
        emit(swept.to_dict()) if as_json else show_sweep(swept)


def whole_number(key: str, value: object) -> int:
    """Check a positive number."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**6:
        raise UsageError(f"{key}={value!r} has the wrong type; expected a whole number >= 1")
    return value


def show_sweep(swept: "Swept") -> None:
    """Print the table of trials, and the report of the winner."""
    from dd.cli import show_report

    out = console()
    keys = list(swept.best["settings"])
    table = plain_table("trial", f"{swept.metric} %", *keys, "")
    for row in swept.rows:
        value = "" if row["value"] is None else f"{row['value']:.2f}"
        words = "the best" if row["trial"] == swept.best["trial"] else row.get("why", "")
        state = words or ("" if row["state"] == "complete" else row["state"])
        table.add_row(str(row["trial"] + 1), value, *(_cell(row["settings"].get(key)) for key in keys), state)
    print_table(out, table)
    files = {"sweep": str(swept.folder / "sweep.json"), "picture": str(swept.folder / "sweep.png")}
    show_report.show_report(swept.report, out, {**files, "run": str(swept.run)})


def _cell(value: object) -> str:
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else "" if value is None else str(value)
