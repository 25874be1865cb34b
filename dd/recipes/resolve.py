"""From the user's settings to a `Recipe`: collect the layers, merge and check them, report all problems at once."""

import re
import shlex
import statistics
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dd.errors import UsageError, close_matches, in_one_line, nearest
from dd.recipes import checks, given, tables
from dd.recipes.layers import BARE, COMMAND_LINE, IN_CELLS, OPTIONS, Layer, Parts, Problems, merge
from dd.recipes.listing import numbers
from dd.recipes.recipe import SETTLED, Recipe
from dd.recipes.schema import Leaf, flatten, groups
from dd.settings import entries

if TYPE_CHECKING:
    from dd.data import Kind
    from dd.engine.method import Method

_DEFAULT_IPC = 10
_WRITTEN = re.compile(r"# .*, recipe ([0-9a-f]{16})$", re.MULTILINE)


@dataclass(frozen=True)
class _Table:
    """The recipe file's contribution to a run: layers, the cell, and notices for the user."""

    layers: tuple[Layer, ...] = ()
    cell: tables.Cell | None = None
    notices: tuple[str, ...] = ()


def resolve(overrides: Mapping[str, Any]) -> Recipe:
    """Merge field defaults, the recipe file, `recipe=FILE` and `overrides` (later wins) into one recipe.

    Args:
        overrides: dotted or nested keys, as returned by `parse_overrides` or as written in Python, possibly with
            objects; see `dd.recipes.given` for what objects set.

    Raises:
        UsageError: one line for every unknown key or name, wrong type, value out of range or contradiction.
        RunError: a plug-in method fails to import.
    """
    problems = Problems()
    instance, overrides = given.method_in_words(overrides)
    asked = _asked(overrides, instance)
    bare = _bare(asked, problems)
    cls, method = _method(bare["method"], instance, asked[-1], problems)
    parts = Parts.of(method, bare["dataset"])
    known = parts.known()
    asked = [part for layer in asked for part in given.in_words(layer, parts, problems, partial=method is None)]
    asked = [_flat(layer, known, partial=method is None) for layer in asked]
    table = _Table()
    if cls is not None:
        with problems.caught():
            checks.no_clash(cls, parts.own(), BARE)
            table = _table(cls, bare, known, asked, problems)
    in_cells = known | IN_CELLS
    with problems.caught():
        table = replace(table, layers=(*_by_ipc(cls, bare, [*table.layers, *asked]), *table.layers))
    published = parts.settle(list(table.layers), in_cells, problems)
    reached = numbers(parts, table.layers, table.cell, in_cells, problems) if table.cell else ()
    settled = parts.settle([*table.layers, *asked], known | BARE, problems)
    with problems.caught():
        checks.student(settled.parts.student)
        checks.regimes(settled.parts.eval, settled.parts.student)
    bare |= {key: settled.values.get(key, bare[key]) for key in IN_CELLS}
    origin = {"device": "auto", **settled.origin} if bare["device"] == "auto" else settled.origin
    digests: dict[str, str] = {}
    with problems.caught():
        bare["device"] = checks.device(bare["device"])
    if settled.parts.method is not None:
        with problems.caught():
            digests |= settled.parts.method.digests(settled.parts.student)
    problems.raise_any()
    assert cls is not None
    changed = _changed(published.parts, settled.parts, bare, published.values)
    recipe = _recipe(cls, bare, settled.parts, table, origin=origin, digests=digests)
    return replace(recipe, changed=changed, numbers=reached)


def _asked(overrides: Mapping[str, Any], instance: "Method | None") -> list[Layer]:
    """Return the user's layers, weakest first: `recipe=FILE`, a method object, and the command line."""
    layers = [Layer(COMMAND_LINE, overrides)]
    if instance is not None:
        layers.insert(0, Layer(COMMAND_LINE, {key: entry.value for key, entry in entries(instance).items()}))
    if (file := overrides.get("recipe")) is not None:
        layers.insert(0, Layer(str(file), _recipe_file(str(file), instance or overrides.get("method"))))
    return layers


