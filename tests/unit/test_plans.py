"""A plan runs nothing: what it reads, what it says, and what it leaves for the run."""

import numpy as np
import pytest
from PIL import Image

from dd.data.preprocess import Zca
from dd.data.sources import pixels
from dd.errors import UsageError
from dd.pipeline import plan
from dd.pipeline.task import make_task
from dd.recipes import resolve
from dd.runs.store import NotMade, Store, Wanted, nothing_made


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 2)):
        for name in ("a", "b"):
            place = tmp_path / "photos" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return f"folder:{tmp_path / 'photos'}"


def asked(dataset, **settings):
    given = {"method": "mtt", "dataset": dataset, "ipc": 2, "device": "cpu", "data.preprocess": "zca"}
    return resolve(given | {"experts.count": 2, "student.depth": 2} | settings)


def artefacts(planned):
    return [(artefact["what"].partition(" (")[0], artefact["exists"]) for artefact in planned["stages"][0]["artefacts"]]


def test_images_that_were_never_decoded_stay_so(folder, tmp_path, monkeypatch):
    def decode(*_):
        raise AssertionError("a plan decodes nothing")

    with monkeypatch.context() as patched:
        patched.setattr(pixels, "original", decode)
        planned = plan(asked(folder))
    what = [f"the decoded images of {folder}", "ZCA of 768 dimensions", "expert 1 of 2", "expert 2 of 2"]
    assert artefacts(planned) == [(words, False) for words in what]
    assert not (tmp_path / "home").exists()  # the headers were read, and nothing is kept of them
    assert not (tmp_path / "runs").exists()


def test_constants_of_streamed_images_are_said_and_not_fitted(folder, tmp_path):
    planned = plan(asked(folder, **{"data.preprocess": "standard", "data.stream": True}))
    assert artefacts(planned)[0] == (f"mean and deviation of {folder}", False)
    assert not (tmp_path / "home").exists()


def test_afterwards_what_there_is_is_found(folder):
    task = make_task(asked(folder))
    assert artefacts(plan(asked(folder)))[0] == ("ZCA of 768 dimensions", False)
    assert isinstance(task.data.preprocess, Zca)
    task.data.train.images(task.real_indices("some"))
    assert artefacts(plan(asked(folder)))[0] == ("ZCA of 768 dimensions", True)


def test_a_class_with_too_few_images_is_refused_by_its_labels(folder):
    with pytest.raises(UsageError, match=r"asks for 10 images of class 'a', but .* has 9 training images"):
        plan(asked(folder, ipc=10))


def test_what_is_nowhere_is_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dd.data.sources.find.download", lambda *_, **__: pytest.fail("a plan downloads nothing"))
    planned = plan(resolve({"method": "mtt", "dataset": "svhn", "ipc": 1, "device": "cpu"}))
    assert planned["stages"][0]["unknown"]
    assert planned["stages"][0]["artefacts"][0]["what"].startswith("svhn, ")
    assert planned["stages"][0]["artefacts"][0]["what"].endswith(" MB to download")


def test_a_store_makes_nothing_while_nothing_is_made(tmp_path):
    store = Store(tmp_path)
    with nothing_made() as wanted:
        for make in (lambda: store.value("k", {"a": 1}, lambda: 1, "one"), lambda: _many(store)):
            with pytest.raises(NotMade):
                make()
    assert wanted == ["one", "two"]
    assert not list(tmp_path.iterdir())
    assert store.value("k", {"a": 1}, lambda: 1).value == 1
    with nothing_made() as wanted:
        assert store.value("k", {"a": 1}, lambda: 2).value == 1
    assert not wanted


def _many(store):
    return store.tensors_of_many([Wanted("k", {"a": 2}, "two")], lambda _: [({}, {})])
