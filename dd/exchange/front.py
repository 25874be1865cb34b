"""`dd.import_sets`: import files of other projects."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dd.errors import UsageError
from dd.exchange.draft import Asked
from dd.exchange.match import Match, Matched
from dd.exchange.readers import drafts
from dd.exchange.source import ForeignFiles
from dd.io import user_path
from dd.io.typed import typed
from dd.sets import DistilledSet


def import_sets(
    paths: str | Path | Sequence[str | Path], *, dataset: str, beside: str | Path | None = None, **said: Any
) -> list[DistilledSet]:
    """Read sets of other projects, check them, and convert them to our value space, as `dd import` does.

    `dd.import_sets("res_DM_CIFAR10_ConvNet_10ipc.pt", dataset="cifar10")` returns one set per experiment in the file;
    `dd.evaluate(sets[0])` scores one under its authors' protocol.

    Args:
        paths: files that belong together, or a folder.
        dataset: the real images that the sets stand for.
        beside: the folder in which the set will be saved, for its labels of views, if the files have any.
        said: options for facts that the files omit or state wrongly: `value_space`, `class_order`, `labels`, `augment`,
            `lr`,
            `factor`, `entry`, `format`, `protocol`, `preprocess`, `size`, `uneven`, `device`; see `dd import --help`.

    Raises:
        UsageError: the files have no known format, are damaged, do not match these images, or need a further option.
    """
    found = matched(paths, {"dataset": dataset, **said})
    if beside is None:
        if any(one.labels for one in found):
            raise UsageError("labels of views go into a folder, that of the set's file: beside=FOLDER")
        return [one.set for one in found]
    folder = user_path(beside, "beside")
    return [one.set if one.labels is None else one.labels(folder) for one in found]


def matched(paths: str | Path | Sequence[str | Path], said: Mapping[str, Any]) -> list[Matched]:
    """Return the sets of `import_sets` with the findings of their checks.

    Raises:
        UsageError: see `import_sets`.
    """
    asked = typed(Asked, {name: value for name, value in said.items() if value is not None}, "")
    named = [paths] if isinstance(paths, str | Path) else list(paths)
    source = ForeignFiles([_local(path) for path in named])
    match = Match(asked)
    return [match.set_of(draft) for draft in drafts(source, asked)]


_HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/([^/?#]+/[^/?#]+)")


def _local(text: str | Path) -> Path:
    """Return a path on this machine.

    Raises:
        UsageError: it is a place on the web; the message says how to fetch it.
    """
    word = str(text)
    if os.path.exists(word) or not (word.startswith("hf:") or "://" in word):
        return user_path(text)
    hub = _HUB.match(word)
    place = f"hf:{hub[1]}" if hub else word if word.startswith("hf:") else ""
    way = f"dd pull {place}" if place else "dd pull NAME for a set of `dd sets`; download any other file first"
    raise UsageError(f"{word} is not a file on this machine; to fetch it: {way}")
