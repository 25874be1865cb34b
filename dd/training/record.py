"""Recorded training: one run of a network on the real images, with what it makes of every image in every epoch.

All scores of training dynamics are computed from such a record, so that a second score trains nothing.  A record takes
21 bytes per image and epoch: 50,000 images and 200 epochs take 210 MB.  While it is made, the device also holds the
probabilities of the last epoch, 4 bytes per image and class.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from dd.data.positions import pass_order
from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.errors import RunError, UsageError
from dd.io import digest
from dd.networks import NetworkSpec, resolve_network
from dd.networks.features import last_linear
from dd.runs.store import Artefact, Wanted
from dd.selection.scores import change, errors, gradient_norms, margins
from dd.settings import OnlyWith, Outside, identity
from dd.training.loop import Fit, Trainer, in_company
from dd.training.passes import PassFile
from dd.training.squeeze import Augment, augmentation, build_teacher, holdout_accuracy, shown
from dd.training.teacher_names import STUDENT, Untrained, teacher_source
from dd.views import Batches

KIND = "records"
VERSION = 1  # of the training procedure; part of every key, raised when results change
_CHUNK = 512  # images per forward pass of the clean mode

Mode = Literal["clean", "train"]


@dataclass(frozen=True)
class RecordSettings:
    """How networks are trained and recorded.  Defaults: those of CCS for CIFAR-10 (Zheng et al., ICLR 2023)."""

    mode: Mode = "train"
    """What is recorded: "train", the outputs in training mode for the augmented images, before the update (as CCS and
    TDDS do); "clean", those in evaluation mode for the images themselves, after each epoch.
    """
    runs: Annotated[int, Field(ge=1, le=1000), Outside("record", "more runs keep those of fewer")] = 1
    """Number of recorded networks, over which scores are averaged; more runs keep those of fewer."""
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 200
    """Epochs of the learning-rate schedule."""
    stop: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Stop after this many epochs of the schedule; None trains to its end."""
    lr: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """Learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: Annotated[bool, OnlyWith("momentum")] = True
    """Whether the momentum is Nesterov's."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 5e-4
    """Weight decay of SGD (L2 penalty)."""
    batch: Annotated[int, Field(ge=2, le=10**6)] = 256
    """Real images per step."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """Learning-rate schedule: cosine decay to `min_lr`, or constant with the `drops`."""
    min_lr: Annotated[float, Field(ge=0, le=1000), OnlyWith("schedule", ("cosine",))] = 1e-4
    """Learning rate at the end of the cosine."""
    drops: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], OnlyWith("schedule", ("steps",))] = ()
    """Shares of the epochs, rounded to whole ones, after which lr is multiplied by `drop`."""
    drop: Annotated[float, Field(gt=0, le=1), OnlyWith("drops")] = 0.1
    """Factor of lr at each of `drops`."""
    augment: Augment = "pad"
    """Augmentation: "pad", padding with four black pixels, a crop of the original size and a flip; "crops", random
    resized crops and a flip; true, DSA with the data set's strategy, one operation per batch; false, none.
    """
    proxy: Annotated[str, Outside("record", "the resolved network counts")] = STUDENT
    """The network that is trained: "student", or an architecture such as `convnet:width=48` or `resnet18`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the runs; independent of the run's own seed, so that those with different seeds share the record."""

    def __post_init__(self) -> None:
        if self.stop is not None and self.stop > self.epochs:
            raise ValueError(f"record.stop={self.stop} must be at most record.epochs={self.epochs}")

    @property
    def recorded(self) -> int:
        """The number of recorded epochs."""
        return self.epochs if self.stop is None else self.stop


@dataclass(frozen=True, eq=False)
class Record:
    """One recorded training run; all tensors are (epochs, n), memory-mapped on the CPU, in the order of the images.

    Attributes:
        log_p: log-probability of the image's class.
        margin: logit of the class minus the largest other one.
        correct: bool, whether the class has the largest logit.
        el2n: norm of the probabilities' error, see `dd.selection.scores.errors`.
        grand: norm of the last layer's gradient, see `dd.selection.scores.gradient_norms`.
        change: of the probabilities since the epoch before, see `dd.selection.scores.change`; 0 in the first row.
        key: of the artefact.
        holdout: final accuracy on the held-out images in percent; None without held-out images.
        seconds: time to train, in this run or an earlier one.
    """

    log_p: Tensor
    margin: Tensor
    correct: Tensor
    el2n: Tensor
    grand: Tensor
    change: Tensor
    key: str
    holdout: float | None
    seconds: float

    def __len__(self) -> int:
        return len(self.log_p)


