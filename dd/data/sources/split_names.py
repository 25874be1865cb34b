"""Recognise splits by name, with the keywords and separators of Hugging Face `datasets`, ignoring case.

See "File names and splits" in the Hub's documentation.  We add three things: `=` is a separator, as in the
`split=test/` of partitioned tables; `trainset`, `testSet` and `trainval` are keywords; and `strict` accepts only names
that are nothing but a keyword, because a class may be called `test_tube`.
"""

import re

TRAIN, VALIDATION, TEST = "train", "validation", "test"
KEYWORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "dev", "val"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
TEST_ORDER = (TEST, VALIDATION)  # splits for the final numbers, preferred first
_SPLIT = {word + end: split for split, words in KEYWORDS.items() for word in words for end in ("", "set")}
_SPLIT["trainval"] = TRAIN
_SEPARATORS = re.compile(r"[-._ 0-9=]+")


def split_of(name: str) -> str | None:
    """The split whose keyword a file or folder name contains; None if there is none, or several.

    Training and validation together count as training (`train_val`).
    """
    found = {_SPLIT[word] for word in _words(name) if word in _SPLIT}
    if found == {TRAIN, VALIDATION}:
        return TRAIN
    return next(iter(found)) if len(found) == 1 else None


def strict(name: str) -> str | None:
    """The split of a name that is nothing but a keyword, such as `Training` or `val2017`; else None."""
    words = [word for word in _words(name) if word and word != "split"]
    return _SPLIT.get(words[0]) if len(words) == 1 else None


def _words(name: str) -> list[str]:
    return _SEPARATORS.split(name.lower())
