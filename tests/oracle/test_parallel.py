"""Classes shared out over processes: every one once, and the same images in the end."""

import importlib.util
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dd.engine import parallel
from dd.engine.method import prepare
from dd.engine.registry import get
from dd.engine.synthesise import synthesise
from dd.networks import NetworkSpec
from dd.runs import Store
from dd.training import ExpertSettings

CONFTEST = Path(__file__).parents[1] / "conftest.py"
METHODS = {
    "dm": {"lr_img": 1.0, "batch_real": 8, "chunk": 4},
    "datadam": {"lr_img": 1.0, "batch_real": 8, "chunk": 4},
    "dsa": {"lr_img": 1.0, "batch_real": 8, "outer": 3, "inner": 1},
    "ncfm": {
        "lr_img": 0.01,
        "batch_real": 8,
        "chunk": 4,
        "frequencies": 64,
        "experts": ExpertSettings(count=2, epochs=1, batch=32),
    },
}


CASES = {"double": (20, 1e-9), "single": (1, 1e-5)}  # iterations, and how far apart the ends may be


def make_task(store):
    spec = importlib.util.spec_from_file_location("blobs", CONFTEST)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Task(
        data=module.make_blobs(strategy="color_crop_cutout_flip_scale_rotate"),
        targets=torch.arange(4).repeat_interleave(2),
        student=NetworkSpec(depth=2, width=4),
        seed=0,
        device=torch.device("cpu"),
        store=Store(Path(store)),
    )


def distil(name, iterations, double, store):
    """The images after some iterations, by this process's share of the classes."""
    task = make_task(store)
    method = get(name)(iterations=iterations, **METHODS[name]).settle(task)
    prepared = prepare(method, task)
    with pytest.MonkeyPatch.context() as patch:
        if double:
            images, build = type(task.data.train).images, type(task).build
            patch.setattr(type(task.data.train), "images", lambda self, index: images(self, index).double())
            patch.setattr(type(task), "build", lambda self, rng: build(self, rng).double())
            if name == "ncfm":
                prepared.network.double()
                prepared.trained.double()
        syn = method.start(task, prepared)
        return synthesise(method, task, prepared, syn.double() if double else syn).images.detach()


def work(rank, size, port, store, out):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=120))
    ends = {
        f"{name} {kind}": distil(name, iterations, kind == "double", store)
        for name in METHODS
        for kind, (iterations, _) in CASES.items()
    }
    torch.save({"ends": ends, "mine": parallel.share(range(4)), "few": parallel.share(range(2))}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """What every process of a group of one, two and three ends with."""
    found = {}
    for size in (1, 2, 3):
        out = tmp_path_factory.mktemp(f"group{size}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(work, (size, port, str(tmp_path_factory.getbasetemp() / "store"), str(out)), nprocs=size)
        found[size] = [torch.load(out / f"{rank}.pt") for rank in range(size)]
    return found


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_one_two_or_three_processes_end_in_the_same_images(groups, name, kind):
    ends = {size: [process["ends"][f"{name} {kind}"] for process in group] for size, group in groups.items()}
    for size, images in ends.items():
        assert all(torch.equal(one, images[0]) for one in images)
        assert (images[0] - ends[1][0]).abs().max() < CASES[kind][1], size


def test_every_class_is_somebodys_and_nobody_has_none_of_another(groups):
    for size, group in groups.items():
        shares = [process["mine"] for process in group]
        assert sorted(c for share in shares for c in share) == [0, 1, 2, 3]
        assert len(shares) == size
    assert [process["few"] for process in groups[3]] == [[0], [1], []]  # more processes than classes


def test_alone_nothing_is_shared():
    assert not parallel.is_parallel()
    assert parallel.is_first()
    assert parallel.share([5, 6, 7]) == [5, 6, 7]
    tensor = torch.ones(3)
    assert parallel.summed(tensor) is tensor
    assert parallel.agreed("word") == "word"
    assert parallel.any_of(True) is True
