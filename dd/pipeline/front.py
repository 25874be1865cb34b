"""`dd.run`: the Python equivalent of `dd run`, with settings as strings or objects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.errors import UsageError
from dd.pipeline.outcome import Outcome
from dd.pipeline.run import run_recipe
from dd.recipes import resolve, run_options
from dd.recipes.given import shown
from dd.recipes.jobs import KEYS as JOB_KEYS

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.engine.method import Method
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec


def run(  # noqa: PLR0913  the keys of `dd run`, by name for completion in editors
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
    track: str | Sequence[str] | None = None,
    **settings: Any,
) -> Outcome:
    """Distil and evaluate, as `dd run` does with the same settings: the same recipe, hash and folder.

    `dd.run("datm", ipc=10)`, `dd.run("mine.py", dataset="cifar10", eval={"protocol": "mtt", "students": 3})`,
    `dd.run(DM(iterations=200), ipc=1, student="resnet18")`.

    Settings are plain values (a name, a mapping, `lr_img=3.0`) or objects; both override the table of the recipe file.
    Plain values set only what they name, and the table supplies the rest.  *An object sets every field it has*,
    including
    those left at the defaults of its class: `DM(iterations=200)` also sets that class's learning rate.  The table still
    supplies the groups that are not given: with a method object, those are data, student and evaluation.  Plain values
    override objects: `dd.run(DM(), ipc=1, lr_img=3.0)`.

    Args:
        method: a name (`dd.list_methods()`), the path of a method's file, or an instance of a registered class.
        dataset: name of the real data; None for the embedded fashion-mini.
        ipc: images per class: one number for all classes, or one per class in label order; 10 if neither this nor
            `fraction` is given.
        fraction: share of the training images, in (0, 1].
        seed: root seed, 0 or more.
        device: "cpu", "cuda", "cuda:N", "mps"; None for the best one available.
        preset: a preset of the recipe file.
        like: the recipe cell whose settings to use for another data set or size, for example "cifar10.ipc50".
        init: the set to start from: its file, the folder of its run, or the name of a released set.
        data: how real images are split and preprocessed.
        student: the network: a name (default size), a `NetworkSpec`, or a mapping.
        eval: how students are trained: the name of a protocol (`dd.list_protocols()`), a `Protocol`, or a mapping.
        out: the folder that holds all runs; None for `$DD_RUNS` or ./runs.
        force: repeat what is already finished.
        track: who follows the run: "wandb", "trackio" or both; "none" for nobody.
        settings: every other key of `dd run`: the method's own, by name or in groups (`experts={"count": 20}`,
            `experts=ExpertSettings(count=20)`), `precision`, `deterministic`, `compile`, `recipe`; dotted keys as
            `**{"eval.students": 3}`.

    Raises:
        UsageError: the settings do not fit; one message lists every problem.
        RunError: the run failed; finished work is kept.
    """
    keys = {"dataset": dataset, "ipc": ipc, "fraction": fraction, "seed": seed, "device": device, "preset": preset}
    keys |= {"like": like, "init": init, "data": data, "student": student, "eval": eval}
    settings = {key: value for key, value in keys.items() if value is not None} | settings
    command = "dd.run(" + ", ".join([shown(method), *(f"{k}={shown(v)}" for k, v in settings.items())]) + ")"
    if shared := [key for key in settings if key.partition(".")[0] in JOB_KEYS]:
        raise UsageError(f"{shared[0]}: only `dd run` starts jobs, because they need the run in words")
    options = run_options({"out": None if out is None else str(out), "force": force, "track": track})
    recipe = resolve({"method": method, **settings})
    outcome = run_recipe(recipe, out=options.out, force=options.force, track=options.track, command=command)
    if outcome is None:
        raise SystemExit(0)  # a secondary torchrun process whose work is done
    return outcome
