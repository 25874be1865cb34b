"""Synthesis in independent parts: each part is an artefact of its own, which any process makes."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from dd.engine import parallel
from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Method, Task
from dd.engine.synthesise import Watch, synthesise
from dd.errors import RunError
from dd.io import digest, tensor_in_file
from dd.pipeline.begin import begin
from dd.pipeline.pair import Pair
from dd.pipeline.plan import is_made, set_key
from dd.pipeline.task import Run
from dd.runs import RunFolder, Track, bar, sharing
from dd.runs.cost import measured
from dd.runs.store import Artefact, Payload, Store, Wanted

log = logging.getLogger(__name__)

KIND = "parts"
ROWS = 100_000  # approximate maximum number of log rows; with more iterations, every n-th is logged

P = TypeVar("P")
Show = Callable[[int, Mapping[str, Any]], None]


def part_spec(run: Run, number: int, of: int) -> dict[str, Any]:
    """Return everything that determines one of `of` parts of a run's set: the key of its artefact."""
    return {"set": set_key(run.recipe, run.task), "part": number, "of": of}


def forget_parts(run: Run, of: int) -> None:
    """Delete the artefacts of all `of` parts."""
    for number in range(of):
        run.task.store.remove(KIND, part_spec(run, number, of))


@dataclass(frozen=True)
class SetParts(Generic[P]):
    """The parts of one run's set.

    Attributes:
        run: the run.
        method: the run's method.
        tasks: the tasks of the parts, in order.
        prepared: the result of `Method.prepare`.
    """

    run: Run
    method: Method[P]
    tasks: Sequence[Task]
    prepared: P

    @property
    def store(self) -> Store:
        """The store that holds the parts."""
        return self.run.task.store

    def spec(self, number: int) -> dict[str, Any]:
        """Return the key of one part, see `part_spec`."""
        return part_spec(self.run, number, len(self.tasks))

    def make(self, show: Show | None = None, *, wait: bool = True) -> None:
        """Make the parts that no process has made.

        Args:
            show: called with (iteration counted over all parts, scalars).
            wait: whether to wait for the parts that others are making.  A process that only helps must not: the first
                process deletes the parts as soon as it has them all, and what is waited for would be made again.
        """
        total = len(self.tasks)
        missing = self._missing()
        if len(missing) < total:
            log.info("kept %d of %d parts", total - len(missing), total)
        wanted = [Wanted(KIND, self.spec(n), f"part {n + 1} of {total} of {self.run.recipe.name}") for n in missing]

        def make(at: int) -> bool:
            kind, spec, words = wanted[at]
            if wait or not self._is_whole():
                self.store.tensors(kind, spec, partial(self._make, missing[at], show), words)
            # missing if another process made the part
            shutil.rmtree(self._folder(missing[at]).path, ignore_errors=True)
            return True

        with parallel.alone(), sharing.stage("synthesise"):
            self.store.each(wanted, make, instead=None if wait else False)

    def tracked(self) -> None:
        """Make the parts with a progress bar and a log; called in the first process only."""
        run, first, total = self.run, self._next(), len(self.tasks) * self.method.iterations
        tracker = Track(run.folder, resume_at=first, trackers=run.trackers)
        with tracker, bar("synthesise", total, first) as progress:

            def show(it: int, scalars: Mapping[str, Any]) -> None:
                tracker.log(it, **scalars)
                progress.update(min(it + 1, total), loss=scalars["loss"])

            self.make(show)

    def made(self) -> list[Artefact]:
        """Return all parts, once they are made."""
        found = [self.store.peek(KIND, self.spec(number)) for number in range(len(self.tasks))]
        whole = [artefact for artefact in found if artefact is not None]
        if len(whole) < len(found):
            raise RunError(f"a part of {self.run.recipe.name} was damaged on the disk; the same command makes it again")
        return whole

    def collected(self, found: Sequence[Artefact]) -> tuple[Pair, dict[str, Any]]:
        """Assemble the whole set and start from all parts; also return the facts `cost` and `log`."""
        names = list(found[0].tensors or ())
        pair = Pair.of({name: self._joined(found, name) for name in names}, found[0].info)
        costs = [artefact.info["cost"] for artefact in found]
        peaks = [cost["peak_memory"] for cost in costs if cost["peak_memory"] is not None]
        cost = {"seconds": sum(cost["seconds"] for cost in costs), "peak_memory": max(peaks, default=None)}
        logs = [artefact.info["log"] for artefact in found]
        return pair, {"cost": cost, "log": logs[0] + "".join(text.partition("\n")[2] for text in logs[1:])}

    def _make(self, number: int, show: Show | None) -> Payload:
        task, method = self.tasks[number], self.method
        folder, checkpoint = self._folder(number), self._checkpoint(number)
        syn = begin(self.run, method, self.prepared, task)
        start = method.finish(syn, task, self.prepared)
        offset, every = number * method.iterations, -(-len(self.tasks) * method.iterations // ROWS)
        first, history = checkpoint.iteration(), checkpoint.log()
        tracker = Track(folder, resume_at=offset + first, history=history)
        with measured(task.device) as cost, tracker as own:

            def note(it: int, scalars: Mapping[str, Any]) -> None:
                if it % every == 0 or it == method.iterations - 1:
                    own.log(offset + it, **scalars)
                    if show is not None:
                        show(offset + it, scalars)

            watch = Watch(log=note, stop=self.run.stop, history=own.text)
            synthesise(method, task, self.prepared, syn, checkpoint, watch)
        end = method.finish(syn, task, self.prepared)
        return Pair(end, start).payload({"cost": asdict(cost), "log": folder.log_csv.read_text(encoding="utf-8")})

    def _folder(self, number: int) -> RunFolder:
        return RunFolder(self.run.folder.parts / f"{number:06}")

    def _checkpoint(self, number: int) -> Checkpoint:
        return Checkpoint(self._folder(number).checkpoint, digest(self.spec(number)))

    def _is_whole(self) -> bool:
        """Return whether the set is stored, so that its parts are deleted."""
        return not self.run.force and is_made(self.run.recipe, self.run.task)

    def _missing(self) -> list[int]:
        return [n for n in range(len(self.tasks)) if self.store.peek(KIND, self.spec(n)) is None]

    def _next(self) -> int:
        """Return the iteration, counted over all parts, at which this process continues."""
        store, iterations = self.store, self.method.iterations
        for number in range(len(self.tasks)):
            if not store.has(KIND, self.spec(number)):
                return number * iterations + self._checkpoint(number).iteration()
        return len(self.tasks) * iterations

    def _joined(self, found: Sequence[Artefact], name: str) -> Tensor:
        """Return one tensor of the whole set, (n, ...), assembled in a file in the folder of the parts."""
        pieces = [artefact.tensors[name] for artefact in found if artefact.tensors is not None]
        shape = (len(self.run.task.targets), *pieces[0].shape[1:])
        whole = tensor_in_file(self.run.folder.parts / name, shape, pieces[0].dtype)
        for task, piece in zip(self.tasks, pieces, strict=True):
            assert task.part is not None
            whole[task.part.slots] = piece
        return whole
