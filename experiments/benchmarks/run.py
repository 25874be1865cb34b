"""Benchmark time and memory against plain PyTorch.

    .venv/bin/python experiments/benchmarks/run.py [PART] [--json FILE]

PART is training, experts, iteration, where, memory, evaluation, distribution, loader, sets, decoupled or processes;
without it, all but the last five run.

Every comparison consists of paired repeats: each side runs in its own process, the sides take turns, and ratios are
taken within a pair.  The first repeat of each side, which includes compilation, is reported separately.  Run nothing
else on the machine meanwhile.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from decoupled import label_sizes, recover, relabel
from pairs import Bench, Died, Runs, Side, in_turns, ratios
from processes import processes
from report import Findings, Memory, compared, draw, machine, same_work, text, verdict
from scale import CEILINGS, DISTRIBUTION, LEAN, LOADER, LOOPS, PARTS, QUICK, SETS, Scale
from scoring import evaluation


def training(bench: Bench, found: Findings) -> None:
    runs = in_turns(
        bench,
        {
            "our loop": ("training", {"compile": True}),
            "our loop, compile=false": ("training", {"compile": False}),
            "plain loop": ("training_plain", {}),
        },
    )
    ours, eager, plain = runs.values()
    found.ratios += [
        compared("training", "our loop / plain loop", ours, plain, CEILINGS["training"]),
        compared("training", "our loop with compile=false / plain loop", eager, plain),
    ]
    steps = "a pass over the training images" if bench.scale.pass_steps is None else f"{bench.scale.pass_steps} steps"
    found.notes += [
        f"training: a repeat is {steps}; before the first steady one {_start_up(ours):.1f} s of compiling with an "
        f"empty cache ({_start_up(eager):.1f} s without compile, {_start_up(plain):.1f} s plain)",
        f"training: {plain.last['loading']:.2f} s of the plain loop's repeat are its DataLoader and normalisation",
        "training: test accuracy after the last repeat: "
        + ", ".join(f"{label} {run.last['accuracy']:.1f} %" for label, run in runs.items()),
    ]
    found.machine |= ours.facts


def experts(bench: Bench, found: Findings) -> None:
    runs = in_turns(bench.fewer(), {"our pool": ("experts", {}), "plain loop": ("experts_plain", {})})
    ours, plain = runs.values()
    found.ratios.append(compared("experts", "one of a pool / plain loop", ours, plain, CEILINGS["experts"]))
    found.notes.append(
        f"experts: a repeat is a pool of {bench.scale.pool} experts of one epoch, scored and stored; the plain loop "
        "trains single networks and keeps their parameters in memory; seconds are per expert"
    )
    found.machine |= ours.facts


def iteration(bench: Bench, found: Findings) -> None:
    """Compare the modes with the paper's loop; only the first of `LOOPS` has many repeats."""
    quick = bench.scale.student_steps < 10
    for number, (width, ipc) in enumerate(LOOPS[: 1 if quick else None]):
        _make_experts(bench, width=width)
        shape = {"width": width, "ipc": ipc}
        engines = {"full": "FullGraph", "stepwise": "Stepwise"} | ({} if number else {"frozen": "FrozenAdjoint"})
        sides = {label: ("iteration", {"backprop": name, **shape}) for name, label in engines.items()}
        few = replace(bench, scale=replace(bench.scale, repeats=min(bench.scale.repeats, 4), iterations=1))
        runs = in_turns(few if number else bench, {**sides, "the paper, written down": ("iteration_plain", shape)})
        paper = runs.pop("the paper, written down")
        for name, run in zip(engines, runs.values(), strict=True):
            what = f"MTT iteration, width {width}, ipc {ipc}, {engines[name]} / paper"
            found.ratios.append(compared("iteration", what, run, paper, CEILINGS.get(name)))
        apart = max(_apart(run, paper) for label, run in runs.items() if label != "FrozenAdjoint")
        cold = ", ".join(f"{label} {run.warm_up:.1f}" for label, run in runs.items())
        found.notes.append(
            f"iteration: width {width}, ipc {ipc}: {bench.scale.inner_steps} steps on {min(10 * ipc, 100)} images; "
            f"first repeat, with compiling, {cold} s; {same_work(apart, 'objectives of the first repeat')}"
        )
        found.machine |= paper.facts


def where(bench: Bench, found: Findings) -> None:
    _make_experts(bench)
    engines = {"FullGraph": "full", "Stepwise": "stepwise", "FrozenAdjoint (not exact)": "frozen"}
    runs = in_turns(bench, {label: ("where", {"backprop": name}) for label, name in engines.items()})
    spent = {
        label: {
            piece: statistics.median(report["spent"][piece] for report in run.reports[1:])
            for piece in run.reports[0]["spent"]
        }
        for label, run in runs.items()
    }
    for label, pieces in spent.items():
        total = sum(pieces.values())
        parts = ", ".join(f"{piece} {seconds / total:.1%}" for piece, seconds in pieces.items())
        found.notes.append(f"where: an outer iteration with {label}, {total * 1000:.0f} ms: {parts}")
    found.pieces = spent
    found.machine |= next(iter(runs.values())).facts


