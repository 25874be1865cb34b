"""Records of views, for replay="records": what is stored of a view that is not regenerated from its seed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dd.labels.forms import RowType
from dd.views import View, ViewPolicy
from dd.views.dsa import Shape

_NONE = -1  # in the partner or patch of a record: nothing is mixed in


def layout(policy: ViewPolicy) -> RowType:
    """The arrays of one view's record, by name, as (dtype, shape)."""
    kept: RowType = {"place": (torch.int32, ())}  # position in the epoch's order
    if policy.crop is not None:
        kept["box"] = (torch.int16, (4,))
    if policy.flip:
        kept["flip"] = (torch.bool, ())
    if policy.mix != "none":
        kept["partner"] = (torch.int32, ())
    if policy.mix == "cutmix":  # its weight follows from the patch
        kept["patch"] = (torch.int16, (4,))
    if policy.mix == "mixup":
        kept["weight"] = (torch.float64, ())
    return kept


def record(view: View, images: Tensor, start: int) -> dict[str, Tensor]:
    """The records (b, ...) of a batch's views.

    Args:
        view: drawn by a policy without tiles, padding or DSA strategy.
        images: int64 (b,), the images of the views.
        start: position of the first one in the epoch's order.
    """
    b = len(images)
    kept = {"place": torch.arange(start, start + b), "weight": torch.full((b,), view.weight, dtype=torch.float64)}
    kept["partner"] = torch.full((b,), _NONE) if view.partner is None else images[view.partner]
    kept["patch"] = torch.tensor(view.patch or (_NONE,) * 4).repeat(b, 1)
    if view.boxes is not None:
        kept["box"] = view.boxes
    if view.flips is not None:
        kept["flip"] = view.flips
    return kept


def view_of(records: Mapping[str, Tensor], images: Tensor, shape: Shape) -> View:
    """Rebuild the views of a batch of images (b,) from their records (b, ...); `shape` is that of an image."""
    boxes, flips, others = (records.get(name) for name in ("box", "flip", "partner"))
    boxes = None if boxes is None else boxes.long()
    if others is None or int(others[0]) == _NONE:
        return View(boxes=boxes, flips=flips)
    ordered, places = images.sort()
    partner = places[torch.searchsorted(ordered, others.long())]
    if "weight" in records:
        return View(boxes=boxes, flips=flips, partner=partner, weight=float(records["weight"][0]))
    top, left, height, width = records["patch"][0].tolist()
    weight = 1 - height * width / (shape[1] * shape[2])
    return View(boxes=boxes, flips=flips, partner=partner, weight=weight, patch=(top, left, height, width))


def damage(records: Mapping[str, Tensor], batch: int, shape: Shape) -> str:
    """Check the records (n, ...) of an epoch, for a batch size and image shape; returns the fault, or ""."""
    place = records["place"].long()
    n = len(place)
    if not torch.equal(place.sort().values, torch.arange(n)):
        return "its images are not a permutation"
    for name in ("box", "patch"):
        if name in records and not _inside(records[name].long(), shape, allow_none=name == "patch"):
            return f"a {name} is not inside its image"
    if "weight" in records and not bool(((records["weight"] >= 0) & (records["weight"] <= 1)).all()):
        return "a weight is not from 0 to 1"
    if (partner := records.get("partner")) is not None:
        mixed = partner != _NONE
        known = (partner >= 0) & (partner < n)
        together = place[partner.long().clamp(0, n - 1)] // batch == place // batch
        if not bool((~mixed | (known & together)).all()):
            return "an image is mixed with one from another batch"
    return ""


def _inside(boxes: Tensor, shape: Shape, allow_none: bool) -> bool:
    begin, size = boxes[:, :2], boxes[:, 2:]
    inside = ((begin >= 0) & (size >= (0 if allow_none else 1)) & (begin + size <= torch.tensor(shape[1:]))).all(1)
    return bool((inside | (boxes == _NONE).all(1) if allow_none else inside).all())
