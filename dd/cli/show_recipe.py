"""Printing a recipe in a few lines, and the plan of a run."""

import textwrap
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dd.sizes import readable_size, readable_time

if TYPE_CHECKING:
    from rich.console import Console

    from dd.recipes import Recipe

_WIDTH = 118
_BARE = {"method", "dataset", "ipc", "fraction"}  # already in the heading, unless ipc is a list


def summary(recipe: "Recipe") -> list[str]:
    """Return the heading, then every setting as `key=value`, with one paragraph per group."""
    own = {field.name for field in fields(recipe)}  # keys of every run; other bare keys belong to the method
    paragraphs: dict[str, list[str]] = {}
    for key, value in recipe.flat().items():
        group, _, name = key.rpartition(".")
        short = key in _BARE and not isinstance(value, list)
        if not short and not (value is None and key in own):
            heading = group or ("run" if key in own else "method")
            paragraphs.setdefault(heading, []).append(f"{name}={_text(value)}")
    lines = [f"{recipe.name}  recipe {recipe.hash}"]
    for heading, words in paragraphs.items():
        indent = f"  {heading:<11}"
        lines += textwrap.wrap(
            " ".join(words), _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), break_long_words=False
        )
    return lines


def show_plan(plan: dict[str, Any], out: "Console") -> None:
    """Print a plan: of `dd run --dry-run`, or with costs that of `dd plan`."""
    state = "finished: would be reported, not repeated" if plan["finished"] else "to run"
    out.print(f"{plan['name']}  recipe {plan['recipe']}  {state}")
    out.print(f"folder: {plan['folder']}", soft_wrap=True)
    for stage in plan["stages"]:
        out.print(f"{stage['stage']}: {_stage(stage)}", soft_wrap=True)
        for artefact in stage.get("artefacts", ()):
            out.print(f"  {'exists' if artefact['exists'] else 'to make'}: {artefact['what']}", soft_wrap=True)
    if "total" in plan:
        out.print(f"total: {_cost(plan['total'])}", soft_wrap=True)
        for line in _shared(plan):
            out.print(line, soft_wrap=True)


def _shared(plan: dict[str, Any]) -> list[str]:
    """Say what several jobs gain, and what no number of jobs shortens."""
    total, jobs = plan["total"], plan["jobs"]
    if jobs == 1:
        return []
    pieces = [some for stage in plan["stages"] for some in stage["pieces"]]
    each = [f"{some['count']} {some['kind']} of {readable_time(some['seconds'] / some['count'])}" for some in pieces]
    return [
        f"{jobs} jobs divide: {', '.join(each) or 'nothing'}",
        f"one job alone: {readable_time(total['alone'])}; any number of jobs, at least {readable_time(total['least'])} "
        "(critical path)",
        "the jobs are as fast as this machine, and the time that they wait for their turn is not in it",
    ]


def _stage(stage: dict[str, Any]) -> str:
    words = []
    if "artefacts" in stage:
        words.append(f"{stage['done']} of {stage['of']} artefacts exist" if stage["of"] else "nothing to prepare")
    if stage.get("unknown"):
        words.append("the rest of the plan, and whether classes have enough images, is known once this exists")
    if "iterations" in stage:
        words.append(f"{stage['iterations']} iterations")
    if "exists" in stage:
        words.append("the set exists" if stage["exists"] else "to make")
    if "bytes" in stage:
        words.append(f"{stage['epochs']} epochs of labels, {readable_size(stage['bytes'])}")
    if "students" in stage:
        words.append(f"{stage['students']} students, protocol {stage['protocol']}")
    if "seconds" in stage:
        words.append(_cost(stage))
    return ", ".join(words)


def _cost(stage: dict[str, Any]) -> str:
    disk = f", {readable_size(stage['disk'])} on disk" if stage["disk"] else ""
    memory = f", peak memory {readable_size(stage['peak_memory'])}" if stage["peak_memory"] else ""
    return f"{readable_time(stage['seconds'])}{memory}{disk}"


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) and " " in value else str(value)
