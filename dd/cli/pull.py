"""`dd pull`: fetch a released set."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import LENIENT, emit, examples, flag, json_option, log_to_stderr, remark, settings
from dd.errors import UsageError

if TYPE_CHECKING:
    from dd.released.pull import Pulled

_OWN = ("out", "trust", "force", "from")


@click.command(
    "pull",
    context_settings=LENIENT,
    epilog=examples(
        "dd pull dm/fashion-mini-ipc1",
        "dd pull datadam/cifar10-ipc10 trust=true out=sets/datadam",
        "dd pull hf:USER/NAME dataset=cifar10",
    ),
    short_help="Fetch a released set.",
)
@click.argument("name", type=click.UNPROCESSED)
@settings
@json_option
def command(name: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Fetch and verify the released set NAME (`dd sets` lists them), or hf:USER/NAME[@REVISION][/PATH] from the Hub.

    It is kept in DD_HOME, where `dd eval NAME` finds it without a network; out=FOLDER also copies it to a folder, and
    force=true replaces another set there. trust=true accepts files without a published checksum. from=FILE,… names
    files that you fetched by hand. Options for facts that the files do not state are those of `dd import`:
    dataset=NAME, value_space=, class_order=, labels=, entry=.
    """
    from dd.recipes import parse_overrides

    if "=" in name:
        raise UsageError(f"name the set first: dd pull NAME {name}")
    values = parse_overrides(settings)
    own = {key: values.pop(key, None) for key in _OWN}
    trust, force = (own[key] is not None and flag(key, own[key]) for key in ("trust", "force"))
    log_to_stderr()
    from dd.io import user_path
    from dd.pipeline.evaluation import pull_set
    from dd.released.pull import copied

    by_hand = [user_path(str(one), "from") for one in _several(own["from"])]
    found = pull_set(name, values, trust=trust, by_hand=by_hand)
    path = found.path
    if own["out"] is not None:
        path = copied(found, user_path(str(own["out"]), "out"), force=force)
    _show(found, str(path), as_json)


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else str(value).split(",")


def _show(found: "Pulled", path: str, as_json: bool) -> None:
    measured = [{"path": one.path.name, "size": one.size, "sha256": one.sha256} for one in found.measured]
    if as_json:
        record = None if found.record is None else asdict(found.record)
        emit({"set": path, "record": record, "measured": measured, "remarks": list(found.remarks)})
        return
    for line in found.remarks:
        remark(line)
    for one in measured:
        remark(f"measured here, as no checksum is published: {one['path']}, size {one['size']}, sha256 {one['sha256']}")
    click.echo(path)
