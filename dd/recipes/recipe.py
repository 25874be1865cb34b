"""A fully resolved run: the result of `resolve`, which is hashed, printed and stored with every result."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from dd.errors import printable
from dd.io import SEAL, digest
from dd.recipes.layers import RunKeys
from dd.recipes.schema import Leaf, flatten, groups, leaves
from dd.recipes.tables import Cell, Expected, size_name
from dd.settings import Identity, build, entries, identity

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.engine.method import Method
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec

log = logging.getLogger(__name__)

SETTLED = "settled"  # name of the table with the method's decisions in a run's recipe file


@dataclass(frozen=True)
class Recipe:
    """The resolved settings of a run.

    Attributes:
        method: the method; its fields are its settings.
        dataset: name of the real data set.
        ipc: images per class, one number for all classes or one per class in label order; None if `fraction` is given.
        fraction: share of the training images, in (0, 1].
        seed: root seed.
        device: "cpu", "cuda", "cuda:N" or "mps"; never "auto".
        precision: precision of network forward passes.
        deterministic: whether to use deterministic kernels only.
        compile: whether training loops are compiled, or in C; "auto": only if it pays off.
        preset: the requested preset.
        like: the cell of another data set or size whose table is used.
        init: the set to start from: its file, the folder of its run, or the name of a released set.
        data: how real images are split and preprocessed.
        student: the network to distil for.
        eval: how students are trained and scored.
        method_ref: the value for `method=` that selects this method: its name, or an absolute path.
        digests: SHA-256 of the files that affect the result: the file of `method`, if any, `init`, teachers, and expert
            files.
        origin: where the value of each dotted key came from, in words.
        cell: the recipe table that applies, or None.
        numbers: the cell's expected accuracies, each paired with its protocol.
        changed: keys whose values differ from those of the recipe file.
        notices: lines to show the user before the run.
        undecided: the requested values that the method resolved (see `settled`), by dotted key.
    """

    method: "Method"
    dataset: str
    ipc: int | tuple[int, ...] | None
    fraction: float | None
    seed: int
    device: str
    precision: Literal["fp32", "bf16"]
    deterministic: bool
    compile: Literal["auto"] | bool
    preset: str | None
    like: str | None
    init: str | None
    data: "DataSettings"
    student: "NetworkSpec"
    eval: "Protocol"
    method_ref: str
    digests: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    cell: Cell | None = None
    numbers: "tuple[tuple[Protocol, Expected], ...]" = ()
    changed: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    undecided: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Recipe {self.name} {self.hash}: {self.method!r}>"

    @property
    def size(self) -> str:
        """`ipc10`, `ipc5-10-20` or `fraction0.1`; see `tables.size_name`."""
        return size_name(self.ipc, self.fraction)

    @property
    def name(self) -> str:
        """`method/dataset/ipc10`, the name of the run and its set."""
        return f"{self.method.name}/{self.dataset}/{self.size}"

    @property
    def expect(self) -> Expected | None:
        """The expected accuracy: the cell's first number whose protocol trains students exactly as this run does.

        None if there is no such number, or if settings other than the evaluation's were changed.
        """
        if any(not key.startswith("eval.") for key in self.changed):
            return None
        return next((e for protocol, e in self.numbers if protocol.training() == self.eval.training()), None)

    def settled(self, method: "Method", kept: Mapping[str, Any]) -> "Recipe":
        """Return this recipe with the method's decisions applied.

        Args:
            method: the method returned by `Method.settle`.
            kept: the recipe file of an earlier start of the same run, parsed; its decisions take precedence if intact.
        """
        asked = leaves(self.method)
        decided = {key for key, leaf in leaves(method).items() if leaf.default != asked[key].default}
        earlier = self._earlier(kept, asked)
        stand = {key: earlier[key] for key in decided & earlier.keys()}
        return replace(self, method=build(method, stand), undecided={key: asked[key].default for key in decided})

    def _earlier(self, kept: Mapping[str, Any], asked: Mapping[str, Leaf]) -> dict[str, Any]:
        """Return the method's decisions in a recipe file, validated; empty if there are none or they are damaged."""
        table = kept.get(SETTLED)
        if not isinstance(table, Mapping):
            return {}
        decisions = flatten({key: value for key, value in table.items() if key != SEAL}, groups(asked))
        if table.get(SEAL) != self._seal(decisions):
            log.warning("the recipe in the run's folder is damaged; the method's decisions are made again")
            return {}
        try:
            return {key: asked[key].check(value) for key, value in decisions.items() if value not in ("null", "auto")}
        except (KeyError, ValueError) as error:
            log.warning("the recipe in the run's folder is invalid (%s); the method's decisions are made again", error)
            return {}

    def _seal(self, decisions: Mapping[str, Any]) -> str:
        return digest([self.hash, _plain(decisions)])

    def flat(self) -> dict[str, Any]:
        """Return every setting by dotted key, in reading order, as JSON-serialisable values."""
        found = entries(self._keys) | entries(self.method) | entries(self.data, "data.")
        found |= entries(self.student, "student.") | entries(self.eval, "eval.")
        return {key: _plain(entry.value) for key, entry in found.items()}

    def asked(self) -> dict[str, Any]:
        """Return `flat` with the requested values, such as "auto", in place of the method's decisions."""
        return self.flat() | _plain(self.undecided)

    def decided(self) -> dict[str, Any]:
        """Return the method's decisions by dotted key."""
        flat = self.flat()
        return {key: flat[key] for key in self.undecided}

    @property
    def _keys(self) -> RunKeys:
        bare = {f.name: getattr(self, f.name) for f in fields(RunKeys)}
        return RunKeys(**{**bare, "method": self.method_ref})

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as JSON, with nested groups."""
        return _nest(self.flat())

    def identity(self) -> dict[str, Any]:
        """Return what determines the result, by dotted key: settings, the method's version, and file digests.

        Devices count by type.  Settings that the method resolved count as requested, for example "auto".
        """
        asked = build(self.method, self.undecided)
        return self._identity("run", asked) | _plain(identity(self.eval, "run", "eval."))

    def images_identity(self) -> dict[str, Any]:
        """Return what determines the images: `identity` with the method's decisions, without labels and evaluation."""
        return self._identity("images", self.method)

    def _identity(self, of: Identity, method: "Method") -> dict[str, Any]:
        values = identity(self._keys, of) | identity(method, of)
        values |= identity(self.data, of, "data.") | identity(self.student, of, "student.")
        facts = {"method": method.name, "version": method.version, "device": self.device.partition(":")[0]}
        return {**_plain(values), **facts, "digests": dict(self.digests)}

    @property
    def hash(self) -> str:
        """Hash of `identity`; equal for runs with the same result."""
        return digest(self.identity())

    @property
    def series(self) -> str:
        """Hash of `identity` without seed and evaluation; equal for sets that differ only by chance."""
        identity = self.identity().items()
        return digest({key: value for key, value in identity if key != "seed" and not key.startswith("eval.")})

    def to_toml(self, *, origins: bool = False) -> str:
        """Return the recipe as TOML; `dd run recipe=FILE` reads it back to the same hash.

        Args:
            origins: add a comment to each line with the origin of its value.
        """
        lines = [f"# {printable(self.name, keep='')}, recipe {self.hash}", *self._lines(origins)]
        return "\n".join(lines) + "\n"

    def _lines(self, origins: bool) -> Iterator[str]:
        own = {key for key in leaves(self.method) if "." not in key}
        yield from self._tables(self.asked(), own, origins)
        if decided := self.decided():
            seal = {f"{SETTLED}.{SEAL}": self._seal(decided)}
            yield ""
            yield "# the method's decisions when the run started; kept on resume"
            yield from self._tables(seal | {f"{SETTLED}.{key}": value for key, value in decided.items()}, set(), False)

    def _tables(self, flat: Mapping[str, Any], own: set[str], origins: bool) -> Iterator[str]:
        bare = entries(self._keys)
        tables: dict[str, list[str]] = {"": [], "method": []}
        for key, value in flat.items():
            if value is None and key in bare:
                continue
            group, _, name = key.rpartition(".")
            line = f"{name} = {_toml(value)}"
            if origins:
                line = f"{line:<36}  # {printable(self.origin.get(key, 'default'), keep='')}"
            tables.setdefault("method" if key in own else group, []).append(line)
        yield from tables.pop("")
        if bare := tables.pop("method"):
            yield from ("", *bare)
        for group, lines in tables.items():
            yield from ("", f"[{group}]", *lines)


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        table = nested
        for part in path:
            table = table.setdefault(part, {})
        table[name] = value
    return nested


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _toml(value: Any) -> str:
    if value is None:
        return '"null"'  # TOML has no null; the command line accepts this string
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)  # like TOML, except for terminal control characters
        return "".join(c if printable(c) == c else f"\\U{ord(c):08x}" for c in text)
    return str(value)
