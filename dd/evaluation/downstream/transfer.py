"""Transfer: students are pre-trained on the set, then a linear head or the whole network learns the real images.

The protocol of self-supervised dataset distillation (Lee et al., ICLR 2024): pre-training on the set alone, then a
linear head on the frozen features, and fine-tuning with a new head, on the real images that the set was distilled from
and on other data sets.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Generator, nn

from dd.data import DataSettings, RealData, open_data
from dd.errors import UsageError
from dd.evaluation.downstream.contract import Contender, Downstream, common, contenders
from dd.evaluation.downstream.measures import MeasuresReport
from dd.evaluation.evaluate import KIND, NOT_AT_HAND, VERSION, Evaluator, student_passes
from dd.evaluation.learners import Learner, LinearHead, linear_probe
from dd.evaluation.report import Score
from dd.labels import LabelStore
from dd.networks.features import Embedding
from dd.rng import generator
from dd.sets import DistilledSet
from dd.training.loop import Fit, Trainer, accuracy, in_company, passes, viewed
from dd.views import ViewPolicy

_UNTRAINED = "untrained"


@dataclass(frozen=True)
class Transfer(Downstream):
    """Accuracy of students that were pre-trained on the set: with a linear head, and after fine-tuning.

    Published for CIFAR-100: `eval.protocol=krrst`, 3 students, `transfer.fine_tune=10000` steps on CIFAR and
    Tiny-ImageNet, 5,000 on Aircraft, Cars, CUB-200, Dogs and Flowers.
    """

    name: ClassVar[str] = "transfer"
    lighter: ClassVar[str] = "transfer.fine_tune, transfer.to, eval.students"

    to: tuple[str, ...] = ()
    """Further data sets, by name; resized to the set's images, and normalised by their own statistics."""
    fine_tune: Annotated[int, Field(ge=0, le=10**7)] = 0
    """Steps of fine-tuning on the real images, with a new head and a cosine to zero; 0 for none."""
    lr: Annotated[float, Field(gt=0, le=1000)] = 0.01
    """Learning rate of fine-tuning."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of fine-tuning."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 5e-4
    """L2 penalty of fine-tuning."""
    batch: Annotated[int, Field(ge=1, le=10**6)] = 256
    """Real images per step of fine-tuning."""
    views: ViewPolicy = field(default_factory=lambda: ViewPolicy(pad=4, flip=True))
    """Augmentation of fine-tuning."""

    def require_usable(self, distilled: DistilledSet, *, taught: bool) -> None:
        """See `Downstream`."""

    def measure(
        self,
        distilled: DistilledSet,
        evaluator: Evaluator,
        *,
        store: LabelStore | None = None,
        without: str = NOT_AT_HAND,
    ) -> "TransferReport":
        """See `Downstream`.

        Raises:
            UsageError: another data set has other channels.
        """
        task = evaluator.task
        data = [task.data, *(opened(name, task.data, task.device) for name in self.to)]
        # a head on a frozen encoder trains no network: students of the set's architecture are pre-trained instead
        plain = Learner(task) if isinstance(evaluator.learner, LinearHead) else evaluator.learner
        learner = Pretraining(plain, self, data)
        own = Evaluator(task, evaluator.protocol, force=evaluator.force, labeller=evaluator.labeller, learner=learner)
        found, missing = contenders(distilled, own, store, without)
        students = evaluator.protocol.students
        scores = {key: self._scores(own, one, students) for key, one in found.items()}
        scores[_UNTRAINED] = _by_measure([_untrained(own, j) for j in range(students)], 0.0, "")
        return TransferReport(scores=scores, **common(self, distilled, own, store, missing))

    def work(self, distilled: DistilledSet, evaluator: Evaluator) -> Iterator[tuple[Evaluator, int]]:
        """See `Downstream`."""
        arms, n = 3, distilled.n * distilled.decode_factor**2
        tuned = (len(self.to) + 1) * self.fine_tune * self.batch
        probed = (len(self.to) + 1) * len(evaluator.task.data.train) // 3
        yield evaluator, evaluator.protocol.students * arms * (student_passes(evaluator, n) + tuned + probed)

    def _scores(self, evaluator: Evaluator, one: Contender, students: int) -> dict[str, Score]:
        return _by_measure(evaluator.students(one.arm, one.lr, range(students)), one.lr, one.note)


@dataclass(frozen=True, kw_only=True)
class TransferReport(MeasuresReport):
    """Accuracies after pre-training: "linear, DATA" and "fine-tuned, DATA".

    The control has the encoder's representations if the set has representations; "untrained" are fresh students.  For
    the attributes see `MeasuresReport`.
    """

    heading: ClassVar[str] = "test accuracy"
    arms: ClassVar[Mapping[str, str]] = {_UNTRAINED: "no pre-training"}


class Pretraining(Learner):
    """Another learner, whose trained network is scored by a linear head and by fine-tuning on several data sets.

    Args:
        learner: how the network is built and trained.
        settings: the settings of fine-tuning.
        data: the data sets, the set's own first.
    """

    def __init__(self, learner: Learner, settings: Transfer, data: list[RealData]) -> None:
        super().__init__(learner.task)
        self.learner, self.settings, self.data = learner, settings, data
        self.criterion, self.without = learner.criterion, learner.without
        self.student = learner.student | {
            "transfer": asdict(settings) | {"to": [one.fingerprint for one in data[1:]]},
        }
        self.build, self.labelled = learner.build, learner.labelled

    def classifier(self, network: nn.Module) -> nn.Module:
        """See `Learner`."""
        return linear_probe(network, self.task.data)

    def also(self, network: nn.Module, classifier: nn.Module, rng: Generator) -> dict[str, float]:
        """See `Learner`: test accuracies in percent by measure."""
        found: dict[str, float] = {}
        for data in self.data:
            probe = classifier if data is self.task.data else linear_probe(network, data)
            found[f"linear, {data.name}"] = accuracy(probe, data.test.batches(512))
            if self.settings.fine_tune:
                tuned = self._tuned(network, data, rng)
                found[f"fine-tuned, {data.name}"] = accuracy(tuned, data.test.batches(512))
        return found

    def _tuned(self, network: nn.Module, data: RealData, rng: Generator) -> nn.Module:
        settings = self.settings
        fit = Fit(
            steps=settings.fine_tune,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            cosine=1.0,
        )
        with torch.no_grad():
            features = Embedding(network)(torch.zeros(1, *data.shape, device=self.task.device)).shape[1]

        def build(fresh: Generator) -> nn.Module:
            seed = int(torch.randint(2**63 - 1, (), generator=fresh))
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                head = nn.Linear(features, len(data.classes))
            return nn.Sequential(Embedding(copy.deepcopy(network)), head).to(self.task.device)

        batches = viewed(in_company(passes(data.train, settings.batch)), settings.views, data)
        root = int(torch.randint(2**31, (), generator=rng))
        return next(Trainer(build, False, self.task.precision).train([(root, "fine-tuning")], batches, fit))


def opened(name: str, like: RealData, device: torch.device) -> RealData:
    """Open a data set with the image size of another.

    Raises:
        UsageError: it has other channels.
    """
    data = open_data(name, DataSettings(size=like.size), device)
    if data.channels != like.channels:
        raise UsageError(f"transfer.to={name} has {data.channels} channels, the set's images have {like.channels}")
    return data


def _untrained(evaluator: Evaluator, j: int) -> dict[str, Any]:
    """Return what student j reaches without pre-training."""
    learner, task = evaluator.learner, evaluator.task
    assert isinstance(learner, Pretraining)
    spec = {
        "version": VERSION,
        "arm": _UNTRAINED,
        "student": learner.student,
        "data": task.data.fingerprint,
        "seed": task.seed,
        "member": j,
        "precision": task.precision,
        "device": task.device.type,
    }

    def make() -> dict[str, Any]:
        path = (task.seed, "student", j)
        network = learner.build(generator(*path, "weights"))
        return {"also": learner.also(network, learner.classifier(network), generator(*path, "also"))}

    what = f"student {j + 1} without pre-training"
    return task.store.value(KIND, spec, make, what, force=evaluator.force).value


def _by_measure(rows: list[dict[str, Any]], lr: float, note: str) -> dict[str, Score]:
    """Return the scores of students by measure."""
    return {name: Score(tuple(row["also"][name] for row in rows), (), lr, note) for name in rows[0]["also"]}
