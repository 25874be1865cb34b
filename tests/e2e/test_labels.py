"""Sets whose views are labelled by teachers: killed in every stage, replayed, scored again, and what is refused."""

import re
import resource
import shutil
from signal import SIGKILL

import pytest
import torch
from safetensors.torch import load_file, save_file

import dd
from dd.errors import UsageError
from dd.recipes import parse_value
from dd.sets import load

EPOCHS = 150


@pytest.fixture(scope="session")
def taught(pictures):
    """Settings of a run with teachers, three parts and a store of labels that takes seconds to write."""
    alike = ("ipc=3", "device=cpu", "compile=false", "student.arch=convnet", "student.depth=1", "student.width=4")
    squeeze = ("squeeze.epochs=40", "squeeze.batch=16", "squeeze.lr=0.05")
    own = ("iterations=400", "lr_img=0.1", "batch=5", "roll=1", "crop=0.5", "student.norm=batch")
    students = ("eval.protocol=quick-soft", f"eval.epochs={EPOCHS}", "eval.batch=5", "eval.students=2")
    return ("method=cda", pictures, *alike, *squeeze, *own, *students, "eval.full=false", "eval.probes=0")


@pytest.fixture(scope="session")
def whole(tmp_path_factory, taught):
    """Where it went through in one go, and its report."""
    from .conftest import Place

    place = Place(tmp_path_factory.mktemp("whole"))
    ended = place.dd("run", *taught, "--json")
    assert ended.code == 0, ended.err
    return place, ended.report


def finished_epochs(place):
    return len(list(place.runs.glob("*/*/*/*/labels/[!.]*.json")))


@pytest.mark.slow
def test_a_run_with_teachers_killed_in_every_stage(place, taught, whole, same_run):
    again = ("run", *taught, "--json")

    run = place.start(*again)
    assert (
        run.signal_when(SIGKILL, lambda: any(place.home.glob("teachers/[!.]*.unfinished.safetensors"))).code == -SIGKILL
    )

    run = place.start(*again)
    killed = run.signal_when(SIGKILL, lambda: "made part 1 of 3" in run.err)
    assert killed.code == -SIGKILL
    assert "resuming teacher" in killed.err
    assert "made set" not in killed.err

    run = place.start(*again)
    killed = run.signal_when(SIGKILL, lambda: 3 < finished_epochs(place) < EPOCHS - 30)
    assert killed.code == -SIGKILL
    assert "kept teacher" in killed.err
    assert "made part 1 of 3" not in killed.err
    done = finished_epochs(place)

    run = place.start(*again)
    killed = run.signal_when(SIGKILL, lambda: "made student 1 on the distilled set" in run.err)
    assert killed.code == -SIGKILL
    assert "kept set cda" in killed.err
    kept = int(re.findall(rf"; (\d+) of {EPOCHS} epochs exist", killed.err)[0])
    assert kept == done

    ended = place.dd(*again)
    assert ended.code == 0, ended.err
    assert "epochs exist" not in ended.err  # all are
    assert "kept student 1 on the distilled set" in ended.err
    same_run(place, ended.report, *whole)
    there = whole[0].folder() / "labels"
    for file in sorted(there.glob("*.safetensors")):
        assert (place.folder() / "labels" / file.name).read_bytes() == file.read_bytes()
    assert place.half_written() == []


def test_the_report_says_who_labelled_and_what_it_takes(whole):
    _, report = whole
    store = load(report["files"]["set"]).label_store()
    assert report["labels"]["names"] == ["convnet:depth=1:width=4:norm=batch:pooling=avg:activation=relu"]
    assert (report["labels"]["form"], report["labels"]["stored_epochs"]) == ("logits", EPOCHS)
    assert report["bytes"]["labels"] == store.bytes() + 15 * 8
    assert store.verify() == {}
    assert set(report["cost"]) == {"prepare", "synthesise", "label", "evaluate"}
    made = load(report["files"]["set"])
    assert made.label_kind == "views"
    assert torch.equal(made.labels, torch.arange(5).repeat_interleave(3))


def test_scoring_it_again_asks_the_same_students(whole):
    place, report = whole
    ended = place.dd("eval", str(place.folder()), "eval.full=false", "--json")
    assert ended.code == 0, ended.err
    assert "made" not in ended.err
    for arm in ("accuracy", "control"):
        assert ended.report[arm]["values"] == report[arm]["values"]


