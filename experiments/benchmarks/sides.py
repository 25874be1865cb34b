"""The sides of the comparisons.  Each sets itself up, reports that it is ready, and then runs repeats endlessly."""

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice, pairwise
from typing import Any

import plain
import torch
from scale import Scale
from torch import Tensor, nn
from worker import Gate, resident

from dd.engine.method import Task, prepare
from dd.engine.synthesise import Watch, synthesise
from dd.pipeline.task import make_task
from dd.recipes import Recipe, resolve
from dd.training.experts import expert_fit, trajectories
from dd.training.loop import Trainer, accuracy

WIDTH = 32
MANY = 1_000_000
PLAIN_EXPERTS = 3  # per repeat
PIECES = ("segment and batches", "student's steps", "way back", "update of the images")


def recipe_of(
    scale: Scale,
    backprop: str = "full",
    steps: int | None = None,
    iterations: int = MANY,
    width: int = WIDTH,
    ipc: int = 10,
) -> Recipe:
    """The recipe of MTT on the embedded data set, as `dd run` would resolve it."""
    # one short expert for start and target; the training part times a longer one
    experts = {"kind": "sgd", "count": 1, "epochs": 1, "lr": 0.02, "momentum": 0.0, "weight_decay": 0.0, "batch": 128}
    return resolve(
        {
            "method": "mtt",
            "dataset": "fashion-mini",
            "ipc": ipc,
            "device": "cpu",
            "iterations": iterations,
            "steps": steps or scale.inner_steps,
            "span": 1,
            "start_min": 0,
            "start_max": 1,
            "batch": min(10 * ipc, 100),
            "lr_img": 300.0,
            "lr_lr": 1e-5,
            "lr_init": 0.01,
            "augment": False,
            "backprop": backprop,
            "experts": experts | {"augment": False},
            "student": {"arch": "convnet", "depth": 3, "width": width, "norm": "instance"},
            "data": {"holdout": scale.holdout},
            "eval": {"protocol": "quick", "steps": scale.student_steps},
        }
    )


def training(gate: Gate, scale: Scale, compile: bool) -> None:
    """Our training loop, with the expert settings of the embedded data set."""
    recipe, task = _recipe_and_task(scale)
    settings = replace(_experts(recipe), epochs=scale.expert_epochs)
    fit = expert_fit(settings, len(task.data.train), "none")
    trainer = Trainer(task.build, task.compile and compile, task.precision)

    def batches(rng: torch.Generator, _: int) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(task.data.train.batches(settings.batch, rng), scale.pass_steps)

    def after_pass(done: int, network: nn.Module) -> None:
        if done:
            gate.pause(lambda: {"accuracy": accuracy(network, task.data.test.batches(512))})

    gate.ready()
    for _ in trainer.train([(0, "expert", member) for member in range(100)], batches, fit, after_pass):
        pass


def training_plain(gate: Gate, scale: Scale) -> None:
    """A plain loop with the same settings and the default allocator."""
    recipe, task = _recipe_and_task(scale)
    settings, data = _experts(recipe), task.data
    normalise = _normalise(task)
    batches = plain.loader(_bytes(task), data.train.labels, settings.batch)
    test = data.test.raw(torch.arange(len(data.test))), data.test.labels

    def finish() -> dict[str, float]:
        right, began = plain.accuracy(network, *test, normalise), time.perf_counter()
        for images, _ in islice(batches, scale.pass_steps):
            normalise(images)
        return {"accuracy": right, "loading": time.perf_counter() - began}

    gate.ready()
    while True:
        network = plain.convnet(WIDTH, task.classes)
        sgd = torch.optim.SGD(network.parameters(), lr=settings.lr)
        for _ in range(scale.expert_epochs):
            plain.train_pass(network, batches, normalise, sgd, scale.pass_steps)
            gate.pause(finish)


def experts(gate: Gate, scale: Scale) -> None:
    """A pool of experts as in a run: trained, scored on held-out images, written and hashed."""
    recipe, task = _recipe_and_task(scale)
    gate.ready()
    for repeat in count():
        trajectories(task, replace(_experts(recipe), count=scale.pool, seed=repeat))
        gate.pause(pieces=scale.pool)


def experts_plain(gate: Gate, scale: Scale) -> None:
    """A hand-written loop for one network, which keeps its initial and final parameters."""
    recipe, task = _recipe_and_task(scale)
    settings, data, normalise = _experts(recipe), task.data, _normalise(task)
    batches = plain.loader(_bytes(task), data.train.labels, settings.batch)
    gate.ready()
    while True:
        for _ in range(PLAIN_EXPERTS):
            network = plain.convnet(WIDTH, task.classes)
            kept = [[p.detach().clone() for p in network.parameters()]]
            sgd = torch.optim.SGD(network.parameters(), lr=settings.lr)
            plain.train_pass(network, batches, normalise, sgd, None)
            kept.append([p.detach().clone() for p in network.parameters()])
        gate.pause(pieces=PLAIN_EXPERTS)


