"""Layers of settings, merged with later layers overriding earlier ones; all problems are reported together."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dd.errors import UsageError, close_matches
from dd.recipes import checks
from dd.recipes.jobs import Place, RaySettings, SlurmSettings
from dd.recipes.schema import Leaf, flatten, groups, leaves
from dd.runs.trackers import chosen
from dd.settings import Outside, build, entries, identity

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.engine.method import Method
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec

COMMAND_LINE = "command line"
_PREFIXES = {"method": "", "data": "data.", "student": "student.", "eval": "eval."}
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class InCells:
    """Marks a bare key that the tables of a recipe file may set."""


@dataclass(frozen=True)
class RunKeys:
    """The bare keys of a recipe."""

    method: Annotated[str | None, Outside("run", "its name, version and text count")] = None
    """A name, `path/to/file.py` or `path/to/file.py:name`."""
    dataset: str = "fashion-mini"
    """Name of a known data set, or the path of your own."""
    ipc: Count | Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Images per class: one number for all classes, or one per class in label order."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the training images, instead of `ipc`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Root seed."""
    device: Annotated[str, Outside("run", "its type counts")] = "auto"
    """"auto", "cpu", "cuda", "cuda:N" or "mps"."""
    precision: Annotated[Literal["fp32", "bf16"], InCells()] = "fp32"
    """Precision of network forward passes."""
    deterministic: Annotated[bool, InCells()] = False
    """Use deterministic kernels only."""
    compile: Annotated[Literal["auto"] | bool, InCells()] = "auto"
    """Compile training loops, or compute them in C; "auto" does so only if it pays off."""
    preset: Annotated[str | None, Outside("run", "the settings that it stands for count")] = None
    """Name of a recipe variant."""
    like: Annotated[str | None, Outside("run", "the settings that are taken count")] = None
    """Recipe cell of another data set or size whose settings to use."""
    init: Annotated[str | None, Outside("run", "the digest of the file counts")] = None
    """Set to start from: its file, or the folder of its run."""


def _named(value: Any) -> Any:
    """Convert null to the default, and lists to tuples."""
    if value is None:
        return ()
    if value == "none":  # would otherwise be read as null
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        chosen(names)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return names


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not part of its settings."""

    recipe: str | None = None
    """Recipe file or run folder to read settings from."""
    out: str | None = None
    """Folder that holds all runs."""
    force: bool = False
    """Repeat finished work."""
    track: Annotated[tuple[str, ...], BeforeValidator(_named), AfterValidator(_trackers)] = ()
    """Trackers that follow the run, in addition to its log.csv: "wandb", "trackio" or both ("wandb,trackio"); "none"
    for none.  () stands for wandb inside a W&B agent, and for none elsewhere.
    """
    on: Place = "local"
    """Where the run is executed: "local", on this machine; "slurm" or "ray", as jobs of such a cluster."""
    jobs: Count = 1
    """How many jobs share the run.  One on this machine is this process."""
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        for place, settings in {"slurm": self.slurm, "ray": self.ray}.items():
            given = [key for key, entry in entries(settings, f"{place}.").items() if entry.value is not None]
            if given and self.on != place:
                whose = f"{place.capitalize()}'s jobs"
                raise UsageError(f"{given[0]} is an option of {whose}: add on={place}, or leave it out")

    @property
    def has_gpus(self) -> bool:
        """Whether the jobs of a cluster get GPUs."""
        return bool(self.slurm.gpus or self.ray.gpus)

    @property
    def is_shared(self) -> bool:
        """Whether the run is executed by jobs, rather than by this process."""
        return self.on != "local" or self.jobs > 1


_KEYS, OPTIONS = leaves(RunKeys()), leaves(RunOptions())
BARE = _KEYS | OPTIONS
IN_CELLS = {key: leaf for key, leaf in _KEYS.items() if InCells() in getattr(leaf.annotation, "__metadata__", ())}


@dataclass(frozen=True)
class Layer:
    """Settings from one source; `where` names the source in messages."""

    where: str
    settings: Mapping[str, Any]


@dataclass
class Problems:
    """Collects problems, so that all of them are reported at once."""

    lines: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def caught(self, where: str = COMMAND_LINE) -> Iterator[None]:
        """Record errors raised in the block, prefixed with `where` unless it is the command line."""
        try:
            yield
        except (UsageError, ValueError) as error:
            self.add(str(error), where)

    def add(self, text: str, where: str = COMMAND_LINE) -> None:
        """Record a problem; each line becomes one entry."""
        prefix = "" if where == COMMAND_LINE else f"{where}: "
        self.lines += [f"{prefix}{line}" for line in text.splitlines()]

    def raise_any(self) -> None:
        """Raise one `UsageError` with a line per problem, if there are any."""
        if self.lines:
            raise UsageError("\n".join(dict.fromkeys(self.lines)))


def merge(
    known: Mapping[str, Leaf], layers: Iterable[Layer], problems: Problems
) -> tuple[dict[str, Any], dict[str, str]]:
    """Validate every setting of every layer against its leaf; later layers override earlier ones.

    Returns:
        Values and origins by dotted key, for the keys that some layer sets.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, value in layer.settings.items():
            with problems.caught(layer.where):
                if key not in known:
                    raise UsageError(unknown_key(key, value, known))
                values[key] = known[key].check(value)
                origins[key] = layer.where
    return values, origins


