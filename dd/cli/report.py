"""`dd report`: runs as one page."""

from dataclasses import dataclass

import click

from dd.cli.common import (
    LENIENT,
    emit,
    examples,
    json_option,
    keys_of,
    log_to_stderr,
    paths_and_settings,
    remark,
    settings,
)
from dd.errors import UsageError
from dd.sizes import readable_size


@click.command(
    "report",
    context_settings=LENIENT,
    epilog=examples(
        "dd report runs/datm/fashion-mini/ipc10/1a2b3c4d-seed0",
        "dd report runs/*/fashion-mini/ipc10/* out=ipc10.html",
        "dd eval set.safetensors --json > set.json && dd report set.safetensors",
    ),
    short_help="Show runs as one HTML page.",
)
@settings
@json_option
def command(settings: tuple[str, ...], as_json: bool) -> None:
    """Write one HTML page about finished runs: images, curves, accuracies with controls, cost, and what produced them.

    Each is the folder of a run, a set with its report beside it (NAME.json of `dd eval NAME.safetensors --json`), or
    such a report.  Several are put side by side; numbers under different conditions are not ranked.  The page is a
    single file that needs no network and runs no script.  out=FILE.html names it; the default is report.html, in the
    folder of a single run or in the current one.  Real images are shown if they are on this machine; dataset=NAME or
    dataset=folder:PATH says where.
    """
    from dd.page import write_page
    from dd.recipes import parse_overrides

    places, words = paths_and_settings(settings)
    wish = keys_of(_PageWish, parse_overrides(words))
    if not places:
        raise UsageError("name the runs: dd report RUN…")
    log_to_stderr()
    done = write_page(places, wish.out or None, dataset=wish.dataset)
    for line in done.remarks:
        remark(f"left out: {line}")
    if as_json:
        emit({"page": str(done.path), "bytes": done.bytes, "remarks": done.remarks})
    else:
        click.echo(f"{done.path}: {readable_size(done.bytes)}")


@dataclass(frozen=True)
class _PageWish:
    """The keys of `dd report`."""

    out: str = ""
    dataset: str = ""
