"""The ConvNet's block, with closed forms of its first and second derivatives.

Distillation differentiates a student's gradient.  PyTorch's graph of a gradient keeps about ten maps of every block and
goes over each several times.  Here a block is one node of the graph, and its gradient another; they keep the input and
the gradient of the output, which are smaller than the maps.  The maps of the convolution are kept as well, or computed
again.  With x these maps, and for each image and channel their mean, and r the inverse of their standard deviation
over m pixels,

    xhat = (x - mean) r,    y = scale xhat + shift,    output = pool(relu(y))

For a gradient d of the output and g = [y > 0] pool^T(d), with p = mean(g) and q = mean(g xhat), the gradients are

    dx = scale r (g - p - q xhat),    dscale = m q,    dshift = m p

where those of scale and shift are summed over the images.  For cotangents u, v, w of these three, the derivatives of
<u, dx> + <v, dscale> + <w, dshift> are, with s = mean(u), t = mean(u xhat) and k = mean(u g) - s p - t q,

    by d:      pool([y > 0] (scale r (u - s - t xhat) + v xhat + w))
    by x:      r (e - mean(e) - xhat mean(e xhat)) - scale r^2 k xhat,    e = (v - scale r t) g - scale r q u
    by scale:  m r k
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dd.networks import native

aten = torch.ops.aten

N = TypeVar("N", bound=nn.Module)


class ConvBlock(nn.Sequential):
    """A 3×3 convolution, a norm, an activation and a pooling layer.

    Args:
        conv: the convolution, with stride 1 and a bias.
        norm: the norm of its maps.
        activation: the activation.
        pooling: the pooling layer.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, activation: nn.Module, pooling: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.activation, self.pooling = conv, norm, activation, pooling
        self.closed: ClosedForms | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Images or maps (n, c, h, w) to pooled maps."""
        if self.closed is None or not self._has_closed_form(input):
            return super().forward(input)
        return _Output.apply(input, self.conv.weight, self.conv.bias, self.norm.weight, self.norm.bias, self)[0]

    def maps(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The maps of the convolution with these parameters."""
        return F.conv2d(images, weight, bias, padding=self.conv.padding)

    def is_closed(self) -> bool:
        """Whether there are closed forms for these layers, if maps have even sides."""
        norm, pooling = self.norm, self.pooling
        instance = isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
        averaged = isinstance(pooling, nn.AvgPool2d) and pooling.kernel_size == 2
        return instance and isinstance(self.activation, nn.ReLU) and averaged

    def _has_closed_form(self, images: Tensor) -> bool:
        sides = [side + 2 * int(pad) - 2 for side, pad in zip(images.shape[2:], self.conv.padding, strict=True)]
        return self.is_closed() and not any(side % 2 for side in sides)


def is_closed(network: nn.Module) -> bool:
    """Whether a network has `ConvBlock`s, all with closed forms, which are computed in C here."""
    blocks = [block for block in network.modules() if isinstance(block, ConvBlock)]
    return bool(blocks) and all(block.is_closed() and native.takes(block.conv.weight) for block in blocks)


@contextlib.contextmanager
def in_closed_form(network: nn.Module, allowed: bool = True) -> Iterator[None]:
    """In the passes of this block, gradients are in closed form if `is_closed` and allowed, else PyTorch's."""
    before = {block: block.closed for block in network.modules() if isinstance(block, ConvBlock)}
    for block in before:
        block.closed = None
    if allowed and is_closed(network):
        closed_form(network)
    try:
        yield
    finally:
        for block, forms in before.items():
            block.closed = forms


