"""Wrong use: every problem at once, with the way out, before anything is written."""

from dataclasses import replace

import pytest

from dd.sets import load, save

# what is asked for, and what must be among the lines that answer
WRONG = {
    "many": (
        ("method=datm", "iterationz=3", "ipc=0", "dataset=fashion-mimi", "eval.protocol=qick", "student.widht=3"),
        ("'iterations'", "ipc", "'fashion-mini'", "'quick'", "'student.width'"),
    ),
    "window": (("method=mtt", "ipc=1", "experts.epochs=4", "start_max=9"), ("start_max=9", "experts.epochs=4")),
    "dataset": (("method=mtt", "dataset=cifar11"), ("'cifar11'", "'cifar10'", "dataset=folder:PATH")),
    "method": (("method=dtam", "ipc=1"), ("'dtam'", "'datm'")),
    "init": (("method=mtt", "ipc=1", "init=no/such.safetensors"), ("init=no/such.safetensors", "no such file")),
    "ipc": (("method=random", "ipc=2000", "device=cpu"), ("2000 images of class 'T-shirt/top'", "900", "lower ipc")),
    "folder": (("method=random", "dataset=folder:nowhere"), ("dataset=folder:nowhere", "no such folder")),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings(place, case):
    args, answers = WRONG[case]
    ended = place.dd("run", *args)
    assert ended.code == 2
    lines = ended.err[ended.err.index("dd: ") :].splitlines()
    assert len(lines) == (1 + len(answers) if case == "many" else 1)
    for words in answers:
        assert any(words in line for line in lines), words
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert place.files() == set()


def test_a_refused_run_forgets_nothing(place, small):
    """`force=true` on data that is gone must not cost the result that is there."""
    picture = place.path / "pictures"
    settings = [word for word in small if not word.startswith("dataset=")]
    (folder,) = [word.removeprefix("dataset=folder:") for word in small if word.startswith("dataset=")]
    picture.symlink_to(folder)
    assert place.dd("run", *settings, f"dataset=folder:{picture}").code == 0
    before = place.files()
    picture.unlink()
    picture.mkdir()
    ended = place.dd("run", *settings, f"dataset=folder:{picture}", "force=true")
    assert ended.code == 2
    assert place.files() == before


@pytest.fixture
def changed(finished, tmp_path):
    """A function that writes the finished run's set with some fields changed."""

    def write(**changes) -> str:
        save(replace(load(finished.folder() / "set.safetensors"), **changes), tmp_path / "changed.safetensors")
        return str(tmp_path / "changed.safetensors")

    return write


def evaluation_refused(place, *args: str) -> str:
    ended = place.dd("eval", *args, "compile=false", "device=cpu")
    assert (ended.code, ended.out) == (2, "")
    (line,) = [line for line in ended.err.splitlines() if not line.startswith("made the decoded images")]
    assert not place.runs.exists()
    return line


def test_a_set_with_classes_in_another_order(place, finished, changed):
    names = load(finished.folder() / "set.safetensors").classes
    line = evaluation_refused(place, changed(classes=(names[1], names[0], *names[2:])))
    for words in ("'classes'", "'Trouser' as label 0", "'T-shirt/top'"):
        assert words in line


def test_a_set_in_another_value_space(place, finished, changed):
    space = load(finished.folder() / "set.safetensors").space
    line = evaluation_refused(place, changed(space={**space, "mean": [0.5]}))
    for words in ("'space.mean'", "0.5", "0.2861"):
        assert words in line


def test_a_set_of_other_data(place, finished, pictures):
    assert "'classes'" in evaluation_refused(place, str(finished.folder()), pictures)


def test_a_set_that_was_cut_off(place, finished, tmp_path):
    whole = (finished.folder() / "set.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    line = evaluation_refused(place, str(tmp_path / "half.safetensors"))
    assert f"{tmp_path / 'half.safetensors'} is not a safetensors file, or a truncated one" in line
