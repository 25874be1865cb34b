"""Measure the memory that autograd saves for the backward pass, and the operations of a forward pass."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Record the bytes of every distinct storage that autograd saves inside the block, by address."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield seen


@torch.no_grad()
def products(network: nn.Module, images: Tensor) -> int:
    """Multiply-accumulate operations of convolutions and linear layers in a forward pass of images (n, c, h, w).

    torch's own FLOP counter agrees (it counts two per multiply-accumulate), but takes seconds to import.
    """
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        total += output.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return total
