"""ImageNet and its named subsets, which are read from a local copy of ImageNet-1K; nothing is ever downloaded."""

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from dd.data.sources.content import EncodedSet
from dd.data.sources.entry import ALL_AUGMENTATIONS, IMAGENET, CatalogueEntry
from dd.data.sources.folder import read_class_folders
from dd.data.sources.parquet import ParquetFiles, read_parquet
from dd.data.sources.split_names import VALIDATION
from dd.errors import UsageError

_VALIDATION = ("val", "validation", "valid")  # folder names, the usual one first
_LICENCE = "ImageNet's terms: non-commercial research"
_PAGE = "https://image-net.org/download-images or https://huggingface.co/datasets/ILSVRC/imagenet-1k"

_WHOLE = CatalogueEntry(
    name="imagenet-1k",
    description="1,000 classes in colour, 1,281,167 + 50,000 images (the validation part is the test part)",
    licence=_LICENCE,
    channels=3,
    classes=None,
    constants=IMAGENET,
    augment=ALL_AUGMENTATIONS,
    native="imagenet",
    folders=("imagenet-1k", "imagenet1k", "imagenet", "ImageNet", "ILSVRC2012"),
    marker="train/n[0-9]*",
    parquet=("imagenet-1k", "imagenet1k", "imagenet", "ImageNet", "ILSVRC2012"),
    hub=("ILSVRC/imagenet-1k", "imagenet-1k"),
    page=_PAGE,
    test=(VALIDATION,),  # the labels of the test part are not public
    classes_expected=1000,
    lossless=False,
)
_LARGE = replace(
    _WHOLE,
    name="imagenet-21k",
    description="the whole of ImageNet, 10,450 to 21,841 classes by edition, up to 14 million images",
    folders=("imagenet-21k", "imagenet21k", "ImageNet21K"),
    parquet=("imagenet-21k", "imagenet21k", "ImageNet21K"),
    hub=(),
    page="https://image-net.org/download-images",
    classes_expected=0,
)


def _subsets() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Description and WordNet ids in label order of every subset, by name."""
    text = files("dd.data.sources").joinpath("imagenet_subsets.toml").read_text(encoding="utf-8")
    return {name: (row["description"], tuple(row["classes"].split())) for name, row in tomllib.loads(text).items()}


def _subset(name: str, description: str, classes: tuple[str, ...]) -> CatalogueEntry:
    described = f"{len(classes)} classes of imagenet-1k: {description}"
    number = len(classes)
    return replace(
        _WHOLE, name=name, description=described, classes=classes, classes_expected=number, within=_WHOLE.name
    )


IMAGENET_ENTRIES = (_WHOLE, _LARGE, *(_subset(name, *row) for name, row in _subsets().items()))


def read_imagenet(entry: CatalogueEntry, folder: Path, parquet: ParquetFiles | None) -> EncodedSet:
    """Read ImageNet or one of its subsets; classes are WordNet ids if the files reveal them.

    Raises:
        UsageError: a class of the subset is missing.
    """
    if parquet:
        known = entry.name != _LARGE.name
        return read_parquet(parquet, sorted_ids() if known else None, only=entry.classes)
    train, test = folder / "train", next((p for name in _VALIDATION if (p := folder / name).is_dir()), None)
    if entry.classes and (missing := [name for name in entry.classes if not (train / name).is_dir()]):
        raise UsageError(f"{train} lacks {len(missing)} classes of {entry.name}: {', '.join(missing[:5])}")
    if test and not any(path.is_dir() for path in test.iterdir()):
        raise UsageError(
            f"the validation images in {test} lie in no class folders, as ILSVRC2012 ships them; sort them into "
            f"{test.name}/WNID/… (torchvision.datasets.ImageNet does so with the published archives)"
        )
    return read_class_folders(folder, train, test, only=entry.classes)


def sorted_ids() -> tuple[str, ...]:
    """WordNet ids of ImageNet-1K in label order, for copies that hold only the numbers."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_names())
