"""The value space of a file's images: the meaning of their numbers.

Values of `value_space=` and `Draft.value_space`:

pixels             0 to 1, or slightly beyond
bytes              0 to 255
normalised         (x - mean) / std per channel, with the constants of the format's authors for the data set;
                   `normalised:NAME` with those of NAME, see `NAMED`, or `normalised:ours` with dd's own
zca                whitened pixels: kornia's ZCA on values from 0 to 1 (the trajectory family)
zca-normalised     normalised, then whitened (FRePo, RCIG)
network            the inputs of networks, which stay as they are: no constants are applied (KRR-ST)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dd.data.sources.entry import CIFAR10, FASHION, IMAGENET, MNIST, SVHN, Constants
from dd.errors import UsageError, unknown
from dd.exchange.draft import Draft, Family

SpaceKind = Literal["pixels", "bytes", "normalised", "whitened", "unclear", "any"]

_CIFAR100: Constants = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
NAMED: dict[str, Constants] = {
    "cifar10": CIFAR10,
    "cifar100": _CIFAR100,
    "imagenet": IMAGENET,
    "svhn": SVHN,
    "mnist": MNIST,
    "fashion-mnist": FASHION,
    "frepo-cifar10": (CIFAR10[0], (0.2470, 0.2435, 0.2616)),
    "frepo-tiny": ((0.4759, 0.4481, 0.3926), (0.2763, 0.2687, 0.2813)),
    "frepo-imagenette": ((0.4626, 0.4588, 0.4251), (0.2790, 0.2745, 0.2973)),
    "frepo-imagewoof": ((0.4917, 0.4613, 0.3931), (0.2513, 0.2442, 0.2530)),
    "frepo-imagenet64": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
}
"""Means and deviations per channel in [0, 1] units, as used by the authors of formats."""

_COMMON = {"cifar10": "cifar10", "svhn": "svhn", "mnist": "mnist", "fashion-mnist": "fashion-mnist"}
_COMMON |= {"fashion-mini": "fashion-mnist", "tiny-imagenet": "imagenet"}
_OWN = {"cifar100": "cifar100"}
_FREPO = {
    "cifar10": "frepo-cifar10",
    "cifar100": "cifar100",
    "tiny-imagenet": "frepo-tiny",
    "imagenette": "frepo-imagenette",
    "imagewoof": "frepo-imagewoof",
}
# the trajectory family and IDC's normalise CIFAR-100 with CIFAR-10's constants
_TABLES: dict[Family, dict[str, str]] = {
    "dc": _COMMON | _OWN,
    "datadam": _COMMON | _OWN,
    "mtt": _COMMON | {"cifar100": "cifar10"},
    "idc": _COMMON | {"cifar100": "cifar10"},
    "frepo": _COMMON | _FREPO,
}
KINDS: dict[str, SpaceKind] = {
    "pixels": "pixels",
    "bytes": "bytes",
    "normalised": "normalised",
    "zca": "whitened",
    "zca-normalised": "whitened",
    "network": "any",
}
_SAMPLE = 1 << 20  # maximum number of values inspected
_WHOLE = 1 << 24  # maximum number of values of images inspected whole
_BAND = -0.05, 1.05  # range of unclamped pixels
_TAIL = 1e-3
_DIM, _FLAT = 0.2, 0.1  # pixels exceed one of this mean and deviation: images of unit norm are near zero
# mean and deviation of 1,500 images of CIFAR-10: pixels .477, .249; normalised .02, 1.237; whitened 0, .243; whitened
# after normalising 0, .435; optimised sets deviate from these
_CENTRED, _SPREAD, _NARROW = 0.3, 0.8, 0.6
_ROUGH = 0.5  # correlation of neighbours: real images have .94, ten optimised ones .65, whitened real ones .59 to .64


@dataclass(frozen=True)
class Look:
    """Statistics of the values of images.

    Attributes:
        kind: the value space.
        low: the 0.1 % quantile.
        high: the 99.9 % quantile.
        mean: mean of all values.
        std: standard deviation, averaged over channels.
        smooth: correlation of horizontal neighbours, which whitening removes.
    """

    kind: SpaceKind
    low: float
    high: float
    mean: float
    std: float
    smooth: float = 1.0

    def __str__(self) -> str:
        values = f"values from {self.low:.2f} to {self.high:.2f}, mean {self.mean:.2f}, deviation {self.std:.2f}"
        return f"{values}, neighbours correlated by {self.smooth:.2f}"


def look(images: Tensor) -> Look:
    """Infer the value space of images (n, c, h, w) from a sample of their values."""
    if images.dtype == torch.uint8:
        values = images[:: _every(images)].float()
        return Look("bytes", float(images.min()), float(images.max()), float(values.mean()), float(values.std()))
    flat = images.flatten()
    some = flat[:: max(1, len(flat) // _SAMPLE)].double()
    low, high = (float(some.quantile(q)) for q in (_TAIL, 1 - _TAIL))
    mean, std = float(some.mean()), float(images[:: _every(images)].transpose(0, 1).flatten(1).double().std(1).mean())
    kind: SpaceKind = "unclear"
    if low >= _BAND[0] and high <= _BAND[1] and (mean > _DIM or std > _FLAT):
        kind = "pixels"
    elif low >= 0 and 2 < high <= 255:
        kind = "bytes"
    elif abs(mean) < _CENTRED and std > _SPREAD:
        kind = "normalised"
    elif abs(mean) < _CENTRED and std < _NARROW:
        kind = "whitened"
    return Look(kind, low, high, mean, std, _smoothness(images))


def _every(images: Tensor) -> int:
    """Return the stride over images of a sample of at most about `_WHOLE` values."""
    return max(1, images.numel() // _WHOLE)


def _smoothness(images: Tensor) -> float:
    some = images[: max(1, _SAMPLE // images[0].numel())].double()
    pairs = torch.stack([some[..., :-1].flatten(), some[..., 1:].flatten()])
    return float(torch.corrcoef(pairs)[0, 1].nan_to_num(0)) if pairs.shape[1] > 1 else 1.0


@dataclass(frozen=True)
class ValueSpace:
    """A value space with its constants.

    Attributes:
        word: the value space without constants.
        constants: name of the constants, in `NAMED` or "ours"; "" if there are none.
        assumed: the assumption made, one line; "" for none.
    """

    word: str
    constants: str = ""
    assumed: str = ""


def settle(draft: Draft, dataset: str, said: str | None) -> ValueSpace:
    """Determine the value space of a draft's images from the user's option, the format and the values.

    Raises:
        UsageError: they disagree, or do not suffice; the message names the choices.
    """
    seen = look(draft.images)
    are_bytes = draft.images.dtype == torch.uint8
    if said is not None:
        space = _said(said, draft.family, dataset)
        if are_bytes and space.word not in ("bytes", "pixels"):
            raise UsageError(f"{draft.files[0]}: its images are bytes of pixels, which value_space={said} cannot be")
        return space
    if are_bytes:
        return ValueSpace("bytes")
    if draft.value_space == "network":
        return ValueSpace(
            "network", "", "images are the inputs of networks, to which no constants are applied (value_space=)"
        )
    offered = (draft.value_space,) if isinstance(draft.value_space, str) else draft.value_space
    fitting = [word for word in offered if KINDS[word] == seen.kind]
    if "zca" in offered and fitting == ["normalised"] and seen.smooth < _ROUGH:
        fitting = []  # after long optimisation, whitened images have the range of normalised ones
    if len(fitting) == 1:
        others = " or ".join(word for word in offered if word != fitting[0])
        by_values = f"images are {fitting[0]}, not {others}, by their values: {seen} (value_space= says otherwise)"
        return _with_constants(fitting[0], draft.family, dataset, by_values if others else "")
    if len(offered) == 1 and seen.kind == "unclear":
        by_format = f"images are {offered[0]}, as the format has them; their values do not say ({seen}): value_space="
        return _with_constants(offered[0], draft.family, dataset, by_format)
    if not offered and seen.kind in ("pixels", "bytes", "normalised"):
        return _with_constants(
            seen.kind, draft.family, dataset, f"images are {seen.kind} by their values: {seen} (value_space=)"
        )
    raise _unsettled(draft, seen, offered)


def _unsettled(draft: Draft, seen: Look, offered: tuple[str, ...]) -> UsageError:
    like = "are like none that is known" if seen.kind == "unclear" else f"look {seen.kind}"
    here = f"; a file of format {draft.format} has them {' or '.join(offered)}" if offered else ""
    choices = dict.fromkeys([*offered, *(word for word, kind in KINDS.items() if kind == seen.kind)]) or KINDS
    ways = " or ".join(f"value_space={word}" for word in choices)
    return UsageError(f"{draft.files[0]}: what are the images?  Their {seen}, {like}{here}; say {ways}")


def _said(said: str, family: Family, dataset: str) -> ValueSpace:
    word, colon, named = said.partition(":")
    if word not in KINDS:
        raise unknown("value space", said, KINDS)
    if not colon:
        return _with_constants(word, family, dataset, "")
    if word not in ("normalised", "zca-normalised"):
        raise UsageError(f"value_space={said}: only normalised and zca-normalised have constants")
    if named not in (*NAMED, "ours"):
        raise unknown("constants", named, (*NAMED, "ours"))
    return ValueSpace(word, named)


def _with_constants(word: str, family: Family, dataset: str, assumed: str) -> ValueSpace:
    if word not in ("normalised", "zca-normalised"):
        return ValueSpace(word, "", assumed)
    return ValueSpace(word, constants_of(family, dataset), assumed)


def constants_of(family: Family, dataset: str) -> str:
    """Return the name of the constants with which a family normalises a data set; "ours" if it has none."""
    table: Mapping[str, str] = _TABLES.get(family, {})
    if dataset in table:
        return table[dataset]
    return "imagenet" if family and dataset.startswith("image") else "ours"
