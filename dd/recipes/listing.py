"""What recipe files hold, for people and for tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dd.recipes import expect, tables
from dd.recipes.merge import BARE, IN_A_CELL, Layer, Problems
from dd.recipes.parts import Parts
from dd.recipes.schema import groups
from dd.recipes.tables import Cell, RecipeFile

if TYPE_CHECKING:
    from dd.evaluation.protocols import Protocol


@dataclass(frozen=True)
class Listed:
    """A cell with what its own table does not say.

    Attributes:
        cell: the cell, or a cell's preset with an expectation of its own.
        presets: names that `preset=` takes here.
        parts: its settings, resolved.
        numbers: each of its expectations, after the protocol it is of.
    """

    cell: Cell
    presets: tuple[str, ...]
    parts: Parts
    numbers: "tuple[tuple[Protocol, Mapping[str, Any]], ...]"


def recipe_file(method: str) -> RecipeFile:
    """The recipe file of a method, read; an empty one when it has none.

    Args:
        method: a registered name, or the path of a method's file.

    Raises:
        UsageError: no such method, or a file with misplaced tables.
        RunError: a plug-in that fails to import.
    """
    from dd.engine import registry

    cls = registry.get(method)
    known = Parts.of(cls(), "").known()
    return tables.read(cls, cls.name, groups(known), {key.partition(".")[0] for key in known})


def cells(method: str) -> list[Cell]:
    """Every cell of a method's recipe file, those of presets after their own; see `recipe_file` for what it raises."""
    return list(recipe_file(method).cells.values())


def listed(method: str) -> list[Listed]:
    """Every cell that says what it reaches, presets included where they do; see `recipe_file` for what it raises.

    Raises:
        UsageError: one line for every setting of a table that cannot be.
    """
    file, problems, rows = recipe_file(method), Problems(), []
    for cell in file.cells.values():
        alone = (cell.dataset, cell.size, None) not in file.cells  # a preset of a cell that there is not
        if cell.preset is None or alone or cell.expect:
            rows.append(_listed(method, file, cell, problems))
    problems.raise_any()
    return rows


def _listed(method: str, file: RecipeFile, cell: Cell, problems: Problems) -> Listed:
    from dd.engine import registry

    parts = Parts.of(registry.get(method)(), cell.dataset)
    known = parts.known() | {key: BARE[key] for key in IN_A_CELL}
    layers = [Layer(*table) for table in file.layers(cell.dataset, cell.size, cell.preset)]
    numbers = expect.numbers(parts, layers, cell, known, problems)
    return Listed(cell, _presets(file, cell), parts.settle(layers, known, problems).parts, numbers)


def _presets(file: RecipeFile, cell: Cell) -> tuple[str, ...]:
    if cell.preset is not None:
        return ()
    own = {c.preset for c in file.cells.values() if c.preset and (c.dataset, c.size) == (cell.dataset, cell.size)}
    return tuple(sorted(own | set(file.presets)))
