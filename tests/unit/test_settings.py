"""What counts in which identity: all fields of all methods and runs, against tables typed from its meaning."""

from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Annotated, Any, get_args

import pytest

from dd.engine import registry
from dd.evaluation.protocols import PROTOCOLS
from dd.labels import LabelSettings
from dd.networks import NetworkSpec
from dd.recipes import Recipe, resolve
from dd.recipes.layers import RunKeys
from dd.recipes.schema import leaves
from dd.settings import OnlyWith, Outside, build, conditions, entries, identity
from dd.training.experts import ExpertSettings
from dd.training.record import RecordSettings

# of no run: by them the same settings, files or images are reached another way
NO_RUN = {"method", "preset", "like", "init", "experts.from", "autoencoder", "data.workers"}
# of no number: they say how many students are asked, and how the synthesis is watched
NO_NUMBER = {
    "protocol",
    "students",
    "pilots",
    "full",
    "full_students",
    "full_budget",
    "probes",
    "probe_steps",
    "probe_students",
}
# ... and what is scored
NO_NUMBER |= {"labels", "suite", "teachers", "coreset", "references", "lengths", "curve", "target"}
NO_LABEL = {"mode", "replay", "tau"}
# of no expert alone; the files' digest stands for `from`
NO_EXPERT = {"count", "stack", "from"}
OF_KIND = {"ftd": {"rho", "alpha"}, "ast": {"clip", "penalty", "decay"}, "sgd": set()}
OF_PYRAMID = {"level_every", "added", "colour"}
SEVERAL = {"teachers", "votes", "prior", "tau", "members_by"}  # of CV-DD, not of what a member recovers alone

TRIED = (None, True, False, 1, 2, 3, 7, 12, 992, 0.3, 0.05, "none", "flip", "resnet18", (0.25, 0.5), ("a",), (1.0,) * 5)
METHODS = [entry.name for entry in registry.list_methods() if entry.error is None and "." not in entry.name]


def others(settings: Any, prefix: str = "", but: tuple[str, ...] = ()) -> dict[str, Any]:
    """By key, the settings with another value in that one field."""
    found = {}
    for key, leaf in leaves(settings, prefix).items():
        for value in (*choices(leaf.annotation), *TRIED):
            try:
                checked = leaf.check(value)
                changed = build(settings, {key: checked}, prefix)
            except ValueError:
                continue
            if checked != leaf.default:
                found[key] = changed
                break
    assert [*found, *but] == [key for key in leaves(settings, prefix) if key not in but] + [*but]
    return found


def choices(annotation: Any) -> list[Any]:
    inner = [value for part in get_args(annotation) for value in choices(part)]
    return inner or [annotation] if isinstance(annotation, str | int | bool) else inner


@cache
def asked(method: str) -> Recipe:
    """Settings of which each may have another value beside the others."""
    wide = {"labels.high": 0.9, "members_by": "all"}
    wide = {key: value for key, value in wide.items() if key in leaves(registry.get(method)())}
    return resolve({"method": method, "device": "cpu", "dataset": "cifar10", "ipc": 10, **wide})


def idle(experts: ExpertSettings) -> set[str]:
    """What does not count beside the kind of experts."""
    found = {name for kind, names in OF_KIND.items() if kind != experts.kind for name in names}
    if experts.kind == "ast":
        found |= {"drops"}
    return found if experts.drops and experts.kind != "ast" else found | {"drop"}


def unused(record: RecordSettings) -> set[str]:
    """What does not count beside the schedule of a recorded run."""
    if record.schedule == "cosine":
        return {"drops", "drop"}
    return {"min_lr"} if record.drops else {"min_lr", "drop"}


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_method_is_part_of_the_run_and_of_its_images(method):
    recipe = asked(method)
    experts = getattr(recipe.method, "experts", None)
    out = {f"experts.{name}" for name in idle(experts)} if isinstance(experts, ExpertSettings) else set()
    if isinstance(record := getattr(recipe.method, "record", None), RecordSettings):
        out |= {f"record.{name}" for name in unused(record)}
    if getattr(recipe.method, "demand", None) == "none":
        out |= {key for key in leaves(recipe.method) if key.startswith("cad.")}
    if hasattr(recipe.method, "start_from") and recipe.method.start_from != "crops":
        out |= {key for key in leaves(recipe.method) if key.startswith("crops.")}
    if hasattr(recipe.method, "variables"):
        out |= OF_PYRAMID if recipe.method.variables == "pixels" else {"start_from"}
    if method == "softlabel":  # its experts label, not teachers
        out |= {key for key in leaves(recipe.method) if key.startswith("squeeze.")}
    for key, other in others(recipe.method).items():
        changed = replace(recipe, method=other)
        counts = key not in NO_RUN and key not in out
        assert (changed.hash != recipe.hash) == counts, key
        later = key.startswith("labels.") and isinstance(getattr(other, "labels", None), LabelSettings)
        assert (changed.images_identity() != recipe.images_identity()) == (counts and not later), key


@pytest.mark.parametrize("part", ["data", "student"])
def test_every_field_of_data_and_student_too(part):
    recipe = asked("dm")
    for key, other in others(getattr(recipe, part), f"{part}.").items():
        changed = replace(recipe, **{part: other})
        assert (changed.hash != recipe.hash) == (key not in NO_RUN), key
        assert (changed.images_identity() != recipe.images_identity()) == (key not in NO_RUN), key