# names by which users of other evaluations look for a setting of ours
_ELSEWHERE = {"eval.seeds": "eval.students", "eval.num_eval": "eval.students", "num_eval": "eval.students"}


def unknown_key(key: str, value: Any, known: Iterable[str]) -> str:
    """Return one line for an unknown key, with the closest known keys."""
    known = list(known)
    if isinstance(value, Mapping):
        return (
            f"unknown group of settings {key!r}{_did_you_mean(key, {k.partition('.')[0] for k in known if '.' in k})}"
        )
    if (ours := _ELSEWHERE.get(key)) in known:
        return f"unknown key {key!r}{_did_you_mean('', (), [ours])}"
    group, _, name = key.rpartition(".")
    inside = {k.rpartition(".")[2] for k in known if group and k.rpartition(".")[0] == group}
    if close := close_matches(name, inside):
        return f"unknown key {key!r}{_did_you_mean('', (), [f'{group}.{n}' for n in close])}"
    elsewhere = [k for k in known if "." in k and k.rpartition(".")[2] == name]
    return f"unknown key {key!r}{_did_you_mean(key, known, elsewhere)}"


def named_protocol(layers: list[Layer]) -> tuple[Any, str, list[Layer]]:
    """Return the last protocol named by a layer, where it was named, and the layers without the settings it replaces.

    Naming a protocol resets the evaluation settings: those of weaker layers belonged to a different protocol.
    """
    for i in range(len(layers) - 1, -1, -1):
        if (name := layers[i].settings.get("eval.protocol")) is not None:
            weaker = [Layer(w.where, {k: v for k, v in w.settings.items() if _not_eval(k)}) for w in layers[:i]]
            return name, layers[i].where, weaker + layers[i:]
    return None, "default", layers


def named_architecture(student: "NetworkSpec", layers: list[Layer]) -> tuple["NetworkSpec", list[Layer]]:
    """Return the student and the layers without sizes meant for an architecture that a later layer replaces.

    `student.arch=resnet18` over a ConvNet of depth 3 and width 32 yields the standard ResNet-18, unless that layer or a
    stronger one sets a width.  A size that the architecture does not support is kept, so that it is rejected later.
    """
    from dd.networks.spec import foreign_sizes

    kept: list[Layer] = []
    arch = student.arch
    for layer in layers:
        if isinstance(named := layer.settings.get("student.arch"), str):
            fresh = foreign_sizes(arch, named)
            student = replace(student, **dict.fromkeys(fresh))
            keys = {f"student.{name}" for name in fresh}
            kept = [Layer(w.where, {k: v for k, v in w.settings.items() if k not in keys}) for w in kept]
            arch = named
        kept.append(layer)
    return student, kept


def one_length(layer: Layer) -> Layer:
    """Make steps and epochs exclusive: a layer that sets one of them clears the other."""
    for given, other in (("eval.steps", "eval.epochs"), ("eval.epochs", "eval.steps")):
        if layer.settings.get(given) is not None and other not in layer.settings:
            return Layer(layer.where, {**layer.settings, other: None})
    return layer


def _not_eval(key: str) -> bool:
    return not key.startswith("eval.")


