"""Layers of settings merged into values, later over earlier, with every problem gathered before anything is said."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dd.errors import UsageError, close_matches
from dd.recipes.schema import Leaf, leaves

if TYPE_CHECKING:
    from dd.networks import NetworkSpec

COMMAND_LINE = "command line"
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class RunKeys:
    """The bare keys of a run, and what each may be."""

    method: str | None = None
    dataset: str = "fashion-mini"
    ipc: Count | Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    deterministic: bool = False
    compile: Literal["auto"] | bool = "auto"
    preset: str | None = None
    like: str | None = None
    init: str | None = None
    recipe: str | None = None
    out: str | None = None
    force: bool = False
    track: Literal["wandb", "none"] | None = None


IN_A_CELL = ("precision", "deterministic", "compile")  # the bare keys that a recipe file may set
BARE = leaves(RunKeys())


@dataclass(frozen=True)
class Layer:
    """Settings from one place; `where` is how the user is told about it."""

    where: str
    settings: Mapping[str, Any]


@dataclass
class Problems:
    """Everything that is wrong, gathered before anything is said."""

    lines: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def caught(self, where: str = COMMAND_LINE) -> Iterator[None]:
        """Turn an error of the block into lines; `where` is named unless it is the command line."""
        try:
            yield
        except (UsageError, ValueError) as error:
            self.add(str(error), where)

    def add(self, text: str, where: str = COMMAND_LINE) -> None:
        """Note a problem, one entry a line."""
        prefix = "" if where == COMMAND_LINE else f"{where}: "
        self.lines += [f"{prefix}{line}" for line in text.splitlines()]

    def raise_any(self) -> None:
        """Raise one `UsageError` with a line for every problem, if there is any."""
        if self.lines:
            raise UsageError("\n".join(dict.fromkeys(self.lines)))


def merge(
    known: Mapping[str, Leaf], layers: Iterable[Layer], problems: Problems
) -> tuple[dict[str, Any], dict[str, str]]:
    """Check every setting of every layer against its leaf, and let later layers win.

    Returns:
        values and origins by dotted key, for the keys that some layer sets.
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


def unknown_key(key: str, value: Any, known: Iterable[str]) -> str:
    """One line for a key that does not exist, with the nearest that do."""
    known = list(known)
    if isinstance(value, Mapping):
        return (
            f"unknown group of settings {key!r}{_did_you_mean(key, {k.partition('.')[0] for k in known if '.' in k})}"
        )
    group, _, name = key.rpartition(".")
    inside = {k.rpartition(".")[2] for k in known if group and k.rpartition(".")[0] == group}
    if close := close_matches(name, inside):
        return f"unknown key {key!r}{_did_you_mean('', (), [f'{group}.{n}' for n in close])}"
    elsewhere = [k for k in known if "." in k and k.rpartition(".")[2] == name]
    return f"unknown key {key!r}{_did_you_mean(key, known, elsewhere)}"


def named_protocol(layers: list[Layer]) -> tuple[Any, str, list[Layer]]:
    """Which protocol the layers name last, where, and the layers without the evaluation settings that it replaces.

    Naming a protocol starts evaluation afresh: settings of weaker layers belonged to another one.
    """
    for i in range(len(layers) - 1, -1, -1):
        if (name := layers[i].settings.get("eval.protocol")) is not None:
            weaker = [Layer(w.where, {k: v for k, v in w.settings.items() if _not_eval(k)}) for w in layers[:i]]
            return name, layers[i].where, weaker + layers[i:]
    return None, "default", layers


def named_architecture(student: "NetworkSpec", layers: list[Layer]) -> tuple["NetworkSpec", list[Layer]]:
    """A student and the layers without the sizes that were meant for another architecture than a later layer names.

    `student.arch=resnet18` over a ConvNet of depth 3 and width 32 is the standard ResNet-18, unless that layer or a
    stronger one gives a width.  A size that is given for an architecture without it stays, to be refused.
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
    """A layer that counts a student's training in steps lays down the protocol's epochs, and the other way round."""
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
