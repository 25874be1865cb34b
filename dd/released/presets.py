"""Real data and protocol of a repository's sets, inferred from its name if its files do not state them."""

import re
from dataclasses import asdict, replace
from typing import Any

from dd.labels import LabelSettings
from dd.sets import DistilledSet
from dd.training.squeeze import SqueezeSettings

_TEACHER = "torchvision:resnet18.IMAGENET1K_V1"

# by owner and name; the first match counts
_KNOWN: tuple[tuple[str, dict[str, Any]], ...] = (
    # Rethinking dataset pruning and distillation (arXiv 2502.06434): one data set, one evaluation
    (r"he-yang/2025-rethinkdc-imagenet-.*", {"dataset": "imagenet-1k", "protocol": "rethinkdc-soft", "size": 224}),
)
# names of data sets, longer ones first
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
    """Return the set with a labeller for views, if its protocol defines one.

    In rethinkdc, torchvision's resnet18 labels the views during training.
    """
    if protocol != "rethinkdc-soft" or distilled.label_kind != "hard":
        return distilled
    labels, squeeze = LabelSettings(mode="live"), SqueezeSettings()
    origin = {"teachers": [_TEACHER], "squeeze": asdict(squeeze), "labels": asdict(labels), "weights": None}
    return replace(distilled, provenance={**distilled.provenance, "labeller": origin})


def preset(repo: str) -> dict[str, Any]:
    """Return the keys of `dd import` implied by "USER/NAME"; empty if the name implies none."""
    for pattern, said in _KNOWN:
        if re.fullmatch(pattern, repo, re.IGNORECASE):
            return dict(said)
    name = repo.partition("/")[2].lower().replace("_", "-")
    for pattern, dataset in _WORDS:
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", name):
            return {"dataset": dataset}
    return {}
