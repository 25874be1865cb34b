"""Why a number differs from the recorded one: a finished run beside its recipe, this machine and its files."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dd.data import open_data
from dd.engine import registry
from dd.engine.method import Task
from dd.errors import RunError, UsageError, in_one_line
from dd.evaluation.difference import changes
from dd.evaluation.report import Report
from dd.io import sha256_file
from dd.pipeline.inventory import changed_files
from dd.pipeline.recorded import FinishedRun, flat, recorded
from dd.pipeline.task import context, make_task
from dd.recipes import SETTLED, Recipe, resolve
from dd.runs import Store
from dd.runs.store import NotMade, nothing_made
from dd.sets import load
from dd.training.compiled import can_compile

_SHOWN = 5  # files of the data that are named
_PLACE = ("method", "dataset", "ipc", "fraction", "preset", "like")  # keys that choose a cell of a recipe
_NOT_HERE = "not here"

Cause = Literal["setting", "code", "version", "device", "data", "file", "accuracy"]


@dataclass(frozen=True)
class Finding:
    """One thing that differs from what was recorded, and may move a number.

    Attributes:
        cause: "setting" (of the recipe), "code" of a method or a file that a setting names, "version" of a package,
            "device", "data", "file" (of the run, or made for it), or "accuracy".
        what: the setting, package or file.
        recorded: its value in the recipe or in the report.
        now: its value in the run, or on this machine.
        where: "recipe" if the run differs from its recipe, "record" if something differs from what the run recorded.
        words: one line.
    """

    cause: Cause
    what: str
    recorded: Any
    now: Any
    where: Literal["recipe", "record"]
    words: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found about a run.

    Attributes:
        folder: the run's folder.
        report: its report.
        findings: everything that differs.
        unknown: what could not be compared, and why.
    """

    folder: Path
    report: Report
    findings: tuple[Finding, ...]
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        score = self.report.accuracy
        return {
            "run": str(self.folder),
            "name": self.report.name,
            "accuracy": {"mean": score.mean, "std": score.std, "n": score.n},
            "findings": [asdict(one) for one in self.findings],
            "unknown": list(self.unknown),
        }


def diagnose(place: str) -> Diagnosis:
    """Compare a finished run with its recipe, and what it recorded with this machine and with the files.

    The data are read as a run reads them; nothing is downloaded or trained.  No code that a run's recipe names is
    imported.

    Args:
        place: the folder of the run, or one of its files.

    Raises:
        UsageError: there is no finished run.
        RunError: its report or its recipe cannot be read.
    """
    record = recorded(place)
    examination = _Examination(record)
    return Diagnosis(record.folder.path, record.report, tuple(examination.findings()), tuple(examination.unknown))


