"""Make `fashion-mini`: the first images of each class of Fashion-MNIST, in the order of the original files.

    python assets/make_fashion_mini.py                 # from Debian's package dataset-fashion-mnist
    python assets/make_fashion_mini.py --source DIR    # from any folder with the four published idx files
    python assets/make_fashion_mini.py --check         # compare the stored pixels with those of the source

The same source gives the same bytes.  It needs only Python's standard library and numpy.
"""

import argparse
import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
HERE = Path(__file__).resolve().parent / "fashion-mini"
COUNTS = {"train": 1000, "t10k": 200}  # images kept per class
CLASSES = 10
IMAGES, LABELS = "{}-images-idx3-ubyte.gz", "{}-labels-idx1-ubyte.gz"

# SHA-256 of the uncompressed idx files, so that the compression does not matter
SOURCE = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read(path: Path, axes: int) -> np.ndarray:
    """Read one idx file into an array, after verifying its checksum."""
    data = gzip.decompress(path.read_bytes())
    if hashlib.sha256(data).hexdigest() != SOURCE[path.name]:
        raise SystemExit(f"{path}: not the published Fashion-MNIST file (SHA-256 of its content differs)")
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first `count` items of every class, ascending."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(CLASSES)]))


def idx(array: np.ndarray) -> bytes:
    """Encode a uint8 array as an uncompressed idx file."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def contents(source: Path) -> dict[str, bytes]:
    """The uncompressed files of `fashion-mini`, by name."""
    files = {}
    for split, count in COUNTS.items():
        labels = read(source / LABELS.format(split), axes=1)
        keep = first_of_each_class(labels, count)
        files[IMAGES.format(split)] = idx(read(source / IMAGES.format(split), axes=3)[keep])
        files[LABELS.format(split)] = idx(labels[keep])
    return files


def write(files: dict[str, bytes], folder: Path) -> None:
    """Write the files, compressed without a time stamp, and their checksums."""
    folder.mkdir(exist_ok=True)
    lines = [
        "# Written by make_fashion_mini.py. `file`: SHA-256 of the file; `content`: of what it holds, uncompressed."
    ]
    for name, data in files.items():
        packed = gzip.compress(data, compresslevel=9, mtime=0)
        (folder / name).write_bytes(packed)
        lines += ["", f'["{name}"]', f'file = "{hashlib.sha256(packed).hexdigest()}"']
        lines += [f'content = "{hashlib.sha256(data).hexdigest()}"']
    (folder / "checksums.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line, then write or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--source", type=Path, default=DEBIAN, help="folder with the four idx files (default: Debian's)"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write (default: beside this script)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file differs")
    options = parser.parse_args()
    files = contents(options.source)
    if not options.check:
        return write(files, options.out)
    wrong = [name for name, data in files.items() if gzip.decompress((options.out / name).read_bytes()) != data]
    sys.exit(f"differs from its source: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
