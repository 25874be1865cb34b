"""Training the experts of a recipe without a run."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dd.engine.needs import Got
from dd.errors import UsageError
from dd.pipeline.task import make_task, numerics
from dd.recipes import Recipe
from dd.runs import sharing
from dd.runs.stop import Stop
from dd.training import Experts
from dd.training.pools import Price, price


@dataclass(frozen=True)
class Request:
    """The experts that a recipe's method would train.

    Attributes:
        recipe: the recipe.
        pools: one or more sets of experts.
    """

    recipe: Recipe
    pools: Sequence[Experts]

    def price(self) -> Price:
        """Estimate the cost on this machine by training for a few steps."""
        return Price.total(price(pool.task, pool.settings) for pool in self.pools)

    def make(self, command: str, *, offers: Path | None = None) -> list[float | None]:
        """Train the missing experts; return the held-out accuracies of all, in percent.

        Args:
            command: the command that asks for them.
            offers: the file to which to write what others can help with, see `help`; None if there are no others.

        Raises:
            Interrupted: a signal arrived; finished experts are kept.
            RunError: an expert diverged.
        """
        stop = Stop(f"finished experts are kept; the same command resumes: {command}")
        shared = contextlib.nullcontext() if offers is None else sharing.leading(offers)
        with stop.watching(), numerics(self.recipe), shared, sharing.stage("prepare"):
            return [accuracy for pool in self.pools for accuracy in pool.fetch(Got()).holdout]

    def help(self, command: str) -> None:
        """Train missing experts that no process is training, and return as soon as there is none.

        Arguments and errors are those of `make`.
        """
        with sharing.helping():
            self.make(command)


def request_experts(recipe: Recipe) -> Request:
    """Open the data of a recipe and determine which experts it needs.

    Raises:
        UsageError: the method uses no experts, or the data is missing.
    """
    task = make_task(recipe)
    pools = [need for need in recipe.method.settle(task).needs(task) if isinstance(need, Experts)]
    if not pools:
        raise UsageError(
            f"method {recipe.method.name!r} trains no experts; `dd methods` lists the trajectory methods, which do"
        )
    return Request(recipe, pools)
