import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dd.errors import UsageError
from dd.io import sha256_file
from dd.labels import LabelSettings
from dd.labels.spec import LabelSpec, StoredLabels
from dd.sets import DistilledSet, _hashes, load, save
from dd.views import ViewPolicy

SPACE = {"kind": "standard", "mean": [0.1], "std": [0.3]}
AWKWARD = [0.0, -0.0, 1e-45, 3.4e38, 1 / 3]


def a_set(**changes) -> DistilledSet:
    fields = {
        "images": torch.linspace(-1, 1, 4 * 3 * 2 * 2).reshape(4, 3, 2, 2),
        "labels": torch.tensor([0, 0, 1, 1]),
        "classes": ("cat", "dog"),
        "source": "toy",
        "space": SPACE,
    }
    return DistilledSet(**{**fields, **changes})


@st.composite
def views(draw, n, k, shape) -> StoredLabels:
    policy = ViewPolicy(crop=draw(st.none() | st.floats(0.1, 1)), flip=draw(st.booleans()))
    how = LabelSettings(form=draw(st.sampled_from(["logits", "topk"])), tau=draw(st.floats(0.5, 20)))
    numbers = st.none() | st.integers(-(2**63), 2**63 - 1)
    teachers = draw(st.lists(st.dictionaries(st.text(max_size=3), numbers, max_size=2), max_size=2))
    weights = draw(st.none() | st.just((0.5, 0.5)))
    spec = LabelSpec(n, k, draw(st.integers(1, 9)), 4, shape, policy, how, teachers=tuple(teachers), weights=weights)
    return StoredLabels(spec, "0" * 64, draw(st.integers(0, 10**12)), draw(st.none() | st.just({"teachers": ["a"]})))


