"""Files of plain tensors: images, usually labels, sometimes a learning rate.

MTT, FTD and TESLA write `images_best.pt` and `labels_best.pt`, DATM also `lr_best.pt`; IDC, DREAM and NCFM write a list
of images and labels in one file; LGM a dict of both; KRR-ST `x_syn.pt` and `y_syn.pt`, representations that networks
regress. Other methods write only images, ordered by class, or numpy files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dd.errors import UsageError
from dd.evaluation.protocols import PROTOCOLS
from dd.exchange.draft import Asked, Draft
from dd.exchange.reader import Reader, Recognised, files_in_words
from dd.exchange.source import ForeignFiles
from dd.exchange.spaces import look
from dd.exchange.targets import kind_of_rows
from dd.exchange.tree import Tree

_TENSORS = ("torch", "npy", "npz")
_BEST = ("images_best", "ema_images_best", "x_syn")  # file names of the trajectory family and of KRR-ST
_KRRST = re.compile(r"[xy]_syn")
_LGM = 256  # side of LGM's images in pixels
_REPRESENTED = "krrst"
_INVERSE = re.compile(r"images_zca_")  # images with the whitening inverted, despite the name


@dataclass(frozen=True, eq=False)
class _Parts:
    """The contents of files by role.

    Attributes:
        images: one tensor, or its parts in order.
        labels: one per image.
        lr: learning rate of students.
        files: the files that were read.
        classes: class names in label order, if stored in the file.
    """

    images: tuple[Tensor, ...]
    labels: Tensor | None
    lr: float | None
    files: tuple[Path, ...]
    classes: tuple[str, ...] = ()

    def all_images(self) -> Tensor:
        return self.images[0] if len(self.images) == 1 else torch.cat(self.images)


class PlainTensors(Reader):
    """Images and labels in separate files, or together in a dict."""

    formats: ClassVar[dict[str, str]] = {
        "mtt": "MTT, FTD: images and class ids",
        "tesla": "TESLA: images and a teacher's probabilities",
        "datm": "DATM: images, logits, a learning rate",
        "lgm": "LGM: 256 pixels, from 0 to 1",
        _REPRESENTED: "KRR-ST: images and the representations that networks regress",
        "tensors": "images alone, or with labels of no known format",
    }

    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """See `Reader`."""
        parts = _parts(source)
        if parts is None:
            return ()
        shapes = " and ".join(str(tuple(images.shape)) for images in parts.images[:2])
        shapes += f" and {len(parts.images) - 2} more" if len(parts.images) > 2 else ""
        images = f"images of shape {shapes}"
        if parts.labels is None:
            return (Recognised("tensors", (f"{images}, no labels",), certain=False),)
        rows = kind_of_rows(parts.labels.flatten() if parts.labels.numel() == len(parts.labels) else parts.labels)
        evidence = [images, f"labels of shape {tuple(parts.labels.shape)}, {rows}"]
        if parts.lr is not None:
            return (Recognised("datm", (*evidence, f"a learning rate, {parts.lr:.3g}")),)
        if _is_lgm(parts):
            return (Recognised("lgm", tuple(evidence)),)
        if len(parts.files) == 1:
            return (Recognised("tensors", tuple(evidence), certain=False),)
        kind = {"hard": "mtt", "probabilities": "tesla", "logits": "datm"}.get(rows, "tensors")
        if rows == "logits":  # representations look alike, but for the names of the files
            named = all(_KRRST.search(path.name) for path in parts.files)
            return Recognised(kind, tuple(evidence), not named), Recognised(_REPRESENTED, tuple(evidence), named)
        return (Recognised(kind, tuple(evidence)),)

    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """See `Reader`."""
        parts = _parts(source)
        assert parts is not None, "they were recognised"
        draft = Draft(
            format=recognised.format,
            images=parts.all_images(),
            labels=parts.labels,
            files=parts.files,
            evidence=recognised.evidence,
            lr=_rate(parts),
            classes=parts.classes,
        )
        if recognised.format == "lgm":
            return [replace(draft, value_space="pixels", family="")]
        if recognised.format == _REPRESENTED:
            return [replace(draft, value_space="network", label_kind="representations", protocol=_regression())]
        if recognised.format == "tensors":
            return [draft]
        inverse = bool(_INVERSE.match(parts.files[0].name))
        assumed = (
            ()
            if recognised.format == "datm"
            else ("plain tensors are taken for those of the trajectory family (protocol= says otherwise)",)
        )
        return [
            replace(
                draft,
                family="mtt",
                value_space="pixels" if inverse else ("normalised", "zca", "pixels"),
                label_kind={"datm": "logits", "tesla": "probabilities"}.get(recognised.format),
                protocol="datm" if recognised.format == "datm" else "mtt",
                assumed=assumed,
            )
        ]


class Lists(Reader):
    """Images and labels in a list: IDC, DREAM and NCFM, whose images are mosaics of tiles."""

    formats: ClassVar[dict[str, str]] = {"idc": "IDC, DREAM, NCFM: pixels, several small images in each"}

    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """See `Reader`."""
        if len(source.paths) != 1 or source.container(source.paths[0]) != "torch":
            return ()
        pair = _listed(source.content(source.paths[0]))
        if pair is None:
            return ()
        return (Recognised("idc", (f"a list of images of shape {tuple(pair[0].shape)} and as many labels",)),)

    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """See `Reader`."""
        pair = _listed(source.content(source.paths[0]))
        assert pair is not None, "it was recognised"
        if asked.factor is None:
            raise UsageError(
                f"{source.paths[0]}: how many small images to a side does each image hold?  The file does not say: "
                "factor=2 (NCFM; IDC and DREAM at up to 64 pixels), factor=3 (IDC and DREAM on ImageNet) or factor=1 "
                "(IDC-I, whose images are whole)"
            )
        order = pair[1].flatten().long().argsort(stable=True)  # NCFM's files are in arbitrary order
        return [
            Draft(
                format=recognised.format,
                images=pair[0][order],
                labels=pair[1].flatten()[order],
                files=source.paths,
                family="idc",
                evidence=recognised.evidence,
                assumed=("scored as NCFM's (protocol= says otherwise)",),
                value_space="pixels",
                factor=asked.factor,
                protocol="ncfm",
            )
        ]


def _listed(found: Tree) -> tuple[Tensor, Tensor] | None:
    if not isinstance(found, Sequence) or isinstance(found, str | bytes) or len(found) != 2:
        return None
    images, labels = found
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor) or images.dim() != 4:
        return None
    return (images, labels) if labels.numel() == len(images) else None


def _regression() -> str:
    """Return the name of KRR-ST's protocol, if there is one."""
    return _REPRESENTED if _REPRESENTED in PROTOCOLS else ""