class _Examination:
    """The checks of one run, in the order of the report; `unknown` collects what cannot be compared."""

    def __init__(self, record: FinishedRun) -> None:
        self.record, self.report = record, record.report
        self.unknown: list[str] = []
        made = dict(record.report.recipe)
        self.written = {key: value for key, value in record.written.items() if key != SETTLED}
        self.asked: dict[str, Any] = made["settings"] if made else self.written
        self.made = made
        if not made:
            self.unknown.append(
                "the report is of an older version and holds no settings: recipe.toml is taken as it is"
            )

    def findings(self) -> Iterator[Finding]:
        """Yield everything that differs."""
        yield from self._files()
        yield from self._edited()
        recipe = self._recipe()
        if recipe is not None:
            yield from self._of_the_recipe(recipe)
            yield from self._code(recipe)
        else:
            yield from self._named_files(None)
        yield from self._versions()
        yield from self._device()
        yield from self._data(recipe)

    def _files(self) -> Iterator[Finding]:
        folder = self.record.folder
        damage = folder.damage() or {}
        for name, why in damage.items():
            yield Finding("file", name, "intact", why, "record", f"{name}: {why}")
        if damage:
            return
        try:
            distilled = load(folder.set)
            if distilled.label_kind == "views":
                distilled.label_store()
        except UsageError as error:
            words = in_one_line(error)
            yield Finding("file", folder.set.name, "intact", words, "record", words)

    def _edited(self) -> Iterator[Finding]:
        """Yield settings of recipe.toml that are not those in the report."""
        if not self.made:
            return
        asked, written = _without_none(flat(self.asked)), _without_none(flat(self.written))
        for key, (before, now) in changes(asked, written).items():
            words = f"{key}: the run had {_text(before)}, its recipe.toml now says {_text(now)}"
            yield Finding("setting", key, before, now, "record", words)

    def _recipe(self) -> Recipe | None:
        """Return the recipe of the recorded settings; None if it cannot be resolved here."""
        method = str(self.asked.get("method"))
        if registry.is_code(method) and not registry.is_loaded(method):
            self.unknown.append(f"settings are not compared with a recipe: the method is the code of {method}")
            return None
        try:
            return resolve(self.asked | {"device": "cpu"})  # the recorded device need not be here
        except (UsageError, RunError) as error:
            self.unknown.append(f"settings are not compared with a recipe: {in_one_line(error)}")
            return None

    def _of_the_recipe(self, recipe: Recipe) -> Iterator[Finding]:
        """Yield settings that differ from the recipe's cell, and an accuracy outside its band."""
        whose = f"the recipe ({recipe.cell.name})" if recipe.cell else "the method's defaults"
        own, base, changed = recipe.asked(), dict[str, Any](), recipe.changed
        try:
            base = resolve({key: self.asked[key] for key in _PLACE if self.asked.get(key) is not None}).asked()
        except (UsageError, RunError) as error:  # such as dc with a fraction, which leaves its loops to the user
            changed = ()
            self.unknown.append(f"settings are not compared with {whose}, which lack some: {in_one_line(error)}")
        for key in changed:
            words = f"{key}: {_text(own.get(key))} in the run, {_text(base.get(key))} in {whose}"
            yield Finding("setting", key, base.get(key), own.get(key), "recipe", words)
        expect, mean = recipe.expect, self.report.accuracy.mean
        band = None if expect is None else expect.get("accuracy")
        if band and not band[0] <= mean <= band[1]:
            words = f"accuracy: {mean:.2f} %, the recipe's band is {band[0]:g} to {band[1]:g} %"
            yield Finding("accuracy", "accuracy", list(band), mean, "recipe", words)

    def _code(self, recipe: Recipe) -> Iterator[Finding]:
        """Yield the code of the method, and files that settings name, if they are not what they were."""
        found = list(self._named_files(recipe.digests))
        if self.made and (version := recipe.method.version) != self.made["method_version"]:
            name, before = recipe.method.name, self.made["method_version"]
            words = f"method {name}: version {before} made the set, this dd has version {version}, which differs"
            found.append(Finding("code", f"method {name}", before, version, "record", words))
        yield from found
        if not found and recipe.hash != self.report.recipe_hash:
            words = (
                f"the same settings have the hash {recipe.hash} in this version of dd, not {self.report.recipe_hash}"
            )
            yield Finding("code", "recipe", self.report.recipe_hash, recipe.hash, "record", words)

    def _named_files(self, now: Mapping[str, str] | None) -> Iterator[Finding]:
        """Yield files whose digest is not the recorded one; the code of a method is read, not imported.

        Args:
            now: the digests of the resolved recipe; None if it is unknown, for the method's code alone.
        """
        for key, before in self.made.get("digests", {}).items():
            what = str(self.asked.get(key, key))
            path = Path(what.partition(".py")[0] + ".py")
            if key == "method" and registry.is_code(what):
                found = sha256_file(path) if path.is_file() else None
            elif now is None:
                continue
            else:
                found = now.get(key)
            if found != before:
                state = _NOT_HERE if found is None else "changed since the run"
                label = f"the code of the method, {what}" if key == "method" else f"{key}={what}"
                yield Finding("code", key, before, found, "record", f"{label}: {state}")

    def _versions(self) -> Iterator[Finding]:
        now = context("cpu")["versions"]
        for name, before in self.report.versions.items():
            found = now.get(name)
            if found != before:
                words = f"version of {name}: {before} in the run, {found or _NOT_HERE} now"
                yield Finding("version", name, before, found, "record", words)

    def _device(self) -> Iterator[Finding]:
        device = str(self.asked.get("device", "cpu"))
        now = _NOT_HERE
        with contextlib.suppress(AssertionError, RuntimeError):
            torch.device(device)  # of an edited report, it may be anything
            now = context(device)["device"] if device != "mps" or torch.backends.mps.is_available() else _NOT_HERE
        if now != self.report.device:
            words = f"device: {self.report.device} in the run, {now} now"
            yield Finding("device", "device", self.report.device, now, "record", words)
        if now == _NOT_HERE or self.asked.get("compile") != "auto" or "compiled" not in self.made:
            return
        before, able = self.made["compiled"], can_compile(torch.device(device))
        if able != before:
            words = f"compile=auto: {_compiled(before)} in the run, {_compiled(able)} now"
            yield Finding("device", "compile", before, able, "record", words)

    def _data(self, recipe: Recipe | None) -> Iterator[Finding]:
        """Yield data whose fingerprint is not the recorded one, with the files, and damaged artefacts of the run."""
        if recipe is None:
            self.unknown.append("the data are not compared, because the recipe is not known here")
            return
        before, name = self.report.dataset.get("fingerprint"), recipe.dataset
        if before is None:
            self.unknown.append("the data are not compared, because the report has no fingerprint of them")
            return
        try:
            data = open_data(name, recipe.data, "cpu", download=False)
        except (UsageError, RunError) as error:
            yield Finding("data", name, before, None, "record", f"data {name}: {in_one_line(error)}")
            return
        if data.fingerprint != before:
            words = f"data {name} in {data.where}: {_changed(changed_files(Store(), before, data))}"
            yield Finding("data", name, before, data.fingerprint, "record", words)
            return
        yield from _damaged(recipe, make_task(recipe))


def _changed(files: list[str] | None) -> str:
    if files is None:
        return "its fingerprint differs; its files were not listed on this machine"
    if not files:
        return "its fingerprint differs, but no file: this version reads it in another way"
    rest = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"{', '.join(files[:_SHOWN])}{rest}"


def _damaged(recipe: Recipe, task: Task) -> Iterator[Finding]:
    """Yield artefacts that the run was made from and that are damaged; missing ones are made again by any run."""
    try:
        with nothing_made():
            wanted = [one for need in recipe.method.settle(task).needs(task) for one in need.artefacts()]
    except (NotMade, UsageError):
        return
    for kind, spec, words in wanted:
        if task.store.has(kind, spec) and (damage := task.store.damage(kind, spec)):
            yield Finding("file", words, "intact", damage, "record", f"{words}: {damage}")


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _compiled(yes: bool) -> str:
    return "training loops were compiled" if yes else "no compiler"


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
