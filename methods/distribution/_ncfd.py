"""The neural characteristic-function discrepancy (NCFD), and the sampling network that maximises it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._classes import class_means

FLOOR = 1e-12  # lower bound of the squared discrepancy at a frequency, as in the released code


def characteristic(features: Tensor, frequencies: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts, each (classes, T), of the empirical characteristic functions of classes of features.

    Phi(t) = mean over the class's samples x of exp(i <t, x>), in at least float32, even under autocast.

    Args:
        features: (sum of sizes, D), ordered by class.
        frequencies: t, (T, D).
        sizes: number of samples per class.
    """
    with torch.autocast(features.device.type, enabled=False):
        kind = torch.promote_types(features.dtype, torch.float32)
        phase = features.to(kind) @ frequencies.to(kind).T
        return class_means(phase.cos(), sizes), class_means(phase.sin(), sizes)


def discrepancy(
    ours: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor], amplitude: float = 0.5, phase: float = 0.5
) -> Tensor:
    """The NCFD of each class, (classes,).

        NCFD = mean over t of sqrt( amplitude * a + phase * (|Phi_r - Phi_s|^2 - a) ),   a = (|Phi_r| - |Phi_s|)^2

    Wang et al., CVPR 2025 (arXiv:2502.20653), equations 7 and 8.  The phase term is computed as a difference: the
    product form of the paper loses all digits in float32 if the discrepancy is small.

    Args:
        ours: Phi_s, see `characteristic`.
        real: Phi_r, of the same classes and frequencies.
        amplitude: weight of the amplitude term [alpha].
        phase: weight of the phase term.
    """
    whole = (ours[0] - real[0]).square() + (ours[1] - real[1]).square()
    if amplitude == phase:  # the terms add up to the whole
        return (amplitude * whole.clamp_min(FLOOR)).sqrt().mean(1)
    sizes = [(c.square() + s.square() + FLOOR**2).sqrt() for c, s in (ours, real)]
    amp = (sizes[0] - sizes[1]).square()
    return (amplitude * amp + phase * (whole - amp).clamp_min(FLOOR)).sqrt().mean(1)


class Sampler(nn.Module):
    """The sampling network: frequencies from a scale mixture of normals.

        t = n * sigma,   n ~ N(0, I),   sigma = psi(noise),   noise ~ N(0, I)

    Args:
        features: D.
        components: number of scales sigma; each is shared by `each` frequencies.
        each: frequencies per component.
    """

    def __init__(self, features: int, components: int, each: int = 16) -> None:
        super().__init__()
        self.features, self.components, self.each = features, components, each
        layers: list[nn.Module] = []
        for activation in (nn.LeakyReLU(0.2), nn.LeakyReLU(0.2), nn.Tanh()):
            layers += [nn.Linear(features, features), nn.BatchNorm1d(features, track_running_stats=False), activation]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor, normals: Tensor) -> Tensor:
        """Frequencies (T, D) from noise (components, D) and normals (T, D), with T = components * each."""
        return normals * self.layers(noise).repeat_interleave(self.each, 0)

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise and normals for `forward`, drawn from a CPU generator."""
        like = next(self.parameters())
        noise = torch.randn(self.components, self.features, generator=rng)
        normals = torch.randn(self.components * self.each, self.features, generator=rng)
        return noise.to(like), normals.to(like)
