"""`dd doctor`: what a run will find on this machine, and why a run's number differs from the recorded one."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table
from dd.errors import RunError, UsageError, in_one_line
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
    "submitit",
    "ray",
    "s3fs",
)
_ASKED = 20.0  # seconds to wait for an answer of a cluster
_LOW = 5e9  # bytes of free disk below which we warn: a pool of a hundred experts takes a few GB


@click.command(
    "doctor",
    context_settings=STRICT,
    epilog=examples("dd doctor", "dd doctor --json > doctor.json", "dd doctor runs/dm/fashion-mini/ipc1/1a2b-seed0"),
    short_help="Look at this machine, or at why a run's number differs.",
)
@click.argument("run", required=False)
@json_option
def command(run: str | None, as_json: bool) -> int:
    """Show versions, devices, folders with free disk space, datasets found, and what is missing.

    With RUN, the folder of a finished run, name whatever may make its number differ: settings that are not the
    recipe's, an accuracy outside the recipe's band, and everything that is no longer as the run recorded it: versions,
    device, data files, code of the method, and files of the run.  The exit code is 1 if anything differs.
    """
    return _examine_machine(as_json) if run is None else _examine_run(run, as_json)


def _examine_run(run: str, as_json: bool) -> int:
    from dd.pipeline.diagnosis import diagnose

    found = diagnose(run)
    if as_json:
        emit(found.to_dict())
        return int(bool(found.findings))
    out, score = console(), found.report.accuracy
    out.print(
        f"{found.report.name}: {score.mean:.2f} % of {score.n} students, recorded in {found.folder}", soft_wrap=True
    )
    headings = {"recipe": "the run differs from its recipe", "record": "this differs from what the run recorded"}
    for where, heading in headings.items():
        some = [one for one in found.findings if one.where == where]
        if some:
            out.print(heading, style="bold")
        for one in some:
            out.print(f"! {one.words}", soft_wrap=True)
    for why in found.unknown:
        out.print(f"not compared: {why}", soft_wrap=True)
    if not found.findings:
        out.print("nothing that was compared differs" if found.unknown else "nothing differs")
    return int(bool(found.findings))


def _examine_machine(as_json: bool) -> int:
    found = examine()
    if as_json:
        emit(found)
        return 0
    out = console()
    folders = {name: _folder_words(folder) for name, folder in found["folders"].items()}
    tables = {"versions": found["versions"], "devices": found["devices"], "folders": folders}
    plugged = {"plug-ins": found["plug_ins"]} if found["plug_ins"] else {}
    for heading, rows in (tables | {"tools": found["tools"]} | plugged | {"data": found["data"]}).items():
        out.print(heading, style="bold")
        table = plain_table("", "", show_header=False)
        for name, value in rows.items():
            table.add_row(f"  {name}", "not here" if value is None else value)
        print_table(out, table)
    for advice in found["advice"]:
        out.print(f"! {advice}", soft_wrap=True)
    if not found["advice"]:
        out.print("nothing is missing")
    return 0


class FolderFacts(TypedDict):
    """A folder, which may not exist; `free` is the free space of its disk in bytes.

    `locks` is whether file locks between processes work in it, or None if it does not exist or is not writable.
    """

    path: str
    exists: bool
    writable: bool
    free: int
    locks: bool | None


class Examination(TypedDict):
    """The complete output of `dd doctor`; None marks what is missing."""

    versions: dict[str, str | None]
    devices: dict[str, str]
    folders: dict[str, FolderFacts]
    tools: dict[str, str | None]
    plug_ins: dict[str, str]
    data: dict[str, str | None]
    advice: list[str]


def examine() -> Examination:
    """Examine this machine."""
    from dd.data import list_sources
    from dd.io import home
    from dd.runs import runs_root

    versions, tools = _versions(), _tools()
    folders = {"shared artefacts": _folder(home()), "runs": _folder(runs_root())}
    return {
        "versions": versions,
        "devices": _devices(),
        "folders": folders,
        "tools": tools,
        "plug_ins": _plug_ins(),
        "data": {source.name: source.where for source in list_sources() if ":" not in source.name},
        "advice": _advice(versions, folders, tools),
    }


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

    from dd.runs.cost import cores

    found = {"cpu": f"{platform.machine()}, {cores()} cores, {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            found[f"cuda:{i}"] = f"{card.name}, {readable_size(card.total_memory)}"
    if torch.backends.mps.is_available():
        found["mps"] = "available; used only with device=mps"
    return found


def _folder(path: Path) -> FolderFacts:
    from dd.io import locks_work

    path = path.absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    writable = os.access(there, os.W_OK)
    return {
        "path": str(path),
        "exists": there == path,
        "writable": writable,
        "free": shutil.disk_usage(there).free,
        "locks": locks_work(path) if writable and there == path else None,
    }


def _tools() -> dict[str, str | None]:
    compiler = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
    key = "set" if os.environ.get("WANDB_API_KEY") else "not set"
    found = {"C++ compiler": compiler, "dd": shutil.which("dd"), "this program": sys.argv[0], "WANDB_API_KEY": key}
    return found | {"Slurm": _slurm(), "Ray": _ray(), "address of the store": _store_address()}


def _slurm() -> str | None:
    """What Slurm says of its nodes."""
    if shutil.which("sbatch") is None:
        return None
    return _answer(["sinfo", "--noheader", "--format=%D nodes in partition %P, %a"])


def _ray() -> str | None:
    """What Ray says of the cluster here."""
    from importlib.util import find_spec

    return None if find_spec("ray") is None else _answer([sys.executable, "-c", _RAY])


_RAY = """
import os
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what Ray itself says, of nodes that were lost for example, is no part of the answer
import ray
try:
    ray.init(address="auto", log_to_driver=False, logging_level=50)
