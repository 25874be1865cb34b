"""`dd import`: import sets of other projects."""

from typing import TYPE_CHECKING

import click

from dd.cli.common import LENIENT, emit, examples, flag, json_option, log_to_stderr, paths_and_settings, settings
from dd.errors import UsageError

if TYPE_CHECKING:
    from dd.pipeline.imports import Saved

_OWN = ("out", "force")


@click.command(
    "import",
    context_settings=LENIENT,
    epilog=examples(
        "dd import res_DM_CIFAR10_ConvNet_10ipc.pt dataset=cifar10",
        "dd import images_best.pt labels_best.pt lr_best.pt dataset=cifar100",
        "dd import data_10000.pt dataset=cifar10 factor=2",
        "dd import sre2l_in1k_rn18_4k_ipc50.zip FKD_cutmix_fp16 dataset=imagenet-1k size=224",
    ),
    short_help="Make a set of another project's files.",
)
@click.argument("path", type=click.UNPROCESSED)
@settings
@json_option
def command(path: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Import distilled sets of other projects: check them against the real images, and save them as sets of dd.

    PATH... are files that belong together (images, labels, learning rate), or a folder; their contents determine the
    format. dataset=NAME names the real images that they stand for. Options for facts that the files do not state:
    value_space=pixels|bytes|normalised|normalised:NAME|zca|zca-normalised, class_order=data|sorted|A,B,...,
    labels=hard|probabilities|logits|centred|blocks|cycle, lr=X, factor=N (tiles to a side), augment=STRATEGY,
    entry=N|all (one of several sets), format=NAME, protocol=NAME, preprocess=standard|zca, size=PIXELS, uneven=true,
    ipc=N (for a folder, the first N of each class), rows=N (for a picture), label=COLUMN (for a table), teachers=A,B
    (label views while students train).
    out=PATH is the file or folder to write; force=true replaces existing files.
    """
    from dd.recipes import parse_overrides

    paths, words = paths_and_settings((path, *settings))
    if not paths:
        raise UsageError(f"name the files first: dd import PATH {' '.join(words)}")
    said = parse_overrides(words)
    log_to_stderr()
    from dd.pipeline.imports import import_files

    own = {key: said.pop(key) for key in _OWN if key in said}
    if "data.size" in said:
        said["size"] = said.pop("data.size")
    out = str(own["out"]) if "out" in own else None
    saved = import_files(paths, said, out, force=flag("force", own.get("force", False)))
    if as_json:
        emit({"sets": [one.to_dict() for one in saved]})
        return
    for one in saved:
        for line in _lines(one):
            click.echo(line)


def _lines(saved: "Saved") -> list[str]:
    from dd.errors import printable
    from dd.evaluation.table import stated_in_words

    made, origin = saved.set, saved.origin
    entry = f", set {origin.entry} of its file" if origin.entry else ""
    lines = [f"{saved.path}: {made.n:,} {made.image_kind}, {made.label_kind} labels{entry}"]
    lines += [f"  format    {origin.format}: {'; '.join(origin.evidence)}"]
    lines += [f"  assumed   {line}" for line in origin.assumed]
    lines += [f"  checked   {saved.checked}"] if saved.checked else []
    lines += [f"  stated    {stated_in_words(one)} ({one.where})" for one in origin.stated]
    lines += [f"  next      dd eval {saved.path}"]
    return [printable(line) for line in lines]