def closed_form(network: N, *, keep: bool = True, fast: bool = True) -> N:
    """Let a network's `ConvBlock`s compute gradients, and gradients of gradients, in closed form; return the network.

    A gradient may be differentiated once.  The values are PyTorch's, to rounding.  Nothing changes for other layers,
    nor for blocks with another norm than "instance", activation than ReLU or pooling than "avg", or odd maps.  Hooks of
    the layers of a block do not run.

    Args:
        network: the network.
        keep: keep the maps of the convolution until the graph is freed; otherwise they are computed again, which is one
            convolution more for every eight.
        fast: go over the maps in C, on a CPU with a C compiler; the values are the same, to rounding.
    """
    functions = (_pooled_in_c, _gradient_in_c, _second_in_c) if fast else (_pooled, _gradient, _second)
    forms = ClosedForms(keep, *functions)
    for block in network.modules():
        if isinstance(block, ConvBlock):
            block.closed = forms
    return network


@dataclass(frozen=True)
class ClosedForms:
    """How blocks are differentiated, see `closed_form`.

    Attributes:
        keep: whether maps are kept.
        pooled: `_pooled`, or the same in C.
        gradient: `_gradient`, or the same in C.
        second: `_second`, or the same in C.
    """

    keep: bool
    pooled: Callable[..., tuple[Tensor, Tensor, Tensor]]
    gradient: Callable[..., tuple[Tensor, Tensor, Tensor]]
    second: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


class _Norm(NamedTuple):
    """Mean and r of every map, (n, c), and scale and shift of every channel, (c,)."""

    mean: Tensor
    r: Tensor
    scale: Tensor
    shift: Tensor


class _Maps:
    """The maps of a block's convolution that are not kept: computed again, and remembered while they are in use."""

    def __init__(self) -> None:
        self._remembered: Tensor | None = None

    def remember(self, maps: Tensor) -> None:
        """Remember them until the next `get`."""
        self._remembered = maps

    def get(self, block: ConvBlock, images: Tensor, weight: Tensor, bias: Tensor, again: bool) -> Tensor:
        """Return them; `again` says whether the next call comes soon."""
        maps = block.maps(images, weight, bias) if self._remembered is None else self._remembered
        self._remembered = maps if again else None
        return maps


@dataclass(frozen=True)
class _Pass:
    """One pass of a block: what its nodes need besides tensors."""

    block: ConvBlock
    forms: ClosedForms
    maps: _Maps


class _Output(torch.autograd.Function):
    """The output, and a tensor without memory through which the gradient of the convolution's maps comes back."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, block: ConvBlock
    ) -> tuple[Tensor, ...]:
        assert block.closed is not None
        ctx.now = _Pass(block, block.closed, _Maps())
        x = block.maps(images, weight, bias)
        output, mean, r = block.closed.pooled(x, scale, shift, block.norm.eps)
        stand_in = x.new_zeros(()).expand_as(x)
        if not block.closed.keep:
            ctx.now.maps.remember(x)
        kept = x if block.closed.keep else None
        ctx.save_for_backward(images, weight, bias, mean, r, scale, shift, kept, stand_in)
        ctx.mark_non_differentiable(mean, r)
        ctx.set_materialize_grads(False)
        return output, stand_in, mean, r

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        output, maps, *_ = gradients
        *saved, stand_in = ctx.saved_tensors
        wanted = _is_wanted(ctx, 0), _is_wanted(ctx, 1) or _is_wanted(ctx, 2)
        if torch.is_grad_enabled() and maps is None:  # this gradient may be differentiated
            return (*_Gradient.apply(*saved, output, stand_in, ctx.now, wanted), None)
        return (*_final(ctx, output, maps, saved, wanted), None)


class _Gradient(torch.autograd.Function):
    """The gradients of `_Output`, by images, weight, bias, scale and shift."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor | None, ...]:
        *saved, output, _, ctx.now, wanted = given
        ctx.of_images = wanted[0]
        ctx.save_for_backward(*saved, output)
        return _gradients(output, None, saved, ctx.now, wanted)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return _derivatives(ctx, *cotangents)


