"""Inner steps shared out over processes: each has some of the images, and all end in what one process computes."""

import contextlib
import importlib
import importlib.util
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dd.engine import parallel
from dd.engine.registry import get
from dd.engine.shares import InShares
from dd.engine.synthesise import Watch, synthesise
from dd.engine.unroll import FrozenAdjoint, FullGraph, KeptGraphs, Stepwise
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.training import ExpertSettings, Trajectories
from dd.views.dsa import apply, draw, some

matching = importlib.import_module("dd.methods.trajectory._matching")
mtt = sys.modules[get("mtt").__module__]

ITERATIONS = 3
DSA = "color_crop_cutout_flip_scale_rotate"
EXPERTS = ExpertSettings(count=2, epochs=5)
COMMON = {"iterations": ITERATIONS, "steps": 5, "span": 2, "start_max": 4, "experts": EXPERTS, "lr_init": 0.1}
MOVING = {"lr_img": 30.0, "lr_lr": 1e-3}
SMOOTH = {"start_from": "real", "lr_lr": 1e-4}  # with momentum, a step goes further
SOFT = {"start_from": "real", "lr_label": 5.0, "threshold": 100.0}
# of 8 images; batches of 5 leave a remainder of 3, those of 7 one of a single image, which has one of the processes
CASES = {
    "mtt, full": ("mtt", {"backprop": "full"}),
    "mtt, full, batches of 7": ("mtt", {"backprop": "full", "batch": 7}),
    "mtt, stepwise, batches of 5": ("mtt", {"backprop": "stepwise", "batch": 5}),
    "mtt, frozen, batches of 2": ("mtt", {"backprop": "frozen", "batch": 2}),
    "ftd, stepwise": ("ftd", {"backprop": "stepwise", "ema": 0.5}),
    "tesla, the target's labels, batches of 7": ("tesla", {"labels": "target", "batch": 7, "lr_lr": 0.01}),
    "datm, full, batches of 5": ("datm", {"backprop": "full", "batch": 5, **SOFT}),
    "datm, stepwise": ("datm", {"backprop": "stepwise", **SOFT}),
    "datm, other segments": ("datm", {"backprop": "full", **SOFT, "threshold": 0.99}),
    "ast, full": ("ast", {"backprop": "full", **SMOOTH, "middle": "adaptive"}),
    "ast, stepwise, batches of 7": ("ast", {"backprop": "stepwise", **SMOOTH, "batch": 7}),
    "ast, stepwise, batches of 5": ("ast", {"backprop": "stepwise", **SMOOTH, "batch": 5}),
}
# gradients of an outer iteration on 7 images in batches of 4 and 3
RECURSIONS = {"stepwise": Stepwise(), "kept": Stepwise(KeptGraphs), "frozen": FrozenAdjoint()}
PROBLEMS = [(soft, momentum, at) for soft in (False, True) for momentum, at in ((0.0, ()), (0.9, (2, 5)))]
pytestmark = [
    pytest.mark.timeout(1200),  # nine processes, each of which imports torch, on a machine that may be busy
]


def module_of(path):
    """A module of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


conftest = module_of(Path(__file__).parents[1] / "conftest.py")
problems = module_of(Path(__file__).with_name("test_closed_forms.py"))


def task_of(store):
    return conftest.Task(
        data=conftest.make_blobs(strategy=DSA),
        targets=torch.arange(4).repeat_interleave(2),
        student=NetworkSpec(depth=2, width=4),
        seed=0,
        device=torch.device("cpu"),
        store=Store(Path(store)),
    )


def pool_of(network):
    """Experts whose parameters walk at random."""
    first, rng = network.flatten(network.module), generator(4, "walks")
    steps = [0.02 * torch.randn(EXPERTS.epochs + 1, network.size, generator=rng) for _ in range(EXPERTS.count)]
    return Trajectories(tuple(first + s.cumsum(0) for s in steps), (None,) * EXPERTS.count, 0.0)


class Doubles(Trajectories):
    """The same in float64."""

    def snapshot(self, expert, epoch, device):
        return super().snapshot(expert, epoch, device).double()


def make_prepared(task, network, backprop, batch):
    """What a method prepares, in float64, with the gradient mode that this number of processes has."""
    pool = pool_of(network)
    doubles = Doubles(pool.snapshots, (None,) * EXPERTS.count, 0.0)
    mode = matching.make_backprop(task, network, backprop, batch)
    return mtt.Prepared(pool, network, mode), mtt.Prepared(doubles, network, mode)


def distil(name, settings, store, network=None):
    """The variables and the log after some iterations."""
    task = task_of(store)
    method = get(name)(**COMMON | MOVING | settings)
    batch = method.images_per_step(task)
    network = network or matching.make_student(task, method.backprop, method.steps, batch)
    single, double = make_prepared(task, network, method.backprop, batch)
    syn = method.start(task, single).double()
    rows = []
    watch = Watch(log=lambda it, scalars: rows.append(scalars))
    synthesise(method, task, double, syn, watch=watch)
    return {"end": {k: v.detach() for k, v in syn.state_dict().items()}, "log": rows}


def gradients(recursion, soft, momentum, at):
    """Gradients of the images, labels and lr in an outer iteration."""
    problem = problems.Problem(soft, scale=0.7, closed={})
    return problem.gradients(InShares(RECURSIONS[recursion]), momentum, at)


def mixing_network():
    """A student with batch statistics."""
    network = task_of(os.devnull).functional()
    for layer in network.module.features:
        layer.norm = torch.nn.BatchNorm2d(4, track_running_stats=False)
    return network


@contextlib.contextmanager
def counted():
    """Count the numbers that are summed in the block."""
    summed, sizes = dist.all_reduce, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", lambda tensor: sizes.append(tensor.numel()) or summed(tensor))
        yield sizes


def work(rank, size, port, store, out):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=120))
    found = {case: distil(*CASES[case], store) for case in CASES}
    found |= {(name, *problem): gradients(name, *problem) for name in RECURSIONS for problem in PROBLEMS}
    for name in RECURSIONS:
        with counted() as found["numbers", name]:
            gradients(name, True, 0.0, ())
    with counted() as found["numbers", "mixing"]:
        found["mixing"] = distil("mtt", {"backprop": "full"}, store, mixing_network())
    with parallel.alone():
        found["alone"] = gradients("stepwise", True, 0.9, (2, 5))
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[3, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 4))])
def group(request, tmp_path_factory):
    """What every process of a group ends with."""
    out = tmp_path_factory.mktemp(f"group{request.param}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (request.param, port, str(out / "store"), str(out)), nprocs=request.param)
    return [torch.load(out / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process ends with, by case."""
    store, found = tmp_path_factory.mktemp("store"), {}

    def of(case):
        if case not in found:
            found[case] = distil(*CASES[case], store)
        return found[case]

    return of


