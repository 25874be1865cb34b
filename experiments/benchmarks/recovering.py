"""Recovery of images from a teacher: our SRe2L against the same algorithm in PyTorch and torchvision.

Both sides have the same frozen teacher, initial noise, crops, flips and shifts, and use Adam; the plain side reads the
BatchNorm statistics in forward hooks, like the papers' own scripts.
"""

import importlib
import math
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from noise import noise
from scale import Scale
from torch import Tensor, nn
from torch.optim import Adam
from torchvision.transforms.v2 import functional as tv
from worker import Gate, resident

from dd.engine.method import Task
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.networks import NetworkSpec, resolve_network
from dd.runs import Store
from dd.runs.allocator import keep_large_buffers
from dd.training.teachers import Teacher
from dd.views import draw_boxes

CLASSES = 100  # one image of each is a batch
MANY = 1_000_000


def task_of(arch: str, width: int, channels: int, side: int, ipc: int = 1) -> Task:
    """The task of both sides."""
    return Task(
        data=noise(CLASSES, (channels, side, side), ipc),
        targets=torch.arange(CLASSES).repeat_interleave(ipc),
        student=resolve_network(NetworkSpec(arch=arch, width=width, norm="batch"), side, channels),
        seed=0,
        device=torch.device("cpu"),
        store=Store(),
    )


def teacher_of(task: Task) -> Teacher:
    """A teacher with random weights, and running statistics of one batch of images."""
    network = task.network("teacher")
    with torch.no_grad():
        network(task.data.train.images(torch.arange(CLASSES)))
    return Teacher("student", network.eval().requires_grad_(False), task.data.classes, None, None, "")


def committee_of(teacher: Teacher) -> Any:
    """The prepared state that the method would otherwise get by training the teacher."""
    return importlib.import_module("dd.methods.decoupled._teachers").Committee((teacher,), (0.0,))


def ours(gate: Gate, scale: Scale, times: int, network: dict[str, Any]) -> None:
    """Our outer loop."""
    task, method = task_of(**network), _method()
    committee = committee_of(teacher_of(task))
    losses: list[float] = []

    def log(it: int, scalars: Any) -> None:
        losses.append(scalars["loss"])
        if len(losses) == times * scale.iterations:
            gate.pause(losses=losses[:], count=len(losses), peak=resident("VmHWM"))
            losses.clear()

    gate.ready()
    synthesise(method, task, committee, method.start(task, committee), watch=Watch(log=log))


def written_down(gate: Gate, scale: Scale, times: int, network: dict[str, Any], kept: bool = False) -> None:
    """The same in plain PyTorch; `kept`: with our allocator setting, else with the default allocator."""
    if kept:
        keep_large_buffers()
    task, method = task_of(**network), _method()
    teacher = teacher_of(task)
    images = method.start(task, committee_of(teacher)).images.detach().requires_grad_()
    space: Any = task.data.preprocess
    mean, std = space.mean.view(-1, 1, 1), space.std.view(-1, 1, 1)
    felt = [Felt(layer) for layer in teacher.network.modules() if isinstance(layer, nn.BatchNorm2d)]
    adam = Adam([images], lr=method.lr_img, betas=method.betas)
    done = count()
    gate.ready()
    while True:
        losses = []
        for _ in range(times * scale.iterations):
            it = next(done)
            for group in adam.param_groups:
                group["lr"] = method.lr_img * (1 + math.cos(math.pi * it / MANY)) / 2
            logits = teacher.network(_shown(images, task, method, it))
            apart = method.first_bn * felt[0].term + sum(layer.term for layer in felt[1:])
            loss = F.cross_entropy(logits, task.targets) + method.r_bn * apart
            adam.zero_grad()
            loss.backward()
            adam.step()
            images.data.clamp_(-mean / std, (1 - mean) / std)
            losses.append(loss.item())
        gate.pause(losses=losses, count=len(losses), peak=resident("VmHWM"))


class Felt:
    """Hook that computes the distance of a BatchNorm layer's last input from its running statistics."""

    term: Tensor

    def __init__(self, layer: nn.BatchNorm2d):
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        """Forward hook."""
        (maps,) = inputs
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, variance = maps.mean([0, 2, 3]), maps.var([0, 2, 3], unbiased=False)
        self.term = torch.norm(layer.running_var - variance, 2) + torch.norm(layer.running_mean - mean, 2)


def _method() -> Any:
    made: Any = get("sre2l")
    return made(iterations=MANY)


def _shown(images: Tensor, task: Task, method: Any, it: int) -> Tensor:
    """The augmented images: our random draws, torchvision's crop."""
    rng, size = task.generator("view", it), task.data.size
    box = draw_boxes(1, (size, size), (method.crop, 1.0), rng, method.stretch)[0].tolist()
    mirrored = float(torch.rand((), generator=rng)) < 0.5
    down, right = torch.randint(0, method.roll + 1, (2,), generator=rng).tolist()
    images = tv.resized_crop(images, *box, size=[size, size], antialias=True)
    if mirrored:
        images = tv.horizontal_flip(images)
    return images.roll((down, right), (2, 3))
