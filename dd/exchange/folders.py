"""Images in one folder per class, on disk or in a zip or tar file.

SRe2L, CDA, CV-DD, EDC, DELT   new000/class000_id000.jpg; EDC also leaves intermediate images, `…_iter0999.jpg`
RDED                           00000/class00000_id00000.jpg
D3HR                           n01440764/0.png, or names that end in the class number
others                         any class names

A number in a folder's name is its class. Its rank among the names is not: `new1000` sorts before `new101`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dd.data.sources.walk import Folder, join, some
from dd.errors import UsageError, printable
from dd.exchange.draft import Asked, Draft
from dd.exchange.encoded import ImageTree, decoded, image_tree
from dd.exchange.export import MARK
from dd.exchange.fkd import ViewFiles, view_files
from dd.exchange.reader import Reader, Recognised
from dd.exchange.source import ForeignFiles

_NUMBERED = re.compile(r"(\D*)(\d+)", re.ASCII)
_WNID = re.compile(r"n\d{8}", re.ASCII)
_SMALLEST_WNID = 1_000_000  # n01440764 is ImageNet's first; smaller numbers are class numbers in its style
_FILE = re.compile(r"class(\d+)_id(\d+)(?:_iter(\d+))?", re.ASCII)
_MARK_BYTES = 16 << 20
_SPLITS = ("train", "training")


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Images by class, in the order of torchvision's `ImageFolder`.

    Attributes:
        format: name of the format.
        paths: paths of the images, relative to the root of their tree.
        labels: int64 (n,).
        classes: names in label order; () if labels are class numbers.
        evidence: the features by which the format was recognised.
        assumed: assumptions that were made.
    """

    format: str
    paths: list[str]
    labels: Tensor
    classes: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


class FolderReader(Reader):
    """Folders of classes."""

    formats: ClassVar[dict[str, str]] = {
        "sre2l": "SRe2L, CDA, CV-DD, EDC: folders new000 of JPEG files",
        "rded": "RDED: folders 00000 of JPEG files",
        "folder": "a folder of images for each class",
        "exported": "what dd export wrote",
    }
    keys: ClassVar[tuple[str, ...]] = ("ipc",)

    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """See `Reader`."""
        parts = _parts(source)
        if parts is None:
            return ()
        images, views = parts
        tree = image_tree(images)
        assert tree is not None, "it has class folders"
        found = class_images(tree, images)
        labels = () if views is None else (f"labels of views in {views.epochs:,} x {views.batches:,} files",)
        return (Recognised(found.format, (*found.evidence, *labels)),)

    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """See `Reader`."""
        parts = _parts(source)
        assert parts is not None, "it was recognised"
        images, views = parts
        tree = image_tree(images)
        assert tree is not None, "it was recognised"
        draft = folder_draft(tree, images, asked)
        if views is None:
            return [draft]
        return [replace(draft, views=views, files=(*draft.files, views.path), evidence=recognised.evidence)]


def _parts(source: ForeignFiles) -> tuple[Path, ViewFiles | None] | None:
    """Return the folder or archive of images and its label files; None if the source is something else."""
    if any(source.container(path) not in ("folder", "other") for path in source.paths) or len(source.paths) > 2:
        return None
    paths = list(source.paths)
    if source.folder is not None and _views(source.folder) is None:  # a folder may contain both
        inner = [path for path in sorted(source.folder.iterdir()) if path.is_dir()]
        if len(inner) == 2 and any(map(_views, inner)):
            paths = inner
    labels = [views for path in paths if (views := _views(path))]
    images = [path for path in paths if _views(path) is None]
    if len(images) != 1 or len(labels) != len(paths) - 1:
        return None
    tree = image_tree(images[0])
    if tree is None or _classes_in(tree.top) is None:
        return None
    return images[0], labels[0] if labels else None


def _views(path: Path) -> ViewFiles | None:
    """Find the label files in a folder, or in its only subfolder."""
    if not path.is_dir():
        return None
    inner = [one for one in path.iterdir() if one.is_dir()]
    return view_files(path) or (view_files(inner[0]) if len(inner) == 1 else None)


