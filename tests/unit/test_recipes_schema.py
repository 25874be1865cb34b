"""Single settings: what an annotation takes, what it refuses, and in which words."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field

from dd.recipes.schema import Leaf, describe, flatten, groups, leaves
from dd.settings import build

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def some(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        raise ValueError("name one")
    return texts


@pytest.mark.parametrize(
    ("annotation", "given", "value"),
    [
        (Count, 5, 5),
        (Count, "5", 5),
        (Count, 1e3, 1000),
        (int, "1e4", 10_000),
        (Count | None, None, None),
        (Count | None, "none", None),
        (Count | None, "null", None),
        (Annotated[int | None, Field(ge=1)], None, None),
        (float, 1, 1.0),
        (float, "1e-3", 1e-3),
        (bool, True, True),
        (bool, "False", False),
        (Literal["auto"] | bool, "auto", "auto"),
        (Literal["auto"] | bool, False, False),
        (str | None, "none", "none"),
        (str | None, "null", None),
        (str, 5, "5"),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[float, ...], "[1, 0.5]", (1.0, 0.5)),
        (tuple[float, ...], 4, (4.0,)),
        (tuple[float, ...], "0.5", (0.5,)),
        (tuple[Share, ...], 1, (1.0,)),
        (tuple[int, ...], 1e3, (1000,)),
        (tuple[str, ...], "student", ("student",)),
        (tuple[str, ...], "timm:resnet18.a1_in1k", ("timm:resnet18.a1_in1k",)),
        (tuple[str, ...], "convnet:width=32", ("convnet:width=32",)),
        (tuple[str, ...], "./teacher.pt@convnet:width=32", ("./teacher.pt@convnet:width=32",)),
        (tuple[str, ...], ["convnet:width=32", "student"], ("convnet:width=32", "student")),
        (tuple[str, ...], '["convnet:width=32", "student"]', ("convnet:width=32", "student")),
        (tuple[str, ...], "convnet:width=32, student", ("convnet:width=32", "student")),
        (tuple[str, ...], "[convnet:width=32,student]", ("convnet:width=32", "student")),
        (tuple[str, ...], "[student]", ("student",)),
        (tuple[str, ...], ["a,b"], ("a,b",)),
        (tuple[str, ...], "[]", ()),
        (Annotated[tuple[str, ...], Field(min_length=1)], "student", ("student",)),
        (Annotated[tuple[str, ...], AfterValidator(some)], "student", ("student",)),
        (list[int], [1, 2], [1, 2]),
    ],
)
def test_taken(annotation, given, value):
    checked = Leaf("key", annotation, None).check(given)
    assert checked == value
    assert type(checked) is type(value)


@pytest.mark.parametrize(
    ("annotation", "given", "words"),
    [
        (Annotated[tuple[str, ...], AfterValidator(some)], [], "key=[]: name one"),
        (Annotated[tuple[str, ...], AfterValidator(some)], "[]", "key='[]': name one"),
        (tuple[str, ...], "[a", "key='[a' has the wrong type; expected a list of texts"),
        (tuple[str, ...], "['a', b]", "key=\"['a', b]\" has the wrong type; expected a list of texts"),
        (tuple[str, ...], [1, 2], "key=[1, 2] has the wrong type; expected a list of texts"),
        (Count, 0, "key=0 is out of range; expected a whole number >= 1"),
        (Count, "-3", "key='-3' is out of range; expected a whole number >= 1"),
        (Count, 1.5, "key=1.5 has the wrong type; expected a whole number >= 1"),
        (Count, True, "key=True has the wrong type; expected a whole number >= 1"),
        (Count, "abc", "key='abc' has the wrong type; expected a whole number >= 1"),
        (Count | None, 0, "key=0 is out of range; expected a whole number >= 1 or null"),
        (Share, 0.0, "key=0.0 is out of range; expected a number > 0 and <= 1"),
        (float, True, "key=True has the wrong type; expected a number"),
        (float, float("nan"), "key=nan is out of range; expected a finite number"),
        (float, "inf", "key='inf' is out of range; expected a finite number"),
        (float, None, "key=None has the wrong type; expected a number"),
        (bool, "yes", "key='yes' has the wrong type; expected true or false"),
        (bool, 1, "key=1 has the wrong type; expected true or false"),
        (Literal["sgd", "ftd"], "adam", "key='adam' is not a choice; expected 'sgd' or 'ftd'"),
        (tuple[int, ...], ["a"], "key=['a'] has the wrong type; expected a list of whole numbers"),
        (str, True, "key=True has the wrong type; expected a text"),
        (tuple[str, ...], "[a, [b]]", "key='[a, [b]]' has the wrong type; expected a list of texts"),
        (tuple[str, ...], 5, "key=5 has the wrong type; expected a list of texts"),
        (tuple[int, ...], "a", "key='a' has the wrong type; expected a list of whole numbers"),
    ],
)
def test_refused(annotation, given, words):
    with pytest.raises(ValueError) as caught:
        Leaf("key", annotation, None).check(given)
    assert str(caught.value) == words


def test_describe_puts_bounds_of_a_union_at_its_end():
    assert describe(Annotated[int | None, Field(ge=1)]) == "a whole number or null, >= 1"


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    epochs: int = 3


@dataclass(frozen=True)
class Outer:
    steps: int = 5
    inner: Inner = Inner(epochs=7)
    extra: Any = None


def test_leaves_follow_the_defaults_of_the_outer_class():
    found = leaves(Outer())
    assert {key: leaf.default for key, leaf in found.items()} == {
        "steps": 5,
        "inner.lr": 0.1,
        "inner.epochs": 7,
        "extra": None,
    }
    assert list(leaves(Outer(), "x.")) == ["x.steps", "x.inner.lr", "x.inner.epochs", "x.extra"]


def test_build_changes_only_what_is_named():
    assert build(Outer(), {"inner.lr": 0.5, "steps": 1, "other": 2}) == Outer(steps=1, inner=Inner(lr=0.5, epochs=7))
    assert build(Outer(), {"x.inner.lr": 0.5, "steps": 1}, "x.") == Outer(inner=Inner(lr=0.5, epochs=7))


def test_flatten_goes_down_known_groups_only():
    known = leaves(Outer())
    assert groups({"a.b.c": 1, "d": 2}) == {"a", "a.b"}
    assert flatten({"inner": {"lr": 1}, "extra": {"lr": 2}, "inner.epochs": 3}, groups(known)) == {
        "inner.lr": 1,
        "extra": {"lr": 2},
        "inner.epochs": 3,
    }
