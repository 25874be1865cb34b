"""Class-activation maps: CAM and Grad-CAM."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd.errors import UsageError
from dd.networks.features import captured


def activation_maps(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Class-activation maps (n, h, w) of images (n, c, h, w), scaled to [0, 1] per image.

    For a network that ends in average pooling and one linear layer, the map is CAM's sum_k w_kc A_k, with A the last
    feature maps (Zhou et al., CVPR 2016).  For any other network it is Grad-CAM's (Selvaraju et al., ICCV 2017,
    equations 1 and 2): the output A of the last convolution, weighted by the mean gradient of the class's logit, and
    a ReLU.  Maps are upsampled bilinearly and min-max scaled; a constant map becomes 0.

    Args:
        network: in evaluation mode.
        images: in the network's input space.
        targets: (n,) int64, the class to explain for each image.

    Raises:
        UsageError: the network has no convolution.
    """
    with torch.enable_grad(), captured(network, nn.Conv2d) as convolved, _pooled(network) as head:
        logits = network(images.detach().requires_grad_())
        if not convolved:
            raise UsageError(f"{type(network).__name__} has no convolution, so no class-activation map")
        final = head.maps()
        last = convolved[-1] if final is None else final
        # before average pooling the gradient is w_kc / (height * width) everywhere
        (slope,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), last)
    maps = (slope.mean((2, 3), keepdim=True) * last.detach()).sum(1)
    maps = maps if final is not None else maps.relu()
    maps = F.interpolate(maps[:, None], size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)).clamp(0, 1)


class _Head:
    """Records the input of the last linear layer and the last feature maps before it."""

    def __init__(self) -> None:
        self.given = self.last = torch.empty(0)

    def maps(self) -> Tensor | None:
        """The maps (n, k, h, w) whose spatial means entered the linear layer; None if its input was something else."""
        if self.given.dim() != 2 or self.last.shape[:2] != self.given.shape:
            return None
        return self.last if torch.allclose(self.last.mean((2, 3)), self.given, rtol=1e-4, atol=1e-5) else None


@contextlib.contextmanager
def _pooled(network: nn.Module) -> Iterator[_Head]:
    """Observe the head of a network while it runs."""
    head = _Head()

    def take(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        head.given = inputs[0]

    def see(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
            head.last = output

    with contextlib.ExitStack() as stack:
        linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        if linear:
            stack.callback(linear[-1].register_forward_pre_hook(take).remove)
        for layer in network.modules():
            stack.callback(layer.register_forward_hook(see).remove)
        yield head
