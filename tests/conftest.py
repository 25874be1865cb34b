"""Small real data and tasks that take milliseconds, for tests of everything above the data."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.data import RealData
from dd.data.preprocess import standard
from dd.data.real import DeviceSplit
from dd.data.sources.decoding import resized
from dd.engine.method import Task
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs import Store

torch.set_num_threads(1)  # as torchrun sets it for each of its processes, whose results ours are compared with

GREY = ((128 / 255,), (16 / 255,))  # model space = (byte - 128) / 16


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Whatever terminal runs the tests, `dd` sees none and no wish about colours or widths."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "DD_HOME", "DD_RUNS", "DD_DATA"):
        monkeypatch.delenv(name, raising=False)


def make_blobs(classes=4, size=8, per_class=32, holdout=4, test=8, seed=0, strategy="none", spread=2.0, noise=0.5):
    """Grey images, each a smooth prototype of its class plus noise, as `RealData`."""
    rng = generator(seed, "blobs")
    corners = torch.randn(classes, 1, 2, 2, generator=rng) * spread
    prototypes = F.interpolate(corners, size=(size, size), mode="bilinear", align_corners=True)
    space = standard(torch.empty(0), GREY)

    def split(count):
        labels = torch.arange(classes).repeat(count)  # classes in turn
        images = prototypes[labels] + noise * torch.randn(len(labels), 1, size, size, generator=rng)
        return DeviceSplit((images * 16 + 128).round().clamp(0, 255).byte(), labels, space, classes)

    def test_as(resize):
        return replace(data.test, pixels=resized(data.test.pixels, size, resize))

    data = RealData(
        name="blobs",
        classes=tuple(f"class {c}" for c in range(classes)),
        channels=1,
        size=size,
        train=split(per_class),
        holdout=split(holdout),
        test=split(test),
        preprocess=space,
        augment=strategy,
        fingerprint=f"blobs {classes} {size} {per_class} {holdout} {test} {seed} {strategy} {spread} {noise}",
        where="memory",
        licence="none needed",
        test_as=test_as,
    )
    return data


@pytest.fixture(scope="session")
def blobs():
    """`make_blobs`."""
    return make_blobs


@pytest.fixture(scope="session")
def make_task(tmp_path_factory):
    """A factory of tasks on blobs; each task has a store of its own unless one is given."""

    def make(data=None, ipc=2, seed=0, store=None, **settings):
        data = make_blobs() if data is None else data
        return Task(
            data=data,
            targets=torch.arange(len(data.classes)).repeat_interleave(ipc),
            student=settings.pop("student", NetworkSpec(depth=1, width=4)),
            seed=seed,
            device=torch.device("cpu"),
            store=store or Store(tmp_path_factory.mktemp("store")),
            **settings,
        )

    return make