@once_differentiable
def _final(
    ctx: Any,
    output: Tensor | None,
    maps: Tensor | None,
    saved: Sequence[Tensor | None],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of a pass that is not differentiated, or that already is a second derivative."""
    return _gradients(output, maps, saved, ctx.now, wanted)


def _gradients(
    output: Tensor | None,
    maps: Tensor | None,
    saved: Sequence[Tensor | None],
    now: _Pass,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """The gradients by images, weight, bias, scale and shift, from those of the output and of the maps.

    Args:
        output: (n, c, h / 2, w / 2); None for zeros.
        maps: (n, c, h, w); None for zeros.
        saved: images, weight and bias, the fields of `_Norm`, and the maps, None if they are not kept.
        now: the pass.
        wanted: whether the gradient by images is needed, and that by weight and bias.
    """
    x, images, weight, norm = _opened(now, saved, again=False)
    if output is None:
        output = x.new_zeros(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    dx, q, p = now.forms.gradient(output, x, norm)
    if maps is not None:
        dx += maps
    by_images, by_weight, by_bias = _convolution_back(dx, images, weight, now.block, [wanted[0], wanted[1], wanted[1]])
    pixels = x[0, 0].numel()
    return by_images, by_weight, by_bias, q.sum(0) * pixels, p.sum(0) * pixels


@once_differentiable
def _derivatives(
    ctx: Any,
    of_images: Tensor,
    of_weight: Tensor | None,
    of_bias: Tensor | None,
    of_scale: Tensor,
    of_shift: Tensor,
) -> tuple[Tensor | None, ...]:
    """The derivatives of `_Gradient`, from the cotangents of its gradients."""
    *saved, output = ctx.saved_tensors
    now: _Pass = ctx.now
    x, images, weight, norm = _opened(now, saved, again=True)
    u = torch.zeros_like(x) if of_weight is None else now.block.maps(images, of_weight, of_bias)
    if ctx.of_images:
        u += now.block.maps(of_images, weight, None)
    by_output, by_x, k, dx = now.forms.second(u, of_scale, of_shift, output, x, norm)
    by_images = by_weight = None
    if of_weight is not None and _is_wanted(ctx, 0):
        by_images, _, _ = _convolution_back(dx, images, of_weight, now.block, [True, False, False])
    if ctx.of_images and _is_wanted(ctx, 1):
        _, by_weight, _ = _convolution_back(dx, of_images, weight, now.block, [False, True, False])
    by_scale = k.sum(0) * x[0, 0].numel()
    no = None  # bias and shift do not change a gradient; mean and r are functions of the maps, and accounted for
    return by_images, by_weight, no, no, no, by_scale, no, no, by_output, by_x, no, no


def _opened(now: _Pass, saved: Sequence[Tensor | None], again: bool) -> tuple[Tensor, Tensor, Tensor, _Norm]:
    """Maps, images, weight and norm; `again` says whether the maps will soon be asked for again."""
    images, weight, bias, *norm, kept = saved
    assert images is not None
    assert weight is not None
    assert bias is not None
    maps = now.maps.get(now.block, images, weight, bias, again) if kept is None else kept
    return maps, images, weight, _Norm(*cast("Sequence[Tensor]", norm))


def _is_wanted(ctx: Any, position: int) -> bool:
    """Whether the pass that is going on needs the gradient of an input.

    Args:
        ctx: the node.
        position: the position of the input among those that are tensors.
    """
    node = ctx.next_functions[position][0]
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient was asked for
        return True


# Functions of the maps: in C where `native` takes them, otherwise by PyTorch.


def _pooled(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The output (n, c, h / 2, w / 2); mean and r of the maps, (n, c)."""
    n, c, h, w = x.shape
    y, mean, r = torch.native_group_norm(x, scale, shift, n, c, h * w, c, eps)
    return F.avg_pool2d(y.relu_(), 2), mean, r


def _gradient(d: Tensor, x: Tensor, norm: _Norm) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient by x (n, c, h, w), and q and p (n, c), from that of the output (n, c, h / 2, w / 2)."""
    g = aten.threshold_backward(_spread(d), _normalised(x, norm), 0)
    return _normalised_back(g, x, norm)


def _second(
    u: Tensor, v: Tensor, w: Tensor, d: Tensor, x: Tensor, norm: _Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivatives by d (n, c, h / 2, w / 2) and by x; r k (n, c); and dx."""
    mean, r, slope, y = norm.mean, norm.r, norm.scale * norm.r, _normalised(x, norm)
    g = aten.threshold_backward(_spread(d), y, 0)
    dx, q, p = _normalised_back(g, x, norm)
    du, t, s = _normalised_back(u, x, norm)
    k = (u * g).mean((2, 3)) - s * p - t * q
    du.addcmul_(x, _per_map(v * r)).add_(_per_map(w - v * r * mean))
    by_d = F.avg_pool2d(aten.threshold_backward(du, y, 0), 2)
    e = g.mul_(_per_map(v - slope * t)).addcmul_(u, _per_map(-slope * q))
    by_x, _, _ = _normalised_back(e, x, norm._replace(scale=torch.ones_like(norm.scale)))
    last = slope * r * r * k
    by_x.addcmul_(x, _per_map(-last)).add_(_per_map(last * mean))
    return by_d, by_x, r * k, dx


def _normalised(x: Tensor, norm: _Norm) -> Tensor:
    """y, from maps whose statistics are known."""
    slope = norm.scale * norm.r
    return torch.addcmul(_per_map(norm.shift - slope * norm.mean), x, _per_map(slope))


def _normalised_back(g: Tensor, x: Tensor, norm: _Norm) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient scale r (g - mean(g) - xhat mean(g xhat)); mean(g xhat) and mean(g), (n, c).

    Torch's kernel sums the last two over images; so all maps are given to it as channels of one image.
    """
    n, c, h, w = x.shape
    given = [each.view(1, n * c, *each.shape[2:]) for each in (g, x, norm.mean, norm.r)]
    scale = norm.scale.expand(n, c).reshape(n * c)
    dx, q, p = aten.native_group_norm_backward(*given, scale, 1, n * c, h * w, n * c, [True, True, True])
    return dx.view(n, c, h, w), q.view(n, c) / (h * w), p.view(n, c) / (h * w)


def _per_map(values: Tensor) -> Tensor:
    return values[:, :, None, None]


def _spread(d: Tensor) -> Tensor:
    """The adjoint of average pooling: a quarter of every value four times."""
    n, c, h, w = d.shape
    return (d * 0.25)[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)


def _pooled_in_c(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if not native.takes(x, scale, shift):
        return _pooled(x, scale, shift, eps)
    (n, c, h, w), x = x.shape, x.contiguous()
    found = x.new_empty(n, c, h // 2, w // 2), x.new_empty(n, c), x.new_empty(n, c)
    native.call("pooled", x, eps, x, scale.contiguous(), shift.contiguous(), *found)
    return found


def _gradient_in_c(d: Tensor, x: Tensor, norm: _Norm) -> tuple[Tensor, Tensor, Tensor]:
    if not native.takes(d, x, *norm):
        return _gradient(d, x, norm)
    x, d, *of_norm = (tensor.contiguous() for tensor in (x, d, *norm))
    found = torch.empty_like(x), torch.empty_like(norm.mean), torch.empty_like(norm.mean)
    native.call("gradient", x, d, x, *of_norm, *found)
    return found


def _second_in_c(
    u: Tensor, v: Tensor, w: Tensor, d: Tensor, x: Tensor, norm: _Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not native.takes(u, v, w, d, x, *norm):
        return _second(u, v, w, d, x, norm)
    u, v, w, d, x, *of_norm = (tensor.contiguous() for tensor in (u, v, w, d, x, *norm))
    found = torch.empty_like(d), torch.empty_like(x), torch.empty_like(norm.mean), torch.empty_like(x)
    native.call("second", x, u, v, w, d, x, *of_norm, *found)
    return found


def _convolution_back(dx: Tensor, images: Tensor, weight: Tensor, block: ConvBlock, wanted: list[bool]) -> Any:
    """The gradients of a block's convolution by its input, weight and bias, as far as they are wanted."""
    biases, padding = [len(weight)], list(block.conv.padding)
    return aten.convolution_backward(dx, images, weight, biases, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted)
