"""A reduce-on-plateau schedule whose state is part of the variables, so that checkpoints contain it."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

FACTOR = 0.5
PATIENCE = 500  # as in the released code


class Plateau(nn.Module):
    """The state of PyTorch's `ReduceLROnPlateau`.

    Attributes:
        best: float64 (), the smallest loss so far.
        bad: int64 (), iterations since then, or since the last reduction.
        factor: float64 (), the current factor of the learning rate.
    """

    best: Tensor
    bad: Tensor
    factor: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("best", torch.tensor(torch.inf, dtype=torch.float64, device=device))
        self.register_buffer("bad", torch.tensor(0, dtype=torch.int64, device=device))
        self.register_buffer("factor", torch.tensor(1.0, dtype=torch.float64, device=device))

    def see(self, loss: Tensor, lr: float) -> None:
        """Update the state with the loss of an iteration.

        Args:
            loss: ().
            lr: the initial learning rate; reductions by less than 1e-8 are not made.
        """
        carrier = torch.optim.SGD([torch.zeros(())], lr=lr * float(self.factor))
        plateau = ReduceLROnPlateau(carrier, factor=FACTOR, patience=PATIENCE)
        plateau.best, plateau.num_bad_epochs = float(self.best), int(self.bad)
        plateau.step(float(loss))
        self.best.fill_(plateau.best)
        self.bad.fill_(plateau.num_bad_epochs)
        self.factor.fill_(carrier.param_groups[0]["lr"] / lr)

    def slow(self, optimiser: Optimizer) -> None:
        """Apply the factor to the learning rates of an optimiser, just before its step."""
        for group in optimiser.param_groups:
            group["lr"] *= float(self.factor)
