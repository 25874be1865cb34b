"""Architecture search with the set as the proxy of all real images, in the protocol of the DC/DM line.

Architectures are ranked by the held-out accuracy of students of the set, and the ranking is compared with their test
accuracy after training on all real images (Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, and
"Dataset Condensation with Distribution Matching", WACV 2023).
"""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from pydantic import Field

from dd.engine.method import Task
from dd.errors import UsageError
from dd.evaluation.arms import Arm, control_arm, full_arm
from dd.evaluation.downstream.agreement import ProxyPair, RankAgreement, agreement, agreement_gap, best_of
from dd.evaluation.downstream.contract import Contender, Downstream, DownstreamReport, common, contenders
from dd.evaluation.evaluate import NOT_AT_HAND, Evaluator, own_arm, student_passes
from dd.evaluation.protocols import Protocol
from dd.evaluation.report import Score
from dd.evaluation.scores import Interval
from dd.evaluation.table import ARMS, in_between, score_in_words
from dd.labels import Labeller, LabelStore
from dd.networks import NetworkSpec, resolve_network
from dd.networks.layers import Activation, Norm, Pooling
from dd.rng import generator
from dd.sets import DistilledSet

_NORMS: tuple[Norm, ...] = ("none", "batch", "layer", "instance", "group")
_ACTIVATIONS: tuple[Activation, ...] = ("sigmoid", "relu", "leakyrelu")
_POOLINGS: tuple[Pooling, ...] = ("none", "max", "avg")
_WORDS = ARMS | {"early": "all real images, stopped early"}

Reached: TypeAlias = list[dict[str, Any]]
"""What the students of one architecture reached, see `Evaluator.students`."""


