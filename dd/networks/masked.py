"""A masked autoencoder: a vision transformer that completes images of which patches are missing.

He et al., CVPR 2022, arXiv:2111.06377.  The names of its weights are those of the published files, which it can read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd.errors import UsageError
from dd.networks.checkpoints import load_weights, read_weights

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on which the published ones are trained
_HEADS = {"heads": 16, "decoder_heads": 16}  # of the published ViT-L; the shapes of the weights do not tell


@dataclass(frozen=True)
class MaskedSpec:
    """The shape of a masked autoencoder.

    Attributes:
        channels: of an image.
        patch: side of a patch in pixels.
        grid: patches per side.
        width: of the encoder's tokens.
        depth: number of the encoder's blocks.
        heads: of the encoder's attention.
        decoder_width: of the decoder's tokens.
        decoder_depth: number of the decoder's blocks.
        decoder_heads: of the decoder's attention.
        mlp_ratio: width of a block's hidden layer, in widths of its tokens.
    """

    channels: int
    patch: int
    grid: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float = 4.0

    @property
    def size(self) -> int:
        """Side of an image in pixels."""
        return self.grid * self.patch


class MaskedAutoencoder(nn.Module):
    """Encodes the visible patches of an image, and decodes all patches.

    Args:
        spec: its shape.
    """

    def __init__(self, spec: MaskedSpec) -> None:
        from timm.layers.patch_embed import PatchEmbed
        from timm.models.vision_transformer import Block

        super().__init__()
        self.spec = spec
        norm = cast(type[nn.LayerNorm], partial(nn.LayerNorm, eps=1e-6))
        block = partial(Block, mlp_ratio=spec.mlp_ratio, qkv_bias=True, norm_layer=norm)
        tokens = spec.grid**2 + 1
        self.patch_embed = PatchEmbed(spec.size, spec.patch, spec.channels, spec.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, spec.width))
        self.blocks = nn.ModuleList(block(spec.width, spec.heads) for _ in range(spec.depth))
        self.norm = norm(spec.width)
        self.decoder_embed = nn.Linear(spec.width, spec.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, spec.decoder_width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, spec.decoder_width))
        decoder = (block(spec.decoder_width, spec.decoder_heads) for _ in range(spec.decoder_depth))
        self.decoder_blocks = nn.ModuleList(decoder)
        self.decoder_norm = norm(spec.decoder_width)
        self.decoder_pred = nn.Linear(spec.decoder_width, spec.patch**2 * spec.channels)

    def forward(self, images: Tensor, kept: Tensor) -> Tensor:
        """Reconstruct images (n, c, s, s) from the patches kept, bool (n, grid²), equally many of every image.

        Returns:
            (n, c, s, s), all of whose patches are decoded ones.
        """
        n, at = len(images), kept.nonzero()[:, 1].view(len(images), -1)
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        tokens = tokens.gather(1, at[:, :, None].expand(-1, -1, tokens.shape[2]))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(n, -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_embed(self.norm(tokens))
        whole = self.mask_token.expand(n, kept.shape[1], -1)
        whole = whole.scatter(1, at[:, :, None].expand(-1, -1, whole.shape[2]), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], whole], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self._image(self.decoder_pred(self.decoder_norm(tokens))[:, 1:])

    def _image(self, patches: Tensor) -> Tensor:
        """Images of patches (n, grid², patch² c), whose numbers are ordered by row, column and channel."""
        spec, n = self.spec, len(patches)
        apart = patches.view(n, spec.grid, spec.grid, spec.patch, spec.patch, spec.channels)
        return apart.permute(0, 5, 1, 3, 2, 4).reshape(n, spec.channels, spec.size, spec.size)


@dataclass(frozen=True, eq=False)
class Completer:
    """A masked autoencoder for pixels.

    Attributes:
        network: in eval mode, frozen.
        mean: per channel, of the normalisation of its images, in [0, 1] units.
        std: likewise, the standard deviation.
        bytes: size of its weights.
    """

    network: MaskedAutoencoder
    mean: Sequence[float]
    std: Sequence[float]
    bytes: int

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.network.spec.grid

    @torch.no_grad()
    def __call__(self, pixels: Tensor, kept: Tensor) -> Tensor:
        """Complete images, which are resized to the network's size and back if they have another.

        Args:
            pixels: (n, c, s, s) in [0, 1]; grey images are repeated for a network of three channels, whose result is
                averaged over the channels.
            kept: bool (n, grid²).

        Returns:
            (n, c, s, s) in [0, 1]; also in the kept patches it is what the network decodes.
        """
        spec, size, channels = self.network.spec, pixels.shape[-1], pixels.shape[1]
        mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        shown = _resized(pixels, spec.size).expand(-1, spec.channels, -1, -1)
        made = self.network((shown - mean) / std, kept) * std + mean
        made = made.mean(1, keepdim=True) if channels < spec.channels else made
        return _resized(made, size).clamp(0, 1)


def read_completer(path: Path, device: torch.device) -> Completer:
    """Read a masked autoencoder's weights, as published for `mae_visualize_vit_*`, or a .safetensors file of ours.

    Its shape is read off the weights.  Beside the state dict, the file may hold `heads` and `decoder_heads` (default
    16 each), and `mean` and `std` of its images (default: ImageNet's), as JSON in the metadata of a .safetensors file.
    Its decoder must predict pixels, not patches that are normalised one by one.

    Raises:
        UsageError: the file cannot be read, or holds no masked autoencoder.
    """
    file = read_weights(path)
    spec = _shape_of(file.state, file.facts, path)
    with torch.random.fork_rng(devices=[]):  # its first weights are random, and replaced
        network = MaskedAutoencoder(spec)
    load_weights(network, file.state, str(path))
    channels = spec.channels
    mean, std = file.normalise or ((_MEAN, _STD) if channels == len(_MEAN) else ((0.0,) * channels, (1.0,) * channels))
    if len(mean) != channels or len(std) != channels:
        raise UsageError(f"{path}: mean and std have {len(mean)} and {len(std)} numbers for {channels} channels")
    stored = sum(value.numel() * value.element_size() for value in file.state.values())
    return Completer(network.to(device).eval().requires_grad_(False), mean, std, stored)


def _shape_of(state: Mapping[str, Tensor], facts: Mapping[str, object], path: Path) -> MaskedSpec:
    wanted = ("patch_embed.proj.weight", "pos_embed", "decoder_pos_embed", "blocks.0.mlp.fc1.weight", "mask_token")
    if missing := next((name for name in wanted if name not in state), None):
        raise UsageError(f"{path} is not a masked autoencoder with its decoder: it holds no {missing!r}")
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    decoder_width, grid = state["decoder_pos_embed"].shape[2], round((state["pos_embed"].shape[1] - 1) ** 0.5)
    heads = _heads("heads", facts, width, path)
    return MaskedSpec(
        channels=channels,
        patch=patch,
        grid=grid,
        width=width,
        depth=_blocks(state, "blocks."),
        heads=heads,
        decoder_width=decoder_width,
        decoder_depth=_blocks(state, "decoder_blocks."),
        decoder_heads=_heads("decoder_heads", facts, decoder_width, path),
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
    )


def _heads(name: str, facts: Mapping[str, object], width: int, path: Path) -> int:
    value = facts.get(name, _HEADS[name])
    if not isinstance(value, int) or value < 1 or width % value:
        raise UsageError(f"{path}: {name}={value} does not divide a width of {width}; state {name} in the file")
    return value


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(prefix)})


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
