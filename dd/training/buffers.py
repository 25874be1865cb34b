"""Import expert trajectories from the `replay_buffer_N.pt` files of other code.

The official code of the trajectory-matching family writes them as lists (experts) of lists (epochs, initialisation
first) of lists of parameter tensors, in the order of `network.parameters()`, which is also ours.  The files state
neither the network nor the training images, so both are checked here before an expert is accepted.
"""

import os
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from dd.data import preprocess
from dd.engine.method import Task
from dd.errors import UsageError, in_one_line
from dd.io import digest, sha256_file, user_path
from dd.rng import generator
from dd.training.fitness import require_fit
from dd.training.teachers import Teacher

_NAME = re.compile(r"replay_buffer_(\d+)\.pt")
_TRIED = 1000  # images used to compare two value spaces
_FITTED = 4096  # at most this many images to fit the whitening for the comparison; with its eps, more change little
_WHITENED = 3072  # at most this many values per image; the whitening matrix has the square of it
_EPS = 0.1  # eps of the published whitening
_ERRORS = 3  # the other space must be better by this many standard errors (upper bound for a difference of two shares)


def buffer_files(where: str) -> list[Path]:
    """The files `replay_buffer_N.pt` of a folder, sorted by number; a path to a file returns that file.

    Raises:
        UsageError: there are none.
    """
    path = user_path(where, "experts.from")
    if os.path.isfile(path):
        return [path]
    files = [file for file in path.glob("*.pt") if file.is_file()]
    named = [(int(match[1]), file) for file in files if (match := _NAME.fullmatch(file.name))]
    if not named:
        why = "no replay_buffer_N.pt in it" if os.path.isdir(path) else "no such folder or file"
        raise UsageError(f"experts.from={where}: {why}")
    return [file for _, file in sorted(named)]


def buffer_hash(where: str) -> str:
    """Hash of the files' contents, in order; an unchanged file is read once per process."""
    facts = [(file, file.stat()) for file in buffer_files(where)]
    return digest([_sha256(file, stat.st_size, stat.st_mtime_ns) for file, stat in facts])


@lru_cache(maxsize=1024)
def _sha256(file: Path, size: int, changed: int) -> str:
    return sha256_file(file)


