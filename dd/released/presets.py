"""What the name of a repository says of the sets in it, where its files do not: which real images, which protocol."""

import re
from dataclasses import asdict, replace
from typing import Any

from dd.labels import LabelSettings
from dd.sets import DistilledSet
from dd.training.squeeze import SqueezeSettings

_TEACHER = "torchvision:resnet18.IMAGENET1K_V1"

# by owner and name; the first that fits
_KNOWN: tuple[tuple[str, dict[str, Any]], ...] = (
    # Rethinking dataset pruning and distillation (arXiv 2502.06434): one data set, one evaluation
    (r"he-yang/2025-rethinkdc-imagenet-.*", {"dataset": "imagenet-1k", "protocol": "rethinkdc-soft", "size": 224}),
)
# words that data sets go by, longer ones first
_WORDS = (
    ("tiny-?imagenet", "tiny-imagenet"),
    ("image-?nette", "imagenette"),
    ("image-?woof", "imagewoof"),
    ("imagenet(-?1k)?", "imagenet-1k"),
    ("cifar-?100", "cifar100"),
    ("cifar-?10", "cifar10"),
    ("svhn", "svhn"),
    ("fashion-?mnist", "fashion-mnist"),
    ("fashion-mini", "fashion-mini"),
    ("mnist", "mnist"),
)


def labelled(distilled: DistilledSet, protocol: str) -> DistilledSet:
    """The set with who labels the views of its students, where that is the protocol's affair and not the set's.

    rethinkdc's soft labels are those of torchvision's resnet18 for the views of the moment.
    """
    if protocol != "rethinkdc-soft" or distilled.label_kind != "hard":
        return distilled
    labels, squeeze = LabelSettings(mode="live"), SqueezeSettings()
    origin = {"teachers": [_TEACHER], "squeeze": asdict(squeeze), "labels": asdict(labels), "weights": None}
    return replace(distilled, provenance={**distilled.provenance, "labeller": origin})


def preset(repo: str) -> dict[str, Any]:
    """What "USER/NAME" stands for, by key of `dd import`; nothing where the name says nothing."""
    for pattern, said in _KNOWN:
        if re.fullmatch(pattern, repo, re.IGNORECASE):
            return dict(said)
    name = repo.partition("/")[2].lower().replace("_", "-")
    for pattern, dataset in _WORDS:
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", name):
            return {"dataset": dataset}
    return {}