def _is_lgm(parts: _Parts) -> bool:
    images = parts.images[0]
    return images.dim() == 4 and images.shape[-1] == _LGM and look(images).kind == "pixels"


def _rate(parts: _Parts) -> float | None:
    """Return the learning rate of the files.

    Raises:
        UsageError: the rate is not usable for training.
    """
    if parts.lr is not None and not 0 < parts.lr <= 1000:
        raise UsageError(f"{files_in_words(parts.files)}: its learning rate is {parts.lr:g}; say lr=NUMBER")
    return parts.lr


def _parts(source: ForeignFiles) -> _Parts | None:
    """Return the tensors of the named files and their companions; None if the files have other contents."""
    paths = _with_siblings(source)
    if not paths or any(source.container(path) not in _TENSORS for path in paths):
        return None
    tensors: list[Tensor] = []
    for path in paths:
        found = _tensors(source.content(path))
        if found is None:
            return None
        tensors += found
    parts = _sorted_out(tensors, paths)
    named = [names for path in paths if (names := _classes(source.content(path)))]
    return parts if parts is None or not named else replace(parts, classes=named[0])


def _tensors(found: Tree) -> list[Tensor] | None:
    """Return a tensor, or those of a dict: images, labels (the soft ones if it has both) and a learning rate."""
    if isinstance(found, Tensor):
        return [found]
    if not isinstance(found, Mapping):
        return None
    if len(found) == 1:
        names: list[str | int] = [*found]
    elif "images" in found:
        names = ["images", "soft_label" if "soft_label" in found else "labels", "lr"]
    else:
        return None
    tensors = [found[name] for name in names if name in found]
    plain = [one for one in tensors if isinstance(one, Tensor)]
    return plain if plain and len(plain) == len(tensors) else None


def _classes(found: Tree) -> tuple[str, ...]:
    """Return the class names stored with images."""
    names = found.get("classes") if isinstance(found, Mapping) else None
    if not isinstance(names, Sequence) or isinstance(names, str | bytes):
        return ()
    texts = tuple(one for one in names if isinstance(one, str))
    return texts if len(texts) == len(names) else ()


def _sorted_out(tensors: Sequence[Tensor], paths: tuple[Path, ...]) -> _Parts | None:
    """Identify images, labels and learning rate by shape."""
    images = [one for one in tensors if one.dim() >= 3]
    rest = [one for one in tensors if one.dim() in (1, 2)]
    rates = [one for one in tensors if one.dim() == 0]
    single = [one for one in rest if one.numel() == 1 and one.dtype.is_floating_point]
    if not rates and len(rest) == 2 and single:  # a rate saved as a list of one number
        rates, rest = single[:1], [one for one in rest if one is not single[0]]
    if not images or len(rest) > 1 or len(rates) > 1 or len({one.shape[1:] for one in images}) > 1:
        return None
    return _Parts(tuple(images), rest[0] if rest else None, float(rates[0]) if rates else None, paths)


def _with_siblings(source: ForeignFiles) -> tuple[Path, ...]:
    """Return the named files; for a single file of images, add the matching ones of labels and learning rate."""
    paths = source.paths
    if source.folder is not None:
        best = [source.folder / f"{name}.pt" for name in _BEST]
        paths = tuple(path for path in best if path.is_file())[:1]
    if len(paths) == 1 and "x_syn" in paths[0].name:
        beside = paths[0].with_name(paths[0].name.replace("x_syn", "y_syn"))
        return (paths[0], beside) if beside.is_file() else paths
    if len(paths) != 1 or "images" not in paths[0].name:
        return _in_order(paths)
    images = paths[0]
    beside = [images.name.replace("images_zca_", "images_").replace("images", word) for word in ("labels", "lr")]
    return (images, *(path for name in beside if (path := images.with_name(name)).is_file()))


def _in_order(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Sort the parts of one set by number, as in `images_best_0.pt` to `images_best_4.pt`."""
    numbered = [re.search(r"_(\d+)\.\w+$", path.name) for path in paths]
    if not all(numbered):
        return paths if not any(numbered) else tuple(sorted(paths, key=lambda path: _number(path)))
    return tuple(sorted(paths, key=_number))


def _number(path: Path) -> int:
    match = re.search(r"_(\d+)\.\w+$", path.name)
    return int(match[1]) if match else -1


READERS = [PlainTensors(), Lists()]
