"""Methods and settings in the words of their docstrings."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from dd.data import DataSettings
from dd.engine import registry
from dd.errors import UsageError
from dd.evaluation.protocols import Protocol
from dd.networks import NetworkSpec
from dd.recipes import about
from dd.recipes.schema import explained, leaves


@dataclass(frozen=True)
class Group:
    """A group."""

    size: int = 1
    """How large; 0 for
    none.
    """


@dataclass(frozen=True)
class Base:
    """The base."""

    first: int = 1
    """Of the base."""
    second: int = 2
    """Of the base: two."""
    third: int = 3

    def method(self) -> None:
        """Explains no setting."""


@dataclass(frozen=True)
class Derived(Base):
    """One.

    Two.
    """

    second: int = 2
    """Its own."""
    group: Group = field(default_factory=Group)
    """The group, which is no setting."""


@dataclass(frozen=True)
class Silent(Derived):
    first: int = 4
    from_: Callable[[], int] | None = None
    """Of a type that JSON has no word for."""


@pytest.mark.parametrize("cls", [Derived, Silent])
def test_a_class_has_the_last_word_and_groups_speak_for_themselves(cls):
    said = {"first": "Of the base.", "second": "Its own.", "group.size": "How large; 0 for none."}
    extra = {"from": "Of a type that JSON has no word for."} if cls is Silent else {}
    assert explained(cls()) == said | extra
    assert explained(cls(), "x.") == {f"x.{key}": words for key, words in (said | extra).items()}


@pytest.mark.parametrize("name", registry.names())
def test_every_setting_of_every_method_is_explained(name):
    found = about(name)
    assert found.text
    assert "Attributes" not in found.text
    assert [setting.key for setting in found.settings] == list(leaves(registry.get(name)()))
    assert [setting.key for setting in found.settings if not setting.about] == []


@pytest.mark.parametrize("settings", [DataSettings(), NetworkSpec(), Protocol()], ids=lambda s: type(s).__name__)
def test_so_are_those_of_every_run(settings):
    assert set(leaves(settings)) <= set(explained(settings))


def test_a_field_without_a_default_is_said(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from dd.engine.method import Method\n"
        "from dd.engine.registry import register\n"
        "@register('needy')\n@dataclass(frozen=True)\nclass Needy(Method):\n    size: int\n",
        encoding="utf-8",
    )
    with pytest.raises(UsageError, match="every field needs a default"):
        about(str(tmp_path / "mine.py"))
    del registry._registered["needy"]


def test_a_method_that_explains_itself_otherwise_has_its_docstring_as_text(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from dd.engine.method import Method\n"
        "from dd.engine.registry import register\n"
        "@register('elsewhere')\n@dataclass(frozen=True)\nclass Elsewhere(Method):\n"
        '    """One.\n\n    Attributes:\n        size: how large.\n    """\n\n    size: int = 1\n',
        encoding="utf-8",
    )
    found = about(str(tmp_path / "mine.py"))
    assert found.text == "One.\n\nAttributes:\n    size: how large."
    assert [(setting.key, setting.about) for setting in found.settings] == [("size", "")]
    del registry._registered["elsewhere"]
