"""Requirements on methods: one function per requirement, which takes the class and a `Lab` and raises if it fails.

The engine needs them: it resumes, repeats, hashes, prints and reads back a run without asking the method.
"""

import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dd.engine import registry
from dd.engine.method import Method, Skip, Synthetic, prepare
from dd.errors import UsageError, in_one_line
from dd.io import digest
from dd.recipes import Recipe, resolve
from dd.recipes.schema import explained, leaves
from dd.sets import DistilledSet, load, save
from dd.testing.lab import Lab

_PATIENCE = 10  # iterations within which a method that may skip must complete one


class NotConforming(AssertionError):
    """A method violates a requirement; the message says which one and how."""


Check: TypeAlias = Callable[[type[Method], Lab], None]


def registered(cls: type[Method], lab: Lab) -> None:
    """The method has a name and a one-line summary."""
    _require(bool(cls.name), f"{cls.__name__} has no name; decorate it with @register('name')")
    found = registry.get(cls.name)
    _require(found is cls, f"the name {cls.name!r} belongs to {found.__module__}.{found.__qualname__}")
    _require("__doc__" in vars(cls) and bool(inspect.getdoc(cls)), "its class has no docstring of its own")
    own_words = not (cls.__doc__ or "").startswith(f"{cls.__name__}(")  # the docstring that dataclass generates
    _require(own_words, "its class has no docstring of its own")


def constructible(cls: type[Method], lab: Lab) -> None:
    """`Method()` works: every field has a default."""
    _require(
        dataclasses.is_dataclass(cls), f"{cls.__name__} is not a dataclass; decorate it with @dataclass(frozen=True)"
    )
    missing = [f.name for f in _fields(cls) if not _has_default(f)]
    _require(not missing, f"fields without a default: {', '.join(missing)}")
    cls()


def frozen(cls: type[Method], lab: Lab) -> None:
    """The method and its nested settings are frozen, so that what was hashed is what runs."""
    for settings in _settings_of(cls()):
        name = type(settings).__name__
        _require(type(settings).__dataclass_params__.frozen, f"{name} is not frozen; use @dataclass(frozen=True)")
        hash(settings)


def typed_fields(cls: type[Method], lab: Lab) -> None:
    """Every field has a type that values can be checked against, and its default passes."""
    for key, leaf in leaves(cls()).items():
        _require(leaf.annotation not in (Any, object), f"field {key!r} may be anything; restrict its type")
        try:
            checked = leaf.check(leaf.default)
        except Exception as error:
            raise NotConforming(f"field {key!r}: its default does not pass its own type: {error}") from error
        _require(checked == leaf.default, f"field {key!r}: its default {leaf.default!r} is read as {checked!r}")


def documented_fields(cls: type[Method], lab: Lab) -> None:
    """Every setting has a docstring below its field, in its class or in a base class."""
    method = cls()
    said = explained(method)
    silent = [key for key in leaves(method) if not said.get(key)]
    _require(not silent, f"fields without a docstring below them: {', '.join(silent)}")


def iterations_are_its_own(cls: type[Method], lab: Lab) -> None:
    """A method without a `loss` has no outer loop, and no setting for its iterations."""
    if cls.loss is Method.loss:
        names = [f.name for f in _fields(cls)]
        _require(cls().iterations == 0, "it has iterations but no loss")
        _require("iterations" not in names, "`iterations` is a setting, but there is no loss to be called")


def recipe_round_trip(cls: type[Method], lab: Lab) -> None:
    """Writing the settings as TOML and reading them back yields the same text and hash."""
    for recipe in (resolve({"method": cls.name, "device": "cpu"}), lab.recipe(cls)):
        file = lab.folder / "recipes" / f"{cls.name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(recipe.to_toml(), encoding="utf-8")
        again = resolve({"recipe": str(file)})
        _require(
            again.hash == recipe.hash,
            f"settings changed when written to TOML and read back: {_differences(recipe, again)}",
        )
        _require(again.to_toml() == recipe.to_toml(), "the recipe that was read back writes different text")


def whole_output(cls: type[Method], lab: Lab) -> None:
    """Start and result are valid sets that fit the data, sorted by class, and survive saving and loading."""
    seen = lab.seen(cls)
    wanted = seen.task.targets.cpu()
    _require(torch.equal(seen.syn.targets.cpu(), wanted), "the variables' targets are not the task's, class-major")
    for what, distilled in (("start", seen.start), ("result", seen.result)):
        try:
            distilled.check()
            distilled.require_match(seen.task.data)
        except UsageError as error:
            raise NotConforming(f"{what}: {error}") from error
        if distilled.label_kind == "hard" and distilled.labels.shape == wanted.shape:
            _require(torch.equal(distilled.labels.cpu(), wanted), f"{what}: its labels are not the task's targets")
        file = lab.folder / "sets" / f"{cls.name}-{what}.safetensors"
        save(distilled, file)
        _require(load(file).digest() == distilled.digest(), f"{what}: saving and loading changes the set")


