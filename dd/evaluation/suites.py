"""Suites: one protocol for each label regime, and how the teacher of the soft regimes is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dd.errors import unknown
from dd.evaluation.protocols import PROTOCOLS, Protocol, Regime, default_suite
from dd.training.squeeze import SqueezeSettings


@dataclass(frozen=True)
class Suite:
    """Protocols under which a set and its references are scored in each label regime.

    Attributes:
        protocols: the name of the protocol of each regime.
        squeeze: how a teacher that is trained here is trained.
    """

    protocols: Mapping[Regime, str]
    squeeze: SqueezeSettings

    def protocol(self, regime: Regime, run: Protocol) -> Protocol:
        """Return the protocol of a regime, with the references, students and curves that `run` asks for."""
        names = (
            *("students", "pilots", "references", "lengths", "curve", "target"),
            *("full", "full_students", "full_budget"),
        )
        counts = {name: getattr(run, name) for name in names}
        return replace(PROTOCOLS[self.protocols[regime]], **counts)


# a teacher of the student's architecture reaches 85 % of fashion-mini's held-out images in a quarter of a minute
_BRIEF = SqueezeSettings(epochs=5, lr=0.05, augment=False)

SUITES = {
    "quick": Suite({"hard": "quick", "soft": "quick-static", "views": "quick-soft"}, _BRIEF),
    # Hard Truths for fixed labels, RD3 for a teacher asked on every view; teachers as SRe2L trains them on CIFAR
    "hardtruths": Suite({"hard": "hardtruths-hl", "soft": "hardtruths-sl", "views": "rd3"}, SqueezeSettings()),
    "smoke": Suite({"hard": "smoke", "soft": "smoke", "views": "quick-soft"}, _BRIEF),
}


def suite_of(name: str | None, dataset: str) -> Suite:
    """Return the suite of a name, or the default of a data set.

    Raises:
        UsageError: there is no such suite.
    """
    return suite_named(default_suite(dataset) if name is None else name)


def suite_named(name: str) -> Suite:
    """Return the suite of a name.

    Raises:
        UsageError: there is no such suite.
    """
    if name not in SUITES:
        raise unknown("eval.suite", name, SUITES)
    return SUITES[name]
