"""`dd show`: the resolved recipe, and the origin of each value."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from dd.cli.common import LENIENT, emit, examples, json_option, remark, settings
from dd.errors import UsageError

if TYPE_CHECKING:
    from dd.recipes import Recipe


@click.command(
    "show",
    context_settings=LENIENT,
    epilog=examples(
        "dd show method=datm ipc=10",
        "dd show method=mtt dataset=cifar100 ipc=50 experts.count=20 --json",
        "dd show runs/sweeps/dm-fashion-mini-ipc1-1a2b3c4d",
    ),
    short_help="Show the resolved recipe of a run.",
)
@settings
@json_option
def command(settings: tuple[str, ...], as_json: bool) -> None:
    """Show every setting of a run and where it came from, without running it.

    The output is a recipe: save it to a file, and `dd run recipe=FILE` reads it.  Given the folder of a sweep, show its
    trials and the winner instead.
    """
    from dataclasses import asdict

    from dd.recipes import parse_overrides, resolve

    if len(settings) == 1 and "=" not in settings[0] and os.path.isdir(settings[0]):
        _show_folder(settings[0], as_json)
        return
    recipe = resolve(parse_overrides(settings))
    if not as_json:
        for line in recipe.notices:
            remark(line)
        for line in _expected(recipe):
            remark(line)
        click.echo(recipe.to_toml(origins=True), nl=False)
        return
    origin = {key: recipe.origin.get(key, "default") for key in recipe.flat()}
    emit(
        {
            "name": recipe.name,
            "hash": recipe.hash,
            "recipe": recipe.to_dict(),
            "origin": origin,
            "cell": None if recipe.cell is None else asdict(recipe.cell) | {"name": recipe.cell.name},
            "changed": recipe.changed,
            "expect": recipe.expect,
            "notices": recipe.notices,
        }
    )


def _show_folder(text: str, as_json: bool) -> None:
    """Show the result of a sweep, or say which command shows another folder."""
    from dd.cli.sweep import show_sweep
    from dd.io import user_path
    from dd.runs import RunFolder
    from dd.sweeps import is_sweep, read_swept

    folder = user_path(text)
    if is_sweep(folder):
        swept = read_swept(folder)
        emit(swept.to_dict()) if as_json else show_sweep(swept)
        return
    if RunFolder(folder).recipe_toml.is_file():
        raise UsageError(
            f"{text} is the folder of a run: dd show recipe={text} for its settings, dd eval {text} for its accuracy"
        )
    raise UsageError(
        f"{text} is the folder of neither a sweep nor a run; dd show takes settings, as in dd show method=datm ipc=10"
    )


def _expected(recipe: "Recipe") -> Iterator[str]:
    """Yield the cell's expected accuracies, starting with the one for the run's own protocol."""
    from dd.recipes.listing import in_a_line

    for protocol, entry in sorted(recipe.numbers, key=lambda number: number[1] is not recipe.expect):
        mine = entry is recipe.expect
        yield f"{'expected' if mine else 'the cell says'}: {in_a_line(entry, protocol)}"
    if recipe.numbers and recipe.expect is None:
        yield "expected: no recorded number for these settings"
