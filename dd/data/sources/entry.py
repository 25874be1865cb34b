"""What can be known of a data set before it is found: its facts, its places, where to get it."""

from dataclasses import dataclass

Constants = tuple[tuple[float, ...], tuple[float, ...]]

NOT_STATED = "not stated"  # a licence that the publisher does not give

ALL_AUGMENTATIONS = "color_crop_cutout_flip_scale_rotate"
DIGIT_AUGMENTATIONS = "color_crop_cutout_scale_rotate"  # a mirrored digit is no digit

# Means and standard deviations per channel, in [0, 1] units, as this family of papers uses them.
CIFAR10: Constants = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET: Constants = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MNIST: Constants = (0.1307,), (0.3081,)
FASHION: Constants = (0.2861,), (0.3530,)
SVHN: Constants = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)


@dataclass(frozen=True)
class Remote:
    """One file of a download.

    Attributes:
        urls: addresses of the same file, tried in order.
        path: where it goes below the download folder.
        md5: the published checksum.
        megabytes: its size, for people.
        unpacks_to: top folder of the archive, when it is one.
    """

    urls: tuple[str, ...]
    path: str
    md5: str
    megabytes: float
    unpacks_to: str = ""


@dataclass(frozen=True)
class CatalogueEntry:
    """A data set that goes by a name.

    Attributes:
        name: its name here.
        description: one line.
        licence: "not stated" is a value.
        channels: 1 or 3.
        classes: published names in label order; None takes those that come with the data.
        constants: published mean and standard deviation per channel, in [0, 1] units.
        augment: DSA strategy that suits it.
        native: format of the published files: "embedded", "idx", "cifar10", "cifar100", "svhn", "tiny" or "imagenet".
        folders: where those files are, below a folder of data sets.
        marker: a file (or pattern) that tells that they are there.
        parquet: folders with the Hugging Face parquet layout, below a folder of data sets.
        hub: names on the Hugging Face hub.
        remotes: where to get it.
        page: where a user gets it, when we may not download it.
        within: the data set whose files hold it, when it is a part of another one.
        side: height and width of all its images in pixels; None where they differ in size.
        test: the parts that are its test part, in order, by their names in `split_names`; () takes the usual ones.
        classes_expected: number of classes of the whole data set; 0 when there are several editions.
        lossless: the published images are lossless, so that a JPEG copy is worth a note.
        note: something a user should know about what we do with it.
    """

    name: str
    description: str
    licence: str
    channels: int
    classes: tuple[str, ...] | None
    constants: Constants
    augment: str
    native: str
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

    @property
    def varied(self) -> bool:
        """Whether images differ in size, so that a user must say to what they are resized."""
        return self.side is None
