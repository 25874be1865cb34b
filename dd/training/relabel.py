"""How the views of a distilled set are labelled by teachers."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dd.training.committee import How, Mode


@dataclass(frozen=True)
class LabelSettings:
    """What a label is made of, and how it is kept.

    Attributes:
        mode: "store" writes all labels before students are trained; "live" asks the teachers while they are.
        form: of a label: all "logits", the "topk" probabilities, two "distances" (NRR-DD), or "hard".
        top: k of "topk".
        ensemble: of several teachers, see `dd.training.committee.ensemble`.
        tau: temperature of the votes of "logit_weighted"; CV-DD labels with 10.
        teacher_mode: "eval", or "batch" for batch norm by the statistics of each micro-batch (BSSL, CV-DD).
        replay: whether a stored view is drawn anew from its "seed", or read from "records".
    """

    mode: Literal["store", "live"] = "store"
    form: Literal["logits", "topk", "distances", "hard"] = "logits"
    top: Annotated[int, Field(ge=1)] = 5
    ensemble: How = "logit_mean"
    tau: Annotated[float, Field(gt=0)] = 10.0
    teacher_mode: Mode = "eval"
    replay: Literal["seed", "records"] = "seed"
