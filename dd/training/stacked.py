"""Train several networks at once with stacked parameters; `Trainer` trains them one after another.

Every network sees the same images, augmentations and updates as in `Trainer`.  Only the order of summation differs, so
results agree up to rounding.  Stacking pays off on a GPU, which one small network leaves mostly idle; on a CPU it was
measured to be 2 to 4 times slower.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from dd.networks import Functional
from dd.rng import generator
from dd.runs import sampling
from dd.training.gsam import perturbation, surrogate
from dd.training.loop import Fit, Path, at_step, make_optimiser
from dd.training.penalty import gradient_penalty
from dd.views import Batches
from dd.views.dsa import augment

AfterStackedPass = Callable[[int, Tensor], None]
"""Called with (passes done, parameters (networks, P)) after every full pass, and with 0 before the first."""


class StackedTrainer:
    """Trains networks of one architecture together.

    Args:
        build: generator -> a module with fresh weights drawn from it.
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(self, build: Callable[[torch.Generator], nn.Module], precision: str = "fp32") -> None:
        self._build = build
        self._network = Functional(build(generator(0, "skeleton")))
        self._bf16 = precision == "bf16"

    def train(
        self, paths: Sequence[Path], batches: Batches, fit: Fit, after_pass: AfterStackedPass | None = None
    ) -> Tensor:
        """Train one network per path; arguments as for `Trainer.train`.

        Returns:
            Parameters (networks, P), in the order of the paths.
        """
        fresh = [self._network.flatten(self._build(generator(*path, "weights"))) for path in paths]
        thetas = torch.stack(fresh).requires_grad_()
        gradients = vmap(partial(self._gradient, fit=fit), in_dims=(0, 0, 0, 0, None), randomness="error")
        done = step = 0
        optimiser = make_optimiser([thetas], fit, step)
        laps = sampling.laps()
        if after_pass:
            after_pass(0, thetas.detach())
        while step < fit.steps:
            draws = [generator(*path, "augment", done) for path in paths]
            passes = [batches(generator(*path, "order", done), done) for path in paths]
            for together in zip(*passes, strict=True):
                if step == fit.steps:
                    break
                optimiser = at_step(optimiser, [thetas], fit, step)
                images = torch.stack([images for images, _ in together])
                targets = torch.stack([targets for _, targets in together])
                seen = torch.stack([augment(fit.strategy, own, rng) for own, rng in zip(images, draws, strict=True)])
                thetas.grad = gradients(thetas.detach(), images, seen, targets, fit.factor(done))
                optimiser.step()
                step += 1
                if sampling.ended(laps, fit.steps - step):
                    return thetas.detach()
            else:
                done += 1
                if after_pass:
                    after_pass(done, thetas.detach())
        return thetas.detach()

    def _gradient(
        self, theta: Tensor, images: Tensor, seen: Tensor, targets: Tensor, factor: float, fit: Fit
    ) -> Tensor:
        """The update direction (P,) of one network, for its batch before (`images`) and after (`seen`) augmentation."""

        def loss(theta: Tensor) -> Tensor:
            value = factor * F.cross_entropy(self._logits(theta, seen), targets)
            if fit.penalty:
                slope = grad(lambda x: self._network(theta, x).sum())(images)
                value = value + fit.penalty * gradient_penalty(slope)
            return value

        first = grad(loss)(theta)
        if fit.sam is None:
            return first
        rho, alpha = fit.sam
        (eps,) = perturbation([theta], [first], rho)
        (combined,) = surrogate([first], [grad(loss)(theta + eps)], alpha)
        return combined

    def _logits(self, theta: Tensor, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self._network(theta, images)
        return logits.float() if self._bf16 else logits
