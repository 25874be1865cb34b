"""Saliency maps: where a network looks (Grad-CAM++: Chattopadhay et al., WACV 2018, arXiv:1710.11063)."""

import torch
from torch import Tensor, nn

from dd.errors import UsageError
from dd.networks.features import captured


def grad_cam_pp(network: nn.Module, images: Tensor, name: str = "the network") -> Tensor:
    """Grad-CAM++ maps of a network's most probable class.

        L = relu(sum_k w_k A_k),   w_k = sum_ij alpha_k,ij relu(g_k,ij),
        alpha_k,ij = g² / (2 g² + g³ sum_ab A_k,ab),   g = d logit / d A

    A are the last activations with more than one position.  The map is that of exp(logit), whose higher derivatives
    are powers of g, without its factor exp(logit), which is the same for all positions of an image.

    Args:
        network: maps images to logits (n, classes); in eval mode, so that images do not depend on one another.
        images: (n, c, h, w).
        name: of the network, for the message.

    Returns:
        (n, h', w'), not negative, at the resolution of those activations.

    Raises:
        UsageError: the network has no such activations.
    """
    with torch.enable_grad(), captured(network, nn.Module) as outputs:
        logits = network(images.detach().requires_grad_())
        maps = [out for out in outputs if isinstance(out, Tensor) and out.dim() == 4 and out[0, 0].numel() > 1]
        if not maps:
            raise UsageError(f"{name} has no maps of features to see where it looks: name a convolutional network")
        (slopes,) = torch.autograd.grad(logits.max(1).values.sum(), maps[-1])
    activations = maps[-1].detach()
    squares = slopes.square()
    bottom = 2 * squares + squares * slopes * activations.sum((2, 3), keepdim=True)
    alpha = torch.where(bottom != 0, squares / torch.where(bottom != 0, bottom, 1.0), 0.0)
    weights = (alpha * slopes.relu()).sum((2, 3), keepdim=True)
    return (weights * activations).sum(1).relu()
