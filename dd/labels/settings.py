"""How views are labelled: what a recipe says under `labels`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from dd.labels.forms import LabelForm, form_of
from dd.settings import Outside, identity

Ensemble = Literal["logit_mean", "logit_weighted", "prob_mean"]
TeacherMode = Literal["eval", "batch", "train"]


@dataclass(frozen=True)
class LabelSettings:
    """What a label is made of, and how it is kept."""

    mode: Annotated[Literal["store", "live", "off"], Outside("label", "it says when and where")] = "store"
    """Who is asked when: "store" writes all labels before students are trained; "live" asks the teachers while they
    are; "off" leaves the images their classes, the control that shows what labels are worth.
    """
    form: Literal["logits", "topk", "distances", "hard"] = "logits"
    """What is kept of a label: all "logits", the "topk" probabilities, two "distances" (NRR-DD), or "hard"."""
    top: Annotated[int, Field(ge=1, le=10**6)] = 5
    """How many probabilities "topk" keeps."""
    ensemble: Ensemble = "logit_mean"
    """How several teachers give one label: "logit_mean" of their logits (G-VBSM, EDC), "logit_weighted" by their votes
    (CV-DD), or "prob_mean" of their probabilities (MEAL V2).
    """
    tau: Annotated[float, Field(gt=0, le=1000), Outside("label", "the weights that follow from it count")] = 10.0
    """Temperature of the votes of "logit_weighted"; CV-DD labels with 10."""
    teacher_mode: TeacherMode = "eval"
    """Mode of the teachers: "eval"; "batch", batch norm by the statistics of each micro-batch (BSSL, CV-DD); or
    "train", in which CV-DD's code labels: two halves of every batch, with dropout.
    """
    low: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Teachers less sure of an image's class than this see background (FerKD, `dd.labels.forms.calibrate`)."""
    high: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Teachers at least this sure are believed, the others' labels are the class, smoothed; 0 believes all."""
    smooth: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of such a label that is spread evenly over all classes."""
    replay: Annotated[Literal["seed", "records"], Outside("label", "it says how a view is kept")] = "seed"
    """Whether a stored view is drawn again from its "seed", or read from "records"."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"labels.low={self.low} must not be above labels.high={self.high}")

    def stored_as(self, classes: int) -> LabelForm:
        """The form for a number of classes; "topk" keeps all of fewer than `top`."""
        extra = {"k": min(self.top, classes)} if self.form == "topk" else {}
        return form_of(self.form, classes, **extra)

    def temperature(self, asked: float) -> float:
        """The temperature that students and labels have in common.

        Args:
            asked: the students', which only logits as teachers gave them can be brought to; others are for 1.
        """
        return asked if self.form == "logits" and not self.high else 1.0


def label_facts(
    settings: LabelSettings, teachers: Sequence[Mapping[str, Any]], weights: Sequence[float] | None
) -> dict[str, Any]:
    """Everything that determines a label of given views, as plain JSON values.

    Args:
        settings: how it is made.
        teachers: per teacher what determines its logits.
        weights: of the teachers; None where their votes are not weighed.
    """
    facts = {"teachers": list(teachers), "weights": weights, **identity(settings, "label")}
    return json.loads(json.dumps(facts))
