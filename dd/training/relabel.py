"""How the views of a distilled set are labelled by teachers: one label from all of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from dd.data import RealData
from dd.data.views import ViewPolicy, draw_view
from dd.engine.method import Task
from dd.sets.label_forms import LabelForm, calibrate, form_of, label_temperature
from dd.training.committee import How, Mode, ensemble, logits
from dd.training.fitness import require_fit
from dd.training.loop import Batches
from dd.training.teachers import SqueezeSettings, Teacher, spelled, teacher_keys, teachers


@dataclass(frozen=True)
class LabelSettings:
    """What a label is made of, and how it is kept.

    Attributes:
        mode: "store" writes all labels before students are trained; "live" asks the teachers while they are; "off"
            leaves the images their classes, the control that shows what labels are worth.
        form: of a label: all "logits", the "topk" probabilities, two "distances" (NRR-DD), or "hard".
        top: k of "topk".
        ensemble: one label of several teachers: "logit_mean" of their logits (G-VBSM, EDC), "logit_weighted" by their
            votes (CV-DD), or "prob_mean" of their probabilities (MEAL V2).
        tau: temperature of the votes of "logit_weighted"; CV-DD labels with 10.
        teacher_mode: "eval"; "batch" for batch norm by the statistics of each micro-batch (BSSL, CV-DD); or "train", in
            which CV-DD's code labels: two halves of every batch, and dropout drops.
        low: teachers less sure of an image's class than this see background (FerKD, `label_forms.calibrate`).
        high: teachers at least this sure are believed, the others' labels are the class, smoothed; 0 believes all.
        smooth: share of such a label that is spread evenly over all classes.
        replay: whether a stored view is drawn anew from its "seed", or read from "records".
    """

    mode: Literal["store", "live", "off"] = "store"
    form: Literal["logits", "topk", "distances", "hard"] = "logits"
    top: Annotated[int, Field(ge=1)] = 5
    ensemble: How = "logit_mean"
    tau: Annotated[float, Field(gt=0)] = 10.0
    teacher_mode: Mode = "eval"
    low: Annotated[float, Field(ge=0, le=1)] = 0.0
    high: Annotated[float, Field(ge=0, le=1)] = 0.0
    smooth: Annotated[float, Field(ge=0, le=1)] = 0.1
    replay: Literal["seed", "records"] = "seed"

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"labels.low={self.low} must not be above labels.high={self.high}")

    def stored_as(self, classes: int) -> LabelForm:
        """The form for a number of classes; "topk" keeps all of fewer than `top`."""
        extra = {"k": min(self.top, classes)} if self.form == "topk" else {}
        return form_of(self.form, classes, **extra)


@dataclass(frozen=True, eq=False)
class Labeller:
    """Teachers that label views as one.

    Attributes:
        teachers: at least one.
        settings: how.
        weights: (teachers,) of "logit_weighted"; None otherwise.
        origin: JSON-able: what `of_origin` makes it anew from.
        keys: JSON-able, per teacher: what determines its logits.
    """

    teachers: tuple[Teacher, ...]
    settings: LabelSettings
    weights: tuple[float, ...] | None
    origin: Mapping[str, Any]
    keys: Sequence[Mapping[str, Any]]

    @classmethod
    def of(
        cls,
        task: Task,
        members: Sequence[Teacher],
        squeeze: SqueezeSettings,
        settings: LabelSettings,
        weights: Sequence[float] | None = None,
    ) -> "Labeller":
        """A labeller of teachers that were made from their names with `squeeze`."""
        names = [spelled(task, teacher.name) for teacher in members]
        votes = None if weights is None else tuple(weights)
        origin = {"teachers": names, "squeeze": asdict(squeeze), "labels": asdict(settings), "weights": votes}
        return cls(tuple(members), settings, votes, origin, teacher_keys(task, names, squeeze))

    @classmethod
    def of_origin(cls, task: Task, origin: Mapping[str, Any]) -> "Labeller":
        """The labeller that `origin` describes; teachers that are not in the store are trained anew.

        Raises:
            UsageError: a teacher cannot be had, or does not know the images.
        """
        squeeze, settings = _squeeze_of(origin), labels_of(origin)
        members = teachers(task, origin["teachers"], squeeze, partial(require_fit, task=task))
        return cls.of(task, members, squeeze, settings, origin["weights"])

    @classmethod
    def facts_of(cls, task: Task, origin: Mapping[str, Any]) -> dict[str, Any]:
        """The `facts` of the labeller that `origin` describes, as JSON gives them back; no teacher is made for it.

        Raises:
            UsageError: a teacher's file is not there.
        """
        squeeze, settings = _squeeze_of(origin), labels_of(origin)
        keys = teacher_keys(task, origin["teachers"], squeeze)
        return json.loads(json.dumps(cls((), settings, origin["weights"], origin, keys).facts))

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-able: everything that determines a label of given views."""
        ours = {k: v for k, v in asdict(self.settings).items() if k not in ("mode", "replay", "tau")}
        return {"teachers": list(self.keys), "weights": self.weights, **ours}

    def temperature(self, asked: float) -> float:
        """The temperature that students and labels have in common: forms but all logits are made for 1."""
        return label_temperature(self.settings.form, self.settings.high, asked)

    def logits(self, views: Tensor, own: Tensor, micro: int | None, seed: int = 0) -> Tensor:
        """(b, classes) for a batch of views (b, c, h, w); where labels are calibrated, their logarithms.

        Args:
            views: the views.
            own: (b,) the classes of their images.
            micro: images of a micro-batch, which count where teachers use batch statistics.
            seed: of dropout, which drops in the mode "train" alone; every teacher has its own.
        """
        settings, mode = self.settings, self.settings.teacher_mode
        pieces = micro if mode == "batch" else None
        each = torch.stack([logits(t, views, mode, pieces, seed + at) for at, t in enumerate(self.teachers)])
        weights = None if self.weights is None else torch.tensor(self.weights)
        together = ensemble(each.float(), settings.ensemble, weights)
        if not settings.high:
            return together
        trusted = calibrate(together.softmax(1), own.to(views.device), settings.low, settings.high, settings.smooth)
        return trusted.clamp_min(torch.finfo(torch.float16).tiny).log()

    def live(
        self, batches: Batches, policy: ViewPolicy, data: RealData, temperature: float, micro: int | None
    ) -> Batches:
        """Views of the batches' images with class probabilities, as a store of the same form would give them.

        Args:
            batches: images and their classes, (b,) int64 or one-hot.
            policy: how views are drawn, from each pass's generator.
            data: the real images, whose shape, augmentation and value space views go by.
            temperature: of the probabilities.
            micro: images of a micro-batch.
        """
        black = data.black if policy.pad else None

        def passes(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
            for images, targets in batches(rng, number):
                view = draw_view(policy, len(images), data.shape, rng, data.augment, black)
                views = view(images)
                own = targets if targets.dim() == 1 else targets.argmax(1)
                partner = own if view.partner is None else own[view.partner.to(own.device)]
                drops = self.settings.teacher_mode == "train"  # nothing else draws a seed
                seed = int(torch.randint(2**62, (), generator=rng)) if drops else 0
                found = self.logits(views, own, micro, seed)
                form = self.settings.stored_as(found.shape[1])
                yield views, form.decode(form.encode(found, own, partner), own, partner, temperature)

        return passes


def labels_of(origin: Mapping[str, Any]) -> LabelSettings:
    """How a labeller's `origin` says that it labels."""
    return TypeAdapter(LabelSettings).validate_python(origin["labels"])


def _squeeze_of(origin: Mapping[str, Any]) -> SqueezeSettings:
    return TypeAdapter(SqueezeSettings).validate_python(origin["squeeze"])