def make_experts(gate: Gate, scale: Scale, width: int = WIDTH) -> None:
    """Put the expert into the store for the sides that need it."""
    recipe, task = _recipe_and_task(scale, width=width)
    trajectories(task, _experts(recipe))
    gate.ready()


def iteration(gate: Gate, scale: Scale, backprop: str, width: int, ipc: int) -> None:
    """Our outer loop with MTT."""
    recipe, task = _recipe_and_task(scale, backprop, width=width, ipc=ipc)
    prepared = prepare(recipe.method, task)
    losses: list[float] = []

    def log(it: int, scalars: Any) -> None:
        losses.append(scalars["loss"])
        if len(losses) == scale.iterations:
            gate.pause(losses=losses.copy())
            losses.clear()

    syn = recipe.method.start(task, prepared)
    gate.ready()
    synthesise(recipe.method, task, prepared, syn, watch=Watch(log=log))


def where(gate: Gate, scale: Scale, backprop: str) -> None:
    """Time the pieces of an outer iteration, in seconds."""
    recipe, task = _recipe_and_task(scale, backprop)
    method: Any = recipe.method
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    optimisers = method.optimisers(syn)
    matching = importlib.import_module("dd.methods.trajectory._matching")
    gate.ready()
    for first in count(step=scale.iterations):
        spent = dict.fromkeys(PIECES, 0.0)
        for it in range(first, first + scale.iterations):
            clock = [time.perf_counter()]
            matching.draw_segment(task, prepared.pool, it, *method.window(it), method.span)
            matching.synthetic_batches(len(syn.images), method.batch, method.steps, task.generator("inner batches", it))
            clock.append(time.perf_counter())
            value = method.loss(syn, task, prepared, it)["distance"]
            clock.append(time.perf_counter())
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            value.backward()
            clock.append(time.perf_counter())
            for optimiser in optimisers:
                optimiser.step()
            clock.append(time.perf_counter())
            draws, forward, backward, update = (b - a for a, b in pairwise(clock))
            # the loss repeats these draws, so their time is subtracted
            for piece, seconds in zip(PIECES, (draws, forward - draws, backward, update), strict=True):
                spent[piece] += seconds / scale.iterations
        gate.pause(spent=spent)


def iteration_plain(gate: Gate, scale: Scale, width: int, ipc: int) -> None:
    """MTT in plain PyTorch, with our allocator setting and the same images, segment and batches."""
    iterate = _by_the_paper(scale, width=width, ipc=ipc)
    gate.ready()
    for first in count(step=scale.iterations):
        gate.pause(losses=[iterate(it) for it in range(first, first + scale.iterations)])


def _by_the_paper(scale: Scale, *args: Any, width: int = WIDTH, **kwargs: Any) -> Callable[[int], float]:
    """The plain loop: a function of the iteration that returns its objective."""
    recipe, task = _recipe_and_task(scale, *args, width=width, **kwargs)
    method: Any = recipe.method
    # loading experts constructs a `Trainer`, which applies our allocator setting here too
    pool = trajectories(task, method.experts)
    start, target = (pool.snapshot(0, epoch, task.device) for epoch in (0, method.span))
    rates = {name: getattr(method, name) for name in ("lr_img", "momentum_img", "lr_lr", "momentum_lr")}
    images = task.data.train.images(task.real_indices("start"))
    mtt = plain.MTT(plain.convnet(width, task.classes), images, task.targets, method.lr_init, rates)

    def iterate(it: int) -> float:
        return mtt.iteration(start, target, method.steps, method.batch, task.generator("inner batches", it))

    return iterate


def memory(gate: Gate, scale: Scale, backprop: str, steps: int) -> None:
    """Peak memory of two outer iterations; the second reuses the heap of the first."""
    recipe, task = _recipe_and_task(scale, backprop, steps, iterations=2)
    prepared = prepare(recipe.method, task)
    syn = recipe.method.start(task, prepared)
    gate.ready()
    synthesise(recipe.method, task, prepared, syn)
    gate.pause(peak=resident("VmHWM"))


def memory_plain(gate: Gate, scale: Scale, steps: int) -> None:
    """The same of the plain loop."""
    iterate = _by_the_paper(scale, steps=steps)
    gate.ready()
    for it in range(2):
        iterate(it)
    gate.pause(peak=resident("VmHWM"))


def _recipe_and_task(scale: Scale, *args: Any, **kwargs: Any) -> tuple[Recipe, Task]:
    recipe = recipe_of(scale, *args, **kwargs)
    return recipe, make_task(recipe)


def _experts(recipe: Recipe) -> Any:
    method: Any = recipe.method
    return method.experts


def _bytes(task: Task) -> Tensor:
    return task.data.train.raw(torch.arange(len(task.data.train)))


def _normalise(task: Task) -> plain.Normalise:
    space: Any = task.data.preprocess
    return plain.Normalise(space.mean, space.std)
