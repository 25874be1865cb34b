"""The picture of a sweep: held-out accuracy by trial and by setting."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dd.io import Json
from dd.runs.pictures import new_figure, save_figure
from dd.sweeps.study import TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 8  # settings, at most
_COLUMNS = 3
_RATIO = 8  # of the largest to the smallest value, above which the axis is logarithmic


def draw_sweep(path: Path, metric: str, rows: Sequence[TrialRow], best: int) -> None:
    """Plot held-out accuracy by trial, with the best so far, and by each setting.

    Args:
        path: the PNG file to write.
        metric: name of the vertical axis, in percent.
        rows: the trials, see `Study.rows`.
        best: number of the winner, which is highlighted.
    """
    whole = [(row, row["value"]) for row in rows if row["value"] is not None]
    keys = list(whole[0][0]["settings"])[:_SHOWN]
    high = math.ceil((1 + len(keys)) / _COLUMNS)
    figure = new_figure(3.6 * _COLUMNS, 2.8 * high)
    axes = figure.subplots(high, _COLUMNS, squeeze=False).flatten()
    reached, won = [value for _, value in whole], [row["trial"] == best for row, _ in whole]
    _by_trial(axes[0], rows, [row["trial"] + 1 for row, _ in whole], reached, won)
    axes[0].set_ylabel(f"{metric} %")
    for ax, key in zip(axes[1:], keys, strict=False):
        _by_setting(ax, key, [row["settings"][key] for row, _ in whole], reached, won)
    for ax in axes[1 + len(keys) :]:
        ax.set_axis_off()
    save_figure(path, figure)


def _by_trial(
    ax: "Axes", rows: Sequence[TrialRow], numbers: Sequence[int], reached: Sequence[float], won: Sequence[bool]
) -> None:
    from matplotlib.ticker import MaxNLocator

    top = list(itertools.accumulate(reached, max))
    ax.plot(numbers, top, drawstyle="steps-post", linewidth=1.0, color="tab:grey", label="best so far")
    _points(ax, numbers, reached, won)
    pruned = [(row["trial"] + 1, row["probes"][-1]) for row in rows if row["state"] == "pruned" and row["probes"]]
    if pruned:
        ax.plot(*zip(*pruned, strict=True), "x", color="tab:red", markersize=4, label="stopped early (last probe)")
    ax.set_xlabel("trial")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="x-small")
    ax.grid(alpha=0.3)


def _by_setting(ax: "Axes", key: str, values: Sequence[Json], reached: Sequence[float], won: Sequence[bool]) -> None:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        _points(ax, [str(value) for value in values], reached, won)
    else:
        if min(numbers) > 0 and max(numbers) > _RATIO * min(numbers):
            ax.set_xscale("log")
        _points(ax, numbers, reached, won)
    ax.set_xlabel(key)
    ax.grid(alpha=0.3)


def _points(ax: "Axes", across: Sequence[float] | Sequence[str], up: Sequence[float], won: Sequence[bool]) -> None:
    ax.plot(across, up, "o", markersize=4, color="tab:blue")
    marked = [(x, y) for x, y, it in zip(across, up, won, strict=True) if it]
    ax.plot(*zip(*marked, strict=True), "*", markersize=11, color="tab:orange")
