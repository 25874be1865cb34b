"""Write a sweep file from the fields of a method: ranges around the values of the recipe."""

import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, get_args, get_origin

import annotated_types as at
from pydantic.fields import FieldInfo

from dd.errors import UsageError, unknown
from dd.io import Json
from dd.recipes import Recipe, about, resolve
from dd.recipes.schema import leaves
from dd.sweeps.yaml_file import SEARCHES

_ACTIVE = 4  # number of settings swept by default
_WIDE = 3.0  # ranges go from a third of the recipe's value to three times it
_INSIDE, _BELOW = 1e-9, 1e-2  # distance from exclusive lower and upper bounds
_LINE = 116  # characters
_HEAD = """\
# A sweep for `wandb sweep FILE` and its agents or, without an account, for `dd sweep FILE`.
# `method` at the top level is the search strategy; the distillation method is under parameters.  Trials are ranked by
# eval/holdout, the accuracy on held-out images; `dd run` also logs eval/test, which must not rank them.
"""


def draft(words: Mapping[str, Json], *, over: Sequence[str] = (), search: str = "bayes", trials: int = 30) -> str:
    """Return the YAML of a sweep over settings of a method.

    Args:
        words: settings shared by all trials, by dotted key: method, dataset, ipc, ...
        over: keys to sweep; empty for the first few real-valued settings of the method.
        search: "grid", "random" or "bayes".
        trials: number of trials.

    Raises:
        UsageError: invalid settings, or a key without a range.
    """
    if search not in SEARCHES:
        raise unknown("search", search, SEARCHES)
    recipe = resolve(words)
    ranges = _ranges(recipe, search == "grid")
    if not ranges:
        raise UsageError(f"{recipe.method.name} has no setting with a range")
    if strange := [key for key in over if key not in ranges]:
        raise unknown("setting with a range", strange[0], ranges)
    if clash := [key for key in over if key in words]:
        raise UsageError(f"{clash[0]} is both swept and given: leave out {clash[0]}=")
    named = [key for key in over or _likely(recipe, ranges) if key not in words]
    return "\n".join(_lines(recipe, words, {key: ranges[key] for key in named}, ranges, search, trials)) + "\n"


def _lines(
    recipe: Recipe,
    words: Mapping[str, Json],
    swept: Mapping[str, str],
    ranges: Mapping[str, str],
    search: str,
    trials: int,
) -> Iterator[str]:
    told = {setting.key: setting.about for setting in about(recipe.method_ref).settings}
    yield _HEAD.rstrip()
    yield f"name: {_scalar(recipe.name.replace('/', '-'))}"
    yield "program: dd"
    yield "command: ['${env}', '${interpreter}', -m, dd, run, '${args_no_hyphens}']"
    yield f"method: {search}"
    yield "metric: {name: eval/holdout, goal: maximize}"
    yield f"run_cap: {trials}"
    yield "parameters:"
    fixed = {"method": recipe.method_ref, "dataset": recipe.dataset}
    fixed |= {key: getattr(recipe, key) for key in ("ipc", "fraction") if getattr(recipe, key) is not None}
    for key, value in {**fixed, **words}.items():
        yield f"  {key}: {{value: {_scalar(value)}}}"
    for key, law in swept.items():
        yield from _explained(told.get(key, ""), "  ")
        yield f"  {key}: {law}"
    others = [key for key in ranges if key not in swept and key not in words]
    if others:
        yield "  # Further settings of the method:"
    for key in others:
        yield from _explained(told.get(key, ""), "  ")
        yield f"  # {key}: {ranges[key]}"


def _explained(text: str, margin: str) -> Iterator[str]:
    for line in textwrap.wrap(text.split(". ")[0].removesuffix("."), _LINE):
        yield f"{margin}# {line}"


def _ranges(recipe: Recipe, grid: bool) -> dict[str, str]:
    """Return the rule of every setting of the method that has a range or choices, by dotted key."""
    found = {}
    for key, leaf in leaves(recipe.method).items():
        if key.rpartition(".")[2] != "seed" and (law := _law(leaf.annotation, leaf.default, grid)):
            found[key] = law
    return found


def _law(annotation: object, value: object, grid: bool) -> str:
    """Return the rule for a value, or an empty text."""
    if choices := _choices(annotation):
        return f"{{values: [{', '.join(map(_scalar, choices))}]}}"
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return ""
    least, most = _bounds(annotation)
    whole = isinstance(value, int)
    share = most <= 1
    low, high = (value / 2, value * 2) if whole or share else (value / _WIDE, value * _WIDE)
    low, high = max(low, least), min(high, most)
    if whole:
        low, high = max(round(low), 1), round(high)
    if not low < high:
        return ""
    low, high = (low, high) if whole else (_short(low, math.ceil), _short(high, math.floor))
    if grid:
        between = [low, value, high] if low < value < high else [low, high]
        return f"{{values: [{', '.join(map(_scalar, dict.fromkeys(between)))}]}}"
    law = "int_uniform" if whole else "uniform" if share else "log_uniform_values"
    return f"{{distribution: {law}, min: {_scalar(low)}, max: {_scalar(high)}}}"


def _likely(recipe: Recipe, ranges: Mapping[str, str]) -> list[str]:
    """Return the first few real-valued settings outside of groups: experts and teachers are shared by all trials."""
    flat = recipe.flat()
    own = [key for key in ranges if "." not in key and isinstance(flat[key], float)]
    return (own or list(ranges))[:_ACTIVE]


def _bounds(annotation: object) -> tuple[float, float]:
    """Return the smallest and the largest value that an annotation allows."""
    low, high = -math.inf, math.inf
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    for mark in (inner for one in marks for inner in (one.metadata if isinstance(one, FieldInfo) else [one])):
        least = [float(getattr(mark, "ge", low)), float(getattr(mark, "gt", low)) + _INSIDE * isinstance(mark, at.Gt)]
        most = [float(getattr(mark, "le", high)), float(getattr(mark, "lt", high)) - _BELOW * isinstance(mark, at.Lt)]
        low, high = max(low, *least), min(high, *most)
    return low, high


def _choices(annotation: object) -> list[Json]:
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if annotation is bool:
        return [True, False]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def _short(value: float, towards: Callable[[float], int]) -> float:
    """Round to two digits, towards the inside of the range."""
    scale = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{towards(round(value / scale, 6)) * scale:.3g}")


def _scalar(value: object) -> str:
    """Format a value for YAML 1.1, which reads 1e-05 (no decimal point) as a text."""
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(value, ensure_ascii=False)
