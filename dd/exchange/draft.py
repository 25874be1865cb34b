"""What is said about a file from elsewhere (`Asked`), and what a reader finds in it (`Draft`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from dd.sets.origin import StatedScore

if TYPE_CHECKING:
    from dd.exchange.fkd import ViewFiles

Family = Literal["dc", "datadam", "mtt", "idc", "frepo", "folder", ""]
"""Whose constants and habits a format follows; "" for nobody's."""


@dataclass(frozen=True)
class Asked:
    """What a user says about files from elsewhere.  None, and "", leave it to what is in them."""

    dataset: str = ""
    """The real images that the set stands for."""
    value_space: str | None = None
    """What numbers the images are: see `dd.exchange.spaces`."""
    class_order: str | tuple[str | int, ...] | None = None
    """Which class each label is: "data", "sorted", or a list of names or numbers; see `dd.exchange.order`."""
    labels: str | None = None
    """What the labels are: see `dd.exchange.targets`."""
    augment: str | None = None
    """DSA strategy that students are shown the set with; "none" for none."""
    lr: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Learning rate of students."""
    factor: Annotated[int, Field(ge=1, le=16)] | None = None
    """Tiles per side of every image."""
    entry: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    """Which set of a file of several, from 0; "all" for all, where a format asks."""
    format: str | None = None
    """The format's name, where several would do."""
    protocol: str | None = None
    """Name of the evaluation protocol that the set is meant for, see `dd.list_protocols`."""
    teachers: Annotated[str, Field(min_length=1)] | None = None
    """Teachers that label the views of the images while students train, by name; several with commas between."""
    preprocess: Literal["standard", "zca", "none"] | None = None
    """Which of our value spaces the images are brought to; None for the nearest to theirs."""
    uneven: bool = False
    """Whether classes may have different numbers of images."""
    ipc: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Images per class: of folders the first so many of each class; of a picture how many there are."""
    rows: Annotated[int, Field(ge=1, le=10**5)] | None = None
    """Rows of cells of a picture."""
    label: str | None = None
    """The column of labels of a table."""
    size: Annotated[int, Field(ge=1, le=2**14)] | None = None
    """Height and width in pixels that the real images are brought to; None for those of the set."""
    device: str | None = None
    """Where the real images go for the checks; None for the CPU."""


@dataclass(frozen=True, eq=False)
class Draft:
    """One set in a file, as its authors wrote it: before it is matched with a data set.

    Attributes:
        format: name of the reader's format, "dc".
        images: float (n, c, h, w) in the space that the file has, or uint8 (n, c, h, w), which are bytes of pixels; or
            int64 (n,), positions in the original training order.
        labels: as they are in the file, (n,), (n, 1) or (n, k) of any number type; None where there are none.
        files: what was read.
        family: whose constants and habits the format follows.
        entry: which set of a file of several; "" where it holds one.
        evidence: what the format was recognised by, one line each.
        assumed: what had to be assumed, one line each, with the key that says otherwise.
        stated: scores in the file.
        value_space: what the format says the images are in words of `dd.exchange.spaces`, or several that it may be,
            between which the values decide; () where only the values say.
        class_order: as in `Asked`, where the format says; None: as the data's.
        classes: names of the labels in their order, where the format has names (folders); () where it has none.
        label_kind: in words of `dd.exchange.targets`, where the format says.
        lr: learning rate of students that the file holds.
        factor: tiles per side of every image.
        protocol: name of the protocol that its authors score it under.
        augment: DSA strategy of that protocol; None for the data set's own.
        data: further settings of the real data, by key of `DataSettings`.
        views: files of the labels of views of the images, which are in the order of `ImageFolder`.
        settings: further fields of the `DistilledSet`, by name.
    """

    format: str
    images: Tensor
    labels: Tensor | None
    files: tuple[Path, ...]
    family: Family = ""
    entry: str = ""
    evidence: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    stated: tuple[StatedScore, ...] = ()
    value_space: str | tuple[str, ...] = ()
    class_order: str | tuple[str | int, ...] | None = None
    classes: tuple[str, ...] = ()
    label_kind: str | None = None
    lr: float | None = None
    factor: int = 1
    protocol: str = ""
    augment: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    views: "ViewFiles | None" = None
    settings: Mapping[str, Any] = field(default_factory=dict)
