"""`dd data`: known data sets, where they are, and whether they are intact."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table
from dd.cli.index import indexed, plug_in_files
from dd.errors import UsageError
from dd.sizes import readable_size

if TYPE_CHECKING:
    from dd.data.check import DataCheck
    from dd.data.sources import SourceInfo
    from dd.io import Json


class _SourceRow(TypedDict):
    """A data set: facts for JSON output and cells for the table."""

    facts: "dict[str, Json]"
    cells: list[str]


class _Data(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise UsageError(f"dd data does not take {args[0]!r}; did you mean: dd data check {args[0]}")
        return super().resolve_command(ctx, args)


@click.group(
    "data",
    cls=_Data,
    context_settings=STRICT,
    epilog=examples("dd data", "dd data check folder:~/flowers"),
    short_help="List or check datasets.",
    invoke_without_command=True,
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the known datasets and where each one was found.

    Use your own images with dataset=folder:PATH (one folder per class), dataset=parquet:PATH or dataset=npz:PATH.
    """
    if ctx.invoked_subcommand is not None:
        return
    sources = indexed("data", _sources, _places)
    if as_json:
        emit({"datasets": [source["facts"] for source in sources]})
        return
    table = plain_table("dataset", "", "where", "size", "licence")
    for source in sources:
        table.add_row(*source["cells"])
    print_table(console(), table)


def _sources() -> list[_SourceRow]:
    from dd.data import list_sources

    return [{"facts": asdict(source), "cells": _cells(source)} for source in list_sources()]


def _cells(source: "SourceInfo") -> list[str]:
    if source.error is not None:
        return [source.name, f"broken: {source.error}", "", "", ""]
    return [source.name, source.description, _where(source), readable_size(source.bytes), source.licence]


def _places() -> list[Path] | None:
    from dd.data.sources.find import places

    others = plug_in_files("dataset")
    return None if others is None else [*places(), *others]


def _where(source: "SourceInfo") -> str:
    if source.where is None:
        absent = "never downloaded, needs an account" if source.page else "downloaded on first use"
        return "" if ":" in source.name else f"not found; {absent}"
    if not source.lacks:
        return source.where
    there = f"{(source.classes or 0) - source.lacks:,} of its {source.classes:,} classes"
    return f"{source.where} ({there})" if source.usable else f"not found; {source.where} has {there}"


@command.command(
    "check",
    context_settings=STRICT,
    epilog=examples("dd data check fashion-mini", "dd data check folder:~/photos data.size=64 --json"),
)
@click.argument("name")
@click.argument("settings", nargs=-1)
@json_option
def data_check(name: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Read every image of a dataset and report classes, counts, size, mean, std and broken files.

    If a run would reject the dataset, the last line says why, and the exit code is 2.

    SETTINGS are the data. keys of a run (data.size, data.depth16, data.classes).
    """
    from dd.data.check import check_data
    from dd.recipes import data_settings, parse_overrides

    found = check_data(name, data_settings(parse_overrides(settings)))
    if as_json:
        emit(found)
    else:
        _show(found)
    if found["problems"]:
        raise UsageError("\n".join(found["problems"]))


def _show(found: "DataCheck") -> None:
    out, side = console(), found["size"]
    shape = f"{found['channels']} x {side} x {side}"
    out.print(f"{found['name']}: {found['classes']} classes of images of {shape}, from {found['where']}")
    for key, text in (("licence", found["licence"]), ("augment", found["augment"]), ("notes", found["notes"])):
        if text:
            out.print(f"{key}: {text}")
    for key, values in (("mean", found["mean"]), ("std", found["std"])):
        out.print(f"{key}: {' '.join(f'{value:.4f}' for value in values)}")
    table = plain_table("class", "training", "test")
    test = found["test"]
    for name, count in found["train"]["per_class"].items():
        table.add_row(name, str(count), str(test["per_class"].get(name, 0)))
    table.add_row("all", str(found["train"]["total"]), str(test["total"]))
    print_table(out, table)
    out.print(f"broken files: {len(found['broken'])}")
    for broken in found["broken"]:
        out.print(f"  {broken['file']}: {broken['reason']}")
