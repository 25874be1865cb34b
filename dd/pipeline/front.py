"""`dd.run`: what `dd run` does, with settings as words or as objects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.pipeline.outcome import Outcome
from dd.pipeline.run import run_recipe
from dd.recipes import resolve, run_options
from dd.recipes.given import shown

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.engine.method import Method
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec


def run(  # noqa: PLR0913  the keys of `dd run`, by name for those who complete them
    method: "str | Path | Method",
    *,
    dataset: str | None = None,
    ipc: int | Sequence[int] | None = None,
    fraction: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    preset: str | None = None,
    like: str | None = None,
    init: str | Path | None = None,
    data: "DataSettings | Mapping[str, Any] | None" = None,
    student: "str | NetworkSpec | Mapping[str, Any] | None" = None,
    eval: "str | Protocol | Mapping[str, Any] | None" = None,
    out: str | Path | None = None,
    force: bool = False,
    track: str | None = None,
    **settings: Any,
) -> Outcome:
    """Distil and evaluate, as `dd run` does with the same settings: the same recipe, hash and folder.

    `dd.run("datm", ipc=10)`, `dd.run("mine.py", dataset="cifar10", eval={"protocol": "mtt", "students": 3})`,
    `dd.run(DM(iterations=200), ipc=1, student="resnet18")`.

    Settings are written as words (a name, a mapping, `lr_img=3.0`) or as objects, and both go over the recipe's table.
    Words state what they name: the rest is as the table says.  *An object states every field it has*, those at their
    class's defaults too: `DM(iterations=200)` also states that class's learning rate.  The table then still speaks for
    the groups that were not given: of a method object for data, student and evaluation.  Words win over objects:
    `dd.run(DM(), ipc=1, lr_img=3.0)`.

    Args:
        method: a name (`dd.list_methods()`), the path of a method's file, or an object of a registered class.
        dataset: name of the real data; None for the embedded fashion-mini.
        ipc: images per class, for all or one number per class in label order; 10 where `fraction` is not given either.
        fraction: share of the training images, in (0, 1].
        seed: root seed, 0 or more.
        device: "cpu", "cuda", "cuda:N", "mps"; None for the best there is.
        preset: a preset of the recipe file.
        like: the recipe's cell whose settings are taken for another data set or size, as "cifar10.ipc50".
        init: the set to begin from, its file or the folder of its run.
        data: how real images are split and preprocessed.
        student: the network: its name in its own size, a `NetworkSpec`, or a mapping.
        eval: how students are trained: a protocol's name (`dd.list_protocols()`), a `Protocol`, or a mapping.
        out: the folder below which runs are kept; None for `$DD_RUNS` or ./runs.
        force: do again what is finished.
        track: "wandb" or "none".
        settings: every other key of `dd run`: the method's own, by name or in groups (`experts={"count": 20}`,
            `experts=ExpertSettings(count=20)`), `precision`, `deterministic`, `compile`, `recipe`; dotted keys as
            `**{"eval.students": 3}`.

    Raises:
        UsageError: settings that do not fit; every problem in one message.
        RunError: the run failed; what was good is kept.
    """
    keys = {"dataset": dataset, "ipc": ipc, "fraction": fraction, "seed": seed, "device": device, "preset": preset}
    keys |= {"like": like, "init": init, "data": data, "student": student, "eval": eval}
    settings = {key: value for key, value in keys.items() if value is not None} | settings
    command = "dd.run(" + ", ".join([shown(method), *(f"{k}={shown(v)}" for k, v in settings.items())]) + ")"
    options = run_options({"out": None if out is None else str(out), "force": force, "track": track})
    recipe = resolve({"method": method, **settings})
    outcome = run_recipe(recipe, out=options.out, force=options.force, track=options.track, command=command)
    if outcome is None:
        raise SystemExit(0)  # a further process under torchrun, whose part is done
    return outcome
