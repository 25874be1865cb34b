"""Which part of a data set a name stands for: the keywords and separators of Hugging Face `datasets`, in any case.

See "File names and splits" in the hub's documentation.  Added to them: `=` separates, as in `split=test/` of
partitioned tables; `trainset`, `testSet` and `trainval` are words for parts too; and `strict` tells names that say
nothing else from those that only hold a keyword, for a class may be called `test_tube`.
"""

import re

TRAIN, VALIDATION, TEST = "train", "validation", "test"
KEYWORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "dev", "val"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
TEST_ORDER = (TEST, VALIDATION)  # which part the final numbers are taken on, the preferred first
_SPLIT = {word + end: split for split, words in KEYWORDS.items() for word in words for end in ("", "set")}
_SPLIT["trainval"] = TRAIN
_SEPARATORS = re.compile(r"[-._ 0-9=]+")


def split_of(name: str) -> str | None:
    """The split that a file or folder name holds a keyword of; None when it holds none, or does not tell which.

    Training and validation together are training images (`train_val`).
    """
    found = {_SPLIT[word] for word in _words(name) if word in _SPLIT}
    if found == {TRAIN, VALIDATION}:
        return TRAIN
    return next(iter(found)) if len(found) == 1 else None


def strict(name: str) -> str | None:
    """The split of a name that is nothing but its keyword, as `Training` and `val2017` are; None for others."""
    words = [word for word in _words(name) if word and word != "split"]
    return _SPLIT.get(words[0]) if len(words) == 1 else None


def _words(name: str) -> list[str]:
    return _SEPARATORS.split(name.lower())
