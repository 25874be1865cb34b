"""What recipe files hold, for people and for tests."""

from dd.recipes import tables
from dd.recipes.schema import groups, leaves
from dd.recipes.tables import Cell, RecipeFile


def recipe_file(method: str) -> RecipeFile:
    """The recipe file of a method, read; an empty one when it has none.

    Args:
        method: a registered name, or the path of a method's file.

    Raises:
        UsageError: no such method, or a file with misplaced tables.
        RunError: a plug-in that fails to import.
    """
    from dd.data import DataSettings
    from dd.engine import registry
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec

    cls = registry.get(method)
    known = leaves(cls())
    for prefix, part in (("data.", DataSettings()), ("student.", NetworkSpec()), ("eval.", Protocol())):
        known |= leaves(part, prefix)
    return tables.read(cls, cls.name, groups(known), {key.partition(".")[0] for key in known})


def cells(method: str) -> list[Cell]:
    """Every cell of a method's recipe file, those of presets after their own; see `recipe_file` for what it raises."""
    return list(recipe_file(method).cells.values())