def memory(bench: Bench, found: Findings) -> None:
    _make_experts(bench)
    many = bench.scale.memory_steps[-1]
    last = {}
    for engine in ("full", "stepwise", "the paper"):
        rows = [_peak(bench, engine, steps, found) for steps in bench.scale.memory_steps]
        found.memory += rows
        last[engine] = rows[-1].above
    paper = last.pop("the paper")
    for engine, above in last.items():
        if above and paper:
            found.growth[engine] = above / paper
            ceiling, kept = verdict(above / paper, CEILINGS["memory"])
            found.notes.append(
                f"memory: {engine} / the paper's loop at {many} steps, both above their start: {above / paper:.2f} "
                f"(ceiling {ceiling}: {kept})"
            )


def distribution(bench: Bench, found: Findings) -> None:
    for method, shapes in DISTRIBUTION.items():
        for classes, ipc in shapes[: 1 if bench.scale.student_steps < 10 else None]:
            options = {"method": method, "shape": {"classes": classes, "ipc": ipc}}
            fewer = bench.fewer()
            if classes > 10:  # a single iteration is long enough to be timed
                fewer = replace(fewer, scale=replace(fewer.scale, iterations=1))
            ours, plain, kept = _class_by_class(fewer, options)
            ceiling = CEILINGS["few images" if ipc == 1 and method != "dsa" else "distribution"]
            what = f"{method}, {classes} classes x {ipc} / class by class"
            found.ratios.append(compared("distribution", what, ours, plain, ceiling))
            found.ratios.append(compared("distribution", f"{what}, both with our allocator's setting", ours, kept))
            peaks = [run.reports[-1]["peak"] for run in (ours, plain)]
            apart = abs(ours.reports[0]["loss"] - plain.reports[0]["loss"]) / plain.reports[0]["loss"]
            found.notes.append(
                f"distribution: {what}: peak memory {peaks[0] / 1e6:.0f} / {peaks[1] / 1e6:.0f} MB; "
                f"{same_work(apart, 'first objectives')}"
            )
            found.machine |= ours.facts

    few = bench.scale.student_steps < 10
    for method in DISTRIBUTION:
        for ipc in LEAN["ipc"][: 1 if few else None]:
            _growth(bench, found, method, {"classes": 10, "ipc": ipc, "width": LEAN["width"], "side": LEAN["side"]})


def _growth(bench: Bench, found: Findings, method: str, shape: dict[str, int]) -> None:
    """Compare peak memory above the start of the iterations with class by class, at our allocator's setting."""
    brief = replace(bench, scale=replace(bench.scale, repeats=1, iterations=1))
    ours, plain, kept = _class_by_class(brief, {"method": method, "shape": shape})
    above = [run.reports[-1]["peak"] - run.facts["resident"] for run in (ours, plain, kept)]
    ratio = above[0] / above[2]
    found.growth[f"{method}, width {shape['width']}, ipc {shape['ipc']}"] = ratio
    ceiling, said = verdict(ratio, CEILINGS["growth"])
    found.notes.append(
        f"distribution: {method}, width {shape['width']}, 10 classes x {shape['ipc']}: peak memory above the start "
        f"{above[0] / 1e6:.0f} MB, class by class {above[1] / 1e6:.0f}, with our allocator's setting "
        f"{above[2] / 1e6:.0f}: {ratio:.2f} times (ceiling {ceiling}: {said})"
    )


def _class_by_class(bench: Bench, options: dict[str, Any]) -> list[Runs]:
    """Run our side, the loop, and the loop with our allocator's setting."""
    with Side(bench, "classwise.pool", options) as side:
        side.finish()
    sides = {
        f"our {options['method']}": ("classwise.ours", options),
        "loop": ("classwise.class_by_class", options),
        "loop, our allocator's setting": ("classwise.class_by_class", {**options, "kept": True}),
    }
    return list(in_turns(bench, sides).values())


def loader(bench: Bench, found: Findings, sizes: Sequence[int] = LOADER) -> None:
    folder = str(bench.folder / "jpegs")
    with Side(bench, "loading.write", {"folder": folder}) as side:
        side.finish()
    for size in sizes:
        options = {"folder": folder, "size": size}
        ours, theirs, kept = in_turns(
            bench.fewer(),
            {
                "our loader": ("loading.ours", options),
                "DataLoader": ("loading.torchvisions", options),
                "DataLoader, our allocator's setting": ("loading.torchvisions", {**options, "kept": True}),
            },
        ).values()
        what = f"streamed to {size} px / ImageFolder + DataLoader"
        found.ratios.append(compared("loader", what, ours, theirs))
        both = f"{what}, both with our allocator's setting"
        found.ratios.append(compared("loader", both, ours, kept, CEILINGS["loader"]))
        images = ours.reports[-1]["images"]
        rates = [images / statistics.median(run.seconds) for run in (ours, theirs)]
        quicker = statistics.median(1 / ratio for ratio in ratios(ours.seconds, theirs.seconds))
        apart = abs(ours.reports[0]["total"] / theirs.reports[0]["total"] - 1)
        found.notes.append(
            f"loader: {size} px: {rates[0]:.0f} / {rates[1]:.0f} images per second, {quicker:.2f} times; "
            f"{same_work(apart, 'sums of squares')}"
        )
        found.machine |= ours.facts


