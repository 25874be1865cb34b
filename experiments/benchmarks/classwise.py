"""Distribution matching: our methods against the same formulas in plain PyTorch, one class at a time.

The plain side is a fair baseline: its network is frozen, real features have no graph, projections are computed once,
and it uses our augmentation, drawn class by class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from noise import noise
from scale import Scale
from torch import Tensor
from torch.optim import SGD, AdamW
from worker import Gate, resident

from dd.engine.method import Task, prepare
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.networks import NetworkSpec, embed
from dd.runs import Store
from dd.runs.allocator import keep_large_buffers
from dd.sets.tiles import decode
from dd.training import ExpertSettings
from dd.views.dsa import apply, draw, draw_sequence, siamese

STRATEGY = "color_crop_cutout_flip_scale_rotate"
SETTINGS: dict[str, dict[str, Any]] = {
    "dm": {"lr_img": 1.0},
    "datadam": {"lr_img": 1.0, "power": 4.0},
    # Gaussian: the sampler's step, one per iteration for all classes, would blur the cost of the classes
    "ncfm": {
        "lr_img": 0.01,
        "frequencies": 512,
        "sampler": "gaussian",
        "experts": ExpertSettings(count=1, epochs=1, batch=256),
    },
    "dsa": {"lr_img": 0.1, "outer": 1, "inner": 1},
}


@dataclass(frozen=True)
class Shape:
    """What both sides distil: classes, images per class, real images per class, and the network and images.

    Attributes:
        classes: number of classes.
        ipc: images per class.
        width: channels of the ConvNet.
        side: of the images, in pixels; they have one channel.
        real: real images per class and iteration.
    """

    classes: int
    ipc: int
    width: int = 16
    side: int = 16
    real: int = 64


def task_of(shape: Shape) -> Task:
    """The task of both sides: noise images."""
    held = max(shape.real + 16, 4 * shape.ipc)  # a mosaic needs four images
    return Task(
        data=noise(shape.classes, (1, shape.side, shape.side), held, STRATEGY),
        targets=torch.arange(shape.classes).repeat_interleave(shape.ipc),
        student=NetworkSpec(depth=3, width=shape.width, norm="instance", arch="convnet"),
        seed=0,
        device=torch.device("cpu"),
        store=Store(),
        compile=True,
    )


def method_of(name: str, shape: Shape) -> Any:
    """The method at the benchmark's settings."""
    cls: Any = get(name)
    return cls(iterations=1_000_000, batch_real=shape.real, **SETTINGS[name])


def ours(gate: Gate, scale: Scale, method: str, shape: dict[str, int]) -> None:
    """Our outer loop."""
    at = Shape(**shape)
    task = task_of(at)
    made = method_of(method, at).settle(task)
    prepared = prepare(made, task)
    syn = made.start(task, prepared)
    done: list[float] = []

    def log(it: int, scalars: Any) -> None:
        done.append(scalars["loss"])
        if len(done) == scale.iterations:
            gate.pause(loss=done[0], pieces=scale.iterations, peak=resident("VmHWM"))
            done.clear()

    gate.ready()
    synthesise(made, task, prepared, syn, watch=Watch(log=log))


def class_by_class(gate: Gate, scale: Scale, method: str, shape: dict[str, int], kept: bool = False) -> None:
    """The same, one class after another; `kept`: with our allocator setting, else with the default allocator."""
    if kept:
        keep_large_buffers()
    at = Shape(**shape)
    task = task_of(at)
    objective = {"dm": _dm, "datadam": _datadam, "ncfm": _ncfm, "dsa": _dsa}[method]
    made = method_of(method, at).settle(task)
    prepared = prepare(made, task)
    syn = made.start(task, prepared)
    variables: Any = syn
    images = variables.images
    optimiser: torch.optim.Optimizer = SGD([images], lr=made.lr_img, momentum=0.5)
    if method == "ncfm":
        optimiser = AdamW([images], lr=made.lr_img, weight_decay=0.0)
    per_class = [task.data.train.of_class(c) for c in range(at.classes)]
    it = 0
    gate.ready()
    while True:
        losses = []
        for _ in range(scale.iterations):
            optimiser.zero_grad()
            network = task.network("matching", it) if method != "ncfm" else prepared.network
            network.requires_grad_(method == "dsa")
            shared = objective(task, network, made, prepared, variables, it)
            total = 0.0
            for c, held in enumerate(per_class):
                index = held[torch.randperm(len(held), generator=task.generator("real", it, c))[: at.real]]
                loss = shared(c, task.data.train.images(index), images[c * at.ipc : (c + 1) * at.ipc])
                loss.backward(inputs=[images])
                total += float(loss.detach())
            optimiser.step()
            losses.append(total)
            it += 1
        gate.pause(loss=losses[0], pieces=scale.iterations, peak=resident("VmHWM"))


