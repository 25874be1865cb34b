"""A set that is made in independent parts: each an artefact of its own, shared out over processes."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dd.engine import parallel
from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Synthetic, Task
from dd.engine.synthesise import Watch, synthesise
from dd.errors import RunError
from dd.io import digest
from dd.pipeline.plan import set_key
from dd.recipes import Recipe
from dd.runs import RunFolder, Track, bar
from dd.runs.cost import measured
from dd.runs.stop import Stop
from dd.runs.store import Artefact, Payload
from dd.sets import DistilledSet

log = logging.getLogger(__name__)

KIND = "parts"
ROWS = 100_000  # of a log, at most about; every so-many-th iteration is written where there are more
_POLL = 0.5  # seconds between two looks whether another process has made its parts

Show = Callable[[int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Parts:
    """The parts of one run's set.

    Attributes:
        recipe: of the run, settled.
        task: the whole.
        tasks: of the parts, in order.
        folder: of the run; each part has a folder of its own in it while it is made.
        stop: signals.
        begin: a part's variables at iteration 0.
        prepared: what `Method.prepare` returned.
    """

    recipe: Recipe
    task: Task
    tasks: Sequence[Task]
    folder: RunFolder
    stop: Stop
    begin: Callable[[Task], Synthetic]
    prepared: Any

    def spec(self, number: int) -> dict[str, Any]:
        """Everything that determines one part: the key of its artefact."""
        return {"set": set_key(self.recipe, self.task), "part": number, "of": len(self.tasks)}

    def forget(self) -> None:
        """Delete the artefacts of the parts."""
        for number in range(len(self.tasks)):
            if self.task.store.has(KIND, self.spec(number)):
                self.task.store.remove(KIND, self.spec(number))

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
                words = f"part {number + 1} of {len(self.tasks)} of {self.recipe.name}"
                self.task.store.tensors(KIND, self.spec(number), partial(self._make, number, show), words)
                shutil.rmtree(self._folder(number).path, ignore_errors=True)  # not there if another process made it

    def tracked(self, track: str | None) -> None:
        """`make`, with bar and log: what the first process does."""
        iterations = self.recipe.method.iterations
        first, total = self._next(), len(self.tasks) * iterations
        tracker = Track(self.folder, resume_at=first, track=track, config=self.recipe.flat(), name=self.recipe.name)
        with tracker, bar("synthesise", total, first) as progress:

            def show(it: int, scalars: Mapping[str, Any]) -> None:
                tracker.log(it, **scalars)
                progress.update(min(it + 1, total), loss=scalars["loss"])

            self.make(show)

    def wait(self) -> list[Artefact]:
        """All parts, once whichever process has made them."""
        store, numbers = self.task.store, range(len(self.tasks))
        while not all(store.has(KIND, self.spec(number)) for number in numbers):
            time.sleep(_POLL)
        found = [store.peek(KIND, self.spec(number)) for number in numbers]
        whole = [artefact for artefact in found if artefact is not None]
        if len(whole) < len(found):
            raise RunError(f"a part of {self.recipe.name} was damaged on the disk; the same command makes it anew")
        return whole

    def collected(self, found: Sequence[Artefact]) -> tuple[dict[str, DistilledSet], dict[str, Any]]:
        """The set and the start, by name, put together from all parts; and facts: `cost`, `log`."""
        sets = {}
        for name in ("set", "start"):
            facts = {**found[0].info[name], "classes": tuple(found[0].info[name]["classes"])}
            images, labels = (self._joined(found, f"{name}.{what}") for what in ("images", "labels"))
            sets[name] = DistilledSet(images=images, labels=labels, **facts)
        costs = [artefact.info["cost"] for artefact in found]
        peaks = [cost["peak_memory"] for cost in costs if cost["peak_memory"] is not None]
        cost = {"seconds": sum(cost["seconds"] for cost in costs), "peak_memory": max(peaks, default=None)}
        logs = [artefact.info["log"] for artefact in found]
        return sets, {"cost": cost, "log": logs[0] + "".join(text.partition("\n")[2] for text in logs[1:])}

    def _make(self, number: int, show: Show | None) -> Payload:
        task, method = self.tasks[number], self.recipe.method
        folder, checkpoint, syn = self._folder(number), self._checkpoint(number), self.begin(task)
        begin = method.finish(syn, task, self.prepared)
        offset, every = number * method.iterations, -(-len(self.tasks) * method.iterations // ROWS)
        first, history = checkpoint.iteration(), checkpoint.log()
        tracker = Track(folder, resume_at=offset + first, history=history, track="none")
        with measured(task.device) as cost, tracker as own:

            def note(it: int, scalars: Mapping[str, Any]) -> None:
                if it % every == 0 or it == method.iterations - 1:
                    own.log(offset + it, **scalars)
                    if show is not None:
                        show(offset + it, scalars)

            watch = Watch(log=note, stop=self.stop, history=own.text)
            synthesise(method, task, self.prepared, syn, checkpoint, watch)
        end = method.finish(syn, task, self.prepared)
        return payload(end, begin, {"cost": asdict(cost), "log": folder.log_csv.read_text(encoding="utf-8")})

    def _folder(self, number: int) -> RunFolder:
        return RunFolder(self.folder.parts / f"{number:06}")

    def _checkpoint(self, number: int) -> Checkpoint:
        return Checkpoint(self._folder(number).checkpoint, digest(self.spec(number)))

    def _missing(self, numbers: Sequence[int]) -> list[int]:
        return [n for n in numbers if self.task.store.peek(KIND, self.spec(n)) is None]

    def _next(self) -> int:
        """The iteration, counted over all parts, that this process goes on with."""
        store, iterations = self.task.store, self.recipe.method.iterations
        for number in parallel.share(range(len(self.tasks))):
            if not store.has(KIND, self.spec(number)):
                return number * iterations + self._checkpoint(number).iteration()
        return len(self.tasks) * iterations

    def _joined(self, found: Sequence[Artefact], name: str) -> Tensor:
        """(n, ...) of the whole set."""
        pieces = [artefact.tensors[name] for artefact in found if artefact.tensors is not None]
        whole = torch.empty(len(self.task.targets), *pieces[0].shape[1:], dtype=pieces[0].dtype)
        for task, piece in zip(self.tasks, pieces, strict=True):
            assert task.part is not None
            whole[task.part.slots] = piece
        return whole


def payload(end: DistilledSet, begin: DistilledSet, facts: Mapping[str, Any]) -> Payload:
    """A set and its start as an artefact, beside further facts."""
    tensors = {"set.images": end.images, "set.labels": end.labels}
    tensors |= {"start.images": begin.images, "start.labels": begin.labels}
    return tensors, {"set": end.facts(), "start": begin.facts(), **facts}
