"""The settings dataclasses of a run, settled together from layers of flat keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dd.recipes import checks
from dd.recipes.merge import Layer, Problems, merge, named_architecture, named_protocol, one_length
from dd.recipes.schema import Leaf, build, leaves

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.engine.method import Method
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec

_PREFIXES = {"method": "", "data": "data.", "student": "student.", "eval": "eval."}


@dataclass(frozen=True)
class Parts:
    """Method (None where it could not be found), data, student and evaluation settings."""

    method: "Method | None"
    data: "DataSettings"
    student: "NetworkSpec"
    eval: "Protocol"

    @classmethod
    def of(cls, method: "Method | None", dataset: str) -> "Parts":
        """A method with data, student and evaluation settings where nothing is said about them."""
        from dd.data import DataSettings
        from dd.evaluation.protocols import default_protocol
        from dd.networks import NetworkSpec

        return cls(method, DataSettings(), NetworkSpec(), default_protocol(dataset))

    def known(self) -> dict[str, Leaf]:
        """Every key of these parts."""
        found: dict[str, Leaf] = {}
        for name, prefix in _PREFIXES.items():
            if (part := getattr(self, name)) is not None:
                found |= leaves(part, prefix)
        return found

    def own(self) -> set[str]:
        """The fields of the method."""
        return set() if self.method is None else {key.partition(".")[0] for key in leaves(self.method)}

    def flat(self) -> dict[str, Any]:
        """Values by dotted key."""
        return {key: leaf.default for key, leaf in self.known().items()}

    def settle(self, layers: list[Layer], known: Mapping[str, Leaf], problems: Problems) -> "Settled":
        """Merge the layers, the weakest first, over these parts.

        Args:
            layers: settings by dotted key; where one names another protocol, that one replaces `eval`, and where one
                names another architecture, the sizes of the weaker ones go.
            known: the keys that may be set; those beyond these parts' own end up in `values` only.
            problems: where everything wrong is noted.
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
            with problems.caught():  # a dataclass may refuse fields that contradict one another
                if parts[part] is not None:
                    parts[part] = build(parts[part], values, prefix)
        return Settled(Parts(**parts), values, defaults | origins)


@dataclass(frozen=True)
class Settled:
    """Parts with their settings in place, all values that were given by key, and where each came from."""

    parts: Parts
    values: Mapping[str, Any]
    origin: Mapping[str, str]