def test_python_finds_the_labels_beside_the_set(whole, tmp_path):
    """All of these failed for every method whose labels are stored."""
    place, report = whole
    with place.entered():
        file = place.folder() / "set.safetensors"
        kept = dd.load(file)
        kept.save(tmp_path / "copy" / "set.safetensors")
        for made in (kept, place.folder(), file, dd.load(tmp_path / "copy")):
            assert list(dd.evaluate(made, **{"eval.full": False}).accuracy.values) == report["accuracy"]["values"]
    assert kept.targets().shape == (15, 5)
    torch.testing.assert_close(kept.targets().sum(1), torch.ones(15))
    assert len(kept.as_dataset()) == EPOCHS * 15
    views, labels = kept.as_dataset(epoch=3, temperature=kept.protocol["temperature"])[14]
    assert (views.shape, labels.shape) == (kept.images.shape[1:], (5,))

    shutil.copyfile(file, tmp_path / "alone.safetensors")
    for use in (dd.evaluate, lambda made: made.targets(), lambda made: made.as_dataset()):
        with place.entered(), pytest.raises(UsageError, match="copy the folder labels/ beside the set") as caught:
            use(dd.load(tmp_path / "alone.safetensors"))
        assert "\n" not in str(caught.value)
    ended = place.dd("eval", str(tmp_path / "alone.safetensors"))
    assert ended.code == 2
    assert re.search(
        r"^dd: no soft labels in .*copy the folder labels/ beside the set[^\n]*\Z", ended.err.strip(), re.M
    )


def test_an_outcome_has_its_labels(whole, taught):
    place, report = whole
    with place.entered():
        method, *settings = [word.split("=", 1) for word in taught]
        outcome = dd.run(method[1], **{key.replace("-", "_"): parse_value(value) for key, value in settings})
        assert not outcome.fresh
        for made in (outcome, outcome.set):
            assert list(dd.evaluate(made, **{"eval.full": False}).accuracy.values) == report["accuracy"]["values"]
    assert outcome.set.label_store().spec.epochs == EPOCHS


def test_other_batches_and_more_epochs_are_refused(whole):
    place, _ = whole
    for setting, words in (
        ("eval.batch=4", "holds labels for batches of 5, not 4"),
        (f"eval.epochs={EPOCHS + 1}", f"holds the labels of {EPOCHS} epochs, but {EPOCHS + 1} are needed"),
        ("eval.views.crop=0.5", "holds labels of other views"),
    ):
        ended = place.dd("eval", str(place.folder()), setting)
        assert ended.code == 2
        assert words in ended.err.splitlines()[-1]


def test_a_protocol_that_changes_labelled_views_is_refused_before_any_work(place, taught):
    ended = place.dd("run", *taught, "eval.protocol=smoke")
    assert ended.code == 2
    assert "augments images after teachers labelled their views" in ended.err.splitlines()[-1]
    assert not (place.home / "teachers").exists()


@pytest.mark.slow
def test_labels_that_do_not_fit_are_said_before_they_are_made_and_keep_what_there_is(place, taught, whole):
    """A file may not grow: finished epochs stay, the line is clear, the same command resumes."""
    again = ("run", *taught, "--json")
    run = place.start(*again)
    assert run.signal_when(SIGKILL, lambda: finished_epochs(place) > 3).code == -SIGKILL
    done, soft = finished_epochs(place), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, soft[1]))
        ended = place.dd(*again)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert ended.code == 1
    assert "file too large while writing" in ended.err.splitlines()[-1]
    assert finished_epochs(place) == done
    ended = place.dd(*again)
    assert ended.code == 0
    assert ended.report["accuracy"] == whole[1]["accuracy"]


@pytest.mark.slow
def test_without_the_teachers_a_stored_set_has_its_accuracy_and_no_control(place, taught, tmp_path):
    """Labelled by a checkpoint that is overwritten, then gone: the labels stay, and others would be no control."""
    made = place.dd("run", *taught, "labels.mode=off", "eval.students=1", "--json")
    assert made.code == 0, made.err
    (weights,) = place.home.glob("teachers/*.safetensors")
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(weights.read_bytes())
    settings = [word for word in taught if not word.startswith("squeeze")]
    run = place.dd("run", *settings, f"teachers=[{str(file)!r}]", "--json")
    assert run.code == 0, run.err
    again = ("eval", run.report["files"]["set"], "--json")
    assert place.dd(*again).report["control"] == run.report["control"]

    tensors = {name: tensor * 1.01 for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    changed = place.dd(*again)
    assert changed.report["accuracy"] == run.report["accuracy"]
    assert changed.report["control"] is None
    assert "has changed" in changed.report["missing"]["control"]

    other = place.dd("run", *settings, f"teachers=[{str(file)!r}]", "--json")
    assert other.report["recipe_hash"] != run.report["recipe_hash"]

    file.unlink()
    gone = place.dd(*again)
    assert gone.code == 0, gone.err
    assert "no such file" in gone.report["missing"]["control"]


def test_live_labels_have_no_store(place, taught):
    ended = place.dd("run", *taught, "labels.mode=live", "eval.epochs=20", "--json")
    assert ended.code == 0, ended.err
    assert ended.report["labels"]["stored_epochs"] is None
    assert not (place.folder() / "labels").exists()
    assert load(ended.report["files"]["set"]).label_kind == "hard"
    for name in ("control", "accuracy"):
        again = place.dd("eval", ended.report["files"]["set"], "--json").report
        assert again[name] == ended.report[name]
        assert again["labels"] == ended.report["labels"]
    refused = place.dd("eval", ended.report["files"]["set"], "eval.protocol=smoke")
    assert refused.code == 2
    assert "augments images after teachers labelled their views" in refused.err
