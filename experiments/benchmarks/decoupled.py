"""The benchmark of the decoupled family: recovery, labelling, and the size of labels."""

import statistics
from dataclasses import replace
from typing import Any

from pairs import Bench, Runs, Side, in_turns, ratios
from report import Findings, compared, same_work
from scale import DECOUPLED, LABELLED, RECOVERY_CEILINGS


def recover(bench: Bench, found: Findings) -> None:
    """Benchmark recovery: iterations per second and memory."""
    for what, (times, _, network) in DECOUPLED.items():
        options = {"times": times, "network": network}
        fewer = bench.fewer()
        if network["side"] >= 224:  # a single iteration is long enough to be timed
            fewer = replace(fewer, scale=replace(fewer.scale, iterations=1))
        sides = {
            "our SRe2L": ("recovering.ours", options),
            "plain, our allocator's setting": ("recovering.written_down", {**options, "kept": True}),
            "plain": ("recovering.written_down", options),
        }
        if network["side"] >= 224:  # all sides stay in memory, and each needs 8 GB
            del sides["plain"]
        ours, plain, *others = in_turns(fewer, sides).values()
        both = f"recover, {what} / plain, both with our allocator's setting"
        found.ratios.append(compared("decoupled", both, ours, plain, RECOVERY_CEILINGS.get(network["side"])))
        found.ratios += [compared("decoupled", f"recover, {what} / plain", ours, other) for other in others]
        peaks = [run.reports[-1]["peak"] for run in (ours, plain)]
        firsts = [[loss for report in run.reports for loss in report["losses"]][:2] for run in (ours, plain)]
        apart = max(abs(a - b) / b for a, b in zip(*firsts, strict=True))
        told = f"recover, {what}: {_rates('iterations', ours, plain)}; {same_work(apart, 'first two objectives')}"
        if None not in peaks:
            above = [peak - run.facts["resident"] for peak, run in zip(peaks, (ours, plain), strict=True)]
            told += (
                f"; peak memory {_mb(peaks)} MB, {_mb(above)} MB of it above the start ({above[0] / above[1]:.2f} of "
                "the plain side's)"
            )
        found.notes.append(f"decoupled: {told}")
        found.machine |= ours.facts


def relabel(bench: Bench, found: Findings) -> None:
    """Benchmark labelling: views per second."""
    for number, (what, (_, times, network)) in enumerate(DECOUPLED.items()):
        if not times:
            continue
        options = {"folder": str(bench.folder / f"labels {number}"), "times": times, "network": network}
        runs = in_turns(
            bench.fewer(),
            {"our label stage": ("relabelling.ours", options), "plain": ("relabelling.image_by_image", options)},
        )
        ours, plain = runs.values()
        found.ratios.append(compared("decoupled", f"relabel, {what} / image by image", ours, plain))
        apart = abs(ours.last["total"] / plain.last["total"] - 1)
        found.notes.append(
            f"decoupled: relabel, {what}: {_rates('views', ours, plain)}; "
            f"{same_work(apart, 'sums of squares of the stored logits')}"
        )
        found.machine |= ours.facts


def label_sizes(bench: Bench, found: Findings) -> None:
    """Report the bytes per view of every label form."""
    with Side(bench, "relabelling.sizes", {"classes": LABELLED}) as side:
        rows: dict[str, Any] = side.go()["rows"]
    for classes, forms in rows.items():
        told = ", ".join(f"{form} {seed} / {records}" for form, (seed, records) in forms.items())
        found.notes.append(
            f"decoupled: bytes per view, drawn again from the seed / with records, {classes} classes: {told}"
        )


def _rates(unit: str, ours: Runs, plain: Runs) -> str:
    rates = [run.reports[-1]["count"] / statistics.median(run.seconds) for run in (ours, plain)]
    quicker = statistics.median(1 / ratio for ratio in ratios(ours.seconds, plain.seconds))
    return f"{rates[0]:.1f} / {rates[1]:.1f} {unit} per second, {quicker:.2f} times"


def _mb(amounts: list[int]) -> str:
    return " / ".join(f"{amount / 1e6:.0f}" for amount in amounts)