def _recipe_file(file: str, method: Any) -> dict[str, Any]:
    """Return the settings in a recipe file or a run folder; `method` is the method that the user gave, if any.

    Raises:
        UsageError: it is not a recipe, names a code file, or is a run's recipe that no longer gives that run's hash.
    """
    from dd.engine import registry

    path = checks.readable("recipe", file)
    text = checks.small_text("recipe", path / "recipe.toml" if path.is_dir() else path)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, an integer with too many digits, or nested too deeply
        raise UsageError(f"recipe={file}: not a recipe: {in_one_line(error)}") from error
    table.pop(SETTLED, None)
    named = table.get("method")
    if method is None and isinstance(named, str) and registry.is_code(named) and not registry.is_loaded(named):
        raise UsageError(
            f"recipe={file} names a code file as its method, and a recipe may not run code; if you trust it, add "
            f"method={shlex.quote(named)}"
        )
    if path.is_dir():
        _require_same_run(file, text, {**table, **({} if method is None else {"method": method})})
    return table


def _require_same_run(file: str, text: str, table: Mapping[str, Any]) -> None:
    """Raise `UsageError` if the recipe in a run folder does not yield the hash that it was written with."""
    said = _WRITTEN.match(text)
    try:
        found = resolve(table).hash
    except UsageError:  # the caller reports the problem better
        return
    if said is None or said[1] != found:
        raise UsageError(
            f"recipe={file}: its recipe.toml was changed, or was written by another version of dd: its hash is "
            f"{found}, not {said[1] if said else 'given in its first line'}; recipe={file}/recipe.toml uses it as it is"
        )


def _bare(asked: list[Layer], problems: Problems) -> dict[str, Any]:
    """Return the bare keys of a run with defaults filled in, checked by `checks`."""
    only = [Layer(a.where, {k: v for k, v in a.settings.items() if k in BARE}) for a in asked]
    bare = {key: leaf.default for key, leaf in BARE.items()} | merge(BARE, only, problems)[0]
    with problems.caught():
        checks.size(bare)
    with problems.caught():
        checks.check_dataset(bare["dataset"])
    if bare["init"] is not None:
        with problems.caught():
            checks.begins(bare["init"])
    if bare["ipc"] is None and bare["fraction"] is None:
        bare["ipc"] = _DEFAULT_IPC
    return bare


def _method(
    name: str | None, instance: "Method | None", typed: Layer, problems: Problems
) -> "tuple[type[Method] | None, Method | None]":
    from dd.engine import registry

    with problems.caught():
        if name is None:
            if meant := close_matches("method", [key for key in typed.settings if key not in BARE and "." not in key]):
                raise UsageError(f"unknown key {meant[0]!r}; did you mean method={typed.settings[meant[0]]}?")
            raise UsageError(f"say which method: method=NAME; known: {', '.join(registry.names())}")
        cls = registry.get(name) if instance is None else type(instance)
        return cls, checks.instance(cls, name)
    return None, None


def _flat(layer: Layer, known: Mapping[str, Leaf], *, partial: bool) -> Layer:
    """Flatten a layer's groups; without a method (`partial`), drop keys that may belong to the method."""
    flat = flatten(layer.settings, groups({**known, **OPTIONS}))
    if partial:
        flat = {k: v for k, v in flat.items() if k in BARE or k.startswith(("data.", "student.", "eval."))}
    return Layer(layer.where, flat)


def _table(
    cls: "type[Method]", bare: Mapping[str, Any], known: Mapping[str, Leaf], asked: list[Layer], problems: Problems
) -> _Table:
    """Return the tables of the method's recipe file that apply."""
    own = {key.partition(".")[0] for key in known}
    file = tables.read(cls, cls.name, groups(known), own)
    here = bare["dataset"], tables.size_name(bare["ipc"], bare["fraction"])
    images = tables.kind(here[0], {key: value for layer in asked for key, value in layer.settings.items()})
    dataset, size, preset = *here, bare["preset"]
    if bare["like"] is not None:
        with problems.caught():
            dataset, size = tables.split_cell_name(bare["like"])
            if (dataset, size, None) not in file.cells:
                raise tables.unknown_cell(file, bare["like"])
            tables.require_alike(file, file.cells[dataset, size, None], here[0], images)
    if preset is not None:
        with problems.caught():
            _check_preset(file, dataset, size, preset)
    layers = tuple(Layer(where, settings) for where, settings in file.layers(dataset, size, preset))
    cell = file.cells.get((dataset, size, preset)) if (dataset, size) == here else None
    return _Table(layers, cell, _notices(cls.name, file, here, images, bare))