def folder_draft(tree: ImageTree, path: Path, asked: Asked) -> Draft:
    """Read the set in a tree of class folders.

    Raises:
        UsageError: see `class_images` and `decoded`; or the number of images contradicts the name.
    """
    found = class_images(tree, path)
    if asked.ipc is not None:
        found = first_of_each(found, asked.ipc, path)
    elif not asked.uneven:
        require_ipc(path, len(found.paths), len(found.labels.unique()))
    draft = Draft(
        format=found.format,
        images=decoded(tree.items(found.paths), str(path), asked),
        labels=found.labels,
        files=(path,),
        family="folder",
        evidence=found.evidence,
        assumed=(*found.assumed, *tree.notes),
        classes=found.classes,
        protocol=protocol_of(found.format, asked.dataset),
    )
    facts = _mark(tree, path)
    return draft if facts is None else exported(draft, facts)


def class_images(tree: ImageTree, path: Path) -> ClassImages:
    """List the images of a tree by class.

    Raises:
        UsageError: there are no class folders, or their names contradict those of their files.
    """
    top = _classes_in(tree.top)
    if top is None:
        raise UsageError(f"{path}: there are no class folders in it (CLASS/IMAGE.png)")
    folders, assumed = top.filled, list[str]()
    if mark := _mark(tree, path):
        names = [str(name) for name in mark["folders"]]
        if strange := [name for name in folders if name not in names]:
            raise UsageError(f"{path}: {MARK} does not list the folder {printable(strange[0], keep='')}")
        numbers = {name: label for label, name in enumerate(names)}
        return _listed("exported", top, numbers, tuple(map(str, mark["classes"])), (f"{MARK} beside the folders",))
    numbers = _numbers(list(folders))
    if numbers is not None:
        kind = _kind(folders)
        if kind != "folder":
            _require_agreement(folders, numbers, path)
        if min(numbers.values()) == 1 and max(numbers.values()) == len(numbers) and kind == "folder":
            numbers = {name: number - 1 for name, number in numbers.items()}
            assumed.append("folders are numbered from 1, and 1 is taken for the first class")
        first = next(iter(folders))
        evidence = f"{len(folders):,} folders whose names are numbers, like {first}/{_a_file(folders[first])}"
        found = _listed(kind, top, numbers, (), (evidence,), assumed)
        return _without_intermediate(found, path) if kind == "sre2l" else found
    names = sorted(folders)
    what = "WordNet ids" if all(map(_WNID.fullmatch, names)) else "names of classes"
    evidence = f"{len(names):,} folders called by {what}: {some([printable(name, keep='') for name in names])}"
    ranks = {name: rank for rank, name in enumerate(names)}
    return _listed("folder", top, ranks, tuple(names), (evidence,), assumed)


def first_of_each(found: ClassImages, ipc: int, path: Path) -> ClassImages:
    """Return the first `ipc` images of each class by file name, as authors derive smaller sets from larger ones.

    Raises:
        UsageError: a class has fewer.
    """
    kept = list[int]()
    for label in found.labels.unique().tolist():
        places = (found.labels == label).nonzero().flatten().tolist()
        if len(places) < ipc:
            raise UsageError(f"{path}: ipc={ipc}, but a class has {len(places)} images")
        kept += places[:ipc]
    kept.sort()
    left = len(found.paths) - len(kept)
    note = (f"the first {ipc} images of each class by name are taken (ipc={ipc}), {left:,} are left",) if left else ()
    paths, labels = [found.paths[place] for place in kept], found.labels[torch.tensor(kept)]
    return replace(found, paths=paths, labels=labels, assumed=(*found.assumed, *note))


def require_ipc(path: Path, n: int, classes: int) -> None:
    """Check the number of images per class against the name of the set.

    Raises:
        UsageError: they differ.
    """
    for name in (path.name, path.parent.name):
        if said := re.search(r"(?:^|[^a-z])ipc[-_]?(\d+)|(\d+)[-_]?ipc(?:[^a-z]|$)", name.lower()):
            ipc = int(said[1] or said[2])
            if ipc * classes != n:
                raise UsageError(
                    f"{path}: its name says {ipc} images per class, and it holds {n:,} of {classes:,} classes, "
                    f"{n / classes:g} per class; rename it, or say ipc=NUMBER to take so many of each"
                )
            return


def protocol_of(format: str, dataset: str) -> str:
    """Return the name of the evaluation protocol of a format's authors; "" for none."""
    if format == "rded":
        return "rded"
    if format != "sre2l":
        return ""
    return "sre2l-cifar" if dataset.startswith("cifar") else "sre2l-tiny" if dataset == "tiny-imagenet" else "sre2l"


