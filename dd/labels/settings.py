"""Settings of labelling: the table `labels` of a recipe."""

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
    """How labels are computed and stored."""

    mode: Annotated[Literal["store", "live", "off"], Outside("label", "it says when and where")] = "store"
    """When views are labelled: "store" writes all labels before students are trained; "live" runs the teachers during
    training; "off" keeps hard labels, the control that shows what soft labels are worth.
    """
    form: Literal["logits", "topk", "distances", "hard"] = "logits"
    """What is stored per label: all "logits", "topk" probabilities, two "distances" (NRR-DD), or the "hard" class."""
    top: Annotated[int, Field(ge=1, le=10**6)] = 5
    """Number of probabilities that "topk" stores."""
    ensemble: Ensemble = "logit_mean"
    """How the outputs of several teachers are combined: "logit_mean" (mean of the logits; G-VBSM, EDC),
    "logit_weighted" (weighted by the teachers' votes; CV-DD), or "prob_mean" (mean of the probabilities; MEAL V2).
    """
    tau: Annotated[float, Field(gt=0, le=1000), Outside("label", "the weights that follow from it count")] = 10.0
    """Temperature of the vote weights of "logit_weighted"; CV-DD labels with 10."""
    teacher_mode: TeacherMode = "eval"
    """Mode of the teachers: "eval"; "batch", batch norm with the statistics of each micro-batch (BSSL, CV-DD); or
    "train", as CV-DD's code labels: each batch in two halves, with dropout.
    """
    low: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Below this confidence in the image's class, a view counts as background (FerKD, `dd.labels.forms.calibrate`)."""
    high: Annotated[float, Field(ge=0, le=1)] = 0.0
    """From this confidence on, the soft label is kept; below it, the smoothed hard label is used; 0 keeps all."""
    smooth: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Label smoothing of these hard labels."""
    replay: Annotated[Literal["seed", "records"], Outside("label", "it says how a view is kept")] = "seed"
    """Whether a stored view is regenerated from its "seed" or read from "records"."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"labels.low={self.low} must not be above labels.high={self.high}")

    def stored_as(self, classes: int) -> LabelForm:
        """The form for a number of classes; "topk" stores all classes if there are fewer than `top`."""
        extra = {"k": min(self.top, classes)} if self.form == "topk" else {}
        return form_of(self.form, classes, **extra)

    def temperature(self, asked: float) -> float:
        """The temperature that students and labels share.

        Args:
            asked: the students' temperature; it applies to uncalibrated logits only, all other labels use 1.
        """
        return asked if self.form == "logits" and not self.high else 1.0


def label_facts(
    settings: LabelSettings, teachers: Sequence[Mapping[str, Any]], weights: Sequence[float] | None
) -> dict[str, Any]:
    """Everything that determines a label of given views, as plain JSON values.

    Args:
        settings: how labels are computed and stored.
        teachers: per teacher, what determines its logits.
        weights: of the teachers; None if they are not weighted.
    """
    facts = {"teachers": list(teachers), "weights": weights, **identity(settings, "label")}
    return json.loads(json.dumps(facts))
