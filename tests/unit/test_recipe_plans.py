"""Every cell of every recipe file: it plans, and says its size, its protocol and whose numbers it has.

Nothing is decoded or trained: the data are as many labels as the named data set has classes, without images.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch

from dd.data import RealData, kind_of
from dd.data.preprocess import standard
from dd.engine.method import Task
from dd.engine.registry import list_methods
from dd.networks import resolve_network
from dd.pipeline.plan import planned_labels
from dd.recipes import Listed, listed, resolve
from dd.runs import Store

METHODS = [entry.name for entry in list_methods() if entry.error is None and "." not in entry.name]
EDITIONS = {"imagenet-21k": 10_450}  # classes, where a data set has several editions
CELLS = [(method, row) for method in METHODS for row in listed(method)]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Labels:
    """A split of which only the labels are asked for."""

    labels: torch.Tensor
    originals: None = None

    def __len__(self) -> int:
        return len(self.labels)

    def of_class(self, c: int) -> torch.Tensor:
        return (self.labels == c).nonzero().flatten()


@cache
def made_up(dataset: str, side: int, per_class: int, augment: str) -> RealData:
    kind = kind_of(dataset)
    assert kind is not None
    classes = kind.classes or EDITIONS[dataset]
    one: Any = Labels(torch.arange(classes).repeat_interleave(per_class))
    constants = ((0.5,) * kind.channels,) * 2
    return RealData(
        name=dataset,
        classes=tuple(str(c) for c in range(classes)),
        channels=kind.channels,
        size=side,
        train=one,
        holdout=one,
        test=one,
        preprocess=standard(torch.empty(0), constants),
        augment=augment,
        fingerprint="made up",
        where="nowhere",
        licence="none needed",
    )


@cache
def network(student: Any, channels: int, side: int, classes: int) -> torch.nn.Module:
    from dd.networks import build_network
    from dd.rng import generator

    return build_network(student, channels=channels, size=side, classes=classes, generator=generator(0), device=CPU)


@dataclass(frozen=True)
class Planned(Task):
    """A task whose networks, of which a plan needs the shapes alone, are built once."""

    seen: list[str] = field(default_factory=list)

    def build(self, rng: torch.Generator) -> torch.nn.Module:
        return network(self.student, self.data.channels, self.data.size, self.classes)


def named(pair: tuple[str, Listed]) -> str:
    return f"{pair[0]}-{pair[1].cell.name}"


def wanted(row: Listed) -> dict[str, Any]:
    cell = row.cell
    key = "ipc" if cell.size.startswith("ipc") else "fraction"
    size = (int if key == "ipc" else float)(cell.size.removeprefix(key))
    return {"dataset": cell.dataset, key: size, "preset": cell.preset, "device": "cpu"}


@pytest.mark.parametrize("pair", CELLS, ids=named)
def test_every_cell_says_its_size_its_protocol_and_its_sources(pair):
    _, row = pair
    assert row.side is not None, "data.size is neither the data set's nor the cell's"
    assert row.parts.eval.protocol
    assert row.cell.expect or row.cell.preset
    assert all(entry["source"] and entry["cost"] for entry in row.cell.expect)


@pytest.mark.parametrize("pair", CELLS, ids=named)
def test_every_cell_plans(pair, tmp_path):
    method, row = pair
    if (side := row.side) is None:
        pytest.fail("its size is not known")
    settings = wanted(row)
    recipe = resolve({"method": method, **settings})
    assert not [notice for notice in recipe.notices if "unverified" in notice]
    data = made_up(recipe.dataset, side, 16, recipe.data.augment or "color_crop_cutout_flip_scale_rotate")
    # of a set whose images per class no plan depends on, two of each are enough
    targets = torch.arange(len(data.classes)).repeat_interleave(min(settings.get("ipc", 2), 2))
    student = resolve_network(recipe.student, side)
    task = Planned(data=data, targets=targets, student=student, seed=0, device=CPU, store=Store(tmp_path))
    settled = replace(recipe, method=recipe.method.settle(task))
    needs = settled.method.needs(task)
    assert all(kind and words for need in needs for kind, _, words in need.artefacts())
    planned_labels(settled, task)
    assert not list(tmp_path.rglob("*.safetensors"))
