"""The BatchNorm statistics loss: distance between batch statistics and a network's running statistics.

    R_BN = sum over layers l of w_l ( || v_l - V_l ||_2 + || mu_l - M_l ||_2 )

mu_l and v_l are the per-channel means and biased variances, over batch, height and width, of the input of BatchNorm
layer l.  M_l and V_l are its running mean and variance.  The norms run over channels and are not squared.  Sources: Yin
et al., "Dreaming to Distill via DeepInversion" (CVPR 2020), and SRe2L (NeurIPS 2023), whose official code weights the
first layer by 10.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from dd.errors import UsageError


class StatisticsLoss:
    """Accumulates the statistics loss over forward passes until it is read; see `statistics_loss`.

    Attributes:
        layers: the BatchNorm layers, in module order.
        weights: w_l of the layers.
    """

    def __init__(self, layers: list[nn.BatchNorm2d], first: float) -> None:
        self.layers = layers
        self.weights = [first, *[1.0] * (len(layers) - 1)]
        self._targets = [(_kept(layer.running_mean), _kept(layer.running_var)) for layer in layers]
        self._terms: list[tuple[int, Tensor]] = []

    def by_layer(self) -> Tensor:
        """The unweighted terms (layers,) of all forward passes since the last reading; resets the accumulator."""
        terms, self._terms = self._terms, []
        sums: list[Tensor | None] = [None] * len(self.layers)
        for number, term in terms:
            before = sums[number]
            sums[number] = term if before is None else before + term
        if missing := [number for number, total in enumerate(sums) if total is None]:
            raise RuntimeError(f"no forward pass went through BatchNorm layers {missing} since the last reading")
        return torch.stack([total for total in sums if total is not None])

    def __call__(self) -> Tensor:
        """R_BN of all forward passes since the last reading, a scalar with its graph; resets the accumulator."""
        terms = self.by_layer()
        return (terms * terms.new_tensor(self.weights)).sum()

    def see(self, number: int, maps: Tensor) -> None:
        """Add the term of a layer's input maps (n, c, h, w); at least float32, even under autocast."""
        mean, variance = self._targets[number]
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
            # the gradient of vector_norm is 0 at 0; that of sqrt would be NaN
            centre, spread = channel_statistics(maps)
            apart = torch.linalg.vector_norm(spread - variance) + torch.linalg.vector_norm(centre - mean)
        self._terms.append((number, apart))


@contextlib.contextmanager
def statistics_loss(network: nn.Module, first: float = 10.0) -> Iterator[StatisticsLoss]:
    """Compute the statistics loss of every forward pass inside the block.

    Args:
        network: a network in evaluation mode, with BatchNorm2d layers that have running statistics.
        first: weight of the first BatchNorm layer in module order; the others have weight 1.

    Yields:
        A `StatisticsLoss` to call after each forward pass.  The hooks are removed when the block ends, also after an
        exception.

    Raises:
        UsageError: the network has no such layer.
    """
    loss = StatisticsLoss(required_batch_norms(network), first)

    def hook(number: int) -> None:
        def see(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            loss.see(number, inputs[0])

        stack.callback(loss.layers[number].register_forward_pre_hook(see).remove)

    with contextlib.ExitStack() as stack:
        for number in range(len(loss.layers)):
            hook(number)
        yield loss


def channel_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel means (c,) and biased variances (c,) of maps (n, c, h, w); differentiable once.

    On a CPU, forward and backward take a tenth of the time of `torch.var_mean` over three dimensions.
    """
    return cast("tuple[Tensor, Tensor]", _ChannelStatistics.apply(maps))


class _ChannelStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> tuple[Tensor, Tensor]:  # ctx is Any: it takes any attribute
        mean = maps.mean((2, 3)).mean(0)
        centred = maps - mean[:, None, None]
        variance = torch.linalg.vector_norm(centred, dim=(2, 3)).square().mean(0) / (maps.shape[2] * maps.shape[3])
        ctx.save_for_backward(centred)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        return _channel_statistics_back(ctx, *outer)


@torch.autograd.function.once_differentiable
def _channel_statistics_back(ctx: Any, d_mean: Tensor, d_variance: Tensor) -> Tensor:
    (centred,) = ctx.saved_tensors
    n = centred.numel() // centred.shape[1]
    return torch.addcmul((d_mean / n)[:, None, None], centred, (2 * d_variance / n)[:, None, None])


def required_batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """The layers of `batch_norms`, of which there must be at least one.

    Raises:
        UsageError: there is none.
    """
    if layers := batch_norms(network):
        return layers
    raise UsageError(
        f"{type(network).__name__} has no BatchNorm with running statistics, which recovery matches: take a "
        "teacher with norm=batch, for example student.norm=batch, or set r_bn=0"
    )


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """The BatchNorm2d layers with running statistics, in module order."""
    found = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    return [layer for layer in found if layer.running_mean is not None]


def _kept(statistic: Tensor | None) -> Tensor:
    assert statistic is not None
    return statistic.detach().to(torch.promote_types(statistic.dtype, torch.float32))
