"""What a cell says that a run reaches, and under which protocol."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dd.recipes.merge import Layer, Problems
from dd.recipes.parts import Parts
from dd.recipes.schema import Leaf, flatten, groups, leaves
from dd.recipes.tables import Cell

if TYPE_CHECKING:
    from dd.evaluation.protocols import Protocol


def numbers(
    parts: Parts, layers: Sequence[Layer], cell: Cell, known: Mapping[str, Leaf], problems: Problems
) -> "tuple[tuple[Protocol, Mapping[str, Any]], ...]":
    """Each expectation of a cell, after the protocol it is of: the cell's own, unless it says which or what differs.

    Args:
        parts: defaults.
        layers: the recipe tables that apply, the cell's the last.
        cell: the cell.
        known: the keys that may be set.
        problems: where a protocol or a setting that there is not is noted.
    """
    found = []
    for entry in cell.expect:
        settings = flatten({"eval": entry.get("eval", {})}, groups(known))
        if "protocol" in entry:
            settings["eval.protocol"] = entry["protocol"]
        layer = Layer(f"{cell.file} [{cell.name}] expect", settings)
        found.append((parts.settle([*layers, layer], known, problems).parts.eval, entry))
    return tuple(found)


def band(expect: Mapping[str, Any]) -> str:
    """`"50 to 57"`, in percent; empty where no number was readable."""
    low, high = expect.get("accuracy") or (None, None)
    return "" if low is None else f"{low:g} to {high:g}"


def in_words(protocol: "Protocol") -> str:
    """A protocol's name, and what decides a student's accuracy and differs from those of that name: `"cvdd, batch=10"`.

    Settings are in the words of the command line, without `eval.`.
    """
    from dd.evaluation.protocols import PROTOCOLS

    stock = PROTOCOLS[protocol.protocol]
    counted = protocol.training().keys() | stock.training().keys()
    published = {key: leaf.default for key, leaf in leaves(stock).items()}
    words = [protocol.protocol]
    for key, leaf in leaves(protocol).items():
        value = leaf.default
        laid_down = key in ("steps", "epochs") and value is None  # by the other one
        if key.partition(".")[0] in counted and value != published[key] and not laid_down:
            words.append(f"{key}={'null' if value is None else value}")
    return ", ".join(words)


def in_a_line(expect: Mapping[str, Any], protocol: "Protocol") -> str:
    """`"50 to 57 % under cvdd, not verified (paper: 53.6)"`."""
    reached = f"{found} %" if (found := band(expect)) else "no number"
    verified = "verified" if expect["verified"] else "not verified"
    return f"{reached} under {in_words(protocol)}, {verified} ({expect.get('source', 'no source')})"
