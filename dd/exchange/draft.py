"""The user's options for files to import (`Asked`), and a set as a reader finds it in a file (`Draft`)."""

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
"""The family of methods whose constants and conventions a format follows; "" for none."""


@dataclass(frozen=True)
class Asked:
    """The user's options for files to import; None and "" leave the choice to the contents of the files."""

    dataset: str = ""
    """The real images that the set stands for."""
    value_space: str | None = None
    """The value space of the images, see `dd.exchange.spaces`."""
    class_order: str | tuple[str | int, ...] | None = None
    """The class of each label: "data", "sorted", or a list of names or numbers; see `dd.exchange.order`."""
    labels: str | None = None
    """The kind of labels, see `dd.exchange.targets`."""
    augment: str | None = None
    """DSA strategy for training students; "none" for no augmentation."""
    lr: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Learning rate of students."""
    factor: Annotated[int, Field(ge=1, le=16)] | None = None
    """Tiles per side of every image."""
    entry: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    """The set to read from a file with several, from 0; "all" for all, if a format requires a choice."""
    format: str | None = None
    """Name of the format, if several match."""
    protocol: str | None = None
    """Name of the set's evaluation protocol, see `dd.list_protocols`."""
    teachers: Annotated[str, Field(min_length=1)] | None = None
    """Names of the teachers that label views of the images while students train, separated by commas."""
    preprocess: Literal["standard", "zca", "none"] | None = None
    """Our value space to which images are converted; None for the one nearest to the file's."""
    uneven: bool = False
    """Whether classes may have different numbers of images."""
    ipc: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Images per class: for folders, the number to take from each class; for a picture, the number that it shows."""
    rows: Annotated[int, Field(ge=1, le=10**5)] | None = None
    """Rows of cells of a picture."""
    label: str | None = None
    """The column of labels of a table."""
    size: Annotated[int, Field(ge=1, le=2**14)] | None = None
    """Height and width in pixels to which real images are resized; None for those of the set."""
    device: str | None = None
    """Device for the checks against the real images; None for the CPU."""


@dataclass(frozen=True, eq=False)
class Draft:
    """One set as its authors wrote it, before it is matched with a data set.

    Attributes:
        format: name of the format, such as "dc".
        images: float (n, c, h, w) in the value space of the file; uint8 (n, c, h, w), bytes of pixels; or int64 (n,),
            positions in the original training order.
        labels: as stored in the file, (n,), (n, 1) or (n, k) of any number type; None if there are none.
        files: the files that were read.
        family: the family whose constants and conventions the format follows.
        entry: the set's entry in a file with several; "" if it is the only one.
        evidence: the features by which the format was recognised, one line each.
        assumed: assumptions, one line each, with the key that overrides each.
        stated: scores stated in the file.
        value_space: the value space by a name of `dd.exchange.spaces`, or several candidates among which the values
            decide; () if only the values decide.
        class_order: as in `Asked`, if the format defines it; None for the order of the data set.
        classes: class names in label order, if the format has names (folders); else ().
        label_kind: a name of `dd.exchange.targets`, if the format defines it.
        lr: learning rate of students, if stored in the file.
        factor: tiles per side of every image.
        protocol: name of the authors' evaluation protocol.
        augment: DSA strategy of that protocol; None for the default of the data set.
        data: further settings of the real data, by field of `DataSettings`.
        views: label files of views of the images; images are in the order of `ImageFolder`.
        settings: further fields of the `DistilledSet`.
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