@pytest.mark.parametrize("name", ["quick", "sre2l-cifar"])
def test_every_field_of_a_protocol_is_part_of_the_run_and_most_of_a_number(name):
    recipe, student = replace(asked("dm"), eval=PROTOCOLS[name]), asdict(NetworkSpec(depth=3, width=128))
    before = replace(recipe, eval=replace(recipe.eval, epochs=None, steps=9, labels=("hard",), curve=2))
    tried = others(before.eval, but=("epochs",)) | {"epochs": replace(recipe.eval, epochs=9, steps=None)}
    for key, other in tried.items():
        changed = replace(recipe, eval=other)
        assert changed.hash != before.hash, key
        assert changed.images_identity() == before.images_identity()
        same = other.fingerprint(student, "flip") == before.eval.fingerprint(student, "flip")
        assert same == (key in NO_NUMBER), key


def test_the_keys_of_every_run():
    recipe = asked("random")
    here: dict[str, Any] = {"method": "x.py", "fraction": 0.5, "preset": "a", "like": "b.ipc1", "init": "c", "ipc": 3}
    here |= {"dataset": "mnist", "seed": 1, "device": "cuda:1", "precision": "bf16", "deterministic": True}
    here |= {"compile": False}
    assert set(here) == {f.name for f in fields(RunKeys)}
    for key, value in here.items():
        changed = replace(recipe, **{"method_ref" if key == "method" else key: value})
        assert (changed.hash != recipe.hash) == (key not in NO_RUN), key
    one, other = (replace(recipe, device=device) for device in ("cuda:0", "cuda:1"))
    assert one.hash == other.hash != recipe.hash


@pytest.mark.parametrize("drops", [(), (0.5,)])
@pytest.mark.parametrize("kind", ["sgd", "ftd", "ast"])
def test_one_expert(kind, drops):
    settings = ExpertSettings(kind=kind, drops=drops)
    for of, out in (("expert", NO_EXPERT | idle(settings)), ("run", {"from"} | idle(settings))):
        assert set(leaves(settings)) - set(identity(settings, of)) == out
        for key, other in others(settings).items():
            assert (identity(other, of) == identity(settings, of)) == (key in out), key


def test_how_a_label_is_made():
    settings = LabelSettings(high=0.9)
    for key, other in others(settings).items():
        assert (identity(other, "label") == identity(settings, "label")) == (key in NO_LABEL), key


def test_what_one_member_of_a_committee_recovers_alone():
    method = replace(asked("cvdd").method, start_from="noise")
    for key, other in others(method).items():
        several = key in SEVERAL or key.partition(".")[0] in ("squeeze", "labels", "distil", "crops")
        assert (identity(other, "member") == identity(method, "member")) == several, key


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    from_: Annotated[str, Outside("run", "test")] = ""
    kind: Annotated[str, OnlyWith("on")] = "a"
    rate: Annotated[int, OnlyWith("kind", ("b", "c"))] = 1
    on: bool = True
    added: Annotated[float, OnlyWith("added")] = 0.0
    kept: Annotated[tuple[str, ...], OnlyWith("kept", unless=("a", "b"))] = ("a", "b")


@dataclass(frozen=True)
class Outer:
    """Settings as a stranger writes them: nothing is said of most."""

    steps: int = 1
    inner: Inner = field(default_factory=Inner)
    later: Annotated[Inner, Outside("images", "test")] = field(default_factory=Inner)
    shown: Annotated[int, Outside("member", "test")] = 1


@dataclass(frozen=True)
class Anew(Outer):
    shown: int = 2
    later: Inner = field(default_factory=lambda: Inner(lr=0.2))


def test_a_field_that_is_declared_anew_keeps_its_marks():
    assert identity(Anew(), "images")["shown"] == 2
    assert list(identity(Anew(), "member")) == list(identity(Outer(), "member"))


def test_marks_hold_for_what_they_name_and_what_is_part_of_it():
    assert identity(Outer(), "run", "x.") == {
        "x.steps": 1,
        "x.inner.lr": 0.1,
        "x.inner.kind": "a",
        "x.inner.on": True,
        "x.later.lr": 0.1,
        "x.later.kind": "a",
        "x.later.on": True,
        "x.shown": 1,
    }
    assert list(identity(Outer(), "images")) == ["steps", "inner.lr", "inner.kind", "inner.on", "shown"]
    assert list(identity(Outer(), "member")) == ["steps", "inner.lr", "inner.kind", "inner.on"]
    assert identity(Inner(kind="c"), "run")["rate"] == 1
    assert identity(Inner(kind="c", on=False), "run") == {"lr": 0.1, "on": False}
    assert list(entries(Inner())) == ["lr", "from", "kind", "rate", "on", "added", "kept"]


def test_a_field_that_was_added_later_counts_once_it_is_used():
    assert identity(Inner(), "run") == {"lr": 0.1, "kind": "a", "on": True}
    assert identity(Inner(added=0.5), "run") == {"lr": 0.1, "kind": "a", "on": True, "added": 0.5}
    assert identity(Inner(kept=()), "run") == {"lr": 0.1, "kind": "a", "on": True, "kept": ()}
    assert "added" not in conditions(Inner())
    assert "kept" not in conditions(Inner())


def test_the_conditions_of_settings_are_named():
    found = conditions(registry.get("mtt")())
    assert found["experts.rho"] == "experts.kind=ftd"
    assert found["experts.drops"] == "experts.kind=sgd or ftd"
    assert found["experts.drop"] == "experts.drops"  # any value that is not empty
    assert "lr_img" not in found
    method = registry.get("sre2lpp")()
    crops = {key for key in leaves(method) if key.startswith("crops.")}
    assert crops == {key for key in conditions(method) if key.startswith("crops.")} != set()  # of the whole group
