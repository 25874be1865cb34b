"""Facility location: real images such that every image has a similar one among them (as in DeepCore, 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from torch import Tensor

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.engine.selection import Fact
from dd.selection.similarity import Cosine
from dd.selection.submodular import facility_location
from dd.settings import OnlyWith
from dd.training.record import Recorded

from ._cad import OfCad
from ._features import FromFeatures, OfSimilarity, Rng, SelectionPool


@register("facility")
@dataclass(frozen=True)
class Facility(OfSimilarity):
    """Real images such that every image of their class has a similar one among them.

    Greedily maximises the submodular function

        f(A) = sum_{i in V} w_i max_{j in A} s_ij,    s_ij = 1/2 + cos(g_i, g_j) / 2
    """

    paper = "https://arxiv.org/abs/2204.08499"

    clipped: bool = False
    """Use s_ij = max(0, cos(g_i, g_j)) instead."""
    demand: Literal["none", "cad"] = "none"
    """The weight w_i of an image: "none", 1; "cad", its CAD, the score of method `cad` (a follow-up of that paper)."""
    cad: Annotated[OfCad, OnlyWith("demand", ("cad",))] = field(default_factory=OfCad)
    """How CAD is computed."""

    def settle(self, task: Task) -> Self:
        """As `OfFeatures`, and settle CAD.

        Raises:
            UsageError: a class has fewer images than requested, or CAD has too few epochs.
        """
        settled = super().settle(task)
        return replace(settled, cad=self.cad.matched_to(task)) if self.demand == "cad" else settled

    def needs(self, task: Task) -> list[Need[Any]]:
        """The proxy, its features and, for CAD, a recorded training run."""
        return [*super().needs(task), *([self.recorded(task)] if self.demand == "cad" else [])]

    def recorded(self, task: Task) -> Recorded:
        """The need for the recorded run."""
        return Recorded(task, self.cad.record)

    def prepare(self, task: Task, got: Got) -> FromFeatures:
        """The features and the weights."""
        prepared = super().prepare(task, got)
        return replace(prepared, demand=self.cad.cad(got[self.recorded(task)])) if self.demand == "cad" else prepared

    def pick(self, pool: SelectionPool, count: int, rng: Rng) -> Tensor:
        """Lazy greedy facility location."""
        similarity = Cosine(pool.features, pool.errors, clipped=self.clipped)
        draw = self.candidates(len(pool), count, rng)
        return facility_location(similarity, count, weights=pool.demand, draw=draw)[0]

    def facts(self, task: Task, prepared: FromFeatures, index: Tensor) -> Mapping[str, Fact]:
        """What the choice depends on."""
        facts = {**super().facts(task, prepared, index), "demand": self.demand}
        if self.demand == "none":
            return facts
        cad, record = self.cad, self.cad.record
        windows = {"cad_of": cad.of, "cad_window": cad.window, "cad_windows": cad.windows}
        return facts | windows | {"cad_mode": record.mode, "cad_epochs": record.recorded, "cad_seed": record.seed}
