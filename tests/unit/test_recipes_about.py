"""Methods and settings in the words of their docstrings."""

from dataclasses import dataclass, field

import pytest

from dd.data import DataSettings
from dd.engine import registry
from dd.errors import UsageError
from dd.evaluation.protocols import Protocol
from dd.networks import NetworkSpec
from dd.recipes.about import about, settings_in_words
from dd.recipes.schema import leaves


@dataclass(frozen=True)
class Group:
    """A group.

    Attributes:
        size: how large; 0 for
            none.
    """

    size: int = 1


@dataclass(frozen=True)
class Base:
    """The base.

    Attributes:
        first: of the base.
        second: of the base: two.

    Something else:
        third: is no attribute.
    """

    first: int = 1
    second: int = 2
    third: int = 3


@dataclass(frozen=True)
class Derived(Base):
    """One.

    Two.

    Attributes beyond those of the base:
        second: its own.
    """

    group: Group = field(default_factory=Group)


@dataclass(frozen=True)
class Silent(Derived):
    fourth: int = 4


@pytest.mark.parametrize("cls", [Derived, Silent])
def test_a_class_has_the_last_word_and_groups_speak_for_themselves(cls):
    assert settings_in_words(cls()) == {
        "first": "of the base.",
        "second": "its own.",
        "group.size": "how large; 0 for none.",
    }


@pytest.mark.parametrize("name", registry.names())
def test_every_setting_of_every_method_is_explained(name):
    found = about(name)
    assert found.text
    assert "Attributes" not in found.text
    assert [setting.key for setting in found.settings] == list(leaves(registry.get(name)()))
    assert [setting.key for setting in found.settings if not setting.about] == []


@pytest.mark.parametrize("settings", [DataSettings(), NetworkSpec(), Protocol()], ids=lambda s: type(s).__name__)
def test_so_are_those_of_every_run(settings):
    assert set(leaves(settings)) <= set(settings_in_words(settings))


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
