"""ResNet-18 for small images: a 3×3 stem of stride 1 and no max-pooling (He et al. 2016, their CIFAR stem)."""

from torch import Tensor, nn

from dd.networks.layers import activation_layer, norm_layer


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: the identity, or a 1×1 convolution if the shape changes.

    Args:
        inputs: input channels.
        width: output channels.
        stride: of the first convolution.
        side: height and width of the output map in pixels.
        norm: see `layers.norm_layer`.
        activation: see `layers.activation_layer`.
    """

    def __init__(self, inputs: int, width: int, stride: int, side: int, norm: str, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, width, side)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, width, side)
        self.activation = activation_layer(activation)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), norm_layer(norm, width, side)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, width, side, side)."""
        inner = self.activation(self.norm1(self.conv1(maps)))
        return self.activation(self.norm2(self.conv2(inner)) + self.shortcut(maps))


class ResNet18(nn.Module):
    """ResNet-18: four stages of two blocks, global average pooling, one linear layer; PyTorch's initialisation.

    Args:
        channels: channels of an image.
        size: height and width of an image in pixels.
        classes: number of logits.
        width: channels of the first stage, 64 as published; each later stage doubles them.
        norm: see `layers.norm_layer`.
        activation: see `layers.activation_layer`.
    """

    def __init__(self, channels: int, size: int, classes: int, width: int, norm: str, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = norm_layer(norm, width, size)
        self.activation = activation_layer(activation)
        stages, inputs, side = [], width, size
        for number in range(4):
            outputs, stride = width * 2**number, 2 if number else 1
            side = (side + stride - 1) // stride
            first = BasicBlock(inputs, outputs, stride, side, norm, activation)
            stages.append(nn.Sequential(first, BasicBlock(outputs, outputs, 1, side, norm, activation)))
            inputs = outputs
        self.features = nn.Sequential(*stages)
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def embed(self, images: Tensor) -> Tensor:
        """The input of the linear layer: (n, c, h, w) to (n, 8 · width)."""
        return self.pooling(self.features(self.activation(self.norm(self.conv(images))))).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (n, c, h, w) to (n, classes)."""
        return self.classifier(self.embed(images))
