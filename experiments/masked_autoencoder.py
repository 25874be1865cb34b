"""Train a small masked autoencoder on real images, for `dd run method=dq autoencoder=FILE`.

    python experiments/masked_autoencoder.py fashion-mini mae.safetensors 1000

The last number is that of the steps.  Only training images are used, neither held-out nor test ones.  The objective is
that of He et al. (CVPR 2022, arXiv:2111.06377) without the normalisation of patches: the squared error of the patches
that the encoder does not see.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from dd.data import DataSettings, RealData, open_data
from dd.errors import UsageError
from dd.io import save_tensors
from dd.networks.masked import MaskedAutoencoder, MaskedSpec
from dd.rng import generator

PATCHES = 7  # per side, of our networks


@dataclass(frozen=True)
class Training:
    """How an autoencoder is trained."""

    steps: int = 1000
    """Steps of AdamW, one cycle of the learning rate."""
    batch: int = 64
    """Images per step."""
    lr: float = 2e-3
    """Largest learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""
    hidden: float = 0.5
    """Share of an image's patches that are hidden; the paper's 0.75 is for encoders, and `dq` drops fewer."""


def spec_for(channels: int, size: int, width: int = 48, depth: int = 2) -> MaskedSpec:
    """The shape of a small autoencoder.

    Args:
        channels: of an image.
        size: side of an image in pixels, a multiple of `PATCHES`.
        width: of the tokens of encoder and decoder.
        depth: number of the encoder's blocks; the decoder has one.

    Raises:
        UsageError: the patches do not tile the image.
    """
    if size % PATCHES:
        raise UsageError(f"images of {size} pixels have no {PATCHES} x {PATCHES} patches of equal size")
    return MaskedSpec(channels, size // PATCHES, PATCHES, width, depth, 4, width, 1, 4, mlp_ratio=2.0)


def fresh(spec: MaskedSpec, rng: Generator) -> MaskedAutoencoder:
    """An untrained autoencoder; its positions are learned from small random ones, not fixed waves."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), generator=rng)))
        network = MaskedAutoencoder(spec)
        for token in (network.cls_token, network.mask_token, network.pos_embed, network.decoder_pos_embed):
            nn.init.normal_(token, std=0.02)
    return network


def random_patches(n: int, patches: int, hidden: float, rng: Generator) -> Tensor:
    """Which patches are seen, bool (n, patches): the same number of every image, drawn uniformly."""
    seen = torch.zeros(n, patches, dtype=torch.bool)
    order = torch.rand(n, patches, generator=rng).argsort(1)
    return seen.scatter_(1, order[:, : max(1, round(patches * (1 - hidden)))], True)


def train(network: MaskedAutoencoder, images: Tensor, settings: Training, rng: Generator) -> MaskedAutoencoder:
    """Train an autoencoder, in place, to predict the hidden patches.

    Args:
        network: the autoencoder.
        images: (n, c, s, s), normalised, of its size.
        settings: how.
        rng: draws batches and hidden patches.
    """
    spec = network.spec
    optimiser = AdamW(network.parameters(), settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay)
    schedule = OneCycleLR(optimiser, settings.lr, total_steps=settings.steps, cycle_momentum=False)
    for _ in range(settings.steps):
        batch = images[torch.randint(len(images), (settings.batch,), generator=rng)]
        seen = random_patches(len(batch), spec.grid**2, settings.hidden, rng)
        hidden = (~seen).view(-1, 1, spec.grid, spec.grid).float()
        weight = hidden.repeat_interleave(spec.patch, 2).repeat_interleave(spec.patch, 3)
        error = (network(batch, seen) - batch).square() * weight
        optimiser.zero_grad()
        (error.sum() / (weight.sum() * spec.channels)).backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def save_autoencoder(network: MaskedAutoencoder, mean: Tensor, std: Tensor, path: Path) -> None:
    """Write the weights with what `dd.networks.masked.read_completer` needs.

    Args:
        network: the autoencoder.
        mean: (c,), subtracted from pixels in [0, 1].
        std: (c,), by which they are then divided.
        path: a .safetensors file.
    """
    spec = network.spec
    facts = {"heads": spec.heads, "decoder_heads": spec.decoder_heads, "mean": mean.tolist(), "std": std.tolist()}
    save_tensors(path, network.state_dict(), {name: json.dumps(value) for name, value in facts.items()})


def normalised_images(data: RealData) -> tuple[Tensor, Tensor, Tensor]:
    """The training images (n, c, s, s), normalised, and the mean and standard deviation (c,) of their pixels."""
    pixels = data.train.raw(torch.arange(len(data.train))).float() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    return (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), mean, std


def main(dataset: str, file: str, steps: str = "1000") -> None:
    """Train one on the training images of a data set, and write it to a .safetensors file."""
    data = open_data(dataset, DataSettings(), "cpu")
    images, mean, std = normalised_images(data)
    network = fresh(spec_for(data.channels, data.size), generator(0, "autoencoder"))
    train(network, images, Training(int(steps)), generator(0, "batches"))
    save_autoencoder(network, mean, std, Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
