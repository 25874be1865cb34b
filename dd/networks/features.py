"""What happens inside a network: outputs of its layers, captured while it runs."""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from dd.errors import UsageError


def embed(net: nn.Module, images: Tensor) -> Tensor:
    """(n, d) features of images (n, c, h, w): what the last linear layer of the network is given.

    Raises:
        UsageError: the network has no linear layer.
    """
    own: Callable[[Tensor], Tensor] | None = getattr(net, "embed", None)
    if own is not None:
        return own(images)
    linear = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UsageError(f"{type(net).__name__} has no linear layer whose input could be its features")
    seen: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        net(images)
    finally:
        handle.remove()
    return seen[0].flatten(1)


@contextlib.contextmanager
def captured(net: nn.Module, types: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterator[list[Tensor]]:
    """Collect the outputs of all layers of the given types, with their graphs, in the order in which they run.

    Args:
        net: any network; also one that runs through `Functional`.
        types: layer classes, for example `nn.Conv2d` or `(nn.ReLU, nn.AvgPool2d)`.

    Yields:
        A list that every forward pass inside the block extends; clear it between passes as needed.  The hooks are gone
        when the block ends, however it ends.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)

    with contextlib.ExitStack() as stack:
        for layer in net.modules():
            if isinstance(layer, types):
                stack.callback(layer.register_forward_hook(keep).remove)
        yield outputs
