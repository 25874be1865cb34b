"""Train teachers on the real images: SRe2L's squeeze stage (Yin et al., NeurIPS 2023), one artefact per teacher."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from dd.data import RealData
from dd.engine.method import Task
from dd.errors import RunError
from dd.io import digest
from dd.networks import NetworkSpec, build_network
from dd.runs.store import Artefact
from dd.training.loop import Fit, Trainer, accuracy, in_company, passes, viewed
from dd.training.passes import PassFile
from dd.views import Batches, ViewPolicy

KIND = "teachers"
VERSION = 1  # of the training procedure; part of every key, raised when results change
LEAST = 0.08  # smallest share of the area that a crop keeps (Szegedy et al. 2015, and torchvision's recipe)
_CROPS = ViewPolicy(crop=LEAST, flip=True)
_PAD = ViewPolicy(pad=4, flip=True)  # He et al. 2016, section 4.2

Augment: TypeAlias = bool | Literal["pad", "crops"]
"""How training images are augmented, see `SqueezeSettings.augment`."""


@dataclass(frozen=True)
class SqueezeSettings:
    """How teachers are trained on the real images.  Defaults: SRe2L's for CIFAR-100 (official code), but with DSA.

    The papers of the family augment like torchvision's recipes: `augment="pad"` for small images, `"crops"` for
    ImageNet.
    """

    epochs: Annotated[int, Field(ge=1, le=10**6)] = 200
    """Passes over the real training images."""
    lr: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """Learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 5e-4
    """Weight decay of SGD or Adam (L2 penalty)."""
    batch: Annotated[int, Field(ge=2, le=10**6)] = 128
    """Real images per step."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up: constant, or cosine decay to zero."""
    warmup: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Number of epochs in which lr rises linearly from a hundredth."""
    augment: Augment = True
    """Augmentation. true: DSA with the data set's strategy, one operation per batch. false: none. "pad": pad with four
    black pixels, crop to the original size, flip half of the images. "crops": random resized crops of at least 8 % of
    the area, flip half of them; if images were resized, the crops are cut from the original files.
    """
    optimiser: Literal["sgd", "adam"] = "sgd"
    """The optimiser of a teacher."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the teachers; independent of the run's seed, so that runs with different seeds share the teachers."""

    def __post_init__(self) -> None:
        if self.warmup >= self.epochs:
            raise ValueError(f"squeeze.warmup={self.warmup} must be less than squeeze.epochs={self.epochs}")


def squeeze_spec(task: Task, network: NetworkSpec, settings: SqueezeSettings) -> dict[str, Any]:
    """Everything that determines a teacher trained here: the key of its artefact."""
    return {
        "version": VERSION,
        "data": task.data.fingerprint,
        "augment": augmentation(settings.augment, task.data),
        "network": asdict(network),
        "settings": asdict(settings),
        "compile": task.compile,
        "precision": task.precision,
        "device": task.device.type,
    }


def squeeze_fit(settings: SqueezeSettings, images: int, strategy: str) -> Fit:
    """The training of one teacher on `images` images as a `Fit`."""
    per_pass = -(-images // settings.batch) - (images % settings.batch == 1)
    return Fit(
        steps=settings.epochs * per_pass,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        strategy=strategy if settings.augment is True else "none",
        optimiser=settings.optimiser,
        cosine=1.0 if settings.schedule == "cosine" else None,
        warmup=settings.warmup * per_pass,
    )


def squeezed(task: Task, network: NetworkSpec, settings: SqueezeSettings, what: str) -> Artefact:
    """The weights and buffers of one teacher, trained if they are not in the store.

    The state is saved after every pass: a killed training resumes with the next pass, with bit-identical results.

    Args:
        task: the run.
        network: the resolved architecture.
        settings: how it is trained.
        what: name for the log.

    Raises:
        RunError: it diverged.
    """
    spec = squeeze_spec(task, network, settings)
    keep = PassFile(task.store.unfinished(KIND, spec), digest(spec), what)
    make = partial(_squeeze, task, network, settings, keep)
    kept = task.store.tensors(KIND, spec, make, what, describe=_held_out)
    keep.remove()  # only after the network is in the store
    return kept


def _held_out(made: Artefact) -> str:
    held = made.info.get("holdout")
    return "" if held is None else f": {held:.1f} % of held-out images"


def _squeeze(
    task: Task, network: NetworkSpec, settings: SqueezeSettings, keep: PassFile
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train one teacher, resuming after its last finished pass; returns (weights and buffers, facts) for the store."""
    data = task.data
    fit = squeeze_fit(settings, len(data.train), data.augment)
    trainer = Trainer(partial(build_teacher, task, network, task.classes), task.compile, task.precision)
    batches = in_company(shown(data, settings.augment, settings.batch))
    trained = next(trainer.train([(settings.seed, "teacher")], batches, fit, keeps=[keep]))
    state = {name: value.cpu() for name, value in trained.state_dict().items()}
    if not all(value.isfinite().all() for value in state.values()):
        keep.remove()
        raise RunError(f"{keep.what} diverged: its weights are not finite; lower squeeze.lr={settings.lr}")
    info = {
        "network": asdict(network),
        "preprocess": data.preprocess.spec(),
        "classes": data.classes,
        "holdout": holdout_accuracy(task, trained),
        "data": data.name,
    }
    return state, info


def augmentation(augment: Augment, data: RealData) -> str:
    """In a word, how training images are augmented: part of the key of what is trained on them."""
    if augment == "crops" and data.train.originals:
        return "crops of files"
    if isinstance(augment, str):
        return augment
    return data.augment if augment else "none"


def shown(data: RealData, augment: Augment, batch: int) -> Batches:
    """Passes over the training images in batches of `batch`, augmented by crops or padding; DSA is applied later.

    Every pass is in the order of `dd.data.positions.pass_order`.
    """
    originals = data.train.originals
    if augment == "crops" and originals:
        return lambda rng, _: originals.batches(batch, rng, data.size, LEAST)
    plain = passes(data.train, batch)
    if isinstance(augment, bool):
        return plain
    return viewed(plain, _CROPS if augment == "crops" else _PAD, data)


def build_teacher(task: Task, network: NetworkSpec, classes: int, rng: torch.Generator) -> nn.Module:
    """A network for the run's images, with fresh weights and `classes` outputs, on the device."""
    data = task.data
    return build_network(
        network, channels=data.channels, size=data.size, classes=classes, generator=rng, device=task.device
    )


def holdout_accuracy(task: Task, network: nn.Module) -> float | None:
    """Accuracy on the held-out images in percent; None without held-out images."""
    return accuracy(network, task.data.holdout.batches(512)) if len(task.data.holdout) else None
