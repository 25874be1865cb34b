"""A run: the four stages, what is kept of each, and how it goes on after an interruption."""

import json
import logging
import shlex
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dd.engine import parallel
from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Synthetic, Task
from dd.engine.synthesise import Watch, synthesise
from dd.errors import RunError
from dd.evaluation.evaluate import Evaluator
from dd.evaluation.evaluate import evaluate as evaluate_set
from dd.evaluation.report import Report
from dd.evaluation.table import html
from dd.io import digest, remove_state, write_text
from dd.labels import Labeller
from dd.pipeline.begin import begin
from dd.pipeline.foreign import remember
from dd.pipeline.label import label, require_room
from dd.pipeline.outcome import draw, judged, probes_note
from dd.pipeline.parts import Parts, payload
from dd.pipeline.plan import SETS, locate, planned_labels, set_key, settled
from dd.pipeline.task import lighter, make_task, numerics
from dd.recipes import Recipe, resolve, run_options
from dd.recipes.objects import shown
from dd.runs import RunFolder, Track, bar
from dd.runs.cost import measured
from dd.runs.memory import enough_memory
from dd.runs.stop import Stop
from dd.runs.store import Payload
from dd.sets import DistilledSet, load, save

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.engine.method import Method
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run leaves.

    Attributes:
        report: accuracy and all it must be read with.
        folder: where set, log and pictures are.
        fresh: False when the run had been finished before and was only reported.
    """

    report: Report
    folder: RunFolder
    fresh: bool

    @property
    def set(self) -> DistilledSet:
        """The distilled set."""
        return load(self.folder.set)

    def __repr__(self) -> str:
        return f"<Outcome in {self.folder.path}: {self.report!r}>"

    def _repr_html_(self) -> str:
        """Its table and its images, for a notebook."""
        table, file = html(self.report), self.folder.images_png
        if not file.is_file():
            return table
        return f'{table}<img src="data:image/png;base64,{b64encode(file.read_bytes()).decode()}">'


def run(  # noqa: PLR0913  the keys of `dd run`, by name for those who complete them
    method: "str | Path | Method",
    *,
    dataset: str | None = None,
    ipc: int | Sequence[int] | None = None,
    fraction: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    preset: str | None = None,
    like: str | None = None,
    init: str | Path | None = None,
    data: "DataSettings | Mapping[str, Any] | None" = None,
    student: "str | NetworkSpec | Mapping[str, Any] | None" = None,
    eval: "str | Protocol | Mapping[str, Any] | None" = None,
    out: str | Path | None = None,
    force: bool = False,
    track: str | None = None,
    **settings: Any,
) -> Outcome:
    """Distil and evaluate, as `dd run` does with the same settings: the same recipe, hash and folder.

    `dd.run("datm", ipc=10)`, `dd.run("mine.py", dataset="cifar10", eval={"protocol": "mtt", "students": 3})`,
    `dd.run(DM(iterations=200), ipc=1, student="resnet18")`.

    Settings are written as words (a name, a mapping, `lr_img=3.0`) or as objects, and both go over the recipe's table.
    Words state what they name: the rest is as the table says.  *An object states every field it has*, those at their
    class's defaults too: `DM(iterations=200)` also states that class's learning rate.  The table then still speaks for
    the groups that were not given: of a method object for data, student and evaluation.  Words win over objects:
    `dd.run(DM(), ipc=1, lr_img=3.0)`.

    Args:
        method: a name (`dd.list_methods()`), the path of a method's file, or an object of a registered class.
        dataset: name of the real data; None for the embedded fashion-mini.
        ipc: images per class, for all or one number per class in label order; 10 where `fraction` is not given either.
        fraction: share of the training images, in (0, 1].
        seed: root seed, 0 or more.
        device: "cpu", "cuda", "cuda:N", "mps"; None for the best there is.
        preset: a preset of the recipe file.
        like: the recipe's cell whose settings are taken for another data set or size, as "cifar10.ipc50".
        init: the set to begin from, its file or the folder of its run.
        data: how real images are split and preprocessed.
        student: the network: its name in its own size, a `NetworkSpec`, or a mapping.
        eval: how students are trained: a protocol's name (`dd.list_protocols()`), a `Protocol`, or a mapping.
        out: the folder below which runs are kept; None for `$DD_RUNS` or ./runs.
        force: do again what is finished.
        track: "wandb" or "none".
        settings: every other key of `dd run`: the method's own, by name or in groups (`experts={"count": 20}`,
            `experts=ExpertSettings(count=20)`), `precision`, `deterministic`, `compile`, `recipe`; dotted keys as
            `**{"eval.students": 3}`.

    Raises:
        UsageError: settings that do not fit; every problem in one message.
        RunError: the run failed; what was good is kept.
    """
    keys = {"dataset": dataset, "ipc": ipc, "fraction": fraction, "seed": seed, "device": device, "preset": preset}
    keys |= {"like": like, "init": init, "data": data, "student": student, "eval": eval}
    settings = {key: value for key, value in keys.items() if value is not None} | settings
    command = "dd.run(" + ", ".join([shown(method), *(f"{k}={shown(v)}" for k, v in settings.items())]) + ")"
    options = run_options({"out": None if out is None else str(out), "force": force, "track": track})
    recipe = resolve({"method": method, **settings})
    outcome = run_recipe(recipe, out=options.out, force=options.force, track=options.track, command=command)
    if outcome is None:
        raise SystemExit(0)  # a further process under torchrun, whose part is done
    return outcome


def run_recipe(
    recipe: Recipe, *, out: str | None = None, force: bool = False, track: str | None = None, command: str = ""
) -> Outcome | None:
    """Walk the line from real images to a report, skipping what is done and going on where it was interrupted.

    Under torchrun the processes share the synthesis; the first one does everything else, the others return None.
    """
    folder = locate(recipe, out)
    if not force and folder.is_finished():
        return Outcome(_read_report(folder), folder, fresh=False) if parallel.is_first() else None
    command = command or _command()
    stop = Stop(f"everything finished is kept; {_way_on(command, force)}")
    with stop.watching(), parallel.processes(recipe.device) as device:
        recipe = replace(recipe, device=device)
        with enough_memory("reading the images", lighter(recipe, "data")):
            task = make_task(recipe)  # may refuse, so it comes before anything is written or cleared
        if not parallel.is_first():
            return _accompany(_Run(settled(recipe, task, folder), task, folder, stop, command, force, track))
        with folder.lock():
            if parallel.agreed(not force and _is_whole(recipe, task, folder)):
                return Outcome(_read_report(folder), folder, fresh=False)
            if force:
                folder.clear()
            recipe = settled(recipe, task, folder)
            folder.write_recipe(recipe.to_toml())
            with numerics(recipe):
                report = _Run(recipe, task, folder, stop, command, force, track).report()
            folder.finish(report.to_dict())
            remove_state(folder.checkpoint)
    return Outcome(report, folder, fresh=True)


def _is_whole(recipe: Recipe, task: Task, folder: RunFolder) -> bool:
    """Whether a run was finished here; what it has lost since comes back from the store where that has it."""
    damage = folder.damage()
    if not damage:
        return damage is not None
    for name, why in damage.items():
        log.warning("%s is damaged (%s); it is made anew from what is kept", folder.path / name, why)
    return _restored(settled(recipe, task, folder), task, folder, damage)


def _restored(recipe: Recipe, task: Task, folder: RunFolder, damage: Iterable[str]) -> bool:
    """Write lost files again from the stored set; whether that was all there was to do."""
    kept = task.store.peek(SETS, set_key(recipe, task))
    if kept is None or kept.tensors is None:
        return False
    for name in damage:
        if name in (folder.set.name, folder.start.name):
            save(_unpacked(recipe, name.partition(".")[0], kept.tensors, kept.info), folder.path / name)
        elif name == folder.log_csv.name:
            write_text(folder.log_csv, kept.info["log"])
        elif name == folder.recipe_toml.name:
            folder.write_recipe(recipe.to_toml())
    return folder.is_finished()


def _accompany(run: "_Run") -> None:
    """A further process's part of a run: its share of the synthesis, and nothing else."""
    if parallel.agreed(None):  # finished before
        return
    with numerics(run.recipe):
        prepared = run.recipe.method.prepare(run.task)
        if parallel.agreed(None):  # the first process is going to synthesise
            if parts := run.parts(prepared):
                parts.make()
                return
            syn, checkpoint = run.variables(prepared)
            watch = Watch(stop=run.stop)
            synthesise(run.recipe.method, run.task, prepared, syn, checkpoint, watch)


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    task: Task
    folder: RunFolder
    stop: Stop
    command: str
    force: bool
    track: str | None

    def report(self) -> Report:
        """Every stage, and the report."""
        recipe, task = self.recipe, self.task
        method, costs = recipe.method, {}
        planned = planned_labels(recipe, task)  # may refuse, so it comes before hours of work
        if planned and planned["bytes"]:
            require_room(self.folder.labels, planned["bytes"])
        with measured(task.device) as costs["prepare"], self._enough("preparing", "prepare"):
            prepared = method.prepare(task)
        log.info("prepared in %.0f s", costs["prepare"].seconds)
        cost: dict[str, Any] = {"prepare": asdict(costs["prepare"]) | self._prepare_cost()}
        synthesised, words = partial(self._synthesise, prepared), f"set {recipe.name}"
        with self._enough("synthesising", "synthesise"):
            artefact = task.store.tensors(SETS, set_key(recipe, task), synthesised, words, force=self.force)
        if not artefact.made:
            parallel.agreed(False)  # to those who wait in `_accompany`
        if parts := self.parts(prepared):
            parts.forget()  # they are in the set now
        cost["synthesise"] = artefact.info["cost"]
        assert artefact.tensors is not None
        distilled, start = (_unpacked(recipe, name, artefact.tensors, artefact.info) for name in ("set", "start"))
        labeller, store = method.labeller(task, prepared), None
        if labeller is not None and labeller.settings.mode == "store":
            with measured(task.device) as costs["label"], self._enough("labelling", "evaluate"):
                distilled, store = label(distilled, labeller, recipe.eval, task, self.folder)
            cost["label"] = asdict(costs["label"])
        elif labeller is not None:
            distilled, start = (_taught(made, labeller) for made in (distilled, start))
        save(distilled, self.folder.set)
        save(start, self.folder.start)
        for file in (self.folder.set, self.folder.start):
            remember(file)
        write_text(self.folder.log_csv, artefact.info["log"])
        draw(distilled, recipe, task, self.folder)
        with measured(task.device) as spent, self._enough("training students", "evaluate"):
            evaluator = Evaluator(task, recipe.eval, force=self.force, labeller=labeller)
            report = evaluate_set(distilled, start, evaluator, store=store)
        cost["evaluate"] = asdict(spent)
        return judged(replace(report, cost=cost), recipe, self.command, probes_note(recipe, task, self.folder))

    def _enough(self, what: str, stage: str) -> AbstractContextManager[None]:
        return enough_memory(what, lighter(self.recipe, stage))

    def _prepare_cost(self) -> dict[str, float]:
        # what artefacts cost when they were made, whichever run made them
        needs = self.recipe.method.needs(self.task)
        found = [self.task.store.peek(kind, spec) for kind, spec, _ in needs]
        return {"artefact_seconds": sum(a.seconds for a in found if a is not None)}

    def _synthesise(self, prepared: Any) -> Payload:
        recipe, task, method = self.recipe, self.task, self.recipe.method
        parts = self.parts(prepared)
        if parts and self.force:
            parts.forget()
        parallel.agreed(True)
        if parts:
            return self._in_parts(parts)
        syn, checkpoint = self.variables(prepared)
        start = self._described(method.finish(syn, task, prepared), 0)
        first = checkpoint.iteration()
        evaluator = Evaluator(task, recipe.eval, labeller=method.labeller(task, prepared))
        track = Track(
            self.folder,
            resume_at=first,
            history=checkpoint.log(),
            track=self.track,
            config=recipe.flat(),
            name=recipe.name,
        )
        with measured(task.device) as cost, track, bar("synthesise", method.iterations, first) as progress:

            def show(it: int, scalars: Mapping[str, Any]) -> None:
                track.log(it, **scalars)
                progress.update(
                    min(it + 1, method.iterations), **{k: v for k, v in scalars.items() if k in ("loss", "probe")}
                )

            def probe(now: Synthetic) -> float:
                return evaluator.probe(method.finish(now, task, prepared))

            watching = len(task.data.holdout) > 0 and recipe.eval.probes > 0 and method.iterations > 0
            at = _spread(method.iterations, recipe.eval.probes)
            watch = Watch(show, probe if watching else None, at, self.stop, track.text)
            synthesise(method, task, prepared, syn, checkpoint, watch)
        end = self._described(method.finish(syn, task, prepared), method.iterations)
        text = self.folder.log_csv.read_text(encoding="utf-8")
        return payload(end, start, {"cost": asdict(cost), "log": text})

    def _in_parts(self, parts: Parts) -> Payload:
        parts.tracked(self.track)
        sets, facts = parts.collected(parts.wait())
        write_text(self.folder.log_csv, facts["log"])  # with the rows that other processes wrote
        shutil.rmtree(self.folder.parts, ignore_errors=True)
        end, start = self._described(sets["set"], self.recipe.method.iterations), self._described(sets["start"], 0)
        return payload(end, start, facts)

    def parts(self, prepared: Any) -> Parts | None:
        """The independent parts of the set, where the method makes it in several."""
        tasks = self.task.in_parts(self.recipe.method.parts(self.task))
        if len(tasks) == 1:
            return None
        start = partial(begin, self.recipe, self.task, prepared)
        return Parts(self.recipe, self.task, tasks, self.folder, self.stop, start, prepared)

    def variables(self, prepared: Any) -> tuple[Synthetic, Checkpoint]:
        """The variables at iteration 0, and where their state is kept."""
        syn = begin(self.recipe, self.task, prepared, self.task)
        return syn, Checkpoint(self.folder.checkpoint, digest(set_key(self.recipe, self.task)))

    def _described(self, distilled: DistilledSet, iterations: int) -> DistilledSet:
        recipe = self.recipe
        distilled = replace(
            distilled,
            student=asdict(self.task.student),
            provenance={
                "method": recipe.method.name,
                "name": recipe.name,
                "recipe": recipe.hash,
                "seed": recipe.seed,
                "precision": recipe.precision,
                "compile": recipe.compile,
                "iterations": iterations,
                "data": asdict(replace(recipe.data, workers=None)),  # the same set, whoever decoded
                "version": version("dd-workbench"),
                "command": self.command,
            },
        )
        distilled.check()
        return distilled


def _unpacked(recipe: Recipe, name: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> DistilledSet:
    """The "set" or the "start" of a stored artefact."""
    facts = {**info[name], "classes": tuple(info[name]["classes"])}
    distilled = DistilledSet(images=tensors[f"{name}.images"], labels=tensors[f"{name}.labels"], **facts)
    # the protocol is this run's, also where the images were made by a run with another
    return replace(distilled, protocol=asdict(recipe.eval))


def _taught(distilled: DistilledSet, labeller: Labeller) -> DistilledSet:
    """A set that says whom its students ask for labels."""
    return replace(distilled, provenance={**distilled.provenance, "labeller": dict(labeller.origin)})


def _spread(iterations: int, probes: int) -> frozenset[int]:
    """`probes` iterations at equal distances, the last one included."""
    return frozenset(round(iterations * (i + 1) / probes) for i in range(probes))


def _read_report(folder: RunFolder) -> Report:
    try:
        return Report.from_dict(json.loads(folder.report.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder.report} cannot be read ({error}); force=true makes it anew") from error


def _way_on(command: str, force: bool) -> str:
    # with force the same command would begin anew
    return "the same command without force=true goes on" if force else f"the same command goes on: {command}"


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
