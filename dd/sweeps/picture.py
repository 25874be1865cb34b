"""The picture of a sweep: held-out accuracy by trial and by setting."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.runs.pictures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 8  # settings, at most
_COLUMNS = 3
_RATIO = 8  # of the largest to the smallest value, above which the axis is logarithmic


def draw_sweep(path: Path, metric: str, rows: Sequence[Mapping[str, Any]], best: int) -> None:
    """Plot held-out accuracy by trial, with the best so far, and by each setting.

    Args:
        path: the PNG file to write.
        metric: name of the vertical axis, in percent.
        rows: the trials, see `Study.rows`.
        best: number of the winner, which is highlighted.
    """
    whole = [row for row in rows if row["state"] == "complete"]
    keys = list(whole[0]["settings"])[:_SHOWN]
    high = math.ceil((1 + len(keys)) / _COLUMNS)
    figure = new_figure(3.6 * _COLUMNS, 2.8 * high)
    axes = figure.subplots(high, _COLUMNS, squeeze=False).flatten()
    _by_trial(axes[0], rows, whole, best)
    axes[0].set_ylabel(f"{metric} %")
    for ax, key in zip(axes[1:], keys, strict=False):
        _by_setting(ax, key, whole, best)
    for ax in axes[1 + len(keys) :]:
        ax.set_axis_off()
    save_figure(path, figure)


def _by_trial(ax: "Axes", rows: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]], best: int) -> None:
    from matplotlib.ticker import MaxNLocator

    reached, top = [], -math.inf
    for row in whole:
        top = max(top, row["value"])
        reached.append(top)
    numbers = [row["trial"] + 1 for row in whole]
    ax.plot(numbers, reached, drawstyle="steps-post", linewidth=1.0, color="tab:grey", label="best so far")
    _points(ax, numbers, [row["value"] for row in whole], [row["trial"] == best for row in whole])
    pruned = [(row["trial"] + 1, row["probes"][-1]) for row in rows if row["state"] == "pruned" and row["probes"]]
    if pruned:
        ax.plot(*zip(*pruned, strict=True), "x", color="tab:red", markersize=4, label="stopped early (last probe)")
    ax.set_xlabel("trial")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="x-small")
    ax.grid(alpha=0.3)


def _by_setting(ax: "Axes", key: str, whole: Sequence[Mapping[str, Any]], best: int) -> None:
    values = [row["settings"][key] for row in whole]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        values = [str(value) for value in values]
    elif min(values) > 0 and max(values) > _RATIO * min(values):
        ax.set_xscale("log")
    _points(ax, values, [row["value"] for row in whole], [row["trial"] == best for row in whole])
    ax.set_xlabel(key)
    ax.grid(alpha=0.3)


def _points(ax: "Axes", across: Sequence[Any], up: Sequence[float], won: Sequence[bool]) -> None:
    ax.plot(across, up, "o", markersize=4, color="tab:blue")
    marked = [(x, y) for x, y, it in zip(across, up, won, strict=True) if it]
    ax.plot(*zip(*marked, strict=True), "*", markersize=11, color="tab:orange")
