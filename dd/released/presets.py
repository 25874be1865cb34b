"""What the name of a repository says of the sets in it, where its files do not: which real images, which protocol."""

import re
from typing import Any

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