class Buffers:
    """The experts of a folder, read one after another; only one file is in memory at a time.

    Args:
        task: the run, whose network and images the experts must fit.
        where: folder or file.
        epochs: number of epochs after the initialisation; further epochs in a file are ignored.
    """

    def __init__(self, task: Task, where: str, epochs: int) -> None:
        self._task, self._where, self._epochs = task, where, epochs
        self._template = task.functional()
        self._files = buffer_files(where)
        self._first: list[int] = [0]  # number of the first expert of each file opened so far, and of the next one
        self._open: tuple[int, Sequence[Any]] = (-1, ())

    @cached_property
    def _other(self) -> preprocess.Preprocess | None:
        return _other_space(self._task)

    def expert(self, number: int) -> Tensor:
        """Snapshots (epochs + 1, P) of one expert, on the CPU.

        Raises:
            UsageError: there are too few experts, epochs or tensors; shapes differ; values are not finite; or the
                expert does not classify the images of this run.
        """
        which = self._file_of(number)
        what = f"expert {number + 1} of experts.from={self._where} ({self._files[which].name})"
        rows = self._snapshots(self._open[1][number - self._first[which]], what)
        if not rows.isfinite().all():
            raise UsageError(f"{what} is not finite: it has diverged")
        if torch.equal(rows[0], rows[-1]):
            raise UsageError(f"{what} does not move: all its snapshots equal its last weights")
        self._require_space(rows[-1], what)
        self._require_knowledge(rows[-1], what)
        return rows

    def _file_of(self, number: int) -> int:
        """Open the file that holds an expert, and return its index."""
        which = next((at for at, first in enumerate(self._first[1:]) if number < first), len(self._first) - 1)
        while True:
            if which == len(self._files):
                there = self._first[-1]
                raise UsageError(f"experts.from={self._where} holds {there} experts: experts.count={there}")
            if self._open[0] != which:
                self._open = (which, _load(self._files[which]))
            if which + 1 == len(self._first):
                self._first.append(self._first[which] + len(self._open[1]))
            if number < self._first[which + 1]:
                return which
            which += 1

    def _snapshots(self, trajectory: Any, what: str) -> Tensor:
        if not isinstance(trajectory, list) or not all(isinstance(one, list) for one in trajectory):
            raise UsageError(f"{what} is not a list of lists of parameter tensors")
        if len(trajectory) <= self._epochs:
            there = max(len(trajectory) - 1, 0)
            raise UsageError(f"{what} has {there} epochs, not experts.epochs={self._epochs}: experts.epochs={there}")
        return torch.stack([self._flat(snapshot, what) for snapshot in trajectory[: self._epochs + 1]])

    def _flat(self, snapshot: list[Any], what: str) -> Tensor:
        if not all(isinstance(tensor, Tensor) for tensor in snapshot):
            raise UsageError(f"{what} is not a list of lists of parameter tensors")
        names = [*self._template.names, *(f"tensor {at}" for at in range(len(self._template.names), len(snapshot)))]
        shapes = [list(tensor.shape) for tensor in snapshot]
        self._template.require({"names": names[: len(snapshot)], "shapes": shapes}, f"the parameters of {what}")
        return torch.cat([tensor.detach().reshape(-1).float() for tensor in snapshot])

    def _require_space(self, theta: Tensor, what: str) -> None:
        """Refuse an expert that is far more accurate in the other value space, whitened or not."""
        data, other = self._task.data, self._other
        if other is None:
            return
        split = data.holdout if len(data.holdout) else data.train
        index = torch.randperm(len(split), generator=generator(0, "buffers", "tried"))[:_TRIED]
        labels, theta = split.labels[index.to(split.labels.device)], theta.to(self._task.device)
        here, there = (
            float((self._template.predict(theta, images).argmax(1) == labels).double().mean())
            for images in (split.images(index), other(split.raw(index)))
        )
        if there > here + _ERRORS * (2 * 0.25 / len(index)) ** 0.5:
            shares = f"{100 * here:.1f} % of {len(index)} images, and on {100 * there:.1f} % of them"
            shares += " where they are whitened" if other.kind == "zca" else " where they are not whitened"
            raise UsageError(
                f"{what} is right on {shares}, which seems to be what it was trained on: data.preprocess={other.kind}"
            )

    def _require_knowledge(self, theta: Tensor, what: str) -> None:
        """Check an expert like a teacher: accuracy above chance, and the class order of the data."""
        network = self._task.network("skeleton")
        self._template.load(network, theta.to(self._task.device))
        require_fit(Teacher(what, network.eval().requires_grad_(False), None, None, None, ""), self._task)


def _load(file: Path) -> Sequence[Any]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UsageError(
            f"{file} holds more than lists of tensors; it is not loaded, because it could run code"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {in_one_line(error)}") from error
    if not isinstance(found, list) or not found:
        raise UsageError(f"{file} is not a list of experts like replay_buffer_N.pt")
    return found


def _other_space(task: Task) -> preprocess.Preprocess | None:
    """Whitening if the run has none, else standard normalisation; None if the whitening matrix would be too large."""
    data = task.data
    if data.preprocess.kind != "zca" and data.channels * data.size**2 > _WHITENED:
        return None
    index = torch.randperm(len(data.train), generator=generator(0, "buffers", "fitted"))[:_FITTED]
    pixels = data.train.raw(index).cpu()
    if data.preprocess.kind == "zca":
        return preprocess.standard(pixels).to(task.device)
    fitted = preprocess.fit_zca(pixels, _EPS)
    return preprocess.Zca(_EPS, "a sample", lambda: fitted).to(task.device)