def farthest(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize("case", CASES)
def test_all_processes_end_in_what_one_computes(group, one, case):
    alone = one(case)
    for process in group:
        ended, first = process[case], group[0][case]
        assert all(torch.equal(ended["end"][name], first["end"][name]) for name in first["end"])
        assert ended["log"] == first["log"]
        assert farthest(ended["end"], alone["end"]) < 1e-9
        for ours, theirs in zip(ended["log"], alone["log"], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
            assert ours["skipped"] == theirs["skipped"]


@pytest.mark.parametrize("case", CASES)
def test_one_process_moves_every_variable(one, case, tmp_path):
    name, settings = CASES[case]
    start = distil(name, settings | {"iterations": 0}, tmp_path)["end"]
    end = one(case)["end"]
    moved = {key: float((end[key] - start[key]).abs().max()) for key in end if key != "targets"}
    assert all(distance > 1e-4 for distance in moved.values()), moved
    assert end["lr"] > start["lr"] / 10  # its floor is a hundredth


def test_some_segments_are_drawn_again(one):
    losses = [row["loss"] for row in one("datm, stepwise")["log"]]
    assert max(losses) > CASES["datm, other segments"][1]["threshold"]
    assert [row["loss"] for row in one("datm, other segments")["log"]] != losses


@pytest.mark.parametrize("name", RECURSIONS)
@pytest.mark.parametrize(("soft", "momentum", "at"), PROBLEMS)
def test_shares_are_the_formula_of_the_paper(group, name, soft, momentum, at):
    by_the_paper = problems.Problem(soft, scale=0.7).by_the_paper(momentum, at, exact=name != "frozen")
    for process in group:
        assert problems.apart(process[name, soft, momentum, at], by_the_paper) < 1e-10


def test_as_many_numbers_are_summed_as_the_documentation_says(group):
    problem = problems.Problem(soft=True)
    parameters, variables = problem.network.size, problem.images.numel() + problem.labels.numel() + 1
    for process in group:
        for name in RECURSIONS:
            passes = 1 if name == "frozen" else 2
            assert sum(process["numbers", name]) == passes * problem.steps * parameters + variables


def test_images_that_interact_are_not_divided(group, tmp_path):
    alone = distil("mtt", {"backprop": "full"}, tmp_path, mixing_network())
    for process in group:
        assert sum(process["numbers", "mixing"]) == ITERATIONS + 1  # only whether a signal has arrived
        assert farthest(process["mixing"]["end"], alone["end"]) == 0


def test_alone_in_a_group_a_process_computes_everything(group):
    whole = gradients("stepwise", True, 0.9, (2, 5))
    for process in group:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(process["alone"], whole, strict=True))


def test_kept_graphs_are_the_full_graph():
    problem = problems.Problem(soft=True)
    full = problem.gradients(FullGraph(), 0.9, (2, 5))
    kept = Stepwise(KeptGraphs)
    assert problems.apart(problem.gradients(kept, 0.9, (2, 5)), full) < 1e-12
    lr, images = problem.lr.clone().requires_grad_(), problem.images.clone().requires_grad_()
    (end,) = kept(problem.loss, problem.start, lr, [images, problem.labels], steps=problem.steps)
    first, again = (torch.autograd.grad(end.square().sum(), images, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)  # the second time, without the graphs


@pytest.mark.parametrize("strategy", ["none", *DSA.split("_")])
def test_some_images_have_the_augmentation_that_they_have_in_the_batch(strategy):
    images = torch.randn(5, 3, 8, 8, generator=generator(0), dtype=torch.float64)
    whole = draw(strategy, 5, (3, 8, 8), generator(1))
    seen = apply(whole, images)
    for rows in (slice(0, None, 2), slice(1, None, 2), slice(3, None, 7), slice(5, None, 7)):
        assert torch.allclose(apply(some(whole, rows), images[rows]), seen[rows], atol=1e-14)