except ConnectionError:
    print("no cluster here", file=answer)
else:
    print(sum(node["Alive"] for node in ray.nodes()), "nodes", file=answer)
answer.close()
"""


def _answer(command: Sequence[str]) -> str:
    """Return what a command prints, in one line, or how it fails."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ASKED)
    except subprocess.CalledProcessError as error:
        return f"does not answer: {(error.stderr.strip().splitlines() or [in_one_line(error)])[-1]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not answer: {in_one_line(error)}"
    return "; ".join(said.stdout.splitlines()) or "no nodes"


def _store_address() -> str | None:
    """Whether the address of the shared artefacts, if there is one, can be used."""
    from dd.io import creates_once, home_address

    if (place := home_address()) is None:
        return None
    try:
        works = creates_once(place)
    except (UsageError, RunError) as error:
        return str(error)
    return f"{place.address}, {'locks work' if works else _NO_LOCKS}"


_NO_LOCKS = "but locks do not: it replaces a file that was to be created, so machines may make things twice"


def _plug_ins() -> dict[str, str]:
    """Every plug-in, "KIND NAME", with its package or with what is wrong with it."""
    from dd.data.sources.catalogue import CATALOGUE
    from dd.engine.registry import list_methods
    from dd.evaluation.protocols import PROTOCOLS
    from dd.networks.names import NETWORKS
    from dd.plugins import plug_ins
    from dd.runs.trackers import TRACKERS

    broken = {entry.name: entry.error for entry in list_methods() if entry.error is not None}
    found = {("method", name): (plug_in, broken.get(name)) for name, plug_in in plug_ins("method").items()}
    kinds = {"dataset": CATALOGUE, "network": NETWORKS, "protocol": PROTOCOLS, "tracker": TRACKERS}
    for what, named in kinds.items():
        wrong = named.broken()
        found |= {(what, name): (plug_in, wrong.get(name)) for name, plug_in in plug_ins(what).items()}
    return {f"{what} {name}": f"broken: {why}" if why else one.package for (what, name), (one, why) in found.items()}


def _advice(
    versions: dict[str, str | None], folders: dict[str, FolderFacts], tools: dict[str, str | None]
) -> list[str]:
    advice = []
    if tools["C++ compiler"] is None:
        advice.append("no C++ compiler: training on the CPU is not compiled, which costs about a third; install g++")
    for what, folder in folders.items():
        variable = "DD_RUNS" if what == "runs" else "DD_HOME"
        if not folder["writable"]:
            advice.append(f"cannot write to {folder['path']}, the folder for {what}; set {variable} to another folder")
        elif folder["free"] < _LOW:
            advice.append(
                f"only {readable_size(folder['free'])} are free for {what} ({folder['path']}); set {variable} to "
                "move it"
            )
        if folder["locks"] is False:
            advice.append(
                f"file locks do not work in {folder['path']}: processes that share it may disturb each other; set "
                f"{variable} to a folder on another file system"
            )
    if tools["Slurm"] is not None and versions["submitit"] is None:
        advice.append("Slurm is here, but submitit is not: on=slurm needs pip install 'dd-workbench[slurm]'")
    if versions["wandb"] is None:
        advice.append("wandb is not installed: track=wandb will not work")
    return advice


def _folder_words(folder: FolderFacts) -> str:
    state = "" if folder["exists"] else " (made when needed)"
    locks = ", file locks work" if folder["locks"] else ""
    return f"{folder['path']}{state}, {readable_size(folder['free'])} free{locks}"
