"""Recipe files: published settings of a method and our own, one table per data set and size.

    [defaults]                      every cell
    [fashion-mini.ipc10]            only what differs; also [cifar10."fraction0.1"]
    [fashion-mini.ipc10.smoke]      the same cell under `preset=smoke`
    [presets.smoke]                 `preset=smoke` for any cell, applied before the cell's own

Groups of settings are sub-tables or dotted keys (`experts.count = 100`).  `expect` and `note` in a cell are not
settings: `expect = { accuracy = [lo, hi], verified = true, source = "...", cost = "..." }` holds under the cell's
protocol.  For numbers under several protocols, write one table each; a run is judged by the one that matches its own:

    [[cifar100.ipc10.expect]]
    accuracy = [50.0, 57.0]
    ...
    [[cifar100.ipc10.expect]]
    eval.epochs = 1000              beside the cell's own protocol, or beside `protocol = "NAME"`
    accuracy = [60.0, 66.0]
    ...
"""

import inspect
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import ConfigDict, Field, StrictBool, TypeAdapter, ValidationError

from dd.errors import UsageError, nearest
from dd.io import digest
from dd.recipes.schema import flatten

if TYPE_CHECKING:
    from dd.data import Kind

_SIZE = re.compile(r"(ipc|fraction)(\d+(?:\.\d+)?)")
_NAME = re.compile(r"(?P<dataset>.+?)\.(?P<size>(?:ipc|fraction)\d+(?:\.\d+)?)(?:\.(?P<preset>[^.]+))?")
_LONGEST = 32  # maximum length of a size name, which is part of a path; a list of a thousand numbers would exceed it
_NOT_SETTINGS = ("expect", "note")
# Ratio of side lengths up to which the settings for one resolution are a starting point for another: networks in this
# field have one block per halving, so their depths differ by at most one.
NEAR = 2.0

_Percent = Annotated[float, Field(strict=True, ge=0, le=100)]
Expected: TypeAlias = Mapping[str, Any]
"""The `expect` table of a cell, validated by `_Expectation`, with only the keys given in the file."""


@dataclass(frozen=True)
class _Expectation:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    verified: StrictBool
    accuracy: Annotated[list[_Percent], Field(min_length=2, max_length=2)] | None = None
    source: str = ""
    cost: str = ""
    protocol: str = ""
    eval: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.accuracy is None and self.verified:
            raise ValueError("verified, but no accuracy")
        if self.accuracy is not None and self.accuracy != sorted(self.accuracy):
            raise ValueError("a band from high to low")


@dataclass(frozen=True)
class Cell:
    """One table of a recipe file.

    Attributes:
        dataset: the data set it is for.
        size: "ipc10" or "fraction0.1".
        preset: name of the preset, or None for the cell itself.
        settings: dotted key to value, only those in the table itself.
        expect: accuracy band in percent, whether a run has reached it, source of the values, cost; one mapping per
            protocol.  `protocol` and `eval` name the protocol if it is not the cell's.
        note: a remark for the reader.
        file: the recipe file, in words.
    """

    dataset: str
    size: str
    preset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    expect: tuple[Expected, ...] = ()
    note: str = ""
    file: str = ""

    def __repr__(self) -> str:
        return f"<Cell {self.name} of {self.file}>"

    @property
    def name(self) -> str:
        """`fashion-mini.ipc10` or `fashion-mini.ipc10.smoke`."""
        return ".".join(part for part in (self.dataset, self.size, self.preset) if part)


@dataclass(frozen=True)
class RecipeFile:
    """A parsed recipe file: `cells` by (data set, size, preset)."""

    file: str
    defaults: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Any]]
    cells: Mapping[tuple[str, str, str | None], Cell]

    def preset_names(self) -> set[str]:
        """Return the names of all presets in the file, general or specific to a cell."""
        return set(self.presets) | {preset for _, _, preset in self.cells if preset}

    def layers(self, dataset: str, size: str, preset: str | None) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the tables that apply, as (where, settings), weakest first."""
        found = [(f"{self.file} [defaults]", self.defaults)]
        if cell := self.cells.get((dataset, size, None)):
            found.append((f"{self.file} [{cell.name}]", cell.settings))
        if preset is not None:
            found.append((f"{self.file} [presets.{preset}]", self.presets.get(preset, {})))
            if cell := self.cells.get((dataset, size, preset)):
                found.append((f"{self.file} [{cell.name}]", cell.settings))
        return [(where, settings) for where, settings in found if settings]


def split_cell_name(name: str) -> tuple[str, str]:
    """Split `"cifar10.ipc50"` into `("cifar10", "ipc50")`.

    Raises:
        UsageError: the name does not have this form.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["preset"]:
        raise UsageError(f"like={name!r} is not the name of a cell; write DATASET.ipcN, for example like=cifar10.ipc50")
    return match["dataset"], match["size"]


