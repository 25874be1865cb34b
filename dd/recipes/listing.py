"""Listings for people and tests: methods with their settings, and recipes with their expected accuracy."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.recipes import checks, tables
from dd.recipes.layers import IN_CELLS, Layer, Parts, Problems
from dd.recipes.schema import Leaf, describe, explained, flatten, groups, leaves
from dd.recipes.tables import Cell, Expected, RecipeFile
from dd.settings import conditions

if TYPE_CHECKING:
    from dd.evaluation.protocols import Protocol


@dataclass(frozen=True)
class Setting:
    """One setting of a method.

    Attributes:
        key: dotted key.
        default: its default value.
        type: the allowed values, in words.
        about: its description; empty if the field has no docstring.
        only_with: the setting that it needs in order to matter, "experts.kind=ftd"; empty if it always matters.
    """

    key: str
    default: Any
    type: str
    about: str
    only_with: str = ""

    @property
    def words(self) -> str:
        """Description, allowed values and condition, in one line."""
        words = f"{self.about.removesuffix('.')} ({self.type})" if self.about else self.type
        return f"{words}; only with {self.only_with}" if self.only_with else words


@dataclass(frozen=True)
class About:
    """A method, described.

    Attributes:
        name: name to run it by.
        paper: URL of its paper; empty if there is none.
        text: the docstring of its class.
        settings: its settings, including those in groups.
    """

    name: str
    paper: str
    text: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Listed:
    """A recipe cell with its resolved settings.

    Attributes:
        cell: the cell, or a preset of a cell with its own expectation.
        presets: values that `preset=` accepts here.
        parts: the resolved settings.
        numbers: each expectation, paired with the protocol it holds under.
    """

    cell: Cell
    presets: tuple[str, ...]
    parts: Parts
    numbers: "tuple[tuple[Protocol, Expected], ...]"

    @property
    def side(self) -> int | None:
        """Height and width of the images in pixels; None if sizes vary and the cell sets none."""
        images = tables.kind(self.cell.dataset, {"data.size": self.parts.data.size})
        return images.side if images else None


def about(name: str) -> About:
    """Describe a method and its settings.

    Raises:
        UsageError: the method does not exist, or a field has no default.
        RunError: a plug-in fails to import.
    """
    from dd.engine import registry

    cls = registry.get(name)
    method = checks.instance(cls, name)
    words, needed = explained(method), conditions(method)
    settings = (
        Setting(leaf.key, leaf.default, describe(leaf.annotation), words.get(leaf.key, ""), needed.get(leaf.key, ""))
        for leaf in leaves(method).values()
    )
    return About(cls.name, cls.paper, inspect.getdoc(cls) or "", tuple(settings))


def recipe_file(method: str) -> RecipeFile:
    """Read the recipe file of a method; return an empty one if it has none.

    Args:
        method: a registered name, or the path of a method's file.

    Raises:
        UsageError: the method does not exist, or the file has misplaced tables.
        RunError: a plug-in fails to import.
    """
    from dd.engine import registry

    cls = registry.get(method)
    known = Parts.of(cls(), "").known()
    return tables.read(cls, cls.name, groups(known), {key.partition(".")[0] for key in known})


def list_recipes(method: str | Path) -> list[Cell]:
    """Return the cells of a method's recipe file: known settings per data set and size, with expected accuracy.

    Args:
        method: a name, or the path of a method's file.

    Raises:
        UsageError: the method does not exist, or the file has misplaced tables.
    """
    return list(recipe_file(str(method)).cells.values())


def listed(method: str) -> list[Listed]:
    """Return every cell with an expected accuracy, including presets that have one; see `recipe_file` for errors.

    Raises:
        UsageError: one line for every invalid setting of a table.
    """
    file, problems, rows = recipe_file(method), Problems(), []
    for cell in file.cells.values():
        alone = (cell.dataset, cell.size, None) not in file.cells  # a preset of a cell that does not exist
        if cell.preset is None or alone or cell.expect:
            rows.append(_listed(method, file, cell, problems))
    problems.raise_any()
    return rows


def numbers(
    parts: Parts, layers: Sequence[Layer], cell: Cell, known: Mapping[str, Leaf], problems: Problems
) -> "tuple[tuple[Protocol, Expected], ...]":
    """Pair each expectation of a cell with its protocol: the cell's own, unless the expectation names or changes it.

    Args:
        parts: default settings.
        layers: the recipe tables that apply, ending with the cell's.
        cell: the cell.
        known: the valid keys.
        problems: collects unknown protocols and settings.
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
    """Format an accuracy band in percent: `"50 to 57"`; empty if no accuracy is recorded."""
    low, high = expected.get("accuracy") or (None, None)
    return "" if low is None else f"{low:g} to {high:g}"


def in_a_line(expected: Expected, protocol: "Protocol") -> str:
    """Format an expectation: `"50 to 57 % under cvdd, not verified (paper: 53.6)"`."""
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
