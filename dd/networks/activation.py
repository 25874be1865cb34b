"""Where a network looks: class-activation maps."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd.errors import UsageError
from dd.networks.features import captured


def activation_maps(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """(n, h, w) how much each pixel of images (n, c, h, w) speaks for its class, from 0 to 1 in every image.

    A network that ends in average pooling and one linear layer has the map sum_k w_kc A_k of its last maps A (CAM, Zhou
    et al., CVPR 2016).  Any other has that of Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2): the output A
    of its last convolution, weighted by the mean gradient of the class's logit, negative sums set to 0.  Maps are
    enlarged bilinearly and stretched from 0 to 1; one that is the same everywhere becomes 0.

    Args:
        network: in evaluation mode.
        images: in the space that the network takes.
        targets: (n,) int64 class whose map is wanted.

    Raises:
        UsageError: the network has no convolution.
    """
    with torch.enable_grad(), captured(network, nn.Conv2d) as convolved, _head(network) as head:
        logits = network(images.detach().requires_grad_())
        if not convolved:
            raise UsageError(f"{type(network).__name__} has no convolution, so no class-activation map")
        final = head.maps()
        if final is not None and head.linear is not None:
            maps = torch.einsum("nk,nkhw->nhw", head.linear.weight[targets], final)
        else:
            last = convolved[-1]
            (slope,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), last)
            maps = (slope.mean((2, 3), keepdim=True) * last).sum(1).relu()
    maps = F.interpolate(maps.detach()[:, None], size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)).clamp(0, 1)


class _Head:
    """What went into the last linear layer, and the maps that may have been pooled into it."""

    def __init__(self, linear: nn.Linear | None) -> None:
        self.linear, self.given = linear, torch.empty(0)
        self.candidate: Tensor | None = None

    def maps(self) -> Tensor | None:
        """(n, k, h, w) the last maps whose means the linear layer was given, None where there are none."""
        maps, given = self.candidate, self.given
        if maps is None or given.dim() != 2 or maps.shape[:2] != given.shape:
            return None
        return maps if torch.allclose(maps.mean((2, 3)), given, rtol=1e-4, atol=1e-5) else None


@contextlib.contextmanager
def _head(network: nn.Module) -> Iterator[_Head]:
    """Watch for the head of a network while it runs."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    head = _Head(linear[-1] if linear else None)

    def take(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        head.given = inputs[0].detach()

    def see(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        wide = isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1
        if wide and head.linear is not None and output.shape[1] == head.linear.in_features:
            head.candidate = output.detach()

    with contextlib.ExitStack() as stack:
        if head.linear is not None:
            stack.callback(head.linear.register_forward_pre_hook(take).remove)
            for layer in network.modules():
                if layer is not network:
                    stack.callback(layer.register_forward_hook(see).remove)
        yield head