def size_name(ipc: int | tuple[int, ...] | None, fraction: float | None) -> str:
    """Return `"ipc10"`, `"ipc5-10-20"` or `"fraction0.1"`; a long list is abbreviated, `"ipc1to50-3f2a9c01"`."""
    if fraction is not None:
        return f"fraction{fraction!r}"
    if not isinstance(ipc, tuple):
        return f"ipc{ipc}"
    name = f"ipc{'-'.join(map(str, ipc))}"
    return name if len(name) <= _LONGEST else f"ipc{min(ipc)}to{max(ipc)}-{digest(list(ipc), length=8)}"


def size_distance(one: str, other: str) -> float:
    """Return the log ratio of two sizes (`"ipc10"`); an ipc and a fraction are always far apart."""
    (kind, a), (other_kind, b) = ((m[1], float(m[2])) for m in map(_SIZE.fullmatch, (one, other)) if m)
    far = 0.0 if kind == other_kind else 1e6
    return far + abs(math.log(max(a, 1e-9)) - math.log(max(b, 1e-9)))


def read(method: type, name: str, known_groups: set[str], fields: set[str]) -> RecipeFile:
    """Read the recipe file of a method; return an empty one if it has none.

    Args:
        method: the registered class; a built-in method has its file in `experiments/recipes`, any other beside its
            source, named after the source file or the method.
        name: the method's name.
        known_groups: prefixes of grouped settings (`experts`, `data`, ...).
        fields: the method's own fields, to tell a setting that is a table from a preset.

    Raises:
        UsageError: the file is not TOML, or a table is misplaced.
    """
    where = find(method, name)
    if where is None:
        return RecipeFile("", {}, {}, {})
    label, text = where
    try:
        return parse(label, tomllib.loads(text), known_groups, fields)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{label}: not TOML: {error}") from error


def find(method: type, name: str) -> tuple[str, str] | None:
    """Return (label, text) of a method's recipe file, or None."""
    if method.__module__.startswith("dd.methods."):
        file = resources.files("dd.experiments") / "recipes" / f"{name}.toml"
        return (f"recipes/{name}.toml", file.read_text(encoding="utf-8")) if file.is_file() else None
    try:
        source = Path(inspect.getfile(method))
    except (OSError, TypeError):  # defined in an interactive session
        return None
    for candidate in (source.with_suffix(".toml"), source.with_name(f"{name}.toml")):
        if candidate.is_file():
            return candidate.name, candidate.read_text(encoding="utf-8")
    return None


def parse(file: str, content: Mapping[str, Any], known_groups: set[str], fields: set[str]) -> RecipeFile:
    """Sort the tables of a recipe file into defaults, presets and cells.

    Raises:
        UsageError: one line for every table that is none of these.
    """
    problems: list[str] = []
    cells: dict[tuple[str, str, str | None], Cell] = {}
    for dataset, sizes in content.items():
        if dataset in ("defaults", "presets"):
            continue
        for size, table in sizes.items() if isinstance(sizes, Mapping) else [("", None)]:
            if not _SIZE.fullmatch(size) or not isinstance(table, Mapping):
                problems.append(f"{file}: {f'{dataset}.{size}'.rstrip('.')!r} is not a table [DATASET.ipcN]")
                continue
            for preset, own in _split(table, known_groups | fields):
                cells[dataset, size, preset] = _cell(file, (dataset, size, preset), own, known_groups, problems)
    if problems:
        raise UsageError("\n".join(problems))
    presets = {name: flatten(table, known_groups) for name, table in content.get("presets", {}).items()}
    return RecipeFile(file, flatten(content.get("defaults", {}), known_groups), presets, cells)


def unknown_cell(file: RecipeFile, name: str) -> UsageError:
    """Return the error for `like=` with an unknown cell."""
    names = [cell.name for cell in file.cells.values() if cell.preset is None]
    return UsageError(
        f"like={name!r}: no such cell in {file.file or 'the recipes of this method'}{nearest(name, names)}"
    )


