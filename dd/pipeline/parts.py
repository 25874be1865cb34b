"""A set that is made in independent parts: each an artefact of its own, shared out over processes."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dd.engine import parallel
from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Method, Task
from dd.engine.synthesise import Watch, synthesise
from dd.errors import RunError
from dd.io import digest
from dd.pipeline.begin import begin
from dd.pipeline.pair import Pair
from dd.pipeline.plan import set_key
from dd.pipeline.task import Run
from dd.runs import RunFolder, Track, bar
from dd.runs.cost import measured
from dd.runs.store import Artefact, Payload, Store

log = logging.getLogger(__name__)

KIND = "parts"
ROWS = 100_000  # of a log, at most about; every so-many-th iteration is written where there are more
_POLL = 0.5  # seconds between two looks whether another process has made its parts

P = TypeVar("P")
Show = Callable[[int, Mapping[str, Any]], None]


def part_spec(run: Run, number: int, of: int) -> dict[str, Any]:
    """Everything that determines one of so many parts of a run's set: the key of its artefact."""
    return {"set": set_key(run.recipe, run.task), "part": number, "of": of}


def forget(run: Run, of: int) -> None:
    """Delete the artefacts of so many parts."""
    for number in range(of):
        if run.task.store.has(KIND, spec := part_spec(run, number, of)):
            run.task.store.remove(KIND, spec)


@dataclass(frozen=True)
class SetParts(Generic[P]):
    """The parts of one run's set.

    Attributes:
        run: the run.
        method: its method.
        tasks: of the parts, in order.
        prepared: what `Method.prepare` returned.
    """

    run: Run
    method: Method[P]
    tasks: Sequence[Task]
    prepared: P

    @property
    def store(self) -> Store:
        """Where parts are kept."""
        return self.run.task.store

    def spec(self, number: int) -> dict[str, Any]:
        """See `part_spec`."""
        return part_spec(self.run, number, len(self.tasks))

    def make(self, show: Show | None = None) -> None:
        """Make those of this process's parts that are not there.

        Args:
            show: called with (iteration counted over all parts, scalars).
        """
        mine = parallel.share(range(len(self.tasks)))
        missing = self._missing(mine)
        if len(missing) < len(mine):
            log.info("kept %d of %d parts", len(mine) - len(missing), len(mine))
        with parallel.alone():
            for number in missing:
                words = f"part {number + 1} of {len(self.tasks)} of {self.run.recipe.name}"
                self.store.tensors(KIND, self.spec(number), partial(self._make, number, show), words)
                shutil.rmtree(self._folder(number).path, ignore_errors=True)  # not there if another process made it

    def tracked(self) -> None:
        """`make`, with bar and log: what the first process does."""
        run, first, total = self.run, self._next(), len(self.tasks) * self.method.iterations
        tracker = Track(run.folder, resume_at=first, track=run.track, config=run.recipe.flat(), name=run.recipe.name)
        with tracker, bar("synthesise", total, first) as progress:

            def show(it: int, scalars: Mapping[str, Any]) -> None:
                tracker.log(it, **scalars)
                progress.update(min(it + 1, total), loss=scalars["loss"])

            self.make(show)

    def wait(self) -> list[Artefact]:
        """All parts, once whichever process has made them."""
        store, numbers = self.store, range(len(self.tasks))
        while not all(store.has(KIND, self.spec(number)) for number in numbers):
            time.sleep(_POLL)
        found = [store.peek(KIND, self.spec(number)) for number in numbers]
        whole = [artefact for artefact in found if artefact is not None]
        if len(whole) < len(found):
            raise RunError(f"a part of {self.run.recipe.name} was damaged on the disk; the same command makes it again")
        return whole

    def collected(self, found: Sequence[Artefact]) -> tuple[Pair, dict[str, Any]]:
        """The set and the start, put together from all parts; and facts: `cost`, `log`."""
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
        tracker = Track(folder, resume_at=offset + first, history=history, track="none")
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

    def _missing(self, numbers: Sequence[int]) -> list[int]:
        return [n for n in numbers if self.store.peek(KIND, self.spec(n)) is None]

    def _next(self) -> int:
        """The iteration, counted over all parts, that this process goes on with."""
        store, iterations = self.store, self.method.iterations
        for number in parallel.share(range(len(self.tasks))):
            if not store.has(KIND, self.spec(number)):
                return number * iterations + self._checkpoint(number).iteration()
        return len(self.tasks) * iterations

    def _joined(self, found: Sequence[Artefact], name: str) -> Tensor:
        """(n, ...) of the whole set."""
        pieces = [artefact.tensors[name] for artefact in found if artefact.tensors is not None]
        whole = torch.empty(len(self.run.task.targets), *pieces[0].shape[1:], dtype=pieces[0].dtype)
        for task, piece in zip(self.tasks, pieces, strict=True):
            assert task.part is not None
            whole[task.part.slots] = piece
        return whole
