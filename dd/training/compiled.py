"""The loss of a batch: eager, in closed form, or through `torch.compile`."""

import logging
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dd.networks import in_closed_form, is_closed
from dd.training.criteria import PLAIN, Criterion

# The ConvNet's closed forms in C are as fast as its compiled steps, or up to a tenth faster, and need not be compiled.
# Compiling takes about 6 s on two cores and then saves a quarter to a third of every step.  Networks are trained in
# groups of about five that share the compiled code, so compiling pays off from a few seconds of work per network: 1e11
# FLOPs of forward passes.  The rule depends on shapes alone, so that a network's bits do not depend on its group.
WORTH_FLOPS = 1e11
_MANY = 1 << 20

Loss = Callable[[Tensor, Tensor], Tensor]


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` can work here: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cpu":
        return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return device.type == "cuda"


def worth_compiling(network: nn.Module, images: Tensor, steps: int, flops: float | None = None) -> bool:
    """Whether `steps` steps on batches like `images` (b, c, h, w) are enough work to justify compiling.

    Args:
        network: the module.
        images: a batch; only its shape and device count.
        steps: number of steps.
        flops: how much forward work is enough; None for `WORTH_FLOPS`, that of plain training.
    """
    if images.device.type == "cpu" and _breaks(network):
        return False
    was_training = network.training
    network.eval()  # otherwise batch norm would record this pass, and might fail on a single image
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images[:1])
    network.train(was_training)
    return counter.get_total_flops() * len(images) * steps >= (WORTH_FLOPS if flops is None else flops)


def _breaks(network: nn.Module) -> bool:
    """Whether inductor's CPU code is known to write out of bounds in the backward pass of such a network.

    torch 2.14 does so for a ResNet-18 of width 8 with any norm, but not for width 16; the cause is narrow shortcuts.
    """
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return any(layer.kernel_size == (1, 1) and layer.in_channels < 16 for layer in convolutions)


class BatchLoss:
    """The criterion of a batch under the current parameters of one module.

    Args:
        network: the module.
        compile: allow `torch.compile`; it is used if `worth_compiling` says so.
        precision: "fp32", or "bf16" for autocast in the forward pass.
    """

    def __init__(self, network: nn.Module, compile: bool, precision: str = "fp32") -> None:
        self.network = network
        self._bf16 = precision == "bf16"
        self._compiled: dict[Criterion, Loss] = {}
        self._allowed = compile and can_compile(next(network.parameters()).device)

    def __call__(self, images: Tensor, targets: Tensor, criterion: Criterion = PLAIN) -> Tensor:
        """Scalar loss for images (b, c, h, w) and targets as the criterion takes them."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self.network(images)
        return criterion(logits.float() if self._bf16 else logits, targets)

    def of(self, steps: int, criterion: Criterion = PLAIN) -> Loss:
        """The fastest equivalent for training `steps` steps on batches of the same shape as the first one."""

        def plain(images: Tensor, targets: Tensor) -> Tensor:
            return self(images, targets, criterion)

        def closed(images: Tensor, targets: Tensor) -> Tensor:
            with in_closed_form(self.network):
                return plain(images, targets)

        if not self._allowed:
            return plain
        shape: tuple[int, ...] | None = None
        fast: Loss = plain

        def either(images: Tensor, targets: Tensor) -> Tensor:
            nonlocal shape, fast
            if shape is None:
                shape = tuple(images.shape)
                if worth_compiling(self.network, images, steps):
                    fast = closed if not self._bf16 and is_closed(self.network) else self._compile(plain, criterion)
            # the short last batch of a pass does not justify a second compilation
            spared = fast is not closed and tuple(images.shape) != shape
            return plain(images, targets) if spared else fast(images, targets)

        return either

    def _compile(self, plain: Loss, criterion: Criterion) -> Loss:
        if criterion not in self._compiled:
            self._compiled[criterion] = compiled(plain)
        return self._compiled[criterion]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` without warnings and without a limit on the number of shapes.

    Forward hooks of modules run as in eager mode, including hooks that are registered again for every call.
    """
    fast = torch.compile(function, dynamic=False)

    def quietly(*inputs: Any) -> Any:
        _hush()
        with warnings.catch_warnings(), _without_limit():
            warnings.simplefilter("ignore")
            return fast(*inputs)

    return quietly


def _hush() -> None:
    """Silence torch's warning about a CUDA toolkit without a GPU, which is harmless when compiling for the CPU."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def _without_limit() -> AbstractContextManager[None]:
    """Lift torch's limit of 8 recompilations per process, so that bits do not depend on what was compiled before."""
    from torch._dynamo import config  # takes seconds to import; already imported once anything is compiled

    return config.patch(recompile_limit=_MANY, accumulated_recompile_limit=_MANY)