def _split(table: Mapping[str, Any], settings: set[str]) -> list[tuple[str | None, dict[str, Any]]]:
    """Split a cell's table into its own settings, unless it has presets only, and those of each preset."""
    presets = [k for k, v in table.items() if isinstance(v, Mapping) and k not in settings and k not in _NOT_SETTINGS]
    own = {k: v for k, v in table.items() if k not in presets}
    found: list[tuple[str | None, dict[str, Any]]] = [(None, own)] if own or not presets else []
    return found + [(preset, dict(table[preset])) for preset in presets]


def _cell(
    file: str,
    at: tuple[str, str, str | None],
    table: Mapping[str, Any],
    known_groups: set[str],
    problems: list[str],
) -> Cell:
    settings = flatten({k: v for k, v in table.items() if k not in _NOT_SETTINGS}, known_groups)
    expect = table.get("expect", [])
    expect = tuple(expect) if isinstance(expect, list) else (expect,)
    try:
        TypeAdapter(tuple[_Expectation, ...]).validate_python(expect)
    except ValidationError:
        problems.append(
            f"{file} [{'.'.join(filter(None, at))}]: expect must be {{ accuracy = [lo, hi], verified = true }}, "
            "or a list of such tables"
        )
    return Cell(*at, settings=settings, expect=expect, note=str(table.get("note", "")), file=file)


def kind(dataset: str, settings: Mapping[str, Any]) -> "Kind | None":
    """Return the properties of a run's images under `settings`; None for a user's own data, which are not known yet.

    Args:
        dataset: name of the data set.
        settings: by dotted key; only `data.size` is used.
    """
    from dd.data import kind_of

    found, side = kind_of(dataset), settings.get("data.size")
    return replace(found, side=side) if found and isinstance(side, int) else found


def nearest_cell(file: RecipeFile, dataset: str, size: str, images: "Kind | None") -> Cell | None:
    """Return the cell most similar to a missing one, or None if none is similar enough.

    Cells of the same data set come first, then those with the same number of channels, then those with the most similar
    resolution, number of classes and size.  Cells whose images are more than twice as large or small are excluded.  If
    the image size varies and none is requested, only cells that set a size are considered.

    Args:
        file: the recipes of the method.
        dataset: the requested data set.
        size: "ipc10" or "fraction0.1"; for uneven classes, their mean.
        images: properties of its images; None if unknown.
    """
    if images is None:
        return None
    found: list[tuple[tuple[float, ...], Cell]] = []
    for cell in file.cells.values():
        settings = settings_of(file, cell)
        theirs = kind(cell.dataset, settings) if cell.preset is None else None
        if theirs is None or (images.side is None and "data.size" not in settings):
            continue
        if (larger := _apart(images.side, theirs.side)) <= math.log(NEAR):
            others = cell.dataset != dataset, theirs.channels != images.channels
            far = larger, _apart(images.classes, theirs.classes), size_distance(cell.size, size)
            found.append(((*others, *far), cell))
    return min(found, key=lambda pair: pair[0], default=(None, None))[1]


def require_alike(file: RecipeFile, like: Cell, dataset: str, images: "Kind | None") -> None:
    """Raise `UsageError` if the cell named by `like=` shares neither channels nor resolution with the run's images."""
    theirs = kind(like.dataset, settings_of(file, like))
    if images is None or theirs is None or theirs.channels == images.channels:
        return
    if theirs.side is None or images.side is None or _apart(images.side, theirs.side) > math.log(NEAR):
        raise UsageError(
            f"like={like.name}: its settings are for {_words(theirs)}, {dataset} has {_words(images)}; "
            "take a cell of similar images, or give settings of your own"
        )


def settings_of(file: RecipeFile, cell: Cell) -> dict[str, Any]:
    """Return the merged settings of a cell's tables, by dotted key."""
    merged: dict[str, Any] = {}
    for _, settings in file.layers(cell.dataset, cell.size, cell.preset):
        merged |= settings
    return merged


def _apart(one: int | None, other: int | None) -> float:
    """Return the absolute log ratio of two sizes; 0 if one is unknown."""
    return abs(math.log(one / other)) if one and other else 0.0


def _words(images: "Kind") -> str:
    side = f"{images.side} pixels" if images.side else "many sizes"
    return f"{'grey' if images.channels == 1 else 'colour'} images of {side}"
