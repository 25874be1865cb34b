"""`dd export`: write a distilled set for other programs."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import LENIENT, emit, examples, json_option, keys_of, log_to_stderr, remark, settings
from dd.errors import UsageError, unknown
from dd.sizes import readable_size

if TYPE_CHECKING:
    from dd.exchange.contents import Tiles
    from dd.exchange.export import Form


@click.command(
    "export",
    context_settings=LENIENT,
    epilog=examples(
        "dd export set.safetensors form=folder",
        "dd export runs/datm/fashion-mini/ipc10/1a2b3c4d-seed0 form=parquet out=set.parquet",
    ),
    short_help="Write a set for other programs.",
)
@click.argument("file", type=click.UNPROCESSED)
@settings
@json_option
def command(file: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Write the set in FILE in a format of other programs, and report what the format cannot represent.

    FILE is a set (.safetensors) or the folder of a run.  form=folder: one PNG file per image, in one folder per class;
    parquet: images as Hugging Face `datasets` writes them; pt: as the loaders of dataset condensation read it; npz;
    safetensors: the set itself, with its labels of views.  out=PATH sets the target, tiles=kept keeps mosaics of tiles,
    force=true replaces an earlier export, dataset=PATH locates the images of a set of indices made elsewhere.
    """
    from dd.recipes import parse_overrides

    if "=" in file:
        raise UsageError(f"name the set first: dd export FILE {file}")
    wish = _wish(parse_overrides(settings))
    log_to_stderr()
    from dd.pipeline.exports import export

    done = export(file, wish.form, wish.out, tiles=wish.tiles, dataset=wish.dataset, force=wish.force)
    for line in done.lost:
        remark(f"lost: {line}")
    if as_json:
        emit(done.to_dict())
    else:
        click.echo(f"{done.path}: {done.images:,} images, {readable_size(done.bytes)}")


@dataclass(frozen=True)
class _Wish:
    """The keys of `dd export`."""

    form: "Form"
    out: str | None = None
    tiles: "Tiles" = "decoded"
    dataset: str = ""
    force: bool = False


def _wish(values: Mapping[str, Any]) -> _Wish:
    """Validate the settings and return them as a `_Wish`."""
    if "form" not in values and values.keys() <= {one.name for one in fields(_Wish)}:
        raise UsageError("say the form: form=folder, parquet, pt, npz or safetensors")
    wish = keys_of(_Wish, values)
    if wish.tiles not in ("decoded", "kept"):
        raise unknown("tiles", wish.tiles, ("decoded", "kept"))
    return wish