def sets(bench: Bench, found: Findings) -> None:
    quick = bench.scale.student_steps < 10
    for number, (what, shape) in enumerate(SETS.items()):
        folder = bench.folder / f"set-{number}"
        options = {**shape, "folder": str(folder)} | ({"ipc": 1, "side": 32} if quick else {})
        with Side(bench, "sets.make", options) as side:
            side.go()
        size, told = (folder / "set" / "set.safetensors").stat().st_size, []
        for name in ("saving", "loading", "evaluating"):
            with Side(bench, f"sets.{name}", options) as side:
                above = side.go()["peak"] - side.facts["resident"]
                found.machine |= {key: value for key, value in side.facts.items() if key != "resident"}
            found.growth[f"sets: {what}: {name}"] = above / size
            _, said = verdict(above / size, CEILINGS["sets"])
            told.append(f"{name} {above / size:.2f} ({said})")
        whole = f"sets: {what}, {size / 1e6:.0f} MB, ceiling {CEILINGS['sets']}"
        found.notes.append(f"{whole}: peak above the start / bytes: {', '.join(told)}")
        shutil.rmtree(folder)


def decoupled(bench: Bench, found: Findings) -> None:
    recover(bench, found)
    relabel(bench, found)
    label_sizes(bench, found)
    loader(bench, found, LOADER[:1])


RUN: dict[str, Callable[[Bench, Findings], None]] = {
    "training": training,
    "experts": experts,
    "iteration": iteration,
    "where": where,
    "memory": memory,
    "evaluation": evaluation,
    "distribution": distribution,
    "loader": loader,
    "sets": sets,
    "decoupled": decoupled,
    "processes": processes,
}


def main() -> None:
    args = _arguments()
    scale: Scale = QUICK if args.quick else Scale()
    if args.repeats:
        scale = replace(scale, repeats=args.repeats)
    scale = replace(scale, shared_ipc=args.ipc or scale.shared_ipc, shared_width=args.width or scale.shared_width)
    found, began = Findings(machine=machine()), time.perf_counter()
    if found.machine["load"] > 0.5:
        found.notes.append(f"The machine was busy at the start (load {found.machine['load']}): trust no figure.")
    if args.quick:
        found.notes.append("--quick: a check that everything runs; trust no figure.")
    with tempfile.TemporaryDirectory(prefix="dd-bench-") as folder:
        bench = Bench(scale, Path(folder), args.threads)
        for part in [args.part] if args.part else PARTS:
            RUN[part](bench, found)
    found.notes.append(f"whole: {(time.perf_counter() - began) / 60:.1f} minutes")
    sys.stdout.write(text(found) + "\n")
    if args.picture and found.pieces:
        draw(found.pieces, args.picture)
    if args.json:
        args.json.write_text(json.dumps(found.to_dict(), indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "part", nargs="?", choices=["", *RUN], default="", help=f"one part; without it, {', '.join(PARTS)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw where the time of an iteration goes")
    parser.add_argument("--repeats", type=int, metavar="N", help=f"paired repeats, {Scale.repeats} without it")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every side; PyTorch's choice without it")
    parser.add_argument("--ipc", type=int, nargs="+", metavar="N", help="images per class of PART=processes")
    parser.add_argument("--width", type=int, nargs="+", metavar="N", help="widths of PART=processes")
    parser.add_argument("--quick", action="store_true", help="a minute in all, to see that everything runs")
    return parser.parse_args()


def _start_up(run: Runs) -> float:
    return max(0.0, run.warm_up - statistics.median(run.seconds))


def _apart(run: Runs, other: Runs) -> float:
    """Largest relative difference of the objectives of the first repeat."""
    pairs = zip(run.reports[0]["losses"], other.reports[0]["losses"], strict=True)
    return max(abs(a - b) / b for a, b in pairs)


def _make_experts(bench: Bench, **options: int) -> None:
    with Side(bench, "make_experts", options) as side:
        side.finish()


def _peak(bench: Bench, engine: str, steps: int, found: Findings) -> Memory:
    plain = engine == "the paper"
    name, options = ("memory_plain", {}) if plain else ("memory", {"backprop": engine})
    try:
        with Side(bench, name, {**options, "steps": steps}) as side:
            told = side.go()
            found.machine |= {k: v for k, v in side.facts.items() if k != "resident"}
            sys.stderr.write(f"memory, {engine}, {steps} steps: {told['seconds']:.2f} s\n")
            return Memory(engine, steps, side.facts["resident"], told["peak"], told["seconds"])
    except Died as error:
        found.notes.append(f"memory: {engine} at {steps} steps has no figure: {error} (out of memory?)")
        return Memory(engine, steps)


if __name__ == "__main__":
    main()
