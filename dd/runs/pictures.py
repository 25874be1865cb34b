"""Pictures of a run: synthetic images beside real ones, and the log as curves.

They use matplotlib's object interface, which changes no global state and needs no display.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from dd.io import atomic_path
from dd.runs.track import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = tuple[str, Tensor, Tensor]

SHOWN = 10  # classes shown, and images shown per class
_SIDE = 48  # minimum side of a shown image in pixels
_GAP = 2  # pixels between images
_DPI = 100


def stretched(images: Tensor) -> Tensor:
    """Stretch the contrast for viewing: clip to mean ± 2.5 std of the whole batch, then min-max scale each image.

    Source: the visualisation code of the trajectory-matching papers (MTT and later).

    Args:
        images: float (n, c, h, w), de-normalised, not clipped.

    Returns:
        float (n, c, h, w) in [0, 1]; a constant image becomes 0.
    """
    mean, std = images.mean(), images.std(correction=0)
    images = images.clamp(mean - 2.5 * std, mean + 2.5 * std)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)


def contact_sheet(path: Path, rows: Sequence[Row], classes: Sequence[str], caption: str = "") -> None:
    """Draw images side by side: one group of columns per class, with one column per title.

    Shows at most ten classes and ten images of each, in the given order.

    Args:
        path: the PNG file to write.
        rows: (title, images, labels) for each kind of image, synthetic first; images float (n, c, h, w), clipped to
            [0, 1]; labels (n,), or (n, k), of which the argmax counts.
        classes: class names in label order.
        caption: a line below the images; may be empty.
    """
    kinds = [(title, images.detach().cpu().float(), _hard(labels)) for title, images, labels in rows]
    shown = range(min(len(classes), SHOWN))
    columns = [[images[labels == c][:SHOWN] for _, images, labels in kinds] for c in shown]
    most = max((len(images) for group in columns for images in group), default=0)
    shape = kinds[0][1].shape[2:]
    zoom = max(1, math.ceil(_SIDE / max(shape)))
    height, width = (side * zoom + _GAP for side in shape)
    step = len(kinds) * width + 4 * _GAP
    canvas = np.full((max(most, 1) * height, len(shown) * step, 3), 255, dtype=np.uint8)
    for c, group in enumerate(columns):
        for k, images in enumerate(group):
            for i, image in enumerate(images):
                tile = rgb(image).repeat(zoom, axis=0).repeat(zoom, axis=1)
                top, left = i * height, c * step + k * width
                canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    _save_sheet(path, canvas, [title for title, _, _ in kinds], [classes[c] for c in shown], width, caption)


def progress_plot(path: Path, csv_path: Path) -> None:
    """Plot the columns of log.csv that exist: objective with skipped iterations marked, learned lr, probe accuracy.

    Args:
        path: the PNG file to write.
        csv_path: a log with column `it` and any of `loss`, `skipped` (1 if the iteration was skipped), `lr`, `probe`.
    """
    rows = read_log(csv_path)[1]
    curves = [
        (name, label, style, points)
        for name, label, style in (
            ("loss", "objective", {"linewidth": 0.8}),
            ("lr", "student lr (learned)", {"linewidth": 1.2}),
            ("probe", "probe accuracy\n(held-out images)", {"marker": "o", "markersize": 3}),
        )
        if (points := curve(rows, name))
    ]
    figure = new_figure(7.0, 0.8 + 2.2 * max(len(curves), 1))
    axes = figure.subplots(max(len(curves), 1), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (column, label, style, points) in zip(axes, curves, strict=False):
        its, values = zip(*points, strict=True)
        ax.plot(its, values, **style)
        at = dict(points)
        if spread := [(it, at[it], std) for it, std in curve(rows, f"{column}_std") if it in at]:
            ax.errorbar(*zip(*spread, strict=True), fmt="none")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        if label == "objective":
            if min(values) > 0 and max(values) > 100 * min(values):
                ax.set_yscale("log")
            _mark_skipped(ax, [it for it, value in curve(rows, "skipped") if value])
    if not curves:
        axes[0].text(0.5, 0.5, "nothing was logged", ha="center", va="center", transform=axes[0].transAxes)
    axes[-1].set_xlabel("outer iteration")
    save_figure(path, figure)


def curve(rows: Sequence[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """Return the finite values of a column, with their iterations."""
    points = []
    for row in rows:
        try:
            value = float(row.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(value):
            points.append((int(row["it"]), value))
    return points


def _mark_skipped(ax: "Axes", its: Sequence[int]) -> None:
    if its:
        marks = ax.get_xaxis_transform()  # y in axes coordinates: at the bottom edge
        ax.plot(its, [0.02] * len(its), "|", color="tab:red", transform=marks, label=f"{len(its)} skipped")
        ax.legend(loc="upper right", fontsize="small")


def _save_sheet(
    path: Path, canvas: np.ndarray, titles: Sequence[str], names: Sequence[str], width: int, caption: str
) -> None:
    head, foot = 44, 20 if caption else 0  # pixels above and below the images, for two lines and one line of text
    high, wide = canvas.shape[0] + head + foot, canvas.shape[1]
    figure = new_figure(wide / _DPI, high / _DPI, layout=None)
    ax = figure.add_axes((0, foot / high, 1, canvas.shape[0] / high))
    ax.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, wide, canvas.shape[0], 0))
    ax.set_axis_off()
    step = wide / max(len(names), 1)
    group = len(titles) * width
    for c, name in enumerate(names):
        _text(ax, c * step + group / 2, -26, name, room=group, size=9)
        for k, title in enumerate(titles):
            _text(ax, c * step + (k + 0.5) * width, -8, title, room=width, size=7)
    if caption:
        _text(ax, wide / 2, canvas.shape[0] + 15, caption, room=wide, size=8)
    save_figure(path, figure)


def _text(ax: "Axes", x: float, y: float, text: str, room: float, size: float) -> None:
    # a letter is about 0.6 of its size wide; shrink the letters first, then shorten the text
    fits = room / (0.6 * _DPI / 72)
    size = max(5.0, min(size, fits / max(len(text), 1)))
    most = max(int(fits / size), 2)
    text = text if len(text) <= most else text[: most - 1] + "…"
    # matplotlib's bundled font lacks other letters and would warn
    text = "".join(c if c == "…" or (c.isprintable() and ord(c) < 0x500) else "?" for c in text)
    ax.text(x, y, text, fontsize=size, ha="center", va="bottom", parse_math=False, family="DejaVu Sans", clip_on=False)


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """Create an empty figure of the given size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white")


def _hard(labels: Tensor) -> Tensor:
    labels = labels.detach().cpu()
    return labels.argmax(1) if labels.dim() == 2 else labels


def rgb(image: Tensor) -> np.ndarray:
    """Convert (c, h, w) in [0, 1] to (h, w, 3) in 0..255; unless c = 3, show the mean of the channels in grey."""
    if image.shape[0] != 3:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    return image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
