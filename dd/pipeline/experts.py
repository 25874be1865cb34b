"""The experts of a recipe, apart from a run."""

from dataclasses import dataclass

from dd.engine.method import Task
from dd.errors import UsageError
from dd.pipeline.task import make_task, numerics
from dd.recipes import Recipe
from dd.runs.stop import Stop
from dd.training import ExpertSettings, Trajectories, trajectories
from dd.training.pools import Price, price


@dataclass(frozen=True)
class Request:
    """The experts that a recipe's method would train.

    Attributes:
        recipe: the recipe.
        task: its task.
        settings: of the experts, with nothing left open.
    """

    recipe: Recipe
    task: Task
    settings: ExpertSettings

    def price(self) -> Price:
        """What they would cost here; trains a few steps to find out."""
        return price(self.task, self.settings)

    def make(self, command: str) -> Trajectories:
        """Train what is missing.

        Raises:
            Interrupted: a signal came; finished experts are kept.
            RunError: an expert diverged.
        """
        stop = Stop(f"finished experts are kept; the same command goes on: {command}")
        with stop.watching(), numerics(self.recipe):
            return trajectories(self.task, self.settings)


def request_experts(recipe: Recipe) -> Request:
    """Open the data of a recipe and settle what experts it asks for.

    Raises:
        UsageError: its method has no experts, or the data is not there.
    """
    if not isinstance(getattr(recipe.method, "experts", None), ExpertSettings):
        raise UsageError(f"method {recipe.method.name!r} trains no experts; `dd methods` lists those of trajectories")
    task = make_task(recipe)
    settings = getattr(recipe.method.settle(task), "experts")  # noqa: B009 - a field of some methods
    return Request(recipe, task, settings)
