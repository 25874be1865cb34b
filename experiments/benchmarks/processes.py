"""An outer iteration of DATM in one process of many threads, and shared by many processes of one thread.

The images are noise and the experts walk at random: neither changes the time of an iteration.
"""

import importlib
import json
import platform
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from noise import noise
from pairs import Bench
from report import Findings, Group
from scale import GROUPS
from torch import Tensor

from dd.engine import parallel
from dd.engine.method import Task
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.networks import Functional, NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.training import ExpertSettings, Trajectories

CLASSES, SIDE = 10, 28
STRATEGY = "color_crop_cutout_flip_scale_rotate"
EXPERTS = ExpertSettings(kind="sgd", count=1, epochs=2)
BATCH = 50  # images of an inner step


def processes(bench: Bench, found: Findings) -> None:
    """Compare the groups at every size; they take turns."""
    scale = bench.scale
    for ipc in scale.shared_ipc:
        for width in scale.shared_width:
            options = {"ipc": ipc, "width": width, "steps": scale.inner_steps, "iterations": scale.iterations}
            told: dict[tuple[int, int], list[dict[str, Any]]] = {group: [] for group in GROUPS}
            for _ in range(scale.repeats):
                for group, reports in told.items():
                    reports.append(_group(bench, *group, options))
                    sys.stderr.write(f"ipc {ipc}, width {width}, {group}: {reports[-1]['seconds']:.2f} s\n")
            for (count, threads), reports in told.items():
                seconds = [report["seconds"] for report in reports]
                found.groups.append(Group(ipc, width, count, threads, seconds, reports[0]["summed"]))
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    found.machine |= {"threads": " or ".join(str(threads) for _, threads in GROUPS), **versions}
    found.notes.append(
        f"processes: DATM, {CLASSES} classes, {scale.inner_steps} steps of at most {BATCH} images of {SIDE} px; "
        f"seconds of an outer iteration, of {scale.iterations} in a repeat after a first one that is not counted; of N "
        "processes, each sends 2 (N - 1) / N times the bytes that are summed"
    )


def _group(bench: Bench, count: int, threads: int, options: dict[str, int]) -> dict[str, Any]:
    """Run one group to its end; returns what its first process reports."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    ended = subprocess.run(
        [*torchrun, __file__, json.dumps(options)],
        env=bench.environment() | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout)


def member(ipc: int, width: int, steps: int, iterations: int) -> None:
    """One process of a group; the first prints the median seconds of an iteration, and the bytes summed in one."""
    task = _task(ipc, width)
    settings = {"iterations": 1 + iterations, "steps": steps, "span": 1, "start_max": 1, "batch": BATCH}
    method: Any = get("datm")
    method = method(**settings, start_from="real", threshold=1e9, experts=EXPERTS).settle(task)
    clock: list[float] = []

    def log(it: int, scalars: Any) -> None:
        clock.append(time.perf_counter())

    with parallel.processes("cpu"):
        summed = _count_bytes()
        prepared = _prepared(method, task)
        synthesise(method, task, prepared, method.start(task, prepared), watch=Watch(log=log))
        if parallel.is_first():
            seconds = statistics.median(b - a for a, b in pairwise(clock))
            print(json.dumps({"seconds": seconds, "summed": sum(summed) // (1 + iterations)}))


def _task(ipc: int, width: int) -> Task:
    return Task(
        data=noise(CLASSES, (1, SIDE, SIDE), ipc, STRATEGY),
        targets=torch.arange(CLASSES).repeat_interleave(ipc),
        student=NetworkSpec(depth=3, width=width, norm="instance", arch="convnet"),
        seed=0,
        device=torch.device("cpu"),
        store=Store(),
    )


def _prepared(method: Any, task: Task) -> Any:
    """What the method would prepare, with an expert that walks at random."""
    mtt = importlib.import_module("dd.methods.trajectory.mtt")
    matching = importlib.import_module("dd.methods.trajectory._matching")
    images = method.images_per_step(task)
    network = matching.make_student(task, method.backprop, method.steps, images)
    backprop = matching.make_backprop(task, network, method.backprop, images)
    return mtt.Prepared(Trajectories((_walk(network),), (None,), 0.0), network, backprop)


def _walk(network: Functional) -> Tensor:
    steps = 0.01 * torch.randn(EXPERTS.epochs + 1, network.size, generator=generator(0, "walk"))
    return network.flatten(network.module) + steps.cumsum(0)


def _count_bytes() -> list[int]:
    """From now on, append the bytes of every tensor that is summed over processes to the list."""
    summed, sizes = dist.all_reduce, []

    def counting(tensor: Tensor) -> None:
        sizes.append(tensor.nbytes)
        summed(tensor)

    dist.all_reduce = counting
    return sizes


if __name__ == "__main__":
    member(**json.loads(sys.argv[1]))
