"""Compare what `dd plan` says with what the run takes, for four commands of different families.

    .venv/bin/python experiments/benchmarks/planned.py [--only NAME] [--json FILE]

Each command is planned and then run, in processes of their own and with an empty store.  A ratio is planned / measured,
of the seconds of all stages and of the largest peak memory of a stage.  Run nothing else on the machine meanwhile; the
load and the processor seconds of the run are in the table, to tell how far the clock can be trusted.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMMANDS = {
    "dm": "method=dm ipc=1 iterations=200 student.width=16 eval.students=3 eval.steps=100",
    "mtt": "method=mtt ipc=1 iterations=60 experts.count=3 experts.epochs=4 start_max=2 student.width=8 "
    "eval.students=3 eval.steps=100 eval.full=false",
    "sre2l": "method=sre2l ipc=1 iterations=100 squeeze.epochs=4 student.width=8 eval.students=3 eval.epochs=50 "
    "eval.full=false",
    "forgetting": "method=forgetting ipc=10 record.epochs=6 student.width=8 eval.students=3 eval.steps=100 "
    "eval.full=false",
}
WITHIN = 1.5  # largest factor between planned and measured


def told(verb: str, command: str, place: str) -> tuple[dict[str, Any], float]:
    """Return what a verb prints as JSON, and the processor seconds of its process."""
    before = _used()
    where = os.environ | {"DD_HOME": f"{place}/home", "DD_RUNS": f"{place}/runs"}
    words = [sys.executable, "-m", "dd", verb, *command.split(), "--json"]
    ended = subprocess.run(words, env=where, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"dd {verb} {command} failed:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout), _used() - before


def compared(name: str) -> dict[str, Any]:
    """Plan and run one command with an empty store."""
    with tempfile.TemporaryDirectory() as place:
        load = os.getloadavg()[0]
        planned, planning = told("plan", COMMANDS[name], place)
        report, processor = told("run", COMMANDS[name], place)
    stages = {stage["stage"]: stage for stage in planned["stages"]}
    seconds = sum(cost["seconds"] for cost in report["cost"].values())
    memory = max(cost["peak_memory"] or 0 for cost in report["cost"].values())
    total = planned["total"]
    return {
        "command": COMMANDS[name],
        "planned": {"seconds": total["seconds"], "memory": total["peak_memory"]},
        "measured": {"seconds": seconds, "memory": memory},
        "time": total["seconds"] / seconds,
        "memory": total["peak_memory"] / memory,
        "stages": {
            stage: [stages[stage]["seconds"], cost["seconds"]]
            for stage, cost in report["cost"].items()
            if stage in stages
        },
        "processor seconds": {"plan": planning, "run": processor},
        "load before and after": [load, os.getloadavg()[0]],
    }


def _used() -> float:
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def main() -> None:
    """Compare all commands, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(COMMANDS), help="one of the commands")
    parser.add_argument("--json", type=Path, help="write everything that was measured to a file")
    asked = parser.parse_args()
    found = {}
    for name in [asked.only] if asked.only else COMMANDS:
        one = found[name] = compared(name)
        both = [f"{one['planned'][what]:.4g} / {one['measured'][what]:.4g}" for what in ("seconds", "memory")]
        inside = all(1 / WITHIN <= one[what] <= WITHIN for what in ("time", "memory"))
        print(
            f"{name:<12} time {both[0]} s = {one['time']:.2f}   memory {both[1]} B = {one['memory']:.2f}   "
            f"{'within' if inside else 'NOT within'} {WITHIN}   load {one['load before and after'][0]:.1f} to "
            f"{one['load before and after'][1]:.1f}, processor {one['processor seconds']['run']:.0f} s",
            flush=True,
        )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
