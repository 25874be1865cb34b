"""Files of methods written in JAX: FRePo, RCIG, KIP. Images are (n, h, w, c), labels are regression targets."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from dd.errors import UsageError
from dd.exchange.draft import Asked, Draft
from dd.exchange.reader import Reader, Recognised
from dd.exchange.source import ForeignFiles
from dd.exchange.spaces import look
from dd.exchange.tree import Tree

_Prototypes = tuple[str, Tensor, Tensor, str]


class Jax(Reader):
    """`.npz` files of FRePo and KIP, flax checkpoints of FRePo and RCIG."""

    formats: ClassVar[dict[str, str]] = {
        "frepo": "FRePo: whitened images, centred targets",
        "rcig": "RCIG: the same, the moving average of a checkpoint",
        "kip": "KIP: images of a space of their own",
    }

    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """See `Reader`."""
        found = _found(source)
        return () if found is None else (Recognised(found[0], (found[3],)),)

    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """See `Reader`."""
        found = _found(source)
        assert found is not None, "it was recognised"
        kind, images, labels, _ = found
        if images.dim() != 4 or images.shape[3] not in (1, 3) or len(images) != len(labels):
            raise UsageError(
                f"{source.paths[0]}: images of shape {tuple(images.shape)} with labels of {tuple(labels.shape)} are "
                "not (n, h, w, c) with as many labels"
            )
        images = images.permute(0, 3, 1, 2)
        if kind == "kip" and asked.value_space is None and look(images).kind != "pixels":
            raise UsageError(
                f"{source.paths[0]}: KIP centres every image, brings it to unit norm and whitens it; its mean and "
                "norm are not in the file, so nothing leads back to pixels; if these are not KIP's, say value_space="
            )
        whitened = "normalised" if images.shape[1] == 1 else "zca-normalised"
        return [
            Draft(
                format=kind,
                images=images,
                labels=labels,
                files=source.paths,
                family="" if kind == "kip" else "frepo",
                evidence=recognised.evidence,
                value_space="pixels" if kind == "kip" else whitened,
                label_kind="centred" if labels.dim() == 2 else None,
            )
        ]


def _found(source: ForeignFiles) -> _Prototypes | None:
    """Return format, images, labels and evidence."""
    if len(source.paths) != 1:
        return None
    path = source.paths[0]
    kind = source.container(path)
    if kind == "npz":
        return _of_npz(source.content(path))
    return _of_checkpoint(source.content(path)) if kind == "msgpack" else None


def _of_npz(found: Tree) -> _Prototypes | None:
    if not isinstance(found, Mapping):
        return None
    for kind, names in (("frepo", ("image", "label")), ("kip", ("images", "labels"))):
        images, labels = (found.get(name) for name in names)
        if isinstance(images, Tensor) and isinstance(labels, Tensor) and labels.dim() == 2 and labels.shape[1] > 1:
            return kind, images, labels, f"an npz with {names[0]} (n, h, w, c) and {names[1]} (n, k)"
    return None


def _of_checkpoint(found: Tree) -> _Prototypes | None:
    if not isinstance(found, Mapping):
        return None
    for kind, name in (("rcig", "ema_average"), ("frepo", "params")):
        below = _prototypes(found.get(name), 4)
        if below is not None:
            return kind, *below, f"a flax checkpoint with x_proto and y_proto in {name}"
    return None


def _prototypes(found: Tree, depth: int) -> tuple[Tensor, Tensor] | None:
    """Find `x_proto` and `y_proto` anywhere in nested maps."""
    if not isinstance(found, Mapping) or depth == 0:
        return None
    images, labels = found.get("x_proto"), found.get("y_proto")
    if isinstance(images, Tensor) and isinstance(labels, Tensor):
        return images, labels
    return next((one for value in found.values() if (one := _prototypes(value, depth - 1)) is not None), None)


READERS = [Jax()]
