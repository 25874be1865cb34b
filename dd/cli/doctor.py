"""`dd doctor`: what a run will find here, and what to put in a bug report."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table
from dd.sizes import readable_size

_PACKAGES = (
    "dd-workbench",
    "torch",
    "torchvision",
    "kornia",
    "timm",
    "numpy",
    "pydantic",
    "safetensors",
    "pyarrow",
    "wandb",
    "huggingface_hub",
)
_LOW = 5e9  # bytes of free disk below which we warn: a pool of a hundred experts takes a few GB


@click.command(
    "doctor",
    context_settings=STRICT,
    epilog=examples("dd doctor", "dd doctor --json > doctor.json"),
    short_help="Look at this machine: devices, data, disk, versions.",
)
@json_option
def command(as_json: bool) -> None:
    """Show versions, devices, folders and their free disk, data found, and what is missing."""
    found = examine()
    if as_json:
        emit(found)
        return
    out = console()
    for heading in ("versions", "devices", "folders", "tools", "data"):
        out.print(heading, style="bold")
        table = plain_table("", "", show_header=False)
        for name, value in found[heading].items():
            table.add_row(f"  {name}", _words(value))
        print_table(out, table)
    for advice in found["advice"]:
        out.print(f"! {advice}", soft_wrap=True)
    if not found["advice"]:
        out.print("nothing is missing")


def examine() -> dict[str, Any]:
    """Everything `dd doctor` says, JSON-able."""
    from dd.data import list_sources
    from dd.io import home
    from dd.runs import runs_root

    found: dict[str, Any] = {
        "versions": _versions(),
        "devices": _devices(),
        "folders": {"shared artefacts": _folder(home()), "runs": _folder(runs_root())},
        "tools": _tools(),
        "data": {source.name: source.where for source in list_sources() if ":" not in source.name},
    }
    found["advice"] = _advice(found)
    return found


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {"python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _devices() -> dict[str, str]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            found[f"cuda:{i}"] = f"{card.name}, {readable_size(card.total_memory)}"
    if torch.backends.mps.is_available():
        found["mps"] = "available; taken only by device=mps"
    return found


def _folder(path: Path) -> dict[str, Any]:
    path = path.absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    return {
        "path": str(path),
        "exists": there == path,
        "writable": os.access(there, os.W_OK),
        "free": shutil.disk_usage(there).free,
    }


def _tools() -> dict[str, str | None]:
    compiler = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
    key = "set" if os.environ.get("WANDB_API_KEY") else "not set"
    return {"C++ compiler": compiler, "dd": shutil.which("dd"), "this program": sys.argv[0], "WANDB_API_KEY": key}


def _advice(found: dict[str, Any]) -> list[str]:
    advice = []
    if found["tools"]["C++ compiler"] is None:
        advice.append("no C++ compiler: training on the CPU is not compiled, which costs about a third; install g++")
    for what, folder in found["folders"].items():
        variable = "DD_RUNS" if what == "runs" else "DD_HOME"
        if not folder["writable"]:
            advice.append(f"the folder of {what}, {folder['path']}, cannot be written to; set {variable} to another")
        elif folder["free"] < _LOW:
            advice.append(
                f"only {readable_size(folder['free'])} are free for {what} ({folder['path']}); {variable} moves it"
            )
    if found["versions"]["wandb"] is None:
        advice.append("wandb is not installed: track=wandb will not work")
    return advice


def _words(value: Any) -> str:
    if value is None:
        return "not here"
    if isinstance(value, dict):
        state = "" if value["exists"] else " (made when needed)"
        return f"{value['path']}{state}, {readable_size(value['free'])} free"
    return str(value)