@st.composite
def sets(draw) -> DistilledSet:
    image_kind = draw(st.sampled_from(["pixels", "tiles", "indices", "schedule"]))
    label_kinds = ["hard", "probabilities", "logits", "representations"]
    label_kinds += ["views"] if image_kind in ("pixels", "tiles") else []
    label_kind = draw(st.sampled_from(label_kinds))
    n, k, c, h, w, e = (draw(st.integers(1, 4)) for _ in range(6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    if image_kind in ("pixels", "tiles"):
        if draw(st.booleans()):
            images = torch.randint(256, (n, c, h, w), generator=rng, dtype=torch.uint8)
        else:
            images = torch.randn(n, c, h, w, generator=rng)
            images.view(-1)[0] = draw(st.sampled_from(AWKWARD))
        lead = (n,)
    else:
        lead = (n,) if image_kind == "indices" else (e, n)
        images = torch.randint(50_000, lead, generator=rng)
    if label_kind in ("hard", "views"):
        labels = torch.randint(k, lead, generator=rng)
    else:
        labels = torch.rand(*lead, 7 if label_kind == "representations" else k, generator=rng) + 1e-3
    return DistilledSet(
        images=images,
        labels=labels,
        classes=tuple(draw(st.lists(st.text(max_size=5), min_size=k, max_size=k, unique=True))),
        source="toy",
        space=SPACE,
        image_kind=image_kind,
        label_kind=label_kind,
        decode_factor=2 if image_kind == "tiles" else 1,
        lr=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        student=draw(st.none() | st.just({"arch": "convnet", "depth": 3})),
        views=draw(views(n, k, (c, h, w))) if label_kind == "views" else None,
        provenance={"seed": draw(st.integers(-(2**63), 2**63 - 1)), "note": draw(st.text(max_size=5))},
    )


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@given(sets())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_kind_round_trips_bit_for_bit(tmp_path, distilled):
    path = tmp_path / "set.safetensors"
    save(distilled, path)
    first = sha256_file(path)
    loaded = load(path)
    assert same(loaded.images, distilled.images)
    assert same(loaded.labels, distilled.labels)
    assert loaded.facts() == distilled.facts()
    assert loaded.classes == distilled.classes
    assert loaded.digest() == distilled.digest()
    save(loaded, path)
    assert sha256_file(path) == first
    assert os.listdir(tmp_path) == ["set.safetensors"]


def test_a_header_as_long_as_a_pickle_looks_is_no_pickle(tmp_path):
    # the first two bytes are the low ones of the header's length: 640 reads as a pickle's mark, 19280 as a zip's
    path = tmp_path / "set.safetensors"
    starts = set()
    for length in [*range(120), *range(18_400, 18_800, 8)]:
        save(a_set(provenance={"note": "x" * length}), path)
        starts.add(path.read_bytes()[:2])
        load(path)
    assert starts >= {b"\x80\x02", b"PK"}


def test_a_loaded_set_does_not_change_with_its_file(tmp_path):
    path = tmp_path / "set.safetensors"
    save(a_set(), path)
    loaded = load(path)
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\xff")
    assert same(loaded.images, a_set().images)


def test_a_set_on_strange_strides_is_saved_as_it_reads(tmp_path):
    images = torch.randn(2, 2, 3, 4).permute(3, 2, 0, 1)
    save(a_set(images=images), tmp_path / "a.safetensors")
    assert torch.equal(load(tmp_path / "a.safetensors").images, images)


def test_nothing_is_written_when_the_set_is_not_whole(tmp_path):
    with pytest.raises(UsageError, match="'images'"):
        save(a_set(images=torch.tensor(1.0)), tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


def rewrite(path: Path, **metadata: str | None) -> None:
    """Save a good set, with some of its metadata changed or (None) left out."""
    distilled = a_set()
    full = {"format": "dd-distilled-set", "version": "1", "manifest": json.dumps(distilled.facts()), **metadata}
    tensors = {"images": distilled.images, "labels": distilled.labels}
    save_file(tensors, path, {name: text for name, text in full.items() if text is not None})


def manifest(**changes) -> str:
    facts = {**a_set().facts(), **changes}
    return json.dumps({name: value for name, value in facts.items() if value is not ...})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": None}, "not a distilled set .*'format'"),
        ({"format": "other"}, "not a distilled set .*'format'"),
        ({"version": "3"}, "written by a newer dd .*3.*; upgrade"),
        ({"version": "2"}, "no field 'sha256'"),
        ({"version": "9" * 5000}, "field 'version' is '9+'"),
        ({"sha257": "0"}, "field 'sha257' is strange"),
        ({"version": None}, "field 'version'"),
        ({"version": "one"}, "field 'version' is 'one'"),
        ({"version": "0"}, "field 'version' is '0'"),
        ({"manifest": None}, "no field 'manifest'"),
        ({"manifest": "{"}, "manifest: Invalid JSON"),
        ({"manifest": "[]"}, "manifest"),
        ({"manifest": manifest(source=...)}, "source: Field required"),
        ({"manifest": manifest(surprise=1)}, "unknown key 'surprise'"),
        ({"manifest": manifest(protocl={})}, "unknown key 'protocl'; did you mean 'protocol'"),
        ({"manifest": manifest(provenance={"seed": 7}).replace("7", "7" * 5000)}, "Invalid JSON: number out of range"),
        ({"manifest": manifest(provenance={"seed": 10**400})}, "provenance.seed is a whole number of 1329 bits"),
        ({"manifest": manifest(provenance={"loss": [0.5, math.nan]})}, "provenance.loss is nan"),
        ({"manifest": '{"a": ' * 500 + "1" + "}" * 500}, "Invalid JSON: recursion limit"),
        ({"manifest": manifest(source="x" * (5 << 20))}, "characters, more than"),
        ({"manifest": manifest(classes="cat")}, "classes: "),
        ({"manifest": manifest(lr="0.1")}, "lr: "),
        ({"manifest": manifest(decode_factor=2.5)}, "decode_factor: "),
        ({"manifest": manifest(image_kind="paintings")}, "image_kind: "),
        ({"manifest": manifest(source=..., lr="fast")}, "source: .*; lr: |lr: .*; source: "),
        ({"manifest": manifest(classes=["cat"])}, "'labels'.*label 1"),
    ],
)
def test_a_wrong_header_is_one_line_with_file_and_field(tmp_path, metadata, message):
    path = tmp_path / "odd.safetensors"
    rewrite(path, **metadata)
    with pytest.raises(UsageError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_of_before_there_were_hashes_is_read(tmp_path):
    rewrite(tmp_path / "old.safetensors")
    assert load(tmp_path / "old.safetensors").digest() == a_set().digest()


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path):
    path = tmp_path / "set.safetensors"
    save(a_set(), path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"damaged|not a safetensors|newer dd|not a distilled set") as error:
            load(path)
        assert str(path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_what_is_not_of_the_format_is_refused(tmp_path):
    tensors = {"images": a_set().images, "labels": a_set().labels, "more": torch.zeros(1)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "dd-distilled-set", "version": "1", "manifest": "{}"})
    with pytest.raises(UsageError, match="tensor 'more' is strange"):
        load(tmp_path / "a.safetensors")


def test_what_nobody_can_change_is_hashed_once(tmp_path, monkeypatch):
    hashed = []
    real = _hashes.sha256_tensors
    monkeypatch.setattr(_hashes, "sha256_tensors", lambda tensors: hashed.append(list(tensors)) or real(tensors))
    save(a_set(), tmp_path / "a.safetensors")
    hashed.clear()
    with _hashes.hashed_once():
        first = load(tmp_path / "a.safetensors")
        with _hashes.hashed_once():
            same_again = replace(first, protocol=None)
            assert (same_again.digest(), first.sha256("images")) == (first.digest(), same_again.sha256("images"))
            other = replace(first, images=first.images + 1)
            assert other.digest() != first.digest()
    assert hashed == [["images"], ["labels"], ["images"]]
    first.images.add_(1)  # outside of the block a set is hashed as it is
    assert first.digest() == other.digest()


def test_missing_tensors_are_named(tmp_path):
    full = {"format": "dd-distilled-set", "version": "1", "manifest": manifest()}
    save_file({"images": a_set().images}, tmp_path / "a.safetensors", full)
    with pytest.raises(UsageError, match="no tensor 'labels'"):
        load(tmp_path / "a.safetensors")


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    path = tmp_path / "set.safetensors"
    save(a_set(), path)
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="truncated") as error:
            load(path)
        assert str(path) in str(error.value)


def test_pickles_texts_folders_and_nothing_are_refused_in_one_line(tmp_path):
    torch.save(a_set().images, tmp_path / "new.pt")
    torch.save(a_set().images, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "text.csv").write_text("it,loss\n1,2\n")
    for name, message in {
        "new.pt": "pickle or zip .*only safetensors",
        "old.pt": "pickle or zip .*only safetensors",
        "text.csv": "not a safetensors file",
        "nothing": "cannot read .*No such file",
        ".": "is a folder",
    }.items():
        with pytest.raises(UsageError, match=message) as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_the_manifest_is_readable_by_anyone(tmp_path):
    save(a_set(lr=1 / 3, provenance={"loss": math.pi}), tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    facts = json.loads(header["__metadata__"]["manifest"])
    assert facts["lr"] == 1 / 3
    assert facts["classes"] == ["cat", "dog"]
    assert facts["provenance"] == {"loss": math.pi}
