"""A catalogue entry: what is known about a named data set before it is found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dd.data.sources.content import Arrays, EncodedSet

Constants = tuple[tuple[float, ...], tuple[float, ...]]


ALL_AUGMENTATIONS = "color_crop_cutout_flip_scale_rotate"
DIGIT_AUGMENTATIONS = "color_crop_cutout_scale_rotate"  # no flip: a mirrored digit is not a digit

# Per-channel means and standard deviations, in [0, 1] units, as the dataset-distillation papers use them.
CIFAR10: Constants = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET: Constants = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MNIST: Constants = (0.1307,), (0.3081,)
FASHION: Constants = (0.2861,), (0.3530,)
SVHN: Constants = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)


@dataclass(frozen=True)
class Remote:
    """One file of a download.

    Attributes:
        urls: mirrors of the file, tried in order.
        path: its path below the download folder.
        md5: the published checksum.
        megabytes: approximate size, for display.
        unpacks_to: top folder of the archive, if the file is one.
    """

    urls: tuple[str, ...]
    path: str
    md5: str
    megabytes: float
    unpacks_to: str = ""


@dataclass(frozen=True)
class CatalogueEntry:
    """A named data set.

    Attributes:
        name: its name here.
        description: one line.
        licence: may be "not stated".
        channels: 1 or 3.
        classes: published names in label order; None uses the names that come with the data.
        constants: published per-channel mean and standard deviation, in [0, 1] units.
        augment: DSA strategy that suits it.
        native: format of the published files: "embedded", "idx", "cifar10", "cifar100", "svhn", "tiny" or "imagenet";
            "own" for a plug-in's data set, which `read` reads.
        folders: folders of those files, relative to a folder of data sets.
        marker: a file name or pattern that shows that the files are present.
        parquet: folders in the Hugging Face parquet layout, relative to a folder of data sets.
        hub: names on the Hugging Face Hub.
        remotes: files to download.
        page: where a user can get it, if we may not download it.
        within: the data set that it is a subset of, if any.
        side: height and width of its images in pixels; None if the images differ in size.
        test: names of the splits that may serve as the test part, preferred first, see `split_names`; () for the usual
            ones.
        classes_expected: number of classes of the whole data set; 0 if there are several editions.
        lossless: whether the published images are lossless, so that a JPEG copy deserves a note.
        note: something a user should know about how we treat it.
        read: reads the data set of a plug-in; None for ours.
    """

    name: str
    description: str
    licence: str
    channels: int
    classes: tuple[str, ...] | None
    constants: Constants
    augment: str
    native: str = "own"
    folders: tuple[str, ...] = ()
    marker: str = ""
    parquet: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    remotes: tuple[Remote, ...] = ()
    page: str = ""
    within: str = ""
    side: int | None = None
    test: tuple[str, ...] = ()
    classes_expected: int = 10
    lossless: bool = True
    note: str = ""
    read: "Callable[[], Arrays | EncodedSet] | None" = None

    @property
    def varied(self) -> bool:
        """Whether images differ in size, so that a user must give the size to resize them to."""
        return self.side is None
