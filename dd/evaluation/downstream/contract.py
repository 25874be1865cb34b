"""The interface of a downstream task: settings that measure a set, and the report of what was measured."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, TypedDict

from dd.engine.method import Task
from dd.evaluation.arms import Arm, control_arm, decoded_arm
from dd.evaluation.evaluate import NOT_AT_HAND, Evaluator, conditions, own_arm
from dd.evaluation.notes import assumed_at_import, reads_more
from dd.evaluation.report import FORMAT
from dd.io import digest
from dd.labels import LabelStore
from dd.networks import NetworkSpec
from dd.sets import DistilledSet


@dataclass(frozen=True)
class Downstream:
    """Base class of downstream tasks: frozen dataclasses whose fields are their settings.

    Attributes:
        name: name of the task, and of its group of settings.
        lighter: settings that reduce its work, for messages.
    """

    name: ClassVar[str] = ""
    lighter: ClassVar[str] = ""

    def require_usable(self, distilled: DistilledSet, *, taught: bool) -> None:
        """Check a set before any work is done.

        Args:
            distilled: the set.
            taught: teachers label the views of its images.

        Raises:
            UsageError: the task cannot be done with this set.
        """

    def architectures(self, task: Task) -> tuple[NetworkSpec, ...]:
        """Return the networks that its students have."""
        return (task.student,)

    def measure(
        self,
        distilled: DistilledSet,
        evaluator: Evaluator,
        *,
        store: LabelStore | None = None,
        without: str = NOT_AT_HAND,
    ) -> "DownstreamReport":
        """Do the task with a set and with the random control; the arguments are those of `evaluate`."""
        raise NotImplementedError

    def work(self, distilled: DistilledSet, evaluator: Evaluator) -> Iterator[tuple[Evaluator, int]]:
        """Yield how many images the students of each evaluator process in total, as `student_passes` counts them."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DownstreamReport:
    """The result of a downstream task, and the facts needed to interpret it; a task's own report has its numbers too.

    Attributes:
        task: name of the task.
        settings: its settings.
        missing: for each reference without numbers, the reason.
        fingerprint: what comparable numbers share: that of a `Report`, together with the task and its settings.
        notes: warnings for the reader, one line each.

    The other fields are those of a `Report`.
    """

    task: str
    settings: Mapping[str, Any]
    missing: Mapping[str, str]
    protocol: Mapping[str, Any]
    fingerprint: str
    student: Mapping[str, Any]
    labels: Mapping[str, Any] | None
    dataset: Mapping[str, Any]
    bytes: Mapping[str, int]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    name: str = ""
    cost: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    recipe_hash: str = ""
    command: str = ""

    def headings(self) -> list[str]:
        """Return the column headings of `rows`."""
        raise NotImplementedError

    def rows(self) -> list[list[str]]:
        """Return the table, one list of cells per row."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {"format": FORMAT} | asdict(self)

    def _repr_html_(self) -> str:
        """Return the table, for a notebook."""
        from dd.evaluation.table import heading, html_of

        return html_of(heading(self), self.headings(), self.rows())


class Common(TypedDict):
    """The fields that every report of a task has."""

    task: str
    settings: Mapping[str, Any]
    missing: Mapping[str, str]
    protocol: Mapping[str, Any]
    fingerprint: str
    student: Mapping[str, Any]
    labels: Mapping[str, Any] | None
    dataset: Mapping[str, Any]
    bytes: Mapping[str, int]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]


def common(
    task: Downstream,
    distilled: DistilledSet,
    evaluator: Evaluator,
    store: LabelStore | None,
    missing: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> Common:
    """Return the fields that every report of a task has."""
    held = conditions(distilled, evaluator, store)
    settings = asdict(task)
    held["fingerprint"] = digest({"evaluation": held["fingerprint"], "task": task.name, "settings": settings})
    notes += reads_more(distilled) + assumed_at_import(distilled.provenance)
    return Common(task=task.name, settings=settings, missing=missing, notes=notes, **held)


class Contender(NamedTuple):
    """What students are trained on in a task: the arm, its learning rate, and how that was chosen."""

    arm: Arm
    lr: float
    note: str


def contenders(
    distilled: DistilledSet, evaluator: Evaluator, store: LabelStore | None, without: str
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the set and its random controls, by the field names of a `Report`, and why a control is missing.

    Images of a control are redrawn per student.  Its lr is chosen once, on held-out images, with all of its images and
    the evaluator's student.
    """
    own = "learned by the method" if distilled.lr is not None else "the protocol's lr"
    found = {"accuracy": Contender(own_arm(distilled, evaluator, store), evaluator.lr_of(distilled), own)}
    if store is not None and evaluator.labeller is None:
        # without the teachers, the control would have different labels than the set
        return found, {"control": without}
    if evaluator.learner.without:
        return found, {"control": evaluator.learner.without}
    arms = {"control": control_arm(evaluator.task)}
    if distilled.decode_factor > 1:
        arms["decoded"] = decoded_arm(evaluator.task, distilled.decode_factor)
    for key, arm in ((key, evaluator.learner.labelled(arm)) for key, arm in arms.items()):
        lr, note = evaluator.choose_lr(arm, evaluator.lrs_of(distilled), evaluator.protocol.students)
        found[key] = Contender(arm, lr, note)
    return found, {}