@dataclass(frozen=True, eq=False)
class Recorded(Need[tuple[Record, ...]]):
    """The need for recorded training runs, one artefact per run.

    Attributes:
        task: the run, for its images and student.
        settings: how the networks are trained and recorded.
    """

    task: Task
    settings: RecordSettings
    name = "record"

    def artefacts(self) -> list[Wanted]:
        """One per run."""
        task, settings = self.task, self.settings
        network = _proxy(task, settings)
        return [
            Wanted(KIND, record_spec(task, network, settings, run), _words(task, settings, run))
            for run in range(settings.runs)
        ]

    def fetch(self, got: Got) -> tuple[Record, ...]:
        """Return the records; runs that do not exist yet are trained.

        A killed run resumes with the next epoch, with bit-identical results.

        Raises:
            UsageError: the proxy is no network to be trained here, or has no linear layer; or in training mode an epoch
                ends in a batch of a single image.
            RunError: a run diverged.
        """
        _require_whole(self.task, self.settings)
        wanted = self.artefacts()
        return tuple(self.task.store.each(wanted, lambda run: self._one(run, *wanted[run])))

    def _one(self, run: int, kind: str, spec: Mapping[str, Any], what: str) -> Record:
        task, store = self.task, self.task.store
        keep = PassFile(store.unfinished(kind, spec), digest(spec), what)
        make = partial(_record, task, _proxy(task, self.settings), self.settings, run, keep)
        kept = store.tensors(kind, spec, make, what, describe=_held_out)
        keep.remove()  # only after the record is in the store
        assert kept.tensors is not None, "made of tensors"
        return Record(**kept.tensors, key=kept.key, holdout=kept.info["holdout"], seconds=kept.seconds)


def record_spec(task: Task, network: NetworkSpec, settings: RecordSettings, run: int) -> dict[str, Any]:
    """Everything that determines one record: the key of its artefact."""
    return {
        "version": VERSION,
        "data": task.data.fingerprint,
        "augment": augmentation(settings.augment, task.data),
        "network": asdict(network),
        "settings": identity(settings, "record"),
        "run": run,
        "compile": task.compile,
        "precision": task.precision,
        "device": task.device.type,
    }


