"""`init=SET`: a run that starts from a set that exists."""

import dataclasses
from pathlib import Path

import pytest
import torch

from dd import load
from dd.sets import save


@pytest.fixture
def given(place, small, pictures):
    """A set of other images than a run would start from."""
    settings = [word for word in small if word.startswith(("device=", "compile=", "student.", "eval.", "ipc="))]
    ended = place.dd("run", "method=random", "seed=7", *settings, pictures, "--json")
    return ended.report["files"]["set"]


def test_it_starts_there(place, small, given, monkeypatch):
    plain = place.dd("run", *small, "--json").report
    monkeypatch.setenv("HOME", str(Path(given).parent))
    ended = place.dd("run", *small, f"init=~/{Path(given).name}", "--json")
    assert ended.code == 0, ended.err
    report = ended.report
    assert report["recipe_hash"] != plain["recipe_hash"]
    start, end, usual = load(report["files"]["start"]), load(report["files"]["set"]), load(plain["files"]["start"])
    assert torch.equal(start.images, load(given).images)
    assert not torch.equal(start.images, usual.images)
    assert not torch.equal(end.images, start.images)
    assert "kept expert 2 of 2" in ended.err


def test_it_starts_from_a_released_set(place):
    few = ["iterations=1", "eval.students=1", "eval.steps=1", "eval.full=false", "eval.probes=0", "compile=false"]
    ended = place.dd("run", "method=dm", "ipc=1", "init=datadam/fashion-mini-ipc1", *few, "--json")
    assert ended.code == 0, ended.err
    assert torch.equal(load(ended.report["files"]["start"]).images, load("datadam/fashion-mini-ipc1").images)


def test_soft_labels_and_lr_go_along(place, long, small, given):
    quick = [word for word in small if word.startswith(("experts.", "iterations=", "start_max=", "steps="))]
    first = place.dd("run", *long, *quick, "--json").report["files"]["set"]
    ended = place.dd("run", *long, *quick, f"init={first}", "seed=1", "--json")
    assert ended.code == 0, ended.err
    one, start = load(first), load(ended.report["files"]["start"])
    assert torch.equal(start.images, one.images)
    assert torch.equal(start.labels, one.labels)
    assert start.lr == one.lr


def test_a_set_of_bytes_gives_its_images_in_model_space(place, small, given):
    real = load(given)
    raw = torch.randint(256, real.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save(dataclasses.replace(real, images=raw), place.path / "bytes.safetensors")
    ended = place.dd("run", *small, f"init={place.path / 'bytes.safetensors'}", "--json")
    assert ended.code == 0, ended.err
    mean, std = (torch.tensor(real.space[name]).view(-1, 1, 1) for name in ("mean", "std"))
    start = load(ended.report["files"]["start"])
    torch.testing.assert_close(start.images, (raw / 255 - mean) / std, rtol=0, atol=1e-5)


def test_a_schedule_is_refused(place, small, given):
    real = load(given)
    soft = {"labels": real.targets().expand(2, -1, -1).contiguous(), "label_kind": "probabilities"}
    images = torch.arange(2 * real.n).view(2, -1)
    rows = dataclasses.replace(real, images=images, image_kind="schedule", source_fingerprint="", **soft)
    save(rows, place.path / "rows.safetensors")
    ended = place.dd("run", *small, f"init={place.path / 'rows.safetensors'}")
    assert ended.code == 2
    assert "init: a schedule shows other images in every pass" in ended.err.splitlines()[-1]


def test_another_size_is_refused(place, small, given):
    ended = place.dd("run", *small, "ipc=2", f"init={given}")
    assert ended.code == 2
    assert "init: the set has pixels of shape (5, " in ended.err.splitlines()[-1]
