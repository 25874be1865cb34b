"""`dd push`: publish a set."""

from dataclasses import asdict, dataclass
from typing import Any

import click

from dd.cli.common import LENIENT, emit, examples, json_option, keys_of, log_to_stderr, settings
from dd.errors import UsageError
from dd.sizes import readable_size


@click.command(
    "push",
    context_settings=LENIENT,
    epilog=examples(
        "dd push runs/dm/fashion-mini/ipc1/1a2b3c4d-seed0 published",
        "dd push set.safetensors hf:USER/NAME licence=mit",
    ),
    short_help="Publish a set: a folder, or a dataset on the Hugging Face Hub.",
)
@click.argument("file", type=click.UNPROCESSED)
@click.argument("to", type=click.UNPROCESSED)
@settings
@json_option
def command(file: str, to: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Publish the set in FILE to a folder, or to hf:USER/NAME[/PATH], with a card, a preview and a parquet file.

    FILE is a set (.safetensors), the folder of a run, or a released set. The card states how the set was made, the
    scores of the set and its control from the run's report, and what it may leak. licence=NAME is the licence of the
    set; private=true makes a new repository private; force=true replaces another set; dataset=PATH locates the images
    of a set of indices made elsewhere. The token is that of the Hub's client: HF_TOKEN, or `hf auth login`.
    """
    from dd.recipes import parse_overrides

    if "=" in file or "=" in to:
        raise UsageError("name the set and where it goes first: dd push FILE FOLDER, or dd push FILE hf:USER/NAME")
    wish = _wish(parse_overrides(settings))
    log_to_stderr()
    from dd.pipeline.publish import push

    done = push(file, to, **asdict(wish))
    if as_json:
        emit(asdict(done))
        return
    for name, size in done.files.items():
        click.echo(f"{name}, {readable_size(size)}")
    commit = f", commit {done.commit}" if done.commit else ""
    click.echo(f"published: {done.where}{commit}")


@dataclass(frozen=True)
class _Wished:
    """The keys of `dd push`."""

    licence: str = ""
    dataset: str = ""
    private: bool = False
    force: bool = False


def _wish(values: dict[str, Any]) -> _Wished:
    if {"token", "hf_token"} & values.keys():
        raise UsageError(
            "a token cannot be a setting, because other users can see command lines; use HF_TOKEN, or `hf auth login`"
        )
    return keys_of(_Wished, values)
