"""The catalogue of named data sets: their facts, usual locations and downloads."""

from dataclasses import replace

from dd.data.sources.entry import (
    ALL_AUGMENTATIONS,
    CIFAR10,
    DIGIT_AUGMENTATIONS,
    FASHION,
    IMAGENET,
    MNIST,
    SVHN,
    CatalogueEntry,
    Remote,
)
from dd.data.sources.imagenet import IMAGENET_ENTRIES
from dd.licences import NOT_STATED
from dd.plugins import Named

DIGITS = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _idx_remotes(bases: tuple[str, ...], folder: str, checksums: tuple[str, str, str, str]) -> tuple[Remote, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    sizes = (26.4, 0.03, 4.4, 0.01) if folder == "FashionMNIST" else (9.9, 0.03, 1.6, 0.01)
    files = [f"{name}-ubyte.gz" for name in names]
    return tuple(
        Remote(tuple(base + file for base in bases), f"{folder}/raw/{file}", md5, size)
        for file, md5, size in zip(files, checksums, sizes, strict=True)
    )


EMBEDDED = "fashion-mini"

_ENTRIES = (
    CatalogueEntry(
        name=EMBEDDED,
        description="the first images of each class of Fashion-MNIST, 28 x 28 grey, 10 classes, 10,000 + 2,000 images",
        licence="MIT",
        channels=1,
        classes=FASHION_CLASSES,
        constants=FASHION,
        augment=ALL_AUGMENTATIONS,
        native="embedded",
        side=28,
    ),
    CatalogueEntry(
        name="fashion-mnist",
        description="clothes, 28 x 28 grey, 10 classes, 60,000 + 10,000 images",
        licence="MIT",
        channels=1,
        classes=FASHION_CLASSES,
        constants=FASHION,
        augment=ALL_AUGMENTATIONS,
        native="idx",
        side=28,
        folders=("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion_mnist"),
        marker="train-images*idx3-ubyte*",
        parquet=("fashion_mnist", "fashion-mnist", "FashionMNIST"),
        hub=("zalando-datasets/fashion_mnist", "fashion_mnist"),
        remotes=_idx_remotes(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            "FashionMNIST",
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
    ),
    CatalogueEntry(
        name="mnist",
        description="handwritten digits, 28 x 28 grey, 10 classes, 60,000 + 10,000 images",
        licence="CC BY-SA 3.0",
        channels=1,
        classes=DIGITS,
        constants=MNIST,
        augment=DIGIT_AUGMENTATIONS,
        native="idx",
        side=28,
        folders=("MNIST/raw", "MNIST", "mnist"),
        marker="train-images*idx3-ubyte*",
        parquet=("mnist", "MNIST"),
        hub=("ylecun/mnist", "mnist"),
        remotes=_idx_remotes(
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
            "MNIST",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
    ),
    CatalogueEntry(
        name="svhn",
        description="house numbers (cropped digits), 32 x 32 colour, 10 classes, 73,257 + 26,032 images",
        licence="non-commercial use only",
        channels=3,
        classes=DIGITS,
        constants=SVHN,
        augment=DIGIT_AUGMENTATIONS,
        native="svhn",
        side=32,
        folders=("", "svhn", "SVHN"),
        marker="train_32x32.mat",
        parquet=("svhn/cropped_digits", "svhn", "SVHN"),
        hub=("ufldl-stanford/svhn", "svhn"),
        remotes=tuple(
            Remote((f"http://ufldl.stanford.edu/housenumbers/{file}",), f"svhn/{file}", md5, megabytes)
            for file, md5, megabytes in (
                ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", 182.0),
                ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", 64.3),
            )
        ),
    ),
    CatalogueEntry(
        name="cifar10",
        description="animals and vehicles, 32 x 32 colour, 10 classes, 50,000 + 10,000 images",
        licence=NOT_STATED,
        channels=3,
        classes=CIFAR10_CLASSES,
        constants=CIFAR10,
        augment=ALL_AUGMENTATIONS,
        native="cifar10",
        side=32,
        folders=("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "CIFAR10/cifar-10-batches-py"),
        marker="data_batch_1",
        parquet=("cifar10", "cifar-10", "CIFAR10"),
        hub=("uoft-cs/cifar10", "cifar10"),
        remotes=(
            Remote(
                ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
                "cifar-10-python.tar.gz",
                "c58f30108f718f92721af3b95e74349a",
                170.5,
                unpacks_to="cifar-10-batches-py",
            ),
        ),
    ),
    CatalogueEntry(
        name="cifar100",
        description="animals, plants and things, 32 x 32 colour, 100 classes, 50,000 + 10,000 images",
        licence=NOT_STATED,
        channels=3,
        classes=None,
        constants=CIFAR10,
        augment=ALL_AUGMENTATIONS,
        native="cifar100",
        side=32,
        folders=("cifar-100-python", "cifar100/cifar-100-python", "CIFAR100/cifar-100-python"),
        marker="train",
        parquet=("cifar100", "cifar-100", "CIFAR100"),
        hub=("uoft-cs/cifar100", "cifar100"),
        remotes=(
            Remote(
                ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
                "cifar-100-python.tar.gz",
                "eb9058c3a382ffc7106e4002c42a8d85",
                169.0,
                unpacks_to="cifar-100-python",
            ),
        ),
        classes_expected=100,
        note="normalised with CIFAR-10's constants, as the trajectory-matching papers do",
    ),
    CatalogueEntry(
        name="tiny-imagenet",
        description="ImageNet at 64 x 64, 200 classes, 100,000 + 10,000 images (the validation part is the test part)",
        licence="ImageNet's terms: non-commercial research",
        channels=3,
        classes=None,
        constants=IMAGENET,
        augment=ALL_AUGMENTATIONS,
        native="tiny",
        side=64,
        folders=("tiny-imagenet-200", "tiny-imagenet/tiny-imagenet-200", "tiny-imagenet"),
        marker="train/n[0-9]*",
        parquet=("tiny-imagenet", "tiny-imagenet-200", "tiny_imagenet", "tiny-imagenet-20"),
        hub=("zh-plus/tiny-imagenet",),
        remotes=(
            Remote(
                ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
                "tiny-imagenet-200.zip",
                "90528d7ca1a48142e341f4ef8d21d0de",
                248.1,
                unpacks_to="tiny-imagenet-200",
            ),
        ),
        classes_expected=200,
        lossless=False,
    ),
)


def _accept(name: str, given: object) -> CatalogueEntry:
    """Validate the entry that a plug-in registers under a name."""
    if not isinstance(given, CatalogueEntry):
        raise ValueError(f"it is of type {type(given).__name__}, not a dd.data.CatalogueEntry")
    if given.read is None:
        raise ValueError("it has no `read`, a function that returns the images")
    return replace(given, name=name, native="own", classes_expected=len(given.classes or ()))


CATALOGUE = Named("dataset", {entry.name: entry for entry in (*_ENTRIES, *IMAGENET_ENTRIES)}, _accept)
