"""The ConvNet of the distillation literature (Gidaris & Komodakis 2018; Zhao et al., "Dataset Condensation", 2021)."""

from torch import Tensor, nn

from dd.networks.block import ConvBlock
from dd.networks.layers import activation_layer, norm_layer, pooling_layer


class ConvNet(nn.Module):
    """`depth` blocks of 3×3 convolution, norm, activation and 2×2 pooling, then one linear layer.

    For grey 28×28 images the first convolution has padding 3, so that the map is 32×32.  Weights have PyTorch's
    default initialisation.

    Args:
        channels: channels of an image.
        size: height and width of an image in pixels.
        classes: number of logits.
        depth: number of blocks, at least 1; with pooling, at most as many as the map can be halved.
        width: channels of every block.
        norm: see `layers.norm_layer`.
        pooling: see `layers.pooling_layer`.
        activation: see `layers.activation_layer`.

    Raises:
        UsageError: an unknown norm, pooling or activation.
    """

    def __init__(
        self, channels: int, size: int, classes: int, depth: int, width: int, norm: str, pooling: str, activation: str
    ) -> None:
        super().__init__()
        side = map_side(channels, size)
        blocks = []
        for number in range(depth):
            inputs, padding = (width, 1) if number else (channels, 1 + (side - size) // 2)
            conv = nn.Conv2d(inputs, width, 3, padding=padding)
            layers = norm_layer(norm, width, side), activation_layer(activation), pooling_layer(pooling)
            blocks.append(ConvBlock(conv, *layers))
            side = side if pooling == "none" else side // 2
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * side * side, classes)

    def embed(self, images: Tensor) -> Tensor:
        """The input of the linear layer: (n, c, h, w) to (n, features), flattened channel by channel."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (n, c, h, w) to (n, classes)."""
        return self.classifier(self.embed(images))


def map_side(channels: int, size: int) -> int:
    """Side of the first block's map in pixels: that of the image, or 32 for grey 28×28 images."""
    return 32 if (channels, size) == (1, 28) else size