def same_seed_same_bits(cls: type[Method], lab: Lab) -> None:
    """Two runs with the same seed give the same set."""
    _require_equal(lab.seen(cls).result, lab.seen(cls, time=2).result, "two runs under one seed differ")


def other_seed_other_bits(cls: type[Method], lab: Lab) -> None:
    """A method that draws random numbers gives another set for another seed; one that does not gives the same set."""
    one, other = lab.seen(cls), lab.seen(cls, seed=1)
    if not one.task.is_random:
        _require_equal(one.result, other.result, "it draws nothing from `task.generator`, but depends on the seed")
        return
    same = torch.equal(one.result.images, other.result.images) and torch.equal(one.result.labels, other.result.labels)
    _require(not same, "it draws from `task.generator`, but two seeds give the same set")


def resumes(cls: type[Method], lab: Lab) -> None:
    """A run that is interrupted after every iteration gives the same set as an uninterrupted one."""
    _require_equal(lab.seen(cls).result, lab.interrupted(cls), "an interrupted run gives another set")


def surroundings_untouched(cls: type[Method], lab: Lab) -> None:
    """Global random generators, switches and hooks are unchanged."""
    seen = lab.seen(cls)
    _require(not seen.disturbed, f"it changed {'; '.join(seen.disturbed)}")
    _require(not seen.hooked, f"it left hooks behind: {'; '.join(seen.hooked[:3])}")


def no_warnings(cls: type[Method], lab: Lab) -> None:
    """A run emits no warnings."""
    seen = lab.seen(cls)
    _require(not seen.warnings, f"it warns: {'; '.join(seen.warnings[:3])}")


def plan_is_true(cls: type[Method], lab: Lab) -> None:
    """`needs` lists exactly the artefacts that are requested."""
    seen = lab.seen(cls)
    wanted = [wanted for need in seen.method.needs(seen.task) for wanted in need.artefacts()]
    listed = {(kind, digest(spec)) for kind, spec, _ in wanted}
    forgotten, idle = sorted({k for k, _ in seen.needed - listed}), sorted({k for k, _ in listed - seen.needed})
    _require(not forgotten, f"`needs` does not name artefacts of kind {', '.join(forgotten)} that are made")
    _require(not idle, f"`needs` names artefacts of kind {', '.join(idle)} that are never used")


def gradients_arrive(cls: type[Method], lab: Lab) -> None:
    """Every optimised tensor is a variable, and receives a gradient from the objective."""
    task = lab.task(cls)
    method = lab.method(cls, task)
    if not method.iterations:
        return
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    moved = [p for optimiser in method.optimisers(syn) for group in optimiser.param_groups for p in group["params"]]
    names = {id(p): name for name, p in syn.named_parameters()}
    _require(bool(moved), "it has iterations but no optimiser")
    _require(all(id(p) in names for p in moved), "an optimiser moves a tensor that checkpoints do not carry")
    reason = ""
    for it in range(_PATIENCE):
        outcome = method.loss(syn, task, prepared, it)
        if isinstance(outcome, Skip):
            reason = outcome.reason
            continue
        _total(outcome).backward()
        for p in moved:
            reached = p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any())
            _require(reached, f"no finite gradient reaches {names[id(p)]!r}, which has an optimiser")
        return
    raise NotConforming(f"the first {_PATIENCE} iterations of a tiny task are all skipped ({reason})")


def variables_move(cls: type[Method], lab: Lab) -> None:
    """The outer loop changes the set."""
    seen = lab.seen(cls)
    if seen.method.iterations:
        same = seen.start.digest() == seen.result.digest()
        _require(not same, f"the set is the same after {seen.method.iterations} iterations as before")


def parts_make_the_whole(cls: type[Method], lab: Lab) -> None:
    """Every synthetic image belongs to exactly one part, and the indices of a part ascend."""
    task = lab.task(cls)
    method = lab.method(cls, task)
    for more in (1, 3):
        targets = task.targets.repeat_interleave(more)
        slots = [part.cpu() for part in method.parts(dataclasses.replace(task, targets=targets))]
        covered = torch.cat(slots).sort().values
        _require(torch.equal(covered, torch.arange(len(targets))), "its parts do not hold every image exactly once")
        _require(all(bool((s.diff() > 0).all()) for s in slots), "the positions in a part do not ascend")


