"""Pictures of a whole set: cells in rows, as laid out by `torchvision.utils.make_grid`.

Such a picture preserves little of the set: 8 bits per value, often with the contrast stretched for each image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dd.data import kind_of
from dd.errors import UsageError, in_one_line
from dd.exchange.draft import Asked, Draft
from dd.exchange.encoded import shows_no_colour
from dd.exchange.reader import Reader, Recognised
from dd.exchange.source import ForeignFiles

_PADDING = 2  # pixels between and around cells; torchvision's default
_ALIKE = 12  # grey levels by which JPEG lets a line of one colour vary
_PIXELS = 100_000_000  # maximum number of pixels of a picture
_SMALLEST = 8  # minimum side of a cell in pixels


@dataclass(frozen=True)
class Cells:
    """The layout of a picture: rows and columns of cells of `side` pixels, each enlarged `times`."""

    rows: int
    columns: int
    side: int
    times: int = 1


class GridReader(Reader):
    """One picture of many images."""

    formats: ClassVar[dict[str, str]] = {"grid": "a picture of a grid of images, as torchvision's make_grid"}
    keys: ClassVar[tuple[str, ...]] = ("ipc", "rows")

    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """See `Reader`."""
        if len(source.paths) != 1 or source.container(source.paths[0]) != "image":
            return ()
        return (Recognised("grid", ("a single picture",)),)

    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """See `Reader`."""
        path = source.paths[0]
        picture = _picture(path)
        cells = _cells(picture, path, asked)
        images, blank = _cut(picture, cells)
        count = len(images) - blank
        if asked.ipc is not None and count % asked.ipc:
            raise UsageError(f"{path}: ipc={asked.ipc}, but {count:,} cells hold images; say ipc=NUMBER or rows=NUMBER")
        kind = kind_of(asked.dataset)
        if kind is not None and kind.channels == 1 and shows_no_colour(images):
            images = images[:, :1]
        enlarged = f", each pixel shown {cells.times} x {cells.times}" if cells.times > 1 else ""
        return [
            Draft(
                format="grid",
                images=images[:count].contiguous(),
                labels=None,
                files=source.paths,
                family="folder",
                evidence=(f"{cells.rows} rows of {cells.columns} cells of {cells.side} pixels{enlarged}",),
                assumed=(
                    "a picture holds 8 bits, and perhaps each image stretched from black to white: scores are lower",
                ),
            )
        ]


def _picture(path: Path) -> Tensor:
    """uint8 (3, h, w)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > _PIXELS:
                raise UsageError(
                    f"{path}: a picture of {image.width:,} x {image.height:,} pixels is larger than grids are"
                )
            pixels = np.array(image.convert("RGB"))
    except UsageError:
        raise
    except Exception as error:  # a damaged file can make Pillow's decoders raise almost anything
        raise UsageError(f"{path} cannot be read: {in_one_line(error)}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _cells(picture: Tensor, path: Path, asked: Asked) -> Cells:
    """Determine the layout of a picture.

    Raises:
        UsageError: no layout fits, or several do; `rows=` decides.
    """
    found = _divisions(picture, asked.rows)
    known = kind_of(asked.dataset)
    wanted = asked.size or (known.side if known else None)
    if wanted is not None:
        found = [_shrunk(picture, one, wanted) for one in found]
        fitting = [one for one in found if one.side == wanted]
        found = fitting or found
    sides = {(one.side, one.times) for one in found}
    if len(sides) == 1:
        return found[0]
    height, width = picture.shape[1:]
    if not found:
        raise UsageError(
            f"{path}: a picture of {height} x {width} pixels is not a grid of square cells with {_PADDING} pixels of "
            "one colour between them" + ("" if asked.rows is None else f", in {asked.rows} rows")
        )
    ways = " or ".join(f"rows={one.rows} (cells of {one.side} pixels)" for one in found[:5])
    raise UsageError(f"{path}: it can be divided in several ways; choose one: {ways}")


def _divisions(picture: Tensor, rows: int | None) -> list[Cells]:
    """Return all layouts of square cells with lines of a single colour between them."""
    height, width = picture.shape[1:]
    found = list[Cells]()
    for side in range(_SMALLEST, min(height, width) - 2 * _PADDING + 1):
        step = side + _PADDING
        if (height - _PADDING) % step or (width - _PADDING) % step:
            continue
        cells = Cells((height - _PADDING) // step, (width - _PADDING) // step, side)
        if (rows is None or cells.rows == rows) and cells.rows * cells.columns > 1 and _has_lines(picture, step):
            found.append(cells)
    return found


def _has_lines(picture: Tensor, step: int) -> bool:
    """Return whether the lines between cells would have a single colour."""
    height, width = picture.shape[1:]
    rows, columns = torch.zeros(height, dtype=torch.bool), torch.zeros(width, dtype=torch.bool)
    for padding in range(_PADDING):
        rows[padding::step] = True
        columns[padding::step] = True
    lines = torch.cat([picture[:, rows].flatten(1), picture[:, :, columns].flatten(1)], 1).int()
    return int((lines.amax(1) - lines.amin(1)).max()) <= 2 * _ALIKE


def _shrunk(picture: Tensor, cells: Cells, wanted: int) -> Cells:
    """Return cells of the wanted side, if each of their pixels is enlarged to a square."""
    times, rest = divmod(cells.side, wanted)
    if rest or times < 2:
        return cells
    blocks = _cut(picture, cells)[0].unflatten(3, (wanted, times)).unflatten(2, (wanted, times)).int()
    spread = blocks.amax((3, 5)) - blocks.amin((3, 5))
    return Cells(cells.rows, cells.columns, wanted, times) if int(spread.max()) <= _ALIKE else cells


def _cut(picture: Tensor, cells: Cells) -> tuple[Tensor, int]:
    """Return the images row by row, uint8 (n, 3, side, side), and the number of blank cells at the end."""
    shown = cells.side * cells.times
    step = shown + _PADDING
    inner = picture[:, _PADDING:, _PADDING:]
    whole = inner.unflatten(1, (cells.rows, step)).unflatten(3, (cells.columns, step))[:, :, :shown, :, :shown]
    every = whole.permute(1, 3, 0, 2, 4).flatten(0, 1)
    line = picture[:, 0, 0].int().view(-1, 1, 1)
    empty = ((every.int() - line).abs() <= _ALIKE).flatten(1).all(1).tolist()
    blank = next((place for place, one in enumerate(reversed(empty)) if not one), len(empty))
    middle = cells.times // 2
    return every[:, :, middle :: cells.times, middle :: cells.times], min(blank, cells.columns - 1)


READERS = [GridReader()]