class Space(NamedTuple):
    """The widths and depths of a search space of ConvNets; norm, activation and pooling vary in all of them."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]


SPACES = {
    "dc": Space((32, 64, 128, 256), (1, 2, 3, 4)),  # DC: 720 ConvNets
    "small": Space((8, 16, 32), (1, 2, 3)),  # ours, for 2 cores: 405 ConvNets
}


@dataclass(frozen=True)
class ArchitectureSearch(Downstream):
    """Rank correlation of students of the set with students of all real images, over a space of ConvNets.

    Published for CIFAR-10: `nas.space=dc nas.sample=null`, 50 images per class, `eval.epochs=200`.
    """

    name: ClassVar[str] = "nas"
    lighter: ClassVar[str] = "nas.sample, nas.reference, nas.reference_epochs, eval.students"

    space: Literal["dc", "small"] = "small"
    """Search space of ConvNets: "dc" is the published one, of 720 with widths 32 to 256 and depths 1 to 4; "small" has
    405 with widths 8 to 32 and depths 1 to 3. Norm (none, batch, layer, instance, group), activation (sigmoid, ReLU,
    leaky ReLU) and pooling (none, max, average) vary in both.
    """
    sample: Annotated[int, Field(ge=3, le=10**4)] | None = 24
    """Number of architectures drawn from the space with the root seed; a larger sample contains a smaller one. null:
    all.
    """
    top: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the architectures, those that the proxy ranks first, for the second correlation."""
    reference: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Random real images per class for the reference; null: all."""
    reference_epochs: Annotated[int, Field(ge=1, le=10**6)] | None = 5
    """Passes over the images of the reference; null: eval.epochs or eval.steps, as for the set. `eval.full_students`
    students of each architecture are trained.
    """

    def require_usable(self, distilled: DistilledSet, *, taught: bool) -> None:
        """See `Downstream`."""
        if distilled.label_kind == "representations":
            raise UsageError("task=nas trains classifiers, but this set's labels are representations")

    def architectures(self, task: Task) -> tuple[NetworkSpec, ...]:
        """Return the architectures to be ranked, resolved for the data's images.

        Raises:
            UsageError: the images are too small for the deepest ones.
        """
        every = search_space(self.space)
        if self.sample is not None:
            order = torch.randperm(len(every), generator=generator(task.seed, "nas", self.space))
            every = tuple(every[i] for i in order[: self.sample].tolist())
        try:
            return tuple(resolve_network(spec, task.data.size, task.data.channels) for spec in every)
        except UsageError as error:
            raise UsageError(f"nas.space={self.space} does not fit these images: {error}") from error

    def measure(
        self,
        distilled: DistilledSet,
        evaluator: Evaluator,
        *,
        store: LabelStore | None = None,
        without: str = NOT_AT_HAND,
    ) -> "SearchReport":
        """See `Downstream`.  Every student of a proxy is one of a seed; seeds are searched one by one.

        Raises:
            UsageError: no images are held out, or the images are too small for the space.
        """
        evaluator.require_holdout()
        specs = self.architectures(evaluator.task)
        reference, protocol = self._reference(evaluator), evaluator.protocol
        found, missing = contenders(distilled, evaluator, store, without)
        early, longer = self._early(evaluator, found["accuracy"].arm.n), self._longer(protocol)
        hard = Contender(reference, protocol.lr, "the protocol's lr")
        rows: dict[str, list[Reached]] = {key: [] for key in [*found, "early"]}
        truth: list[Reached] = []
        for spec in specs:
            own = _of(evaluator, spec, protocol, evaluator.labeller)
            for key, one in found.items():
                rows[key].append(_students(own, one, protocol.students, tested=False))
            rows["early"].append(_students(_of(evaluator, spec, early), hard, protocol.students, tested=False))
            truth.append(_students(_of(evaluator, spec, longer), hard, protocol.full_students, tested=True))
        k = max(1, round(self.top * len(specs)))
        return SearchReport(
            architectures=tuple(map(asdict, specs)),
            top=k,
            reference=Reference(_each("test", truth), _each("holdout", truth), _seconds(truth), reference.n),
            proxies={key: Proxy(_each("holdout", some), _seconds(some)) for key, some in rows.items()},
            **common(self, distilled, evaluator, store, missing),
        )

    def work(self, distilled: DistilledSet, evaluator: Evaluator) -> Iterator[tuple[Evaluator, int]]:
        """See `Downstream`."""
        protocol, n = evaluator.protocol, own_arm(distilled, evaluator, None).n
        decoded = student_passes(evaluator, n) if distilled.decode_factor > 1 else 0
        reference = self._reference(evaluator).n
        any_ = evaluator.task.student
        early = student_passes(_of(evaluator, any_, self._early(evaluator, n)), reference)
        longer = student_passes(_of(evaluator, any_, self._longer(protocol)), reference)
        proxies = student_passes(evaluator, n) + student_passes(evaluator, distilled.n) + decoded + early
        for spec in self.architectures(evaluator.task):
            yield (
                _of(evaluator, spec, protocol, evaluator.labeller),
                protocol.students * proxies + protocol.full_students * longer,
            )

    def _reference(self, evaluator: Evaluator) -> Arm:
        task = evaluator.task
        if self.reference is None:
            return full_arm(task.data, evaluator.protocol.batch)
        fewest = int(torch.bincount(task.data.train.labels.cpu(), minlength=task.classes).min())
        if self.reference > fewest:
            raise UsageError(f"nas.reference={self.reference}, but a class has only {fewest} training images")
        targets = torch.arange(task.classes, device=task.device).repeat_interleave(self.reference)
        return control_arm(replace(task, targets=targets))

    def _longer(self, protocol: Protocol) -> Protocol:
        """Return the protocol of the reference."""
        if self.reference_epochs is None:
            return protocol
        return replace(protocol, steps=None, epochs=self.reference_epochs)

    def _early(self, evaluator: Evaluator, n: int) -> Protocol:
        """Return the protocol of early stopping: as many images are processed as by a student of the set."""
        protocol = evaluator.protocol
        processed = protocol.total_steps(n) * min(protocol.batch, n)
        batch = min(protocol.batch, self._reference(evaluator).n)
        return replace(protocol, epochs=None, steps=max(1, round(processed / batch)))


@dataclass(frozen=True)
class Proxy:
    """What a search has found.

    Attributes:
        holdout: held-out accuracy in percent of every architecture, by seed.
        seconds: of training every architecture once.
    """

    holdout: tuple[tuple[float, ...], ...]
    seconds: float

    def pairs(self, truth: Sequence[float]) -> list[ProxyPair]:
        """Return the accuracies of each seed with those on the reference."""
        there = torch.tensor(truth, dtype=torch.float64)
        return [(torch.tensor(values, dtype=torch.float64), there) for values in self.holdout]


@dataclass(frozen=True)
class Reference:
    """The accuracies that a search should predict.

    Attributes:
        test: test accuracy in percent of every architecture, by student.
        holdout: held-out accuracy, likewise.
        seconds: of training every architecture once.
        images: number of real images.
    """

    test: tuple[tuple[float, ...], ...]
    holdout: tuple[tuple[float, ...], ...]
    seconds: float
    images: int

    @property
    def means(self) -> list[float]:
        """Test accuracy of every architecture, averaged over its students."""
        return [statistics.fmean(values) for values in zip(*self.test, strict=True)]

    @property
    def best(self) -> int:
        """The architecture with the best mean held-out accuracy."""
        means = [statistics.fmean(values) for values in zip(*self.holdout, strict=True)]
        return means.index(max(means))

    def itself(self) -> RankAgreement:
        """Return the agreement of the test accuracies of every two students: what noise leaves of a perfect ranking."""
        every = torch.tensor(self.test, dtype=torch.float64)
        pairs = [(every[i], every[j]) for i, j in itertools.combinations(range(len(every)), 2)]
        return agreement(pairs) if pairs else RankAgreement((), None)


@dataclass(frozen=True, kw_only=True)
class SearchReport(DownstreamReport):
    """The result of an architecture search.

    Attributes:
        architectures: the networks, as the fields of a `NetworkSpec`.
        top: number of architectures that the second correlation is over.
        reference: their accuracies on all real images.
        proxies: for "accuracy" (the set), "control", "decoded" and "early" (all real images, stopped when as many are
            processed as by a student of the set), where there is one, what was found with it.

    For the other attributes see `DownstreamReport`.
    """

    architectures: tuple[Mapping[str, Any], ...]
    top: int
    reference: Reference
    proxies: Mapping[str, Proxy]

    def over_all(self, proxy: str) -> RankAgreement:
        """Return the rank correlation of a proxy with the reference, over all architectures."""
        return agreement(self._pairs(proxy))

    def over_top(self, proxy: str) -> RankAgreement:
        """Return the rank correlation over the `top` architectures that each seed of the proxy ranks first."""
        return agreement([best_of(pair, self.top) for pair in self._pairs(proxy)])

    def lead(self, proxy: str) -> Interval | None:
        """Return by how much the set's correlation over all architectures exceeds that of another proxy."""
        return agreement_gap(self._pairs("accuracy"), self._pairs(proxy))

    def found(self, proxy: str) -> Score:
        """Return the reference's test accuracy of the architecture that each seed of a proxy ranks first."""
        return Score(tuple(best_of(pair, 1)[1].item() for pair in self._pairs(proxy)))

    def headings(self) -> list[str]:
        """See `DownstreamReport`."""
        n = len(self.architectures)
        over = [f"rank correlation, all {n} (95 %)", f"its best {self.top}", "accuracy of its first %"]
        return ["architectures ranked by", *over, "training s", "the set is ahead by (95 %)"]

    def rows(self) -> list[list[str]]:
        """See `DownstreamReport`."""
        found: list[list[str]] = []
        for key, proxy in self.proxies.items():
            gap = None if key == "accuracy" else self.lead(key)
            cells = [_in_words(self.over_all(key)), _in_words(self.over_top(key)), score_in_words(self.found(key))]
            found.append([_WORDS[key], *cells, f"{proxy.seconds:.0f}", "" if gap is None else in_between(gap)])
        if "control" in self.missing:
            found.append([_WORDS["control"], "-", "-", "-", "", self.missing["control"]])
        means, whole = self.reference.means, self.reference
        first = [_in_words(whole.itself()), "-", f"{means[whole.best]:.2f}", f"{whole.seconds:.0f}", ""]
        return [*found, [f"{whole.images:,} real images, seed by seed", *first], self._by_chance(means)]

    def _by_chance(self, means: Sequence[float]) -> list[str]:
        return ["any, on average", "-", "-", f"{statistics.fmean(means):.2f}", "", ""]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        value = super().to_dict()
        for key in self.proxies:
            lead = None if key == "accuracy" else self.lead(key)
            value["proxies"][key] |= {
                "over_all": asdict(self.over_all(key)),
                "over_top": asdict(self.over_top(key)),
                "lead": None if lead is None else asdict(lead),
                "found": self.found(key).to_dict(),
            }
        value["reference"] |= {"means": self.reference.means, "best": self.reference.best}
        return value | {"itself": asdict(self.reference.itself())}

    def _pairs(self, proxy: str) -> list[ProxyPair]:
        return self.proxies[proxy].pairs(self.reference.means)


