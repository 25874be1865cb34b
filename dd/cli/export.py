"""`dd export`: a distilled set for other programs."""

import click

from dd.cli.common import LENIENT, emit, examples, json_option, log_to_stderr, remark, settings
from dd.errors import UsageError, unknown
from dd.sizes import readable_size

_KEYS = ("form", "out", "tiles", "dataset", "force")


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
    """Write the set in FILE in a form that other programs read, and say what of it that form cannot hold.

    FILE is a set (.safetensors) or the folder of a run.  form=folder: a PNG file for each image in a folder for each
    class; parquet: as Hugging Face `datasets` writes images; pt: as dataset condensation's loaders read them; npz;
    safetensors: the set itself, with its labels of views.  out=PATH says where, tiles=kept leaves mosaics as they are,
    force=true replaces an earlier export, dataset=PATH names the images of a set of indices that was made elsewhere.
    """
    from dd.recipes import parse_overrides

    if "=" in file:
        raise UsageError(f"name the set first: dd export FILE {file}")
    values = parse_overrides(settings)
    for key in values:
        if key not in _KEYS:
            raise unknown("key", key, _KEYS)
    if "form" not in values:
        raise UsageError("say the form: form=folder, parquet, pt, npz or safetensors")
    log_to_stderr()
    from dd.pipeline.exports import export

    done = export(file, **_checked(values))
    for line in done.lost:
        remark(f"lost: {line}")
    if as_json:
        emit(done.to_dict())
    else:
        click.echo(f"{done.path}: {done.images:,} images, {readable_size(done.bytes)}")


def _checked(values: dict[str, object]) -> dict[str, object]:
    """The settings with their types."""
    for key, value in values.items():
        if key == "force" and not isinstance(value, bool):
            raise UsageError(f"force={value}: say true or false")
        if key == "tiles" and value not in ("decoded", "kept"):
            raise unknown("tiles", str(value), ("decoded", "kept"))
    return {key: value if key == "force" else str(value) for key, value in values.items()}
