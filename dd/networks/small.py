"""Small-image networks of the usual cross-architecture tables: AlexNet, VGG-11, LeNet, an MLP and a ViT.

The first four come from "Dataset Condensation" (Zhao et al., ICLR 2021) and appear in the evaluations of its
successors, such as DM and MTT.  Sizes, kernels and paddings follow its official code; weights have PyTorch's default
initialisation.  Grey 28×28 images become 32×32 maps in the first convolution, as in the ConvNet.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from dd.errors import UsageError
from dd.networks.convnet import map_side
from dd.networks.layers import activation_layer, norm_layer

PATCH = 4  # side of the ViT's patches in pixels
HEADS = 8  # attention heads of the ViT

# per convolution: channels in units of width / 2, kernel size, whether max-pooling follows
_ALEXNET = ((2, 5, True), (3, 5, True), (4, 3, False), (3, 3, False), (3, 3, True))
_VGG11 = (
    (2, 3, True),
    (4, 3, True),
    (8, 3, False),
    (8, 3, True),
    (16, 3, False),
    (16, 3, True),
    (16, 3, False),
    (16, 3, True),
)


class Plain(nn.Module):
    """A sequence of layers, then one linear layer.

    Args:
        layers: (name, layer) pairs; together they map (n, c, h, w) to (n, ...).
        features: number of features per image after the layers.
        classes: number of logits.
    """

    def __init__(self, layers: Sequence[tuple[str, nn.Module]], features: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for name, layer in layers:
            self.features.add_module(name, layer)
        self.classifier = nn.Linear(features, classes)

    def embed(self, images: Tensor) -> Tensor:
        """The input of the last linear layer: (n, c, h, w) to (n, features)."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (n, c, h, w) to (n, classes)."""
        return self.classifier(self.embed(images))


def alexnet(channels: int, size: int, classes: int, width: int, norm: str, activation: str) -> Plain:
    """AlexNet: five convolutions, three of them pooled.  DC's has no norm; DM's AlexNetBN has `norm="batch"`."""
    return _convolutional(_ALEXNET, channels, size, classes, width, norm, activation)


def vgg11(channels: int, size: int, classes: int, width: int, norm: str, activation: str) -> Plain:
    """VGG-11 (Simonyan & Zisserman 2015) with one linear layer instead of three; five of eight convolutions are pooled.

    DC's has `norm="instance"`; DM's VGG11BN has `norm="batch"`.
    """
    return _convolutional(_VGG11, channels, size, classes, width, norm, activation)


def lenet(channels: int, size: int, classes: int, activation: str) -> Plain:
    """LeNet (LeCun et al. 1998): two 5×5 convolutions, each max-pooled, and three linear layers."""
    pad = (map_side(channels, size) - size) // 2
    side = lenet_side(map_side(channels, size))
    layers = [
        nn.Conv2d(channels, 6, 5, padding=pad),
        activation_layer(activation),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        activation_layer(activation),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        activation_layer(activation),
        nn.Linear(120, 84),
        activation_layer(activation),
    ]
    return Plain([(str(number), layer) for number, layer in enumerate(layers)], 84, classes)


def lenet_side(side: int) -> int:
    """Side of LeNet's last map in pixels, for padded images of `side` pixels."""
    return ((side - 4) // 2 - 4) // 2


def mlp(channels: int, size: int, classes: int, width: int, activation: str) -> Plain:
    """A multi-layer perceptron with two hidden layers of `width` units."""
    layers = [
        nn.Flatten(),
        nn.Linear(channels * size * size, width),
        activation_layer(activation),
        nn.Linear(width, width),
        activation_layer(activation),
    ]
    return Plain([(str(number), layer) for number, layer in enumerate(layers)], width, classes)


def vit(channels: int, size: int, classes: int, depth: int, width: int) -> nn.Module:
    """DC-BENCH's ViT (Cui et al., NeurIPS 2022), from timm: 4×4 patches, 8 heads, a class token, MLPs of `width`.

    It has timm's initialisation, and no dropout: DC-BENCH's 0.1 would draw from the global generator.

    Raises:
        UsageError: the width is not a multiple of the number of heads.
    """
    from timm.models.vision_transformer import VisionTransformer

    if width % HEADS:
        raise UsageError(f"student.width={width} does not divide into {HEADS} heads: take a multiple of {HEADS}")
    net = VisionTransformer(
        img_size=size,
        patch_size=PATCH,
        in_chans=channels,
        num_classes=classes,
        embed_dim=width,
        depth=depth,
        num_heads=HEADS,
        mlp_ratio=1.0,
        qkv_bias=False,
    )
    for layer in net.modules():
        if hasattr(layer, "fused_attn"):
            vars(layer)["fused_attn"] = False  # the fused kernel has no second derivative
    return net


def _convolutional(
    convolutions: Sequence[tuple[int, int, bool]],
    channels: int,
    size: int,
    classes: int,
    width: int,
    norm: str,
    activation: str,
) -> Plain:
    side, inputs = map_side(channels, size), channels
    blocks: list[tuple[str, nn.Module]] = []
    for number, (halves, kernel, pooled) in enumerate(convolutions):
        outputs = width * halves // 2
        padding = kernel // 2 + (0 if number else (side - size) // 2)
        block = nn.Sequential()
        block.add_module("conv", nn.Conv2d(inputs, outputs, kernel, padding=padding))
        block.add_module("norm", norm_layer(norm, outputs, side))
        block.add_module("activation", activation_layer(activation))
        if pooled:
            block.add_module("pooling", nn.MaxPool2d(2))
            side //= 2
        blocks.append((str(number), block))
        inputs = outputs
    return Plain(blocks, inputs * side * side, classes)
