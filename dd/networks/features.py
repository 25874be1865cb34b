"""Features of a network: its penultimate activations, and outputs of its layers captured by hooks."""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from dd.errors import UsageError


def embed(net: nn.Module, images: Tensor) -> Tensor:
    """Features (n, d) of images (n, c, h, w): the input of the network's last linear layer.

    Raises:
        UsageError: the network has no linear layer.
    """
    own: Callable[[Tensor], Tensor] | None = getattr(net, "embed", None)
    if own is not None:
        return own(images)
    seen: list[Tensor] = []
    handle = last_linear(net).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        net(images)
    finally:
        handle.remove()
    return seen[0].flatten(1)


def last_linear(net: nn.Module) -> nn.Linear:
    """The network's last linear layer.

    Raises:
        UsageError: the network has no linear layer.
    """
    linear = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UsageError(f"{type(net).__name__} has no linear layer whose input could be its features")
    return linear[-1]


class Embedding(nn.Module):
    """The features (n, d) of a network as a network: `embed`, without the last linear layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) to (n, d)."""
        return embed(self.network, images)


@contextlib.contextmanager
def captured(net: nn.Module, types: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterator[list[Tensor]]:
    """Collect the outputs of all layers of the given types, with their graphs, in execution order.

    Args:
        net: any network, including one that runs through `Functional`.
        types: layer classes, for example `nn.Conv2d` or `(nn.ReLU, nn.AvgPool2d)`.

    Yields:
        A list that every forward pass inside the block extends; clear it between passes as needed.  The hooks are
        removed when the block ends, also after an exception.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)

    with contextlib.ExitStack() as stack:
        for layer in net.modules():
            if isinstance(layer, types):
                stack.callback(layer.register_forward_hook(keep).remove)
        yield outputs