def search_space(name: str) -> tuple[NetworkSpec, ...]:
    """Return every ConvNet of a space, in the order of width, depth, norm, activation and pooling."""
    space = SPACES[name]
    every = itertools.product(space.widths, space.depths, _NORMS, _ACTIVATIONS, _POOLINGS)
    return tuple(NetworkSpec("convnet", depth, width, norm, pool, act) for width, depth, norm, act, pool in every)


def _of(evaluator: Evaluator, spec: NetworkSpec, protocol: Protocol, labeller: Labeller | None = None) -> Evaluator:
    """Return an evaluator of another network and protocol."""
    return Evaluator(replace(evaluator.task, student=spec), protocol, force=evaluator.force, labeller=labeller)


def _students(evaluator: Evaluator, one: Contender, students: int, *, tested: bool) -> Reached:
    """Train the students of one architecture, naming it in the log."""
    spec = evaluator.task.student
    words = f"{one.arm.name}, {spec.depth} x {spec.width} {spec.norm} {spec.activation} {spec.pooling}"
    return evaluator.students(replace(one.arm, name=words), one.lr, range(students), tested=tested)


def _each(name: str, rows: Sequence[Reached]) -> tuple[tuple[float, ...], ...]:
    """Return a value of every architecture, by student."""
    return tuple(zip(*([row[name] for row in some] for some in rows), strict=True))


def _seconds(rows: Sequence[Reached]) -> float:
    """Return the seconds of training every architecture once, on average over students."""
    return sum(statistics.fmean(row["seconds"] for row in some) for some in rows)


def _in_words(found: RankAgreement) -> str:
    """Format correlations: `0.62 ± 0.03 [0.41, 0.77]`, the ± over seeds, the interval over architectures."""
    if found.interval is None:
        return "-"
    known = [value for value in found.rho if value is not None]
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    ends = "" if found.interval.low is None else f" [{found.interval.low:.2f}, {found.interval.high:.2f}]"
    return f"{found.interval.mean:.2f}{spread}{ends}"
