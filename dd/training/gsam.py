"""GSAM with adaptive perturbation, the optimiser of FTD's flat experts.

FTD (Du et al., CVPR 2023, arXiv:2211.11004); GSAM (Zhuang et al., ICLR 2022, arXiv:2203.08065), adaptive perturbation
from ASAM (Kwon et al., ICML 2021, arXiv:2102.11600).

    eps    = rho * theta^2 * g0 / (|| |theta| * g0 ||_2 + 1e-12)
    g1     = gradient at theta + eps
    g_perp = g0 - (<g0, g1> / ||g1||^2) g1
    g      = g1 - alpha * g_perp

Norms and inner products run over all parameters together.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_TINY = 1e-12


def perturbation(params: Sequence[Tensor], grads: Sequence[Tensor], rho: float) -> list[Tensor]:
    """The perturbation eps of the module docstring, per tensor."""
    norm = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(p * g) for p, g in zip(params, grads, strict=True)])
    )
    scale = rho / (norm + _TINY)
    return [p.square() * g * scale for p, g in zip(params, grads, strict=True)]


def surrogate(grads: Sequence[Tensor], sharp: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """The gradient g of the module docstring, per tensor, from g0 (`grads`) and g1 (`sharp`)."""
    inner = torch.stack([(g * s).sum() for g, s in zip(grads, sharp, strict=True)]).sum()
    square = torch.stack([s.square().sum() for s in sharp]).sum()
    along = inner / square.clamp_min(torch.finfo(square.dtype).tiny)  # if g1 is zero, so is <g0, g1>
    return [s - alpha * (g - along * s) for g, s in zip(grads, sharp, strict=True)]


def gsam_gradient(network: nn.Module, loss: Callable[[], Tensor], rho: float, alpha: float) -> None:
    """Replace the gradients g0 in `.grad` by GSAM's.

    The parameters are restored from a copy, bit for bit.

    Args:
        network: holds g0 in `.grad`, from the same batch that `loss` evaluates.
        loss: the batch's loss as a function of the current parameters.
        rho: radius of the perturbation, relative to |theta|.
        alpha: weight of the orthogonal component; 0 gives ASAM.
    """
    params = [p for p in network.parameters() if p.grad is not None]
    grads = [p.grad.clone() for p in params if p.grad is not None]
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, eps in zip(params, perturbation(before, grads, rho), strict=True):
            p.add_(eps)
    network.zero_grad(set_to_none=True)
    loss().backward()
    with torch.no_grad():
        sharp = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
        for p, old, g in zip(params, before, surrogate(grads, sharp, alpha), strict=True):
            p.copy_(old)
            p.grad = g
