"""Networks as functions of one flat parameter vector, for differentiation through training steps."""

from collections.abc import Iterable, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dd.errors import UsageError
from dd.networks.portion import portions


class VectorHeader(TypedDict):
    """Metadata of a stored parameter vector: names and shapes of its parameters, in order."""

    names: list[str]
    shapes: list[list[int]]


class Functional:
    """A network's logits as a function of one vector of all its parameters, in `named_parameters()` order.

    The vector is split into views, so that its gradient takes a single concatenation.  A call uses the module's layers
    and its train or eval mode, but neither reads nor changes its parameters.  The dtype and device of the vector
    determine those of the computation.

    Attributes:
        module: the network.
        names: parameter names in order.
        shapes: their shapes.
        size: length P of the vector.

    Raises:
        UsageError: the network has running statistics, which a parameter vector cannot hold.
    """

    def __init__(self, module: nn.Module) -> None:
        _refuse_running_statistics(module)
        named = dict(module.named_parameters())
        self.module = module
        self.names = tuple(named)
        self.shapes = tuple(parameter.shape for parameter in named.values())
        self._sizes = [shape.numel() for shape in self.shapes]
        self.size = sum(self._sizes)

    def flatten(self, module: nn.Module) -> Tensor:
        """Copy the parameters of a network of this architecture into a new vector (P,), detached."""
        named = dict(module.named_parameters())
        self.require(_header(named.keys(), [p.shape for p in named.values()]), "a network given to flatten")
        return torch.cat([parameter.detach().reshape(-1) for parameter in named.values()])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a vector (P,), by name, in the shapes of the parameters."""
        parts = flat.split(self._sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def __call__(self, flat: Tensor, images: Tensor) -> Tensor:
        """Logits (n, classes) of the network with parameters `flat` (P,) for images (n, c, h, w) of the same dtype."""
        state = self.unflatten(flat)
        for name, buffer in self.module.named_buffers():  # constant buffers follow the dtype and device of `flat`
            state[name] = buffer.to(flat) if buffer.is_floating_point() else buffer.to(flat.device)
        return functional_call(self.module, state, (images,))

    @torch.no_grad()
    def predict(self, flat: Tensor, images: Tensor, chunk: int = 512) -> Tensor:
        """Logits (n, classes) in eval mode, without a graph, at most `chunk` images at a time; restores the mode."""
        was_training = self.module.training
        self.module.eval()
        some = (part for batch in images.split(chunk) for part in portions(self.module, batch))
        logits = torch.cat([self(flat, part) for part in some])
        self.module.train(was_training)
        return logits

    def load(self, module: nn.Module, flat: Tensor) -> None:
        """Copy a vector (P,) into the parameters of a network of this architecture."""
        named = dict(module.named_parameters())
        self.require(_header(named.keys(), [p.shape for p in named.values()]), "a network given to load")
        with torch.no_grad():
            for name, value in self.unflatten(flat).items():
                named[name].copy_(value)

    def header(self) -> VectorHeader:
        """The metadata to store with a vector."""
        return _header(self.names, self.shapes)

    def require(self, header: VectorHeader, what: str = "the stored parameters") -> None:
        """Check that stored vectors belong to this architecture.

        Args:
            header: the result of `header()` when they were stored.
            what: name for the message, for example a path.

        Raises:
            UsageError: they do not; the message names the first layer that differs.
        """
        theirs = list(zip(header["names"], map(tuple, header["shapes"]), strict=True))
        ours = list(zip(self.names, map(tuple, self.shapes), strict=True))
        if theirs == ours:
            return
        same = 0
        while same < min(len(theirs), len(ours)) and theirs[same] == ours[same]:
            same += 1
        raise UsageError(
            f"{what} do not fit this network: layer {same} is {_describe(theirs, same)} there and "
            f"{_describe(ours, same)} here; use the architecture they were made with (student.*)"
        )


def _header(names: Iterable[str], shapes: Sequence[torch.Size]) -> VectorHeader:
    return {"names": list(names), "shapes": [list(shape) for shape in shapes]}


def _describe(layers: list[tuple[str, tuple[int, ...]]], at: int) -> str:
    if at >= len(layers):
        return "missing"
    name, shape = layers[at]
    return f"{name} ({'x'.join(map(str, shape))})"


def _refuse_running_statistics(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if getattr(layer, "running_mean", None) is not None:
            raise UsageError(
                f"layer {name!r} ({type(layer).__name__}) keeps running statistics, which are not parameters and "
                "would be lost between steps: use student.norm=instance, or an architecture without batch norm"
            )
