"""`dd eval`: evaluate existing sets."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dd.cli.common import (
    LENIENT,
    console,
    emit,
    examples,
    json_option,
    log_to_stderr,
    paths_and_settings,
    plain_table,
    print_table,
    remark,
    settings,
    several,
)
from dd.errors import RunError, UsageError, printable

if TYPE_CHECKING:
    from pathlib import Path

    from dd.evaluation import Report
    from dd.evaluation.downstream import DownstreamReport
    from dd.released.record import Released


class _Scored(NamedTuple):
    """A set's score, and what its record states if it is a released one."""

    report: "Report | DownstreamReport"
    path: "Path"
    record: "Released | None"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        stated = [asdict(score) for score in self.record.scores] if self.record else []
        return self.report.to_dict() | ({"released": stated} if self.record else {})


@click.command(
    "eval",
    context_settings=LENIENT,
    epilog=examples(
        "dd eval runs/datm/fashion-mini/ipc10/1a2b3c4d-seed0",
        "dd eval set.safetensors eval.students=20 student.arch=resnet18",
        "dd eval runs/*/fashion-mini/ipc10/*",
        "dd eval dm/fashion-mini-ipc10 student.arch=convnet,alexnet,resnet18 eval.students=3",
        "dd eval dm/fashion-mini-ipc1",
        "dd eval dm/fashion-mini-ipc1 task=continual continual.steps=5",
    ),
    short_help="Score a distilled set.",
)
@click.argument("file", type=click.UNPROCESSED)
@settings
@json_option
def command(file: str, settings: tuple[str, ...], as_json: bool) -> int:
    """Train fresh students on the set in FILE, under the set's own protocol, and report; several sets one by one.

    student.arch=A,B,… scores it on several networks, in one table.

    FILE is a set (.safetensors), the folder of a run, the name of a released set (`dd sets`), or hf:USER/NAME.  Data,
    network and protocol are recorded in the set; keys override them: eval.protocol=NAME (`dd protocols` lists
    them), eval.students=N, student.arch=NAME, which has its published size and the set's norm.  A set made elsewhere
    may also need dataset=PATH, teachers=PATH or hours=N.  task=NAME measures a downstream use instead of the accuracy:
    continual (class-incremental learning with the set as the memory) or nas (architecture search with the set as the
    proxy of all real images).
    """
    from dd.networks import NetworkSpec
    from dd.recipes import checks, parse_overrides

    if "=" in file and not os.path.exists(file):
        raise UsageError(f"name the set first: dd eval FILE {file}")
    others, words = paths_and_settings(settings)
    files = [file, *others]
    overrides = parse_overrides(words)
    log_to_stderr()
    several_networks = several("student.arch", overrides.get("student.arch"))
    networks = None if several_networks is None else [str(one) for one in several_networks]
    for name in networks or ():
        checks.student(NetworkSpec(name))  # a name that does not exist; the size of the images is known later
    if len(files) == 1 and networks is None:
        _show(_scored(file, overrides), as_json)
        return 0
    worst, found = 0, []
    for one in files:
        scored: dict[str, _Scored] = {}
        for network in networks or [""]:
            which = {"set": one, "network": network} if network else {"set": one}
            own = {**overrides, "student.arch": network} if network else overrides
            try:
                scored[network] = _scored(one, own)
            except (UsageError, RunError) as error:
                worst = max(worst, 2 if isinstance(error, UsageError) else 1)
                _remark_once(found, which, error)
                found.append({**which, "error": str(error)})
                continue
            found.append({**which, "report": scored[network].to_dict()})
        if not as_json and networks is None and scored:
            _show(scored[""], as_json=False)
        elif not as_json and scored:
            _show_networks(one, scored)
    if as_json:
        emit({"sets": found})
    return worst


def _remark_once(found: Sequence[Mapping[str, Any]], which: Mapping[str, str], error: Exception) -> None:
    """Say an error, unless another network had the same with this set: a wrong key is wrong for all networks."""
    if all((row["set"], row.get("error")) != (which["set"], str(error)) for row in found):
        remark(f"dd: {': '.join(which.values())}: {error}")


def _scored(file: str, overrides: Mapping[str, Any]) -> _Scored:
    from dd.pipeline import evaluate_distilled, load
    from dd.pipeline.evaluation import existing_set
    from dd.released.pull import is_released
    from dd.sets import hashed_once

    path, record = _pulled(file, overrides) if is_released(file) else (existing_set(file), None)
    with hashed_once():
        return _Scored(evaluate_distilled(load(path), overrides), path, record)


def _pulled(name: str, overrides: Mapping[str, Any]) -> "tuple[Path, Released | None]":
    """A released set on this machine, and its record."""
    from dd.pipeline.evaluation import pull_set
    from dd.released.hub import PREFIX

    # a record says these itself; on the Hub the files rarely do
    keys = {"dataset": "dataset", "protocol": "eval.protocol"} if name.startswith(PREFIX) else {}
    said = {key: overrides[given] for key, given in keys.items() if given in overrides}
    found = pull_set(name, said)
    for line in found.remarks:
        remark(f"{name}: {line}")
    return found.path, found.record


def _show_networks(name: str, scored: Mapping[str, _Scored]) -> None:
    """Print one table of a set on several networks; a downstream task has a table of each."""
    from dd.evaluation import Report
    from dd.evaluation.report import shared_kinds
    from dd.evaluation.table import NETWORK_HEADINGS, kind_in_words, network_rows

    reports = {network: one.report for network, one in scored.items() if isinstance(one.report, Report)}
    if len(reports) < len(scored):
        for network, one in scored.items():
            console().print(f"\n{network}", style="bold")
            _show(one, as_json=False)
        return
    for kind in shared_kinds(reports.values()):
        console().print(f"\n{name}, {kind_in_words(kind)}", style="bold")
        table = plain_table(*NETWORK_HEADINGS)
        for row in network_rows(reports, kind):
            table.add_row(*row)
        print_table(console(), table)


def _show(scored: _Scored, as_json: bool) -> None:
    from dd.cli import show_report

    if as_json:
        emit(scored.to_dict())
        return
    show_report.show_report(scored.report, console(), {"set": str(scored.path)})
    # its record states accuracies, which no downstream task measures
    for score in scored.record.scores if scored.record and "task" not in scored.report.to_dict() else ():
        click.echo(f"released: {printable(score.in_words(), keep='')}")
