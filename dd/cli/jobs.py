"""Verbs whose work jobs may share: `dd run` and `dd experts make`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from dd.recipes import Recipe, RunOptions

F = TypeVar("F", bound=Callable[..., object])


def role_options(function: F) -> F:
    """Decorator: add the part of a job as the argument `role`: "lead", "helper", or None for a process of its own."""
    words = "Make what this command needs that no process is making, and end: for other machines, see the docs."
    helper = click.option("--helper", "role", flag_value="helper", help=words)
    return click.option("--lead", "role", flag_value="lead", hidden=True)(helper(function))


def resolved(
    words: Sequence[str], own: Mapping[str, Any], *, elsewhere: bool = True
) -> "tuple[Sequence[str], Recipe, RunOptions]":
    """Return the words, the recipe and the options of one run.

    With `elsewhere` the device of a run on a cluster is one that this machine need not have; it is added to the words.
    """
    from dd.recipes import resolve, run_options
    from dd.recipes.checks import device_name

    if not elsewhere or own.get("on", "local") == "local":
        return words, resolve(own), run_options(own)
    asked = str(own.get("device", "auto"))
    device_name(asked)
    recipe, options = resolve({**own, "device": "cpu"}), run_options(own)
    device = ("cuda" if options.has_gpus else "cpu") if asked == "auto" else asked
    return [*words, f"device={device}"] if asked == "auto" else words, replace(recipe, device=device), options