def pool(gate: Gate, scale: Scale, method: str, shape: dict[str, int]) -> None:
    """Put what the method needs into the store: training it in a side would hide the growth of its iterations."""
    at = Shape(**shape)
    task = task_of(at)
    prepare(method_of(method, at).settle(task), task)
    gate.ready()


Objective = Callable[[int, Tensor, Tensor], Tensor]


def _alike(task: Task, it: int, c: int, *batches: Tensor) -> list[Tensor]:
    one = draw(STRATEGY, 1, task.data.shape, task.generator("siamese", it, c))
    return [apply(siamese(one, len(batch)), batch) for batch in batches]


def _dm(task: Task, network: Any, method: Any, prepared: Any, syn: Any, it: int) -> Objective:
    def loss(c: int, real: Tensor, mine: Tensor) -> Tensor:
        real, mine = _alike(task, it, c, real, mine)
        with torch.no_grad():
            target = network.embed(real).mean(0)
        return (target - network.embed(mine).mean(0)).square().sum()

    return loss


def _datadam(task: Task, network: Any, method: Any, prepared: Any, syn: Any, it: int) -> Objective:
    def seen(images: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for block in network.features:
            images = block.activation(block.norm(block.conv(images)))
            maps.append(F.normalize(images.abs().pow(method.power).sum(1).flatten(1), dim=1).mean(0))
            images = block.pooling(images)
        return maps[:-1], images.flatten(1).mean(0)

    def loss(c: int, real: Tensor, mine: Tensor) -> Tensor:
        real, mine = _alike(task, it, c, real, mine)
        with torch.no_grad():
            targets, target = seen(real)
        maps, feature = seen(mine)
        apart = sum((a - b).square().sum() for a, b in zip(targets, maps, strict=True))
        return 100 * apart + 100 * method.weight * (target - feature).square().sum()

    return loss


def _ncfm(task: Task, network: Any, method: Any, prepared: Any, syn: Any, it: int) -> Objective:
    rng = task.generator("network", it)
    torch.randint(1, (), generator=rng)
    share = float(torch.rand((), generator=rng))
    first, last = (prepared.experts.snapshot(0, epoch, task.device) for epoch in (0, -1))
    prepared.template.load(prepared.network, share * first + (1 - share) * last)
    prepared.template.load(prepared.trained, last)
    t = torch.randn(method.frequencies, syn.features, generator=task.generator("frequencies", it))

    def phi(x: Tensor) -> tuple[Tensor, Tensor]:
        phase = F.normalize(x, dim=1) @ t.T
        return phase.cos().mean(0), phase.sin().mean(0)

    def loss(c: int, real: Tensor, mine: Tensor) -> Tensor:
        draws = draw_sequence(method.strategy, 1, task.data.shape, task.generator("siamese", it, c))
        mine = task.data.preprocess.encode(decode(mine, method.factor))
        for one in draws:
            real, mine = (apply(siamese(one, len(batch)), batch) for batch in (real, mine))
        with torch.no_grad():
            target = phi(embed(network, real))
        found = phi(embed(network, mine))
        whole = (found[0] - target[0]).square() + (found[1] - target[1]).square()
        matched = method.scale * (0.5 * whole.clamp_min(1e-12)).sqrt().mean()
        label = torch.full((len(mine),), c)
        return matched + F.cross_entropy(prepared.trained(mine), label)

    return loss


def _dsa(task: Task, network: Any, method: Any, prepared: Any, syn: Any, it: int) -> Objective:
    weights = list(network.parameters())

    def loss(c: int, real: Tensor, mine: Tensor) -> Tensor:
        real, mine = _alike(task, it, c, real, mine)
        label = torch.full((len(real),), c)
        target = torch.autograd.grad(F.cross_entropy(network(real), label), weights)
        found = torch.autograd.grad(F.cross_entropy(network(mine), label[: len(mine)]), weights, create_graph=True)
        rows = [(a.flatten(1), b.flatten(1)) for a, b in zip(found, target, strict=True) if a.dim() > 1]
        apart = [(1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum() for a, b in rows]
        return torch.stack(apart).sum()

    return loss