def _by_ipc(cls: "type[Method] | None", bare: Mapping[str, Any], others: list[Layer]) -> list[Layer]:
    """Return the method's own defaults for this number of images per class, as the weakest layer, if it has any.

    For uneven classes, the rule gets the mean.

    Raises:
        UsageError: `fraction` is given, and no other layer sets a value that the rule would provide.
    """
    ipc = round(statistics.fmean(bare["ipc"])) if isinstance(bare["ipc"], tuple) else bare["ipc"]
    if cls is None or not (rule := cls.by_ipc(ipc or 1)):
        return []
    if ipc is not None:
        return [Layer(f"rule of {cls.name} for ipc={ipc}", rule)]
    missing = [key for key in rule if not any(key in layer.settings for layer in others)]
    if missing:
        raise UsageError(
            f"{cls.name}: {', '.join(missing)} depend on ipc, which fraction={bare['fraction']} does not set; "
            f"set them: {' '.join(f'{key}=N' for key in missing)}"
        )
    return []


def _check_preset(file: tables.RecipeFile, dataset: str, size: str, preset: str) -> None:
    if preset in file.presets or (dataset, size, preset) in file.cells:
        return
    where = [cell.name.rpartition(".")[0] for cell in file.cells.values() if cell.preset == preset]
    if where:
        raise UsageError(f"preset={preset} is not for {dataset}.{size}; it is for {', '.join(where)}")
    if "," in preset:
        raise UsageError(f"preset={preset}: a run takes one preset, of {', '.join(sorted(file.preset_names()))}")
    raise UsageError(f"unknown preset {preset!r}{nearest(preset, file.preset_names()) or '; this method has none'}")


def _notices(
    method: str, file: tables.RecipeFile, here: tuple[str, str], images: "Kind | None", bare: Mapping[str, Any]
) -> tuple[str, ...]:
    if bare["like"] is not None:
        return (f"settings of {method} are those of {bare['like']}; for {'.'.join(here)} they are unverified",)
    if (*here, None) in file.cells or (*here, bare["preset"]) in file.cells:
        return ()
    used = "its defaults" + (f" and preset {bare['preset']}" if bare["preset"] else "")
    missing = f"no recipe of {method} for {'.'.join(here)}: {used} are used, unverified"
    ipc = bare["ipc"]
    wanted = f"ipc{statistics.fmean(ipc):g}" if isinstance(ipc, tuple) else here[1]
    if (cell := tables.nearest_cell(file, here[0], wanted, images)) is None:
        return (f"{missing}; no cell is near",) if file.cells else (missing,)
    return (f"{missing}; the nearest is {cell.name}, taken with like={cell.name}",)


def _changed(
    published: Parts, settled: Parts, bare: Mapping[str, Any], published_bare: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the keys that make this run differ from the recipe file's."""
    before = published.flat()
    changed = [key for key, value in settled.counted().items() if before.get(key) != value]
    for key in ("init", "precision"):
        if bare[key] != published_bare.get(key, BARE[key].default):
            changed.append(key)
    return tuple(changed)


def _recipe(
    cls: "type[Method]",
    bare: dict[str, Any],
    parts: Parts,
    table: _Table,
    *,
    origin: Mapping[str, str],
    digests: dict[str, str],
) -> Recipe:
    from dd.engine import registry
    from dd.io import sha256_file, user_path
    from dd.released.pull import file_of

    ref = bare.pop("method")
    if registry.is_code(ref):
        path, _, name = ref.rpartition(".py")
        ref = f"{user_path(path + '.py', 'method').resolve()}{name}"
    if text := registry.in_the_making(cls):
        digests["method"] = text
    if bare["init"] is not None and (init := file_of(bare["init"], "init")).is_file():
        digests["init"] = sha256_file(init)
    notices = table.notices
    if "dataset" not in origin:
        notices = (
            f"dataset: {bare['dataset']}, which needs no download; dataset=cifar10 is the papers' setting",
            *notices,
        )
    assert parts.method is not None
    return Recipe(
        method=parts.method,
        **{key: value for key, value in bare.items() if key not in OPTIONS},
        data=parts.data,
        student=parts.student,
        eval=parts.eval,
        method_ref=ref,
        digests=digests,
        origin=origin,
        cell=table.cell,
        notices=notices,
    )