def _did_you_mean(key: str, known: Iterable[str], first: Iterable[str] = ()) -> str:
    close = [*first][:4] or close_matches(key, known)
    if not close:
        return "; `dd show method=NAME` lists them all"
    return f"; did you mean {' or '.join(repr(c) for c in close)}?"


@dataclass(frozen=True)
class Parts:
    """Method (None if it could not be found), data, student and evaluation settings."""

    method: "Method | None"
    data: "DataSettings"
    student: "NetworkSpec"
    eval: "Protocol"

    @classmethod
    def of(cls, method: "Method | None", dataset: str) -> "Parts":
        """Return a method with default data, student and evaluation settings."""
        from dd.data import DataSettings
        from dd.evaluation.protocols import default_protocol
        from dd.networks import NetworkSpec

        return cls(method, DataSettings(), NetworkSpec(), default_protocol(dataset))

    def known(self) -> dict[str, Leaf]:
        """Return every key of these parts."""
        found: dict[str, Leaf] = {}
        for name, prefix in _PREFIXES.items():
            if (part := getattr(self, name)) is not None:
                found |= leaves(part, prefix)
        return found

    def own(self) -> set[str]:
        """Return the names of the method's fields."""
        return set() if self.method is None else {key.partition(".")[0] for key in leaves(self.method)}

    def flat(self) -> dict[str, Any]:
        """Return values by dotted key."""
        return {key: leaf.default for key, leaf in self.known().items()}

    def counted(self) -> dict[str, Any]:
        """Return the values that determine the set and a student's accuracy on it, by dotted key."""
        found: dict[str, Any] = {}
        for name, prefix in _PREFIXES.items():
            if (part := getattr(self, name)) is not None:
                found |= identity(part, "number" if name == "eval" else "run", prefix)
        return found

    def settle(self, layers: list[Layer], known: Mapping[str, Leaf], problems: Problems) -> "Settled":
        """Merge layers, weakest first, over these parts.

        Args:
            layers: settings by dotted key; a layer that names a protocol replaces `eval`, and one that names an
                architecture discards the sizes set by weaker layers.
            known: the valid keys; keys outside these parts appear in `values` only.
            problems: collects errors.
        """
        name, where, layers = named_protocol(layers)
        student, layers = named_architecture(self.student, layers)
        base, origin = self.eval, "default"
        if name is not None:
            with problems.caught(where):
                base = checks.protocol(name)
            origin = where
        values, origins = merge(known, [one_length(layer) for layer in layers], problems)
        defaults = {key: f"protocol {base.protocol}" for key in leaves(base, "eval.")} | {"eval.protocol": origin}
        parts: dict[str, Any] = {"method": self.method, "data": self.data, "student": student, "eval": base}
        for part, prefix in _PREFIXES.items():
            with problems.caught():  # a dataclass may reject contradictory fields
                if parts[part] is not None:
                    parts[part] = build(parts[part], values, prefix)
        return Settled(Parts(**parts), values, defaults | origins)


@dataclass(frozen=True)
class Settled:
    """Parts with all settings applied, the given values by key, and the origin of each."""

    parts: Parts
    values: Mapping[str, Any]
    origin: Mapping[str, str]


def run_options(overrides: Mapping[str, Any]) -> RunOptions:
    """Return the options of a run.

    Raises:
        UsageError: one line for each invalid value; `resolve` reports the same ones.
    """
    problems = Problems()
    flat = flatten(overrides, groups(OPTIONS))
    given = {key: flat[key] for key in OPTIONS if key in flat}
    values, _ = merge(OPTIONS, [Layer(COMMAND_LINE, given)], problems)
    problems.raise_any()
    return build(RunOptions(), values)


def data_settings(overrides: Mapping[str, Any]) -> "DataSettings":
    """Return data settings: the keys `data.…` of `overrides` over the defaults.

    Args:
        overrides: dotted or nested keys, as returned by `parse_overrides`.

    Raises:
        UsageError: one line for every unknown key or invalid value.
    """
    from dd.data import DataSettings

    known, problems = leaves(DataSettings(), "data."), Problems()
    values, _ = merge(known, [Layer(COMMAND_LINE, flatten(overrides, groups(known)))], problems)
    problems.raise_any()
    return build(DataSettings(), values, "data.")
