"""Reports of tasks that measure every arm in several ways."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from dd.evaluation.downstream.contract import DownstreamReport
from dd.evaluation.report import Score, pooled_std
from dd.evaluation.scores import Interval, paired_gap
from dd.evaluation.table import ARMS, in_between, score_in_words


@dataclass(frozen=True, kw_only=True)
class MeasuresReport(DownstreamReport):
    """Test accuracies of several arms, by the name of a measure; one row of the table per measure.

    Attributes:
        scores: scores by measure, for "accuracy" (the set), "control" (random real images) and further arms.
        heading: heading of the column of measures.
        arms: names of further arms, in words.
    """

    heading: ClassVar[str] = "measure"
    arms: ClassVar[Mapping[str, str]] = {}
    scores: Mapping[str, Mapping[str, Score]]

    def headings(self) -> list[str]:
        """See `DownstreamReport`."""
        words = {**ARMS, **self.arms}
        return [
            self.heading,
            *(f"{words[arm]} %" for arm in self.scores),
            "the set is ahead by (95 %, students paired)",
        ]

    def rows(self) -> list[list[str]]:
        """See `DownstreamReport`."""
        return [
            [measure, *(score_in_words(arm[measure]) for arm in self.scores.values()), self._ahead(measure)]
            for measure in self.scores["accuracy"]
        ]

    def gap(self, measure: str) -> Interval | None:
        """Return the points by which the set beats the control in a measure, with their interval; None without one.

        Students are paired by their initial weights.
        """
        if "control" not in self.scores:
            return None
        return paired_gap(self.scores["accuracy"][measure].values, self.scores["control"][measure].values)

    def _ahead(self, measure: str) -> str:
        gap = self.gap(measure)
        if gap is None:
            return self.missing.get("control", "")
        spread = pooled_std(self.scores["accuracy"][measure], self.scores["control"][measure])
        return f"{in_between(gap)} points" + (f" ({gap.mean / spread:+.1f} pooled std)" if spread else "")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        scores = {arm: {name: score.to_dict() for name, score in some.items()} for arm, some in self.scores.items()}
        gaps = {name: self.gap(name) for name in self.scores["accuracy"]}
        return super().to_dict() | {
            "scores": scores,
            "gaps": {name: None if gap is None else asdict(gap) for name, gap in gaps.items()},
        }