def exported(draft: Draft, facts: Mapping[str, Any]) -> Draft:
    """Complete the draft of an export of `dd export` with the facts recorded in it."""
    protocol, lr, factor = facts.get("protocol"), facts.get("lr"), facts.get("decode_factor", 1)
    name = protocol.get("protocol") if isinstance(protocol, dict) else ""
    rate = float(lr) if isinstance(lr, int | float) and 0 < lr <= 1000 else None
    return replace(
        draft,
        lr=rate,
        factor=factor if isinstance(factor, int) and 1 <= factor <= 16 else 1,
        protocol=name if isinstance(name, str) else "",
    )


def _listed(
    kind: str,
    top: Folder,
    numbers: Mapping[str, int],
    classes: tuple[str, ...],
    evidence: tuple[str, ...],
    assumed: Sequence[str] = (),
) -> ClassImages:
    paths, labels = list[str](), list[int]()
    for name, folder in top.filled.items():  # sorted by name, as in ImageFolder
        found = folder.files()
        paths += found
        labels += [numbers[name]] * len(found)
    return ClassImages(kind, paths, torch.tensor(labels), classes, evidence, tuple(assumed))


def _classes_in(top: Folder) -> Folder | None:
    """Return the folder of the class folders: the root, or a subfolder that contains all images."""
    while not top.images and top.filled:
        inner = list(top.filled.values())
        train = [folder for folder in inner if folder.name.lower() in _SPLITS and folder.filled]
        if train and len(inner) <= 3:  # next to real images for validation
            top = train[0]
        elif len(inner) == 1 and inner[0].filled:
            top = inner[0]
        else:
            return top
    return None


def _numbers(names: Sequence[str]) -> dict[str, int] | None:
    """Return the numbers in the names if all consist of a common word and a number; else None."""
    last = [int(name[-3:]) for name in names if re.fullmatch(r".*\D\d{3}", name, re.ASCII | re.DOTALL)]
    if len(last) == len(names) > 1 and sorted(last) == list(range(len(names))):  # the names of D3HR's CIFAR sets
        return dict(zip(names, last, strict=True))
    found = [_NUMBERED.fullmatch(name) for name in names]
    matches = [match for match in found if match]
    if len(matches) < len(names) or len({match[1] for match in matches}) > 1 or any(len(m[2]) > 9 for m in matches):
        return None
    numbers = {match[0]: int(match[2]) for match in matches}
    if len(set(numbers.values())) < len(numbers):
        return None
    wordnet = all(map(_WNID.fullmatch, names)) and max(numbers.values()) >= _SMALLEST_WNID
    return None if wordnet else numbers


def _kind(folders: Mapping[str, Folder]) -> str:
    """Return the format, judged by the names of folders and files."""
    name, folder = next(iter(folders.items()))
    if not _FILE.fullmatch(_stem(_a_file(folder))):
        return "folder"
    return "sre2l" if name.startswith("new") else "rded" if name.isdecimal() else "folder"


def _require_agreement(folders: Mapping[str, Folder], numbers: Mapping[str, int], path: Path) -> None:
    for name, folder in folders.items():
        for file in folder.images:
            said = _FILE.fullmatch(_stem(file))
            if said is not None and int(said[1]) != numbers[name]:
                raise UsageError(f"{path}: the folder {name} holds {printable(file, keep='')}, of another class")


def _without_intermediate(found: ClassImages, path: Path) -> ClassImages:
    """Remove EDC's intermediate images."""
    said = [_FILE.fullmatch(_stem(name.rsplit("/", 1)[-1])) for name in found.paths]
    kept = [place for place, one in enumerate(said) if one is None or one[3] is None]
    dropped = len(found.paths) - len(kept)
    if not dropped:
        return found
    if not kept:
        raise UsageError(f"{path}: all of its images are of some iteration (…_iter0999.jpg), and none is the last")
    paths, labels = [found.paths[place] for place in kept], found.labels[torch.tensor(kept)]
    note = f"{dropped:,} intermediate images (…_iter….jpg) are left out"
    return replace(found, paths=paths, labels=labels, assumed=(*found.assumed, note))


def _mark(tree: ImageTree, path: Path) -> dict[str, Any] | None:
    """Return the facts that an export recorded in the folder, or None."""
    top = _classes_in(tree.top)
    text = None if top is None or MARK not in top.others else tree.text(join(top.path, MARK), _MARK_BYTES)
    if text is None:
        return None
    try:
        found = json.loads(text)
        folders, classes = found["folders"], found["classes"]
        if len(folders) != len(classes) or len(set(map(str, folders))) < len(folders):
            raise ValueError("as many folders as classes")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: {MARK} is damaged; delete it to read the folders by their names") from error
    return found


def _a_file(folder: Folder) -> str:
    return next(iter(folder.files())).rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


READERS = [FolderReader()]
