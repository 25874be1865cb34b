"""`dd sets`: list the known released sets, and show their cards."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, log_to_stderr, plain_table, print_table
from dd.errors import UsageError
from dd.io.download import without_secrets
from dd.sizes import readable_size

if TYPE_CHECKING:
    from dd.released.record import Released

_WIDE = 240  # columns if there is no terminal


@click.command(
    "sets",
    context_settings=STRICT,
    epilog=examples("dd sets", "dd sets cifar10 ipc10", "dd sets dm/fashion-mini-ipc1"),
    short_help="List or search released sets; show the card of one.",
)
@click.argument("words", nargs=-1, metavar="[NAME | WORD...]")
@json_option
def command(words: tuple[str, ...], as_json: bool) -> None:
    """List the known released sets, or those whose records contain every WORD; show the whole record of a NAME.

    `dd pull NAME` fetches one, `dd eval NAME` scores it.  DD_INDEX names further indexes: files or web addresses,
    separated by commas.
    """
    from dd.released.index import known_sets, search, unknown_set

    log_to_stderr()
    known = known_sets()
    if len(words) == 1 and words[0] in known:
        _card(known[words[0]], as_json)
        return
    found = search(words, known)
    if not found:
        for word in words:
            if not search([word], known):
                raise unknown_set("released set" if len(words) == 1 else "word", word, known)
        raise UsageError(f"no released set has {' and '.join(map(repr, words))}; `dd sets` lists all {len(known)}")
    if as_json:
        emit({"sets": [asdict(record) for record in found]})
        return
    _table(found)


def _table(records: Iterable["Released"]) -> None:
    table = plain_table("set", "reached %", "size", "status", "licence", "labels", "at")
    for record in records:
        size = "" if record.size is None else readable_size(record.size)
        status = "by hand" if record.status != "gone" and not record.where else record.status
        where = record.where[0] if record.where else record.page
        table.add_row(
            record.name,
            record.scores[0].band() if record.scores else "",
            size,
            status,
            record.licence,
            record.labels,
            where,
        )
    print_table(console(wide=_WIDE), table)


def _card(record: "Released", as_json: bool) -> None:
    if as_json:
        emit(asdict(record))
        return
    texts = {key: str(value) for key, value in asdict(record).items() if isinstance(value, str | int) and value}
    texts.pop("name")
    for hidden in ("citation", "note"):
        texts.pop(hidden, None)
    out = console(wide=_WIDE)
    out.print(record.name)
    table = plain_table("", "", show_header=False)
    for key, value in texts.items():
        table.add_row(key.replace("_", " "), value)
    for place in record.where:
        table.add_row("at", without_secrets(place) if "://" in place else place)
    for file in record.files:
        size = "size not stated" if file.size is None else readable_size(file.size)
        table.add_row("file", f"{file.path}, {size}, sha256 {file.sha256 or 'not stated'}")
    for score in record.scores:
        table.add_row("reached", score.in_words())
    if record.note:
        table.add_row("note", record.note)
    print_table(out, table)
    if record.citation:
        out.print(f"\n{record.citation.strip()}")
