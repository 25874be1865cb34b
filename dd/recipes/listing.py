"""What there is, for people and for tests: methods with their settings, recipes with what they reach."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.recipes import checks, tables
from dd.recipes.layers import IN_CELLS, Layer, Parts, Problems
from dd.recipes.schema import Leaf, describe, explained, flatten, groups, leaves
from dd.recipes.tables import Cell, Expected, RecipeFile

if TYPE_CHECKING:
    from dd.evaluation.protocols import Protocol


@dataclass(frozen=True)
class Setting:
    """One setting of a method.

    Attributes:
        key: dotted.
        default: where nothing is said about it.
        type: what it may be, in words.
        about: what it is; empty where its field has no docstring.
    """

    key: str
    default: Any
    type: str
    about: str


@dataclass(frozen=True)
class About:
    """A method.

    Attributes:
        name: as it is run.
        paper: address of its paper; empty where there is none.
        text: the docstring of its class.
        settings: its own, those of its groups included.
    """

    name: str
    paper: str
    text: str
    settings: tuple[Setting, ...]


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
    numbers: "tuple[tuple[Protocol, Expected], ...]"

    @property
    def side(self) -> int | None:
        """Height and width of its images in pixels; None where they differ in size and the cell says none."""
        images = tables.kind(self.cell.dataset, {"data.size": self.parts.data.size})
        return images.side if images else None


def about(name: str) -> About:
    """What a method is and what can be set.

    Raises:
        UsageError: no such method, or one with a field that has no default.
        RunError: a plug-in that fails to import.
    """
    from dd.engine import registry

    cls = registry.get(name)
    method = checks.instance(cls, name)
    words = explained(method)
    settings = (
        Setting(leaf.key, leaf.default, describe(leaf.annotation), words.get(leaf.key, ""))
        for leaf in leaves(method).values()
    )
    return About(cls.name, cls.paper, inspect.getdoc(cls) or "", tuple(settings))


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


def list_recipes(method: str | Path) -> list[Cell]:
    """The cells of a method's recipe file: settings that are known for a data set and size, and what they should reach.

    Args:
        method: a name, or the path of a method's file.

    Raises:
        UsageError: no such method, or a file with misplaced tables.
    """
    return list(recipe_file(str(method)).cells.values())


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


def numbers(
    parts: Parts, layers: Sequence[Layer], cell: Cell, known: Mapping[str, Leaf], problems: Problems
) -> "tuple[tuple[Protocol, Expected], ...]":
    """Each expectation of a cell, after the protocol it is of: the cell's own, unless it says which or what differs.

    Args:
        parts: defaults.
        layers: the recipe tables that apply, the cell's the last.
        cell: the cell.
        known: the keys that may be set.
        problems: where a protocol or a setting that there is not is noted.
    """
    found = []
    for entry in cell.expect:
        settings = flatten({"eval": entry.get("eval", {})}, groups(known))
        if "protocol" in entry:
            settings["eval.protocol"] = entry["protocol"]
        layer = Layer(f"{cell.file} [{cell.name}] expect", settings)
        found.append((parts.settle([*layers, layer], known, problems).parts.eval, entry))
    return tuple(found)


def band(expected: Expected) -> str:
    """`"50 to 57"`, in percent; empty where no number was readable."""
    low, high = expected.get("accuracy") or (None, None)
    return "" if low is None else f"{low:g} to {high:g}"


def in_a_line(expected: Expected, protocol: "Protocol") -> str:
    """`"50 to 57 % under cvdd, not verified (paper: 53.6)"`."""
    reached = f"{found} %" if (found := band(expected)) else "no number"
    verified = "verified" if expected["verified"] else "not verified"
    return f"{reached} under {protocol.in_words()}, {verified} ({expected.get('source', 'no source')})"


def _listed(method: str, file: RecipeFile, cell: Cell, problems: Problems) -> Listed:
    from dd.engine import registry

    cls = registry.get(method)
    parts = Parts.of(cls(), cell.dataset)
    known = parts.known() | IN_CELLS
    layers = [Layer(*table) for table in file.layers(cell.dataset, cell.size, cell.preset)]
    if cell.size.startswith("ipc"):
        layers.insert(0, Layer("", cls.by_ipc(int(cell.size.removeprefix("ipc")))))
    reached = numbers(parts, layers, cell, known, problems)
    return Listed(cell, _presets(file, cell), parts.settle(layers, known, problems).parts, reached)


def _presets(file: RecipeFile, cell: Cell) -> tuple[str, ...]:
    if cell.preset is not None:
        return ()
    own = {c.preset for c in file.cells.values() if c.preset and (c.dataset, c.size) == (cell.dataset, cell.size)}
    return tuple(sorted(own | set(file.presets)))
