"""Sets that ship with the package: without a network they are listed, pulled, and reach what their cards say."""

import tomllib
from pathlib import Path

import pytest

from dd.released.index import PACKAGE

NOBODY = "http://127.0.0.1:9"  # the port that discards; nobody listens
OFFLINE = {"DD_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "http_proxy": NOBODY, "https_proxy": NOBODY, "no_proxy": ""}
SHIPPED = tomllib.loads(Path(PACKAGE[0]).read_text(encoding="utf-8"))["set"]


def within(report, stated):
    """Whether a score is what the card says, give or take three deviations."""
    return abs(report["accuracy"]["mean"] - stated["mean"]) <= 3 * stated["std"]


def test_a_set_that_ships_reaches_what_its_card_says(place):
    listed = place.dd("sets", "fashion-mini", "ipc1", "--json", **OFFLINE)
    assert {"dm/fashion-mini-ipc1", "random/fashion-mini-ipc1"} <= {one["name"] for one in listed.report["sets"]}
    card = place.dd("sets", "dm/fashion-mini-ipc1", **OFFLINE)
    for words in ("reached", "random real images", "sha256", "dd run method=dm ipc=1"):
        assert words in card.out
    pulled = place.dd("pull", "dm/fashion-mini-ipc1", "out=mine", **OFFLINE)
    assert pulled.code == 0, pulled.err
    assert pulled.out == f"{place.path}/mine/set.safetensors\n"
    fewer = ("eval.students=1", "eval.pilots=1", "eval.full=false", "device=cpu", "--json")
    scored = place.dd("eval", "dm/fashion-mini-ipc1", *fewer, **OFFLINE)
    assert scored.code == 0, scored.err
    (stated,) = scored.report["released"]
    assert scored.report["fingerprint"] == stated["fingerprint"]
    assert within(scored.report, stated)
    assert scored.report["accuracy"]["mean"] > scored.report["control"]["mean"]
    assert place.half_written() == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("record", SHIPPED, ids=lambda record: record["name"])
def test_every_set_that_ships_reaches_what_its_card_says(place, record):
    """Under its own protocol, with all its students; teachers that label are trained here."""
    scored = place.dd("eval", record["name"], "eval.full=false", "device=cpu", "--json", **OFFLINE)
    assert scored.code == 0, scored.err
    (stated,) = scored.report["released"]
    assert scored.report["fingerprint"] == stated["fingerprint"]
    assert within(scored.report, stated), (scored.report["accuracy"], stated)


def test_labels_of_views_come_along(place):
    """Packed as they ship, they are the labels that the set was saved with, and students are trained on them."""
    (soft,) = [one for one in SHIPPED if one["name"] == "cda/fashion-mini-ipc10"]
    assert len(soft["files"]) == 2
    pulled = place.dd("pull", soft["name"], "out=mine", **OFFLINE)
    assert pulled.code == 0, pulled.err
    assert len(list((place.path / "mine" / "labels").glob("*.json"))) == 150
    import dd

    assert dd.load(place.path / "mine" / "set.safetensors").label_store().verify() == {}
    pushed = place.dd("push", "mine", "published", **OFFLINE)
    assert pushed.code == 0, pushed.err
    for file in soft["files"]:
        packed = place.path / "published" / file["path"]
        assert packed.stat().st_size == file["size"]
        assert "labels" in packed.name or packed.read_bytes() == (place.path / "mine" / file["path"]).read_bytes()


def test_packed_labels_of_another_set_are_refused(place):
    import safetensors.torch

    import dd

    place.dd("pull", "cda/fashion-mini-ipc10", "out=mine", **OFFLINE)
    made = dd.load(place.path / "mine" / "set.safetensors")
    (packed,) = made.label_store().pack(place.path)
    again = place.path / "again"
    store = made.label_store()
    store = type(store)(again, store.spec, store.own)
    tensors = safetensors.torch.load_file(packed)
    with safetensors.safe_open(packed, "pt") as file:
        metadata = file.metadata()
    name = next(iter(tensors))
    for wrong in (
        {**tensors, name: tensors[name][:1]},
        {**tensors, "x/y": tensors[name]},
        {"999/logits": tensors[name]},
    ):
        safetensors.torch.save_file({key: value.clone() for key, value in wrong.items()}, packed, metadata)
        with pytest.raises(dd.errors.UsageError, match=r"holds no labels as dd packs them|is damaged"):
            store.unpack([packed])
    packed.write_bytes(b"no safetensors")
    with pytest.raises(dd.errors.UsageError, match="holds no labels as dd packs them"):
        store.unpack([packed])
