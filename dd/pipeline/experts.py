"""The experts of a recipe, apart from a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from dd.engine.needs import Got
from dd.errors import UsageError
from dd.pipeline.task import make_task, numerics
from dd.recipes import Recipe
from dd.runs.stop import Stop
from dd.training import Experts
from dd.training.pools import Price, price


@dataclass(frozen=True)
class Request:
    """The experts that a recipe's method would train.

    Attributes:
        recipe: the recipe.
        pools: at least one.
    """

    recipe: Recipe
    pools: Sequence[Experts]

    def price(self) -> Price:
        """What they would cost here; trains a few steps to find out."""
        return Price.total(price(pool.task, pool.settings) for pool in self.pools)

    def make(self, command: str) -> list[float | None]:
        """Train what is missing: their accuracies on held-out images in percent.

        Raises:
            Interrupted: a signal came; finished experts are kept.
            RunError: an expert diverged.
        """
        stop = Stop(f"finished experts are kept; the same command resumes: {command}")
        with stop.watching(), numerics(self.recipe):
            return [accuracy for pool in self.pools for accuracy in pool.fetch(Got()).holdout]


def request_experts(recipe: Recipe) -> Request:
    """Open the data of a recipe and settle what experts it asks for.

    Raises:
        UsageError: its method has no experts, or the data is not there.
    """
    task = make_task(recipe)
    pools = [need for need in recipe.method.settle(task).needs(task) if isinstance(need, Experts)]
    if not pools:
        raise UsageError(
            f"method {recipe.method.name!r} trains no experts; `dd methods` lists the trajectory methods, which do"
        )
    return Request(recipe, pools)
