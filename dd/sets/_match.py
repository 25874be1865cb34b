"""Check that a distilled set matches real data.  A mismatch raises a `UsageError` with both values."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dd.errors import UsageError

if TYPE_CHECKING:
    from dd.data import RealData
    from dd.sets.distilled import DistilledSet

# tolerance: constants fitted in floating point differ in their last bits between machines
_CLOSE = 1e-6


def classes(ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Require the same class names, in the same order."""
    ours, theirs = tuple(ours), tuple(theirs)
    if ours == theirs:
        return
    if sorted(ours) == sorted(theirs):
        at = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        raise _mismatch(
            "classes",
            f"{ours[at]!r} as label {at}",
            f"{theirs[at]!r} there; the same names in another order, so labels would be wrong",
        )
    if len(ours) != len(theirs):
        raise _mismatch("classes", f"{len(ours)} ({_some(ours)})", f"{len(theirs)} ({_some(theirs)})")
    odd = [name for name in ours if name not in theirs]
    raise _mismatch("classes", _some(odd), _some([name for name in theirs if name not in ours]) + " instead")


def shape(ours: Sequence[int], theirs: Sequence[int]) -> None:
    """Require the same channels, height and width."""
    if ours[0] != theirs[0]:
        raise _mismatch("channels", ours[0], theirs[0])
    if tuple(ours[1:]) != tuple(theirs[1:]):
        raise _mismatch("size", f"{ours[1]}x{ours[2]}", f"{theirs[1]}x{theirs[2]}")


def source(ds: "DistilledSet", data: "RealData") -> None:
    """Require the same data set and split, because a set of indices is meaningless for any other."""
    if ds.source != data.name:
        raise _mismatch("source", repr(ds.source), repr(data.name))
    if ds.source_fingerprint not in ("", data.fingerprint):
        hint = ": its indices count the training images of other files or settings (data.holdout, data.preprocess, …)"
        raise _mismatch("source_fingerprint", ds.source_fingerprint[:12], data.fingerprint[:12] + hint)
    if len(data.train) <= int(ds.images.max()):
        raise _mismatch("images", f"index {int(ds.images.max())}", f"only {len(data.train)} training images")
    if ds.label_kind in ("hard", "views"):
        real = data.train.labels.cpu()[ds.images]
        wrong = int((real != ds.labels).sum())
        if wrong:
            other = f"other classes for {wrong} of the {real.numel()} images at these indices"
            raise _mismatch("labels", "hard ones", other + "; indices and labels are of different orders")


def space(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Require the same value space, up to the last bits of fitted constants."""
    for key in dict.fromkeys((*ours, *theirs)):
        have, want = _plain(ours.get(key)), _plain(theirs.get(key))
        if _same(have, want):
            continue
        hint = f"; open the data with data.preprocess={have}" if key == "kind" else ""
        raise _mismatch(f"space.{key}", _short(have), _short(want) + hint)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return a == b


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _mismatch(field: str, ours: Any, theirs: Any) -> UsageError:
    return UsageError(f"the set does not match the data in {field!r}: the set has {ours}, the data {theirs}")