def uneven_classes(cls: type[Method], lab: Lab) -> None:
    """The method handles different numbers of images per class, or declares with `even = True` that it cannot."""
    if cls.even:
        return
    task = lab.task(cls)
    counts = torch.ones(task.classes, dtype=torch.long)
    counts[1], counts[-1] = 3, 2
    wanted = torch.arange(task.classes).repeat_interleave(counts)
    try:
        result = lab.tried(cls, dataclasses.replace(task, targets=wanted.to(task.device)))
    except RuntimeError as error:
        raise NotConforming(
            f"with 3 images of one class and 1 of another it fails ({in_one_line(error)}); if it needs the same number "
            "for every class, declare `even: ClassVar[bool] = True`"
        ) from error
    if result.label_kind == "representations":  # they name no class
        return
    own = result.own_classes().cpu()
    if result.image_kind == "schedule":  # each epoch in any order
        own, wanted = own.sort(1).values, wanted.expand_as(own)
    same = torch.equal(own, wanted)
    _require(same or result.label_kind != "hard", "with 3 images of one class its labels are not the task's targets")


def finish_only_reads(cls: type[Method], lab: Lab) -> None:
    """`finish` changes no variable, gives the same set twice, and the set does not change with the variables later."""
    task = lab.task(cls)
    method = lab.method(cls, task)
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    before = _state(syn)
    one, two = method.finish(syn, task, prepared), method.finish(syn, task, prepared)
    held = one.digest()
    _require(held == two.digest(), "`finish` gives another set when it is called again")
    changed = [name for name, value in _state(syn).items() if not torch.equal(value, before[name])]
    _require(not changed, f"`finish` changes {', '.join(changed)}")
    with torch.no_grad():
        for p in syn.parameters():
            p.add_(1)
    _require(one.digest() == held, "the set that `finish` gave shares memory with the variables")


CHECKS: tuple[Check, ...] = (
    registered,
    constructible,
    frozen,
    typed_fields,
    documented_fields,
    iterations_are_its_own,
    recipe_round_trip,
    whole_output,
    same_seed_same_bits,
    other_seed_other_bits,
    resumes,
    surroundings_untouched,
    no_warnings,
    plan_is_true,
    gradients_arrive,
    variables_move,
    parts_make_the_whole,
    uneven_classes,
    finish_only_reads,
)


def check(cls: type[Method], lab: Lab | None = None) -> None:
    """Run every check on one method.

    Args:
        cls: a registered class.
        lab: a lab to share between methods, so that they share experts; default: a new one.

    Raises:
        NotConforming: one line for every failed check.
    """
    if lab is None:
        with tempfile.TemporaryDirectory() as folder:
            check(cls, Lab(Path(folder)))
        return
    failed = []
    for one in CHECKS:
        try:
            one(cls, lab)
        except Exception as error:
            failed.append(
                f"{one.__name__}: {'' if isinstance(error, NotConforming) else type(error).__name__ + ': '}{error}"
            )
    if failed:
        raise NotConforming("\n".join((f"{cls.name or cls.__name__} fails {len(failed)} checks", *failed)))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotConforming(otherwise)


def _require_equal(one: DistilledSet, other: DistilledSet, otherwise: str) -> None:
    if one.digest() == other.digest():
        return
    odd = [name for name in ("images", "labels") if not torch.equal(getattr(one, name), getattr(other, name))]
    ours, theirs = one.facts(), other.facts()
    odd += [name for name in ours if ours[name] != theirs[name]]
    raise NotConforming(f"{otherwise}: in {', '.join(odd)}")


def _fields(settings: Any) -> "tuple[dataclasses.Field[Any], ...]":
    return dataclasses.fields(settings)


def _has_default(f: "dataclasses.Field[Any]") -> bool:
    return f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING


def _settings_of(instance: Any) -> Iterator[Any]:
    """Yield a settings dataclass and those nested in it."""
    yield instance
    for f in _fields(instance):
        value = getattr(instance, f.name)
        if dataclasses.is_dataclass(value):
            yield from _settings_of(value)


def _differences(one: Recipe, other: Recipe) -> str:
    ours, theirs = one.identity(), other.identity()
    return ", ".join(f"{k}: {ours.get(k)!r} -> {theirs.get(k)!r}" for k in ours if ours.get(k) != theirs.get(k))


def _total(outcome: Tensor | Mapping[str, Tensor]) -> Tensor:
    terms = list(outcome.values()) if isinstance(outcome, Mapping) else [outcome]
    return torch.stack([term.double() for term in terms]).sum()


def _state(syn: Synthetic) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in syn.state_dict().items()}
