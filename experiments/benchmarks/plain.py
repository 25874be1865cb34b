"""The baseline: what a researcher would write in plain PyTorch from the papers' formulas.

It is neither slowed down nor tuned: default allocator, eager mode, a `DataLoader`.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset


def convnet(width: int, classes: int) -> nn.Module:
    """The usual ConvNet of depth 3 with instance norm, for grey 28 x 28 images, padded to 32 x 32."""
    layers: list[nn.Module] = []
    for inputs, padding in ((1, 3), (width, 1), (width, 1)):
        conv = nn.Conv2d(inputs, width, 3, padding=padding)
        layers += [conv, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 4 * 4, classes))


class Normalise:
    """Normalise batches of uint8 images."""

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (b, c, h, w) -> float32 (b, c, h, w)."""
        return (images.float() / 255 - self.mean) / self.std


def loader(images: Tensor, labels: Tensor, batch: int) -> DataLoader:
    return DataLoader(TensorDataset(images, labels), batch_size=batch, shuffle=True)


def train_pass(
    network: nn.Module,
    batches: Iterable,
    prepare: Callable[[Tensor], Tensor],
    optimiser: SGD,
    steps: int | None,
    temperature: float = 1.0,
) -> None:
    """One pass over the batches, or its first `steps` steps, with the loss of distillation at a temperature."""
    network.train()
    for images, labels in islice(batches, steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(network(prepare(images)) / temperature, labels) * temperature**2
        loss.backward()
        optimiser.step()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor]) -> float:
    """Accuracy in percent."""
    network.eval()
    right = 0
    for x, y in DataLoader(TensorDataset(images, labels), batch_size=256):
        right += int((network(prepare(x)).argmax(1) == y).sum())
    return 100 * right / len(labels)


class MTT:
    """Trajectory matching as in equations 1 and 2 of the paper (Cazenavette et al., CVPR 2022, arXiv:2203.11932)."""

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor, lr: float, rates: dict[str, float]):
        self.network, self.labels = network, labels
        self.images = images.clone().requires_grad_()
        self.lr = torch.tensor(lr, requires_grad=True)
        self.optimisers = [
            SGD([self.images], lr=rates["lr_img"], momentum=rates["momentum_img"]),
            SGD([self.lr], lr=rates["lr_lr"], momentum=rates["momentum_lr"]),
        ]

    def iteration(self, start: Tensor, target: Tensor, steps: int, batch: int, generator: torch.Generator) -> float:
        """One outer iteration: forward, backward, one update of pixels and learning rate; returns the objective."""
        theta = start.clone().requires_grad_()
        chunks: list[Tensor] = []
        for _ in range(steps):
            if not chunks:
                chunks = list(torch.randperm(len(self.images), generator=generator).split(batch))
            index = chunks.pop()
            logits = functional_call(self.network, self.views(theta), (self.images[index],))
            loss = F.cross_entropy(logits, self.labels[index])
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - self.lr * gradient
        objective = (theta - target).square().sum() / (start - target).square().sum()
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        objective.backward()
        for optimiser in self.optimisers:
            optimiser.step()
        return objective.item()

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector as named parameters."""
        cut, at = {}, 0
        for name, parameter in self.network.named_parameters():
            cut[name] = theta.narrow(0, at, parameter.numel()).reshape(parameter.shape)
            at += parameter.numel()
        return cut


def student(
    network: nn.Module,
    batches: DataLoader,
    augment: Callable[[Tensor], Tensor],
    steps: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    temperature: float = 1.0,
) -> None:
    """Train a student on a small set; after half of the steps, recreate the optimiser with a tenth of the lr."""
    done = 0
    for rate, until in ((lr, steps // 2), (lr / 10, steps)):
        optimiser = SGD(network.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay)
        while done < until:
            train_pass(network, batches, augment, optimiser, until - done, temperature)
            done += min(len(batches), until - done)