def record_fit(settings: RecordSettings, images: int, strategy: str) -> Fit:
    """The training of one recorded network on `images` images as a `Fit`."""
    per_pass = -(-images // settings.batch) - (images % settings.batch == 1)
    cosine = settings.schedule == "cosine"
    drops = () if cosine else settings.drops
    return Fit(
        steps=settings.recorded * per_pass,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        optimiser="nesterov" if settings.nesterov and settings.momentum else "sgd",
        strategy=strategy if settings.augment is True else "none",
        cosine=settings.epochs / settings.recorded if cosine else None,  # of all epochs, not of the recorded ones
        min_lr=settings.min_lr,
        decay_at=tuple(round(share * settings.epochs) * per_pass for share in drops),
        decay=settings.drop,
        keep_state=True,
    )


def _record(
    task: Task, network: NetworkSpec, settings: RecordSettings, run: int, keep: PassFile
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train and record one network, resuming after its last finished epoch; returns (rows, facts) for the store."""
    data = task.data
    fit = record_fit(settings, len(data.train), data.augment)
    trainer = Trainer(partial(build_teacher, task, network, task.classes), task.compile, task.precision)
    recorder = _Recorder(task, settings, keep)
    batches = in_company(recorder.watched(shown(data, settings.augment, settings.batch)))
    with recorder:
        trained = next(trainer.train([(settings.seed, "record", run)], batches, fit, keeps=[recorder]))
    return recorder.rows, {"holdout": holdout_accuracy(task, trained), "network": asdict(network), "data": data.name}


class _Recorder(contextlib.ExitStack):
    """Watches a network while it is trained, and fills one row per epoch; a `dd.training.loop.Keep`.

    From `load`, which starts the training, to the end of the context, the network has hooks.  They see the logits and
    the input of the last linear layer in every forward pass whose images are known.

    Args:
        task: the run.
        settings: what is recorded.
        keep: saves the state and the rows after every epoch.
    """

    def __init__(self, task: Task, settings: RecordSettings, keep: PassFile) -> None:
        super().__init__()
        self._task, self._settings, self._keep = task, settings, keep
        shape = (settings.recorded, len(task.data.train))
        self.rows = {name: torch.zeros(shape) for name in ("log_p", "margin", "el2n", "grand", "change")}
        self.rows["correct"] = torch.zeros(shape, dtype=torch.bool)
        self._row: dict[str, Tensor] = {}
        self._p = torch.zeros(shape[1], task.classes, device=task.device)
        self._index: Tensor | None = None
        self._features = torch.empty(0)
        self._done = 0

    def watched(self, batches: Batches) -> Batches:
        """The same passes over the training images; in training mode, each batch is known while it is in use."""
        if self._settings.mode == "clean":
            return batches

        def passes(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
            same = torch.Generator()
            same.set_state(rng.get_state())  # the order is what a pass draws first
            order = pass_order(len(self._task.data.train), same)
            self._fresh(number)
            for index, batch in zip(order.split(self._settings.batch), batches(rng, number), strict=True):
                self._index = index.to(self._task.device)
                yield batch
                self._index = None

        return passes

    def load(self, network: nn.Module, optimiser: Optimizer) -> tuple[int, int]:
        """See `Keep`."""
        self.callback(last_linear(network).register_forward_pre_hook(self._enter).remove)
        self.callback(network.register_forward_hook(self._leave).remove)
        beside: dict[str, Tensor] = {}
        done, step = self._keep.load(network, optimiser, beside)
        for name, rows in self.rows.items():
            rows[:done] = beside.get(name, rows[:0])
        if done:
            self._p.copy_(beside["p"])
        return done, step

    def save(self, network: nn.Module, optimiser: Optimizer, done: int, step: int) -> None:
        """See `Keep`; first completes the row of the epoch.

        Raises:
            RunError: the network diverged.
        """
        if self._settings.mode == "clean":
            self._look(network, done - 1)
        for name, row in self._row.items():
            self.rows[name][done - 1] = row.cpu()
        if not all(bool(self.rows[name][done - 1].isfinite().all()) for name in ("log_p", "grand")):
            self._keep.remove()
            raise RunError(f"{self._keep.what} diverged in epoch {done}; lower record.lr={self._settings.lr}")
        beside = {name: rows[:done].clone() for name, rows in self.rows.items()}
        self._keep.save(network, optimiser, done, step, beside | {"p": self._p})

    def _fresh(self, done: int) -> None:
        """Begin the row of the epoch after `done` epochs."""
        self._done = done
        self._row = {name: rows[done].to(self._task.device, copy=True) for name, rows in self.rows.items()}

    @torch.no_grad()
    def _look(self, network: nn.Module, done: int) -> None:
        """Show the network all training images as they are, in evaluation mode."""
        self._fresh(done)
        network.eval()
        places = torch.arange(len(self._task.data.train)).split(_CHUNK)
        for index, (images, _) in zip(places, self._task.data.train.batches(_CHUNK), strict=True):
            self._index = index.to(self._task.device)
            network(images)
        self._index = None
        network.train()

    def _enter(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0].detach().flatten(1)

    def _leave(self, network: nn.Module, _: tuple[Tensor, ...], logits: Tensor) -> None:
        if self._index is not None and network.training == (self._settings.mode == "train"):
            self._take(self._index, logits.detach().float(), self._features.float())

    @torch.no_grad()
    def _take(self, index: Tensor, logits: Tensor, features: Tensor) -> None:
        """Record a batch: logits (b, classes) and features (b, d) of the training images at (b,) indices."""
        labels = self._task.data.train.labels.index_select(0, index)
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        self._row["log_p"][index] = log_p.gather(1, labels[:, None])[:, 0]
        self._row["margin"][index] = margins(logits, labels)
        self._row["correct"][index] = logits.argmax(1) == labels
        self._row["el2n"][index] = errors(logits, labels)
        self._row["grand"][index] = gradient_norms(logits, features, labels)
        if self._done:
            self._row["change"][index] = change(self._p[index], p)
        self._p[index] = p


def _proxy(task: Task, settings: RecordSettings) -> NetworkSpec:
    """The network to train, resolved for the images."""
    source = teacher_source(settings.proxy, task.student)
    if not isinstance(source, Untrained):
        raise UsageError(f"record.proxy={settings.proxy} is trained already: name an architecture, or student")
    return resolve_network(source.spec, task.data.size, task.data.channels)


def _require_whole(task: Task, settings: RecordSettings) -> None:
    """Refuse an epoch that ends in a single image, which has no batch statistics and would not be recorded."""
    images = len(task.data.train)
    if settings.mode == "train" and images % settings.batch == 1:
        raise UsageError(
            f"record.batch={settings.batch} leaves a single one of {images} training images at the end of an epoch, "
            f"which cannot be recorded in training mode: record.batch={settings.batch + 1}, or record.mode=clean"
        )


def _held_out(made: Artefact) -> str:
    held = made.info.get("holdout")
    return "" if held is None else f": {held:.1f} % of held-out images"


def _words(task: Task, settings: RecordSettings, run: int) -> str:
    which = f"training run {run + 1} of {settings.runs}" if settings.runs > 1 else "training run"
    return f"recorded {which} ({settings.mode}, {task.data.name}, {settings.recorded} epochs)"
