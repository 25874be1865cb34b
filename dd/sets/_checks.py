"""Validity checks of a distilled set.  Each raises a `UsageError` that names the field."""

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from dd.errors import UsageError
from dd.io.typed import one_line, typed, unusual

if TYPE_CHECKING:
    from dd.labels.spec import LabelSpec
    from dd.sets.distilled import DistilledSet

_MAPPINGS = ("space", "protocol", "student", "provenance")
_FINEST = 16  # most tiles per side of an image; published sets have 2 or 3


@dataclass(frozen=True)
class _StandardSpace:
    """Schema of `Standard.spec()`."""

    kind: Literal["standard"]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


@dataclass(frozen=True)
class _ZcaSpace:
    """Schema of `Zca.spec()`."""

    kind: Literal["zca"]
    eps: Annotated[float, Field(gt=0)]
    fitted_on: str


_SPACES = {"standard": _StandardSpace, "zca": _ZcaSpace}


def facts(ds: "DistilledSet") -> None:
    """Check everything but the tensors: kinds are known, fields are consistent and can be written as JSON."""
    from dd.sets.distilled import ImageKind, LabelKind

    _require(ds.image_kind in get_args(ImageKind), "image_kind", f"{ds.image_kind!r} is not a kind of image")
    _require(ds.label_kind in get_args(LabelKind), "label_kind", f"{ds.label_kind!r} is not a kind of label")
    _require(len(ds.classes) > 0, "classes", "it is empty")
    _require(len(set(ds.classes)) == len(ds.classes), "classes", "a name appears twice")
    _space(ds)
    tiles = ds.image_kind == "tiles"
    _require(
        (ds.decode_factor > 1) == tiles and 1 <= ds.decode_factor <= _FINEST,
        "decode_factor",
        f"{ds.decode_factor} does not go with images of kind {ds.image_kind!r} (tiles: 2 to {_FINEST}; others: 1)",
    )
    views = ds.label_kind == "views"
    _require((ds.views is not None) == views, "views", "label_kind 'views' needs it, and no other kind has it")
    if ds.views is not None:
        _views(ds, ds.views.spec)
    written = {name: getattr(ds, name) for name in _MAPPINGS}
    written["views"] = None if ds.views is None else asdict(ds.views)
    for name, value in written.items():
        wrong = [*unusual(value, name)]
        _require(not wrong, name, one_line(wrong))
        try:
            json.dumps(value, default=dict)
        except (TypeError, ValueError, RecursionError) as error:
            raise _error(name, f"it cannot be written as JSON ({error})") from error


def _space(ds: "DistilledSet") -> None:
    _require("kind" in ds.space, "space", "it does not name the images' value space (no 'kind')")
    kind = ds.space["kind"]
    if not isinstance(kind, str) or kind not in _SPACES:
        raise _error("space", f"kind is {str(kind)[:20]!r}; known: {', '.join(_SPACES)}")
    space = typed(_SPACES[kind], ds.space, "space")
    if isinstance(space, _StandardSpace):
        fits = len(space.mean) == len(space.std) > 0
        _require(fits, "space", f"there are {len(space.mean)} means and {len(space.std)} deviations")


def images(ds: "DistilledSet") -> None:
    """Check the shape, dtype and values of the images."""
    x = ds.images
    dims = {"pixels": 4, "tiles": 4, "indices": 1, "schedule": 2}[ds.image_kind]
    _require(x.dim() == dims, "images", f"{ds.image_kind} have {dims} dimensions, not shape {tuple(x.shape)}")
    _require(x.numel() > 0, "images", f"shape {tuple(x.shape)} is empty")
    if dims == 4:
        if x.dtype != torch.uint8:
            _typed(x, torch.float32, "images")
            _require(is_finite(x), "images", "some values are NaN or infinite")
    else:
        _typed(x, torch.int64, "images")
        _require(int(x.min()) >= 0, "images", f"index {int(x.min())} is negative")
        if dims == 1:
            ordered = x.sort().values
            twice = ordered[1:][ordered.diff() == 0].tolist()
            _require(not twice, "images", f"index {twice[0] if twice else ''} appears twice")


def labels(ds: "DistilledSet") -> None:
    """Check the shape, dtype and values of the labels, and that there is one per image."""
    y = ds.labels
    lead = tuple(ds.images.shape) if ds.image_kind == "schedule" else (ds.n,)
    if ds.image_kind == "tiles" and len(y) == ds.n * ds.decode_factor**2:
        lead = (len(y),)
    if ds.label_kind in ("hard", "views"):
        _typed(y, torch.int64, "labels")
        _require(tuple(y.shape) == lead, "labels", f"shape {tuple(y.shape)}, but the images need {lead}")
        low, high = int(y.min()), int(y.max())
        _require(low >= 0, "labels", f"label {low} is negative")
        _require(high < len(ds.classes), "labels", f"label {high} with only {len(ds.classes)} classes")
    else:
        _typed(y, torch.float32, "labels")
        wanted = (*lead, "k" if ds.label_kind == "representations" else len(ds.classes))
        fits = y.dim() == len(wanted) and all(
            have == want for have, want in zip(y.shape, wanted, strict=True) if want != "k"
        )
        _require(fits and y.numel() > 0, "labels", f"shape {tuple(y.shape)}, but the images need {wanted}")
        _require(is_finite(y), "labels", "some values are NaN or infinite")
    if ds.label_kind == "probabilities":
        good = bool((y >= 0).all()) and is_finite(1 / y.sum(-1))
        _require(good, "labels", "some rows are not probabilities: a negative value, or all zeros")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax()  # NaN if any value is; isfinite would take as much memory again
    return math.isfinite(low) and math.isfinite(high)


def _views(ds: "DistilledSet", spec: "LabelSpec") -> None:
    ours = {"n": ds.n, "classes": len(ds.classes), "shape": tuple(ds.images.shape[1:])}
    for name, value in ours.items():
        said = getattr(spec, name)
        _require(said == value, "views", f"its labels are for {name}={said}, but the set has {value}")


def _typed(tensor: Tensor, dtype: torch.dtype, name: str) -> None:
    _require(tensor.dtype == dtype, name, f"they are {tensor.dtype}, but must be {dtype}")


def _require(holds: bool, field: str, otherwise: str) -> None:
    if not holds:
        raise _error(field, otherwise)


def _error(field: str, what: str) -> UsageError:
    return UsageError(f"distilled set, field {field!r}: {what}")
