"""What the tests of the decoupled family share: a small network, teachers that are trained once a file, a task."""

import pytest

from dd.networks import NetworkSpec
from dd.runs import Store
from dd.training.teachers import SqueezeSettings

STUDENT = NetworkSpec(depth=2, width=8, norm="batch")
SQUEEZE = SqueezeSettings(epochs=6, batch=16, lr=0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def task(make_task, store):
    return make_task(student=STUDENT, store=store, ipc=3)
