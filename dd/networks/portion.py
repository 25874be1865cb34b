"""Forward passes on a CPU in portions of a batch: the memory of a few images, in about the time of the whole batch."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dd.networks.block import in_closed_form

# bytes of a portion's largest map.  On one core with 1 MB of L2 cache, portions of 8 MB took 0.5 to 1.5 times as long
# as whole batches in one run (ConvNets of width 32 to 128) and 1.0 to 1.1 times in another, both noisy
PORTION = 8 << 20

_largest: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]] = WeakKeyDictionary()


def portions(network: nn.Module, images: Tensor, limit: int = PORTION) -> tuple[Tensor, ...]:
    """Split a batch for forward passes whose outputs are put together again, in the order of the images.

    A portion has at least two images, because convolutions sum a single one in another order: whole and split batches
    give a convolutional network the same bits.  The batch stays whole on a GPU, and if the network's outputs depend on
    which images are in it.

    Args:
        network: the network that is to see them, in the mode in which it will.
        images: (n, c, h, w).
        limit: bytes of the largest map that a portion has in the network; a portion takes less than twice that.

    Returns:
        Views of `images`, (n_1, c, h, w), (n_2, c, h, w), ..., each as large as the next or one image larger.
    """
    if images.device.type != "cpu" or len(images) < 4 or mixes(network):
        return (images,)
    each = max(2, limit // largest_map(network, images))
    return images.tensor_split(max(1, len(images) // each))


def mixes(network: nn.Module) -> bool:
    """Whether an image's output depends on the other images of its batch: a BatchNorm uses their statistics."""
    norms = (layer for layer in network.modules() if isinstance(layer, _BatchNorm))
    return any(norm.training or norm.running_mean is None for norm in norms)


@torch.no_grad()
def largest_map(network: nn.Module, images: Tensor) -> int:
    """Bytes of the largest output that one of the images (n, c, h, w), n >= 2, has in any layer; kept by network."""
    known = _largest.setdefault(network, {})
    shape = tuple(images.shape[1:])
    if shape not in known:
        sizes = [1]

        def see(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel() * output.element_size() // 2)

        hooks = [layer.register_forward_hook(see) for layer in network.modules()]
        try:
            # the last linear layer, which `embed` leaves out, has no maps; a norm refuses a single image of one pixel
            with in_closed_form(network, allowed=False):  # layers that compute in closed form hide their maps
                getattr(network, "embed", network)(images[:2].to(next(network.parameters(), images)))
        finally:
            for hook in hooks:
                hook.remove()
        known[shape] = max(sizes)
    return known[shape]
