"""`ipc` as one number per class: how it is read, named, hashed, laid out and refused."""

import dataclasses

import pytest
import torch

from dd.engine.method import ranks_of
from dd.errors import UsageError
from dd.evaluation.arms import control_arm
from dd.pipeline.task import _wanted as wanted
from dd.pipeline.task import make_task
from dd.recipes import parse_overrides, resolve
from dd.recipes.tables import size_name

TEN = (3, 1, 2, 1, 5, 1, 1, 1, 1, 4)


def recipe(**settings):
    return resolve({"method": "random", "device": "cpu", **settings})


@pytest.mark.parametrize("words", ["ipc=[5, 10, 20]", "ipc=5,10,20", "ipc=(5,10,20)"])
def test_a_list_is_read_with_and_without_brackets(words):
    made = recipe(**parse_overrides([words]))
    assert made.ipc == (5, 10, 20)
    assert made.name == "random/fashion-mini/ipc5-10-20"
    assert made.cell is None


def test_names_stay_short_and_differ():
    many, other = tuple(range(1, 1001)), (2, 1, *range(3, 1001))
    assert size_name(many, None) != size_name(other, None)
    assert all(len(size_name(ipc, None)) <= 32 for ipc in (many, other, TEN, 10**6))
    assert size_name(many, None).startswith("ipc1to1000-")
    assert size_name((5, 10, 20), None) == "ipc5-10-20"


def test_one_number_has_the_hash_it_had():
    assert recipe(ipc=10).size == "ipc10"
    assert recipe(ipc=10).hash != recipe(ipc=(10,) * 10).hash


def test_the_recipe_is_written_and_read_back(tmp_path):
    made = recipe(ipc=TEN)
    file = tmp_path / "recipe.toml"
    file.write_text(made.to_toml(), encoding="utf-8")
    assert resolve({"recipe": str(file)}).hash == made.hash


def test_the_nearest_cell_is_that_of_the_mean():
    assert any("the nearest is fashion-mini.ipc10" in line for line in recipe(ipc=(8, 12)).notices)


@pytest.mark.parametrize(("value", "words"), [((), "out of range"), ((5, 0), "out of range"), ("5,x", "wrong type")])
def test_what_is_no_list_of_numbers_is_refused(value, words):
    with pytest.raises(UsageError, match=f"ipc=.*{words}.*a list of whole numbers >= 1"):
        recipe(ipc=value)


def test_the_set_and_what_it_is_compared_with_have_the_same_counts():
    task = make_task(recipe(ipc=TEN))
    assert torch.bincount(task.targets).tolist() == list(TEN)
    assert ranks_of(task.targets).tolist() == [rank for count in TEN for rank in range(count)]
    _, labels = control_arm(task).load(0)
    assert torch.equal(labels, task.targets)
    assert torch.equal(task.data.train.labels[task.real_indices("start")], task.targets)


def test_a_fraction_is_rounded_in_every_class_and_leaves_none_empty():
    counts = torch.tensor([7, 24, 26, 90, 4])
    assert wanted(recipe(fraction=0.1), counts).tolist() == [1, 2, 3, 9, 1]
    assert torch.equal(wanted(recipe(fraction=1.0), counts), counts)


def test_images_of_a_fraction_are_drawn_by_the_seed_and_all_of_them_are_all():
    one, same, other = (make_task(recipe(fraction=0.003, seed=seed)) for seed in (0, 0, 1))
    assert torch.bincount(one.targets).tolist() == [3] * 10  # 2.7 of 900
    drawn = [recipe().method.choose(task, None) for task in (one, same, other)]
    assert len(drawn[0].unique()) == 30
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    whole = make_task(recipe(fraction=1.0))
    assert recipe().method.choose(whole, None).sort().values.tolist() == list(range(len(whole.data.train)))


def test_a_class_with_fewer_images_than_asked_for_is_named():
    with pytest.raises(UsageError, match="901 images of class 'Pullover', but fashion-mini has 900 training images"):
        make_task(recipe(ipc=(1, 1, 901, 1, 1, 1, 1, 1, 1, 1)))


def test_as_many_numbers_as_classes():
    with pytest.raises(UsageError, match="ipc has 3 numbers, fashion-mini has 10 classes"):
        make_task(recipe(ipc=(1, 2, 3)))


def test_a_method_that_needs_even_classes_says_so_before_anything_is_done():
    made = recipe(ipc=TEN)
    level = type("Level", (type(made.method),), {"even": True})
    with pytest.raises(
        UsageError, match=r"needs the same number of images in every class, but ipc3-1-2-\S+ asks for 1 to 5"
    ):
        make_task(dataclasses.replace(made, method=level()))
    make_task(dataclasses.replace(recipe(ipc=2), method=level()))
