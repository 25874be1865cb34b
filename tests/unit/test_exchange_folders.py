"""Folders, archives, tables, pictures and selections of others: each as its authors lay it out, and in disguise."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.utils import make_grid, save_image

from dd.errors import UsageError
from dd.exchange.draft import Asked
from dd.exchange.readers import drafts
from dd.exchange.source import ForeignFiles

IPC, CLASSES, SIDE = 3, 4, 12


def pixels(n=IPC * CLASSES, side=SIDE, channels=3):
    """Smooth images, so that JPEG leaves them nearly as they are."""
    corners = torch.rand(n, channels, 2, 2, generator=torch.Generator().manual_seed(n + side))
    return (torch.nn.functional.interpolate(corners, size=(side, side), mode="bilinear") * 255).round().byte()


def save(image, path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    Image.fromarray(rows.contiguous().numpy()).save(path, **how)


def laid_out(root, folder, file, suffix="png", ipc=IPC, classes=CLASSES, **how):
    """Images class by class, as functions of class and number name them; returns them."""
    images = pixels(ipc * classes)
    for place, image in enumerate(images):
        c, i = divmod(place, ipc)
        save(image, root / folder(c) / f"{file(c, i)}.{suffix}", **how)
    return images


def read(*paths, **said):
    (draft,) = drafts(ForeignFiles(paths), Asked(**said))
    return draft


def refused(*paths, **said):
    with pytest.raises(UsageError) as error:
        drafts(ForeignFiles(paths), Asked(**said))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


FAMILIES = {
    "d3hr-cifar": (lambda c: f"{'abcd'[c]}-{c:03}", lambda c, i: str(i)),
    "sre2l": (lambda c: f"new{c:03}", lambda c, i: f"class{c:03}_id{i:03}"),
    "cda-21k": (lambda c: f"new{c:05}", lambda c, i: f"class{c:05}_id{i:03}"),
    "rded": (lambda c: f"{c:05}", lambda c, i: f"class{c:05}_id{i:05}"),
    "d3hr": (lambda c: f"n{c:08}", lambda c, i: str(i)),
    "numbers": (lambda c: str(c), lambda c, i: f"{i}"),
    "words": (lambda c: f"class-{c}", lambda c, i: f"img ({i})"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("within", ["", "generated", "a/b/train"])
def test_every_layout_of_folders(tmp_path, family, within):
    """Named as you like, within further folders, beside files that are no images."""
    root = tmp_path / "CIFAR100_whatever"
    images = laid_out(root / within, *FAMILIES[family])
    (root / "train.txt").write_text("/home/author/images/0.png 0\n")
    (root / "__MACOSX").mkdir()
    draft = read(root)
    assert draft.format == {"sre2l": "sre2l", "cda-21k": "sre2l", "rded": "rded"}.get(family, "folder")
    assert torch.equal(draft.images, images)
    assert draft.labels.tolist() == [c for c in range(CLASSES) for _ in range(IPC)]
    assert draft.classes == ()


def test_jpeg_as_the_authors_write_it(tmp_path):
    laid_out(tmp_path / "set", *FAMILIES["sre2l"], suffix="jpg")
    draft = read(tmp_path / "set")
    for image, (file, label) in zip(draft.images, ImageFolder(str(tmp_path / "set")).samples, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), image.permute(1, 2, 0).numpy())
        assert f"class{label:03}" in file


def test_a_number_in_a_name_is_the_class(tmp_path):
    """1,001 classes with three digits: new1000 is class 1000, and rank 101 among the names."""
    root = tmp_path / "set"
    for c in range(1001):
        save(torch.full((1, 8, 8), c % 256, dtype=torch.uint8), root / f"new{c:03}" / f"class{c:03}_id000.png")
    draft = read(root)
    names = sorted(f"new{c:03}" for c in range(1001))
    assert names.index("new1000") == 101
    order = [int(name[3:]) for name in names]
    assert draft.labels.tolist() == order
    assert draft.images[:, 0, 0, 0].tolist() == [c % 256 for c in order]
    for c in range(10):  # unpadded
        save(torch.full((1, 8, 8), c, dtype=torch.uint8), tmp_path / "bare" / f"c{c + 5}" / "0.png")
    assert read(tmp_path / "bare").labels.tolist() == [10, 11, 12, 13, 14, 5, 6, 7, 8, 9]


def test_images_are_in_the_order_of_image_folder(tmp_path):
    """On which the batches of label files rest."""
    root = tmp_path / "set"
    laid_out(root, lambda c: f"new{8 + c}", lambda c, i: f"class{8 + c}_id{i * 7}")
    draft, found = read(root), ImageFolder(str(root))
    for image, (file, _) in zip(draft.images, found.samples, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), image.permute(1, 2, 0).numpy())


def test_names_of_classes(tmp_path):
    wnids = ["n02102040", "n01440764", "n03000684", "n02979186"]
    images = laid_out(tmp_path / "set", lambda c: wnids[c], lambda c, i: str(i))
    draft = read(tmp_path / "set")
    assert draft.classes == tuple(sorted(wnids))
    for label, name in enumerate(draft.classes):
        there = wnids.index(name) * IPC
        assert torch.equal(draft.images[draft.labels == label], images[there : there + IPC])
    laid_out(tmp_path / "words", lambda c: ["dog", "Ant", "cat", "bee"][c], lambda c, i: str(i))
    assert read(tmp_path / "words").classes == ("Ant", "bee", "cat", "dog")


def test_folders_numbered_from_one(tmp_path):
    laid_out(tmp_path / "set", lambda c: f"{c + 1}", lambda c, i: str(i))
    draft = read(tmp_path / "set")
    assert draft.labels.unique().tolist() == [0, 1, 2, 3]
    assert "numbered from 1" in draft.assumed[0]


def test_intermediate_images_of_edc_are_no_images(tmp_path):
    images = laid_out(tmp_path / "set", *FAMILIES["sre2l"])
    for c in range(CLASSES):
        save(images[0], tmp_path / "set" / f"new{c:03}" / f"class{c:03}_id000_iter0500.png")
    draft = read(tmp_path / "set")
    assert torch.equal(draft.images, images)
    assert any("4 intermediate images" in line for line in draft.assumed)
    laid_out(tmp_path / "only", FAMILIES["sre2l"][0], lambda c, i: f"class{c:03}_id{i:03}_iter0500")
    assert "none is the last" in refused(tmp_path / "only")


def test_a_folder_that_contradicts_its_files(tmp_path):
    laid_out(tmp_path / "set", FAMILIES["sre2l"][0], lambda c, i: f"class{c ^ 1:03}_id{i:03}")
    assert "of another class" in refused(tmp_path / "set")


def test_the_name_says_another_ipc(tmp_path):
    root = tmp_path / "sre2l_in1k_rn18_4k_ipc50"
    laid_out(root, *FAMILIES["sre2l"])
    assert "50 images per class, and it holds 12 of 4 classes, 3 per class" in refused(root)
    draft = read(root, ipc=2)  # the first of each, by name
    assert draft.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert any("4 are left" in line for line in draft.assumed)
    assert "a class has 3" in refused(root, ipc=4)
    laid_out(tmp_path / "cifar10_3ipc", *FAMILIES["numbers"])
    assert len(read(tmp_path / "cifar10_3ipc").images) == 12


def test_images_that_cannot_be_taken_as_they_are(tmp_path):
    laid_out(tmp_path / "set", *FAMILIES["words"])
    save(pixels(1, 16)[0], tmp_path / "set" / "class-0" / "x.png")
    assert "size=224" in refused(tmp_path / "set")
    assert read(tmp_path / "set", size=8).images.shape == (13, 3, 8, 8)
    (tmp_path / "set" / "class-0" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert "1 of 13 images cannot be read: class-0/x.png" in refused(tmp_path / "set")
    big = Image.new("L", (600, 600))
    for c in range(2):
        (tmp_path / "big" / f"{c}").mkdir(parents=True)
        big.save(tmp_path / "big" / f"{c}" / "0.png")
    assert "size=600" in refused(tmp_path / "big")
    assert "no known format" in refused(tmp_path / "set" / "class-0")


def test_grey_images_that_were_saved_in_colour(tmp_path):
    grey = pixels(CLASSES, channels=1).expand(-1, 3, -1, -1)
    for c in range(CLASSES):
        save(grey[c], tmp_path / "set" / f"{c}" / "0.png")
    assert read(tmp_path / "set").images.shape == (CLASSES, 3, SIDE, SIDE)
    assert torch.equal(read(tmp_path / "set", dataset="mnist").images, grey[:, :1])
    save(pixels(1)[0], tmp_path / "set" / "0" / "1.png")  # one of colour: not grey images at all
    assert read(tmp_path / "set", dataset="mnist").images.shape[1] == 3


def archived(root, path, kind):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for one in sorted(root.rglob("*")):
                file.write(one, f"set/{one.relative_to(root)}")
    else:
        with tarfile.open(path, f"w:{kind}") as file:
            file.add(root, "set")
    return path


@pytest.mark.parametrize("kind", ["zip", "", "gz", "xz", "bz2"])
def test_archives_of_folders(tmp_path, kind):
    laid_out(tmp_path / "set", *FAMILIES["rded"])
    path = archived(tmp_path / "set", tmp_path / "download", kind)  # whatever it is called
    before = sorted(tmp_path.rglob("*"))
    draft, same = read(path), read(tmp_path / "set")
    assert (draft.format, draft.labels.tolist()) == ("rded", same.labels.tolist())
    assert torch.equal(draft.images, same.images)
    assert sorted(tmp_path.rglob("*")) == before


def png(image=None):
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "PNG")
    return out.getvalue()


def hostile_zip(path, what):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("set/0/0.png", png())
        if what == "climbs":
            file.writestr("set/0/../../../../climbed.png", png())
        elif what == "absolute":
            file.writestr("/tmp/climbed.png", png())
        elif what == "backslash":
            file.writestr("set\\..\\..\\climbed.png", png())
        elif what == "link":
            info = zipfile.ZipInfo("set/1/0.png")
            info.external_attr = 0o120777 << 16
            file.writestr(info, "/etc/passwd")
        elif what == "bomb":
            file.writestr("set/1/0.png", bytes(70 << 20))


def hostile_tar(path, what):
    with tarfile.open(path, "w:gz" if what == "bomb" else "w") as file:

        def add(name, content=b"", **changes):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(content))

        add("set/0/0.png", png())
        if what == "climbs":
            add("set/../../climbed.png", png())
        elif what == "absolute":
            add("/tmp/climbed.png", png())
        elif what == "link":
            add("set/1/0.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        elif what == "hard link":
            add("set/1/0.png", type=tarfile.LNKTYPE, linkname="../../secret")
        elif what == "device":
            add("set/1/0.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        elif what == "bomb":
            add("set/1/0.png", bytes(70 << 20))


@pytest.mark.parametrize("what", ["climbs", "absolute", "backslash", "link", "bomb"])
def test_hostile_zip_files(tmp_path, what):
    path = tmp_path / "in" / "set.zip"
    path.parent.mkdir()
    hostile_zip(path, what)
    assert "is refused" in refused(path)
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


@pytest.mark.parametrize("what", ["climbs", "absolute", "link", "hard link", "device", "bomb"])
def test_hostile_tar_files(tmp_path, what):
    path = tmp_path / "in" / "set.tar"
    path.parent.mkdir()
    hostile_tar(path, what)
    assert "is refused" in refused(path)
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def test_a_tar_file_whose_header_is_a_bomb(tmp_path):
    """A header for long names that says it has 100 MB, packed to some hundred kB."""
    path = tmp_path / "set.tar.gz"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 100 << 20
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(100):
            file.write(bytes(1 << 20))
    assert "is refused" in refused(path)


def test_archives_that_are_cut_off(tmp_path):
    laid_out(tmp_path / "set", *FAMILIES["rded"])
    for kind in ("zip", "gz"):
        path = archived(tmp_path / "set", tmp_path / f"a.{kind}", kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "cannot be read" in refused(path) or "no known format" in refused(path)


def answer(function, *arguments):
    """What is refused, in words; "read" where nothing is."""
    try:
        function(*arguments)
    except UsageError as error:
        return str(error)
    return "read"


@pytest.mark.parametrize("kind", ["zip", "", "gz", "xz", "bz2", "parquet", "png", "npy", "json"])
def test_damage_anywhere_is_one_line(tmp_path, kind):
    """Bytes changed, cut out or doubled at random places: it is read, or refused; nothing else."""
    rng = np.random.default_rng(0)
    laid_out(tmp_path / "set", *FAMILIES["rded"])
    path = tmp_path / "damaged"
    if kind == "parquet":
        table(path, {"image": rows(pixels()), "label": LABELS})
    elif kind == "png":
        save_image(pixels() / 255, tmp_path / "grid.png")
        (tmp_path / "grid.png").rename(path)
    elif kind == "npy":
        np.save(tmp_path / "x.npy", np.arange(0, 100, 3))
        (tmp_path / "x.npy").rename(path)
    elif kind == "json":
        names = [f"{c:05}" for c in range(CLASSES)]
        path = tmp_path / "set" / "dd-export.json"
        path.write_text(
            json.dumps({"folders": names, "classes": names, "lr": 0.1, "decode_factor": 1, "protocol": None})
        )
    else:
        archived(tmp_path / "set", path, kind)
    whole = path.read_bytes()
    named = tmp_path / "set" if kind == "json" else path
    read(named, size=SIDE)
    for _ in range(30):
        spoilt = bytearray(whole)
        start, length = int(rng.integers(len(whole))), int(rng.integers(1, 60))
        way = rng.integers(3)
        if way == 0:
            spoilt[start : start + length] = rng.bytes(min(length, len(whole) - start))
        elif way == 1:
            del spoilt[start : start + length]
        else:
            spoilt[start:start] = spoilt[start : start + length]
        path.write_bytes(spoilt)
        said = answer(drafts, ForeignFiles([named]), Asked(size=SIDE))
        assert len(said.splitlines()) == 1


def test_links_in_a_folder_lead_to_no_other_image_twice(tmp_path):
    laid_out(tmp_path / "set", *FAMILIES["words"])
    os.symlink(tmp_path / "set" / "class-0", tmp_path / "set" / "class-9")
    os.mkfifo(tmp_path / "set" / "class-0" / "pipe.png")
    draft = read(tmp_path / "set")
    assert draft.labels.unique().tolist() == [0, 1, 2, 3]
    assert any("pipe.png" in line for line in draft.assumed)


def encoded(image):
    out = io.BytesIO()
    Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).contiguous().numpy()).save(out, "PNG")
    return out.getvalue()


def table(path, columns, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    found = pa.table(columns)
    if features:
        found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(found, path, row_group_size=5)
    return path


def rows(images):
    return [{"bytes": encoded(image), "path": f"{place}.png"} for place, image in enumerate(images)]


LABELS = [c for c in range(CLASSES) for _ in range(IPC)]


def test_the_tables_of_rethinkdc(tmp_path):
    """Two shards, whole numbers `class_id`, other columns beside."""
    images, folder = pixels(), tmp_path / "2025-rethinkdc-imagenet-rded-ipc-3" / "data"
    for shard, part in enumerate((slice(0, 7), slice(7, 12))):
        columns = {
            "image": rows(images[part]),
            "class_id": pa.array(LABELS[part], pa.int32()),
            "seed": list(range(12))[part],
        }
        table(folder / f"train-{shard:05}-of-00002-0123456789abcdef.parquet", columns)
    draft = read(folder.parent)
    assert torch.equal(draft.images, images)
    assert draft.labels.tolist() == LABELS
    assert draft.protocol == "rethinkdc-hard"
    (folder / "train-00001-of-00002-0123456789abcdef.parquet").unlink()
    assert "of 2 files train" in refused(folder.parent)


def test_a_table_whose_name_says_another_ipc(tmp_path):
    table(tmp_path / "imagenet-sre2l-ipc-10" / "train.parquet", {"image": rows(pixels()), "class_id": LABELS})
    assert "its name says 10 images per class" in refused(tmp_path / "imagenet-sre2l-ipc-10")


def test_the_columns_of_tables(tmp_path):
    images, path = rows(pixels()), tmp_path / "x.parquet"
    other = [label // 2 for label in LABELS]
    names = {"label": {"_type": "ClassLabel", "names": ["ant", "bee", "cat", "dog"]}}
    for columns, features, labels, classes in (
        ({"image": images, "class_id": LABELS}, None, LABELS, ()),
        ({"img": images, "fine_label": LABELS, "coarse_label": other}, None, LABELS, ()),
        ({"image": images, "label": LABELS}, names, LABELS, ("ant", "bee", "cat", "dog")),
        ({"image": images, "label": LABELS, "target": other}, names, LABELS, ("ant", "bee", "cat", "dog")),
        ({"photo": images, "number": LABELS}, None, LABELS, ()),
        ({"png": [row["bytes"] for row in images], "cls": LABELS}, None, LABELS, ()),
        (
            {"image": images, "label": ["dog" if c else "ant" for c in LABELS]},
            None,
            [int(c > 0) for c in LABELS],
            ("ant", "dog"),
        ),
    ):
        draft = read(table(path, columns, features))
        assert torch.equal(draft.images, pixels())
        assert (draft.labels.tolist(), draft.classes) == (labels, classes)
    two = table(path, {"image": images, "a": LABELS, "b": other})
    assert "label=a or label=b" in refused(two)
    assert read(two, label="b").labels.tolist() == other
    assert "no column 'c'" in refused(two, label="c")
    assert "no column of it holds labels" in refused(table(path, {"image": images}))
    assert "no column of it holds images" in refused(table(path, {"label": LABELS}))
    assert "holds -1, no class" in refused(table(path, {"image": images, "label": [-1, *LABELS[1:]]}))


def test_a_table_of_billions_of_rows(tmp_path):
    """Which take a few bytes in the file, as all are alike."""
    path, one = tmp_path / "x.parquet", pa.scalar(encoded(pixels()[0]))
    pq.write_table(pa.table({"image": pa.repeat(one, 10**6), "label": np.zeros(10**6, np.int64)}), path)
    assert path.stat().st_size < 10**6
    assert "declares 1,000,000 rows" in refused(path)


def test_more_than_the_memory_holds(tmp_path, monkeypatch):
    from dd.exchange import encoded as module

    laid_out(tmp_path / "set", *FAMILIES["words"])
    monkeypatch.setattr(module, "total_memory", lambda device: 8000)
    assert "take 5.2 kB, and there are 8.0 kB" in refused(tmp_path / "set")
    assert len(read(tmp_path / "set", ipc=2).images) == 8


def test_a_path_in_a_table_is_not_read(tmp_path):
    save(pixels()[0], tmp_path / "secret.png")
    cells = [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 12
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = table(tmp_path / "x.parquet", {"image": pa.array(cells, kind), "label": LABELS})
    assert "its bytes are not in the file" in refused(path)


@pytest.mark.parametrize(
    ("side", "nrow", "channels", "padding"),
    [(12, 3, 3, 2), (12, 5, 3, 2), (28, 10, 1, 2), (12, 12, 3, 2), (12, 1, 3, 2)],
)
def test_pictures_of_grids(tmp_path, side, nrow, channels, padding):
    """As torchvision lays them out; the last row need not be full."""
    images = pixels(12, side, channels)
    save_image(images / 255, tmp_path / "vis_DC_iter1000.png", nrow=nrow, padding=padding)
    draft = read(tmp_path / "vis_DC_iter1000.png", size=side)
    assert draft.format == "grid"
    assert (draft.images[:, :channels].int() - images.int()).abs().max() <= 1
    assert draft.labels is None


def test_pictures_whose_cells_are_to_be_told(tmp_path):
    images = pixels(12, 32)
    path = tmp_path / "grid.png"
    save_image(images / 255, path, nrow=4, pad_value=1.0)
    assert torch.equal(read(path).images, images)
    assert read(path, dataset="cifar10", ipc=3).images.shape == (12, 3, 32, 32)
    assert "ipc=5" in refused(path, ipc=5)
    assert "in 7 rows" in refused(path, rows=7)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 70, 3), dtype=np.uint8)).save(path)
    assert "is not a grid" in refused(path)
    flat = torch.zeros(3, 2 + 4 * 18, 2 + 4 * 18)  # all of one colour: anything may be in it
    save_image(flat, path)
    assert "rows=4 (cells of 16 pixels)" in refused(path)


def test_pictures_that_show_each_pixel_larger(tmp_path):
    """MTT shows images of CIFAR four times as large."""
    images = pixels(12, 32)
    grid = make_grid((images / 255).repeat_interleave(4, 2).repeat_interleave(4, 3), nrow=10)
    save_image(grid, tmp_path / "grid.png", padding=0)
    assert torch.equal(read(tmp_path / "grid.png", dataset="cifar10").images, images)


def test_selections(tmp_path):
    chosen = np.array([5, 49_999, 17, 3])
    for array in (chosen, chosen.astype(np.int32), chosen[:, None]):
        np.save(tmp_path / "select_indices_CIFAR10_0.125.npy", array)
        draft = read(tmp_path / "select_indices_CIFAR10_0.125.npy")
        assert draft.images.tolist() == chosen.tolist()
        assert draft.format == "indices"
    torch.save({"subset": {"indices": chosen, "weights": np.ones(4)}, "epoch": 5}, tmp_path / "model.ckpt")
    assert read(tmp_path / "model.ckpt").format == "deepcore"
    torch.save([5, 49_999, 17, 3], tmp_path / "idx.pt")
    assert read(tmp_path / "idx.pt").images.tolist() == chosen.tolist()
    np.save(tmp_path / "rounds.npy", np.stack([chosen, chosen[::-1]]))
    assert read(tmp_path / "rounds.npy").images.shape == (2, 4)
    np.save(tmp_path / "data_mask_win10_ep30.npy", np.random.default_rng(0).permutation(100))
    assert "an order of all images" in refused(tmp_path / "data_mask_win10_ep30.npy")
    np.save(tmp_path / "bad.npy", -chosen)
    assert "negative" in refused(tmp_path / "bad.npy")


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_checkpoint_that_would_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"subset": {"indices": np.arange(3)}, "more": Runs()}, tmp_path / "model.ckpt")
    assert "nothing in it was run" in refused(tmp_path / "model.ckpt")
    assert not (tmp_path / "ran").exists()


def test_what_was_exported_is_read_again(tmp_path):
    import dd
    from dd.sets import DistilledSet

    classes = ("zebra", "ant/bee", "Cat", "cat")
    space = {"kind": "standard", "mean": [0.0] * 3, "std": [1.0] * 3}
    soft = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
    hard = DistilledSet(pixels(), torch.tensor(LABELS).flip(0), classes, "toy", space=space, lr=0.02)
    dd.export(hard, "folder", tmp_path / "folder")
    draft = read(tmp_path / "folder")
    assert (draft.format, draft.classes, draft.lr) == ("exported", classes, 0.02)
    assert torch.equal(draft.images[draft.labels == 0], pixels()[9:])
    dd.export(replace(hard, labels=soft, label_kind="logits"), "parquet", tmp_path / "set.parquet")
    draft = read(tmp_path / "set.parquet")
    assert (draft.classes, draft.lr, draft.label_kind) == (classes, 0.02, "logits")
    assert torch.equal(draft.labels, soft)
    assert torch.equal(draft.images, pixels())
    (tmp_path / "folder" / "dd-export.json").write_text("{}")
    assert "is damaged" in refused(tmp_path / "folder")
