"""The declared contents of a zip file, checked for plausibility before anything is unpacked."""

import zipfile
from pathlib import Path

from dd.errors import UsageError, in_one_line
from dd.sizes import readable_size

_MEMBERS = 1_000_000  # a set of ImageNet has 200,000 images
_FREE = 64 << 20  # unpacked bytes allowed for any file
_RATIO = 50  # maximum compression ratio of pixels; deflate can reach a thousand
_DAMAGED = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError)


def names(path: Path) -> list[str]:
    """Return the names of the members; none if the directory cannot be read."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist()
    except _DAMAGED:
        return []


def members(path: Path, *, packed: bool) -> dict[str, int]:
    """Return the unpacked sizes of members in bytes, by name.

    Args:
        path: the zip file.
        packed: whether members may be compressed.

    Raises:
        UsageError: the file is damaged, or declares more data than a file of its size can hold.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as file:
            every = file.infolist()
    except _DAMAGED as error:
        raise UsageError(f"{path} cannot be read: {in_one_line(error)}") from error
    if len(every) > _MEMBERS or len({one.filename for one in every}) < len(every):
        raise UsageError(f"{path} is refused: its directory of {len(every):,} members is not one that programs write")
    total = sum(one.file_size for one in every)
    most = most_of(size) if packed else size
    if total > most:
        raise UsageError(
            f"{path} is refused: it declares {readable_size(total)}, but is a file of {readable_size(size)}"
        )
    if not packed and any(one.compress_type != zipfile.ZIP_STORED for one in every):
        raise UsageError(f"{path} is refused: torch stores tensors as they are, but here they are compressed")
    return {one.filename: one.file_size for one in every}


def most_of(size: int) -> int:
    """Return the maximum number of unpacked bytes from a file of `size` bytes."""
    return max(_FREE, _RATIO * size)
