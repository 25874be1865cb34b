"""Sets of real images: what `Selection` makes of a choice, and how students follow indices and schedules."""

from dataclasses import dataclass, replace

import pytest
import torch
from dd.methods.selection.random import Random
from torch import Tensor

from dd.engine.method import prepare
from dd.engine.selection import SELECTION, Selection
from dd.errors import RunError, UsageError
from dd.evaluation import Protocol
from dd.evaluation.arms import schedule_arm, selection_arm, set_arm
from dd.evaluation.evaluate import Evaluator, arm_of, evaluate
from dd.rng import generator
from dd.sets import load, save

BRIEF = Protocol(steps=6, students=2, batch=4, lr=0.05, full=False)


@dataclass(frozen=True)
class Given(Selection[None]):
    """The images at given positions."""

    rows: tuple[tuple[int, ...], ...] = ()
    one: bool = True

    def choose(self, task, prepared) -> Tensor:
        return torch.tensor(self.rows[0] if self.one else self.rows)

    def facts(self, task, prepared, index):
        return {"score": "none", "ties": 0}


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(noise=1.5))  # 4 classes in turn, 2 images of each


def made(method, task):
    return method.finish(method.start(task, None), task, None)


CHOICE = (4, 0, 5, 1, 2, 6, 3, 7)  # class c is c, c + 4, c + 8, …


def test_the_set_holds_indices_classes_and_facts(task, tmp_path):
    found = made(Given(rows=(CHOICE,)), task)
    found.check()
    found.require_match(task.data)
    assert (found.image_kind, found.label_kind, found.n, found.ipc) == ("indices", "hard", 8, 2)
    assert found.images.tolist() == list(CHOICE)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found.provenance[SELECTION] == {"balanced": True, "score": "none", "ties": 0}
    assert found.bytes() == {"images": 64, "labels": 64, "total": 128}
    save(found, tmp_path / "set.safetensors")
    again = load(tmp_path / "set.safetensors")
    assert again.digest() == found.digest()
    assert again.provenance[SELECTION]["score"] == "none"


def test_copies_are_the_same_images_and_the_same_students(task):
    index, copies = (made(Given(rows=(CHOICE,), copy=copy), task) for copy in (False, True))
    assert copies.image_kind == "pixels"
    assert torch.equal(copies.images, task.data.train.images(torch.tensor(CHOICE)))
    assert torch.equal(index.images_in(task.data), copies.images)
    some = torch.tensor([5, 1])
    assert torch.equal(index.images_in(task.data, some), copies.images[some])
    evaluator = Evaluator(task, BRIEF)
    one = evaluator.score(selection_arm("it", index, task.data), 0.05, 2).values
    assert one == evaluator.score(set_arm("it", copies, task.data.preprocess), 0.05, 2).values


WRONG = {
    "float": (torch.tensor([0.0] * 8), "float32"),
    "too few": (torch.tensor(CHOICE[:7]), "8 columns"),
    "too large": (torch.tensor((*CHOICE[:7], 999)), "there are 128 images"),
    "negative": (torch.tensor((-4, *CHOICE[1:])), "from -4"),
    "twice": (torch.tensor((0, 0, *CHOICE[2:])), "the same image twice"),
    "counts": (torch.tensor((0, 4, 8, 1, 2, 6, 3, 7)), "other numbers of images per class"),
    "order": (torch.tensor(CHOICE[::-1]), "other numbers of images per class"),
    "empty schedule": (torch.zeros(0, 8, dtype=torch.int64), "8 columns"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_choice_is_refused(task, name):
    choice, words = WRONG[name]

    @dataclass(frozen=True)
    class Wrong(Given):
        def choose(self, task, prepared):
            return choice

    with pytest.raises(RunError, match=f"`choose` returned .*{words}"):
        Wrong().start(task, None)


def test_without_balance_only_the_total_counts(task):
    found = made(Given(rows=((0, 4, 8, 12, 16, 1, 2, 6),), balanced=False), task)
    assert found.labels.tolist() == [0, 0, 0, 0, 0, 1, 2, 2]
    assert found.provenance[SELECTION]["balanced"] is False
    with pytest.raises(RunError, match="not grouped by class"):
        made(Given(rows=((1, 4, 8, 12, 16, 0, 2, 6),), balanced=False), task)


ROWS = tuple(tuple(range(8 * row, 8 * row + 8)) for row in range(3))


def test_pass_t_of_a_student_is_over_row_t(task):
    """Every pass sees the images of its own row, each once, with their labels."""
    schedule = made(Given(rows=ROWS, one=False), task)
    schedule.check()
    assert (schedule.image_kind, schedule.n, tuple(schedule.images.shape)) == ("schedule", 8, (3, 8))
    arm = schedule_arm("it", schedule, task.data, BRIEF)  # 6 steps of 4 images: 3 passes
    assert arm.batches is not None
    for number, row in enumerate(ROWS):
        seen = list(arm.batches(generator(number), number))
        images, labels = (torch.cat(part) for part in zip(*seen, strict=True))
        order = torch.randperm(8, generator=generator(number))
        assert [len(part) for part, _ in seen] == [4, 4]
        assert torch.equal(images, task.data.train.images(torch.tensor(row)[order]))
        assert torch.equal(labels, task.data.train.labels[torch.tensor(row)[order]])


def test_a_schedule_of_one_subset_is_that_subset(task):
    rows = ((*CHOICE,),) * 3
    fixed, same = made(Given(rows=rows), task), made(Given(rows=rows, one=False), task)
    evaluator = Evaluator(task, BRIEF)
    assert evaluator.score(arm_of("a", fixed, evaluator), 0.05, 2) == evaluator.score(
        arm_of("b", same, evaluator), 0.05, 2
    )


def test_a_short_schedule_is_refused(task):
    schedule = made(Given(rows=ROWS[:2], one=False), task)
    with pytest.raises(UsageError, match=r"in 2 passes, but 3 are needed: lower eval\.epochs"):
        schedule_arm("it", schedule, task.data, BRIEF)


def test_the_report_of_a_schedule_counts_the_images_it_reads(task):
    report = evaluate(made(Given(rows=ROWS, one=False), task), None, Evaluator(task, BRIEF))
    assert any("3 passes read 24 different images: not comparable with sets of 8" in note for note in report.notes)
    fixed = evaluate(made(Given(rows=(CHOICE,)), task), None, Evaluator(task, BRIEF))
    assert not any("passes read" in note for note in fixed.notes)


def test_other_data_are_refused_by_the_field(task, blobs):
    found = made(Given(rows=(CHOICE,)), task)
    with pytest.raises(UsageError, match="'source_fingerprint'"):
        found.require_match(blobs(seed=1))
    with pytest.raises(UsageError, match=r"'labels': .* other classes for 8 of the 8 images .* of different orders"):
        replace(found, labels=(found.labels + 1) % 4, source_fingerprint="").require_match(task.data)
    with pytest.raises(UsageError, match=r"'images': index \d+ appears twice"):
        replace(found, images=found.images[[0, *range(7)]]).check()
    shuffled = replace(task.data, fingerprint="f" * 64)
    with pytest.raises(UsageError, match="'source_fingerprint'"):
        found.require_match(shuffled)


def test_random_chooses_what_it_copied_before(make_task, blobs):
    task = make_task(blobs())
    method = Random()
    copies = made(method, task)
    assert torch.equal(copies.images, task.first_images())
    assert torch.equal(made(replace(method, copy=False), task).images, task.real_indices("start"))
    assert prepare(method, task) is None
