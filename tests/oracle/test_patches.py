"""RDED's patches against what the paper says of them."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as tv

from dd.data import DataSettings, open_data
from dd.engine.method import prepare
from dd.engine.registry import get
from dd.errors import UsageError
from dd.rng import generator
from dd.runs import Store
from dd.sets.tiles import mosaic
from dd.views import draw_boxes, draw_shares, resized_crop

from .conftest import SQUEEZE, STUDENT

RDED, SPP = get("rded"), get("sre2lpp")
patches = importlib.import_module("dd.methods.decoupled._crops")
CropSettings = patches.CropSettings


@pytest.fixture
def net(task):
    return prepare(RDED(squeeze=SQUEEZE), task).teachers[0].network


def boxes_of(task, settings, c):
    """Images and boxes of a class as they are drawn."""
    rng, pool = task.common("patches", c), task.data.train.of_class(c)
    index = pool[torch.randperm(len(pool), generator=rng)[: settings.candidates]]
    size = (task.data.size, task.data.size)
    boxes = draw_boxes(len(index) * settings.crops, size, (settings.least, 1.0), rng, stretch=1)
    return task.data.train.images(index), boxes.view(len(index), settings.crops, 4)


# --- crops of another size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 8, 13, 16])
def test_a_smaller_crop_is_what_interpolate_makes_of_the_slice_antialiased(side):
    images = torch.randn(6, 2, 16, 16, generator=generator(0), dtype=torch.float64)
    boxes = draw_boxes(6, (16, 16), (0.1, 1.0), generator(1))
    found = resized_crop(images, boxes, side)
    for image, (top, left, height, width), crop in zip(images, boxes.tolist(), found, strict=True):
        part = image[None, :, top : top + height, left : left + width]
        wanted = F.interpolate(part, size=(side, side), mode="bilinear", align_corners=False, antialias=True)[0]
        assert torch.allclose(crop, wanted, atol=1e-12)


def test_at_the_images_own_size_both_ways_agree():
    images = torch.randn(6, 2, 16, 16, generator=generator(0), dtype=torch.float64)
    boxes = draw_boxes(6, (16, 16), (0.1, 1.0), generator(1))
    assert torch.allclose(resized_crop(images, boxes, 16), resized_crop(images, boxes), atol=1e-12)


# --- scores and choice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 7, 4, 3])
def test_the_frame_is_zero_and_in_the_middle(side):
    crops = torch.randn(3, 2, side, side, generator=generator(0))
    framed = patches.framed(crops, 8)
    first = (8 - side) // 2
    assert framed.shape == (3, 2, 8, 8)
    assert torch.equal(framed[:, :, first : first + side, first : first + side], crops)
    assert framed.abs().sum() == pytest.approx(crops.abs().sum().item())


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_score_is_the_cross_entropy_of_the_framed_crop(task, net, factor):
    settings = CropSettings(factor=factor, crops=3, candidates=10)
    images, boxes = boxes_of(task, settings, 2)
    side = 8 // factor
    found = patches.score([net], images, boxes.flatten(0, 1), 2, side)
    assert found.shape == (10, 3)
    for i in range(10):
        for j in range(3):
            crop = resized_crop(images[i : i + 1], boxes[i, j][None], side)
            whole = torch.zeros(1, 1, 8, 8)
            first = (8 - side) // 2
            whole[:, :, first : first + side, first : first + side] = crop
            wanted = F.cross_entropy(net(whole), torch.tensor([2]))
            assert found[i, j].item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-6)


def test_choices():
    scores = torch.tensor([[5.0, 1.0], [2.0, 9.0], [0.5, 7.0], [3.0, 4.0]])
    chosen, crop = patches.select(scores, 2, "low")
    assert (chosen.tolist(), crop.tolist()) == ([2, 0], [0, 1])
    chosen, crop = patches.select(scores, 2, "high")
    assert (chosen.tolist(), crop.tolist()) == ([1, 2], [1, 1])
    chosen, crop = patches.select(scores, 2, "medium")
    assert (chosen.tolist(), crop.tolist()) == ([0, 1], [1, 0])
    allowed = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    chosen, crop = patches.select(scores, 3, "low", allowed)
    assert (chosen.tolist(), crop.tolist()) == ([1, 0, 2], [0, 0, 1])
    with pytest.raises(UsageError, match="3 of 4 real images"):
        patches.select(scores, 4, "low", allowed)


def test_one_patch_per_image_whatever_the_order_and_more_crops_are_never_worse():
    scores = torch.rand(40, 6, generator=generator(0))
    for order in ("low", "medium", "high"):
        chosen, _ = patches.select(scores, 12, order)
        assert len(chosen.unique()) == 12
        shuffled = torch.randperm(40, generator=generator(1))
        again, _ = patches.select(scores[shuffled], 12, order)
        assert set(shuffled[again].tolist()) == set(chosen.tolist())
    few, many = (patches.select(scores[:, :m], 12, "low") for m in (3, 6))
    values = [scores[c, k] for c, k in (few, many)]
    assert (values[1] <= values[0]).all()
    assert (values[0].diff() >= 0).all()  # ascending


# --- RDED ------------------------------------------------------------------------------------------------------------


def made(method, task):
    prepared = prepare(method.settle(task), task)
    return method.finish(method.start(task, prepared), task, prepared).images


def test_one_tile_per_image_is_the_crop_itself(task, net):
    settings = CropSettings(crops=4, candidates=20)
    images = made(RDED(squeeze=SQUEEZE, crops=settings), task)
    for c in range(4):
        real, boxes = boxes_of(task, settings, c)
        scores = patches.score([net], real, boxes.flatten(0, 1), c, 8)
        best, crop = scores.min(1)
        order = best.argsort()[:3]
        for k, i in enumerate(order.tolist()):
            wanted = resized_crop(real[i : i + 1], boxes[i, crop[i]][None])[0]
            pixels = (task.data.preprocess.invert(wanted[None]).clamp(0, 1) * 255).round().byte()[0]
            assert torch.equal(images[3 * c + k], pixels)


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (7, 2), (9, 4)])
def test_stitching(side, factor):
    n, patch = 3, side // factor
    tiles = torch.arange(float(n * factor**2)).view(-1, 1, 1, 1).expand(-1, 1, patch, patch)
    # as `stitched_class` orders them
    groups = tiles.reshape(factor**2, n, 1, patch, patch).transpose(0, 1).flatten(0, 1)
    images = mosaic(groups, factor, side)
    assert images.shape == (n, 1, side, side)
    sides = [side // factor + (i < side % factor) for i in range(factor)]
    for k in range(n):
        top = 0
        for i, height in enumerate(sides):
            left = 0
            for j, width in enumerate(sides):
                tile = images[k, 0, top : top + height, left : left + width]
                assert (tile == k + n * (factor * i + j)).all()
                left += width
            top += height


@pytest.mark.parametrize(("factor", "edges"), [(2, [0, 4, 8]), (3, [0, 3, 6, 8])])
def test_tiles_are_the_patches_k_n_plus_k_and_so_on(task, net, factor, edges):
    """Oracle 24, also where the side does not divide: the first tiles are a pixel larger, by repeating pixels."""
    settings, side = CropSettings(factor=factor, crops=2, candidates=30), 8 // factor
    images = made(RDED(squeeze=SQUEEZE, crops=settings), task)
    for c in range(4):
        real, boxes = boxes_of(task, settings, c)
        best, crop = patches.score([net], real, boxes.flatten(0, 1), c, side).min(1)
        order = best.argsort(stable=True).tolist()
        for k in range(3):
            for t in range(factor**2):
                i = order[3 * t + k]
                patch = resized_crop(real[i : i + 1], boxes[i, crop[i]][None], side)
                whole = (task.data.preprocess.invert(patch).clamp(0, 1) * 255).round().byte()[0]
                row, column = divmod(t, factor)
                (top, bottom), (left, right) = edges[row : row + 2], edges[column : column + 2]
                rows, columns = ([i * side // n for i in range(n)] for n in (bottom - top, right - left))
                assert torch.equal(images[3 * c + k, :, top:bottom, left:right], whole[:, rows][:, :, columns])


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Pictures of four classes, wide, high and square, by the names of their classes."""
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    for c in range(4):
        prototype = rng.uniform(30, 220, (4, 4))
        folder = tmp_path / "set" / f"class {c}"
        folder.mkdir(parents=True)
        for number, size in enumerate([(30, 20), (20, 30), (24, 24)] * 8):
            smooth = np.asarray(Image.fromarray(prototype.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))
            noisy = smooth + rng.normal(0, 25, smooth.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    return tmp_path / "set"


def opened(files, stream=False, size=8):
    return open_data(f"folder:{files}", DataSettings(size=size, stream=stream, holdout=0.2), "cpu")


@pytest.mark.parametrize("factor", [1, 2])
def test_patches_of_files_are_cut_from_whole_pictures(make_task, files, factor):
    """By hand: torchvision's crops of every file, scored in their frame, the best of each, the best of those."""
    task = make_task(opened(files), student=STUDENT, ipc=2)
    settings = CropSettings(factor=factor, crops=3, candidates=14, originals=True)
    method = RDED(squeeze=SQUEEZE, crops=settings)
    images, side = made(method, task), 8 // factor
    network = prepare(method, task).teachers[0].network
    space, data = task.data.preprocess, task.data.train
    paths = [data.originals.reader.items.load(i) for i in range(len(data))]
    for c in range(4):
        rng, pool = task.common("patches", c), data.of_class(c)
        index = pool[torch.randperm(len(pool), generator=rng)[:14]]
        draw, best = draw_shares(len(index) * 3, (0.08, 1.0), rng, stretch=1), []
        for k, at in enumerate(index.tolist()):
            picture, crops = Image.open(paths[at]), []
            for box in draw.of(3 * k, 3 * k + 3).boxes((picture.height, picture.width)).tolist():
                crop = tv.pil_to_tensor(tv.resized_crop(picture, *box, size=[side, side]))
                framed = F.pad(space(crop[None]), [(8 - side) // 2] * 4)
                crops.append((F.cross_entropy(network(framed), torch.tensor([c])).item(), crop))
            best.append(min(crops, key=lambda pair: pair[0]))
        chosen = [crop for _, crop in sorted(best, key=lambda pair: pair[0])[: 2 * factor**2]]
        for k in range(2):
            tiles = [chosen[2 * t + k] for t in range(factor**2)]
            rows = [torch.cat(tiles[factor * r : factor * (r + 1)], 2) for r in range(factor)]
            assert torch.equal(images[2 * c + k], torch.cat(rows, 1))


@pytest.mark.parametrize("name", ["rded", "nrrdd"])
def test_streamed_files_give_the_same_patches(make_task, files, name):
    found = []
    for stream in (False, True):
        method, task = get(name), make_task(opened(files, stream), student=STUDENT, ipc=2)
        crops = replace(method().crops, factor=2, crops=3, candidates=16, originals=True)
        found.append(made(method(squeeze=SQUEEZE, crops=crops), task))
        squares = made(method(squeeze=SQUEEZE, crops=replace(crops, originals=False)), task)
        assert not torch.equal(found[-1], squares)
    assert torch.equal(*found)


def test_where_there_are_no_files_it_makes_no_difference(task):
    plain, asked = (made(RDED(squeeze=SQUEEZE, crops=CropSettings(originals=o)), task) for o in (False, True))
    assert torch.equal(plain, asked)


def test_a_box_of_a_file_is_looked_at_in_the_squashed_picture(files):
    data = opened(files)
    index, draw = torch.tensor([0, 1, 2]), draw_shares(3 * 4, (0.08, 1.0), generator(1), stretch=1)
    found = patches._of_files(data, index, draw, 4, True)
    assert torch.equal(found.images, data.preprocess(data.train.originals.squashed(index, 8)))
    _, boxes, sizes = data.train.originals.crops(index, draw, 4)
    for box, own, (height, width) in zip(
        found.boxes.view(3, 4, 4).flatten(0, 1).tolist(),
        boxes.flatten(0, 1).tolist(),
        sizes.repeat_interleave(4, 0).tolist(),
        strict=True,
    ):
        scale = [8 / height, 8 / width] * 2
        assert all(abs(b - o * s) <= 1 for b, o, s in zip(box, own, scale, strict=True))
        assert 0 <= box[0] < box[0] + box[2] <= 8
        assert 0 <= box[1] < box[1] + box[3] <= 8


def test_orders_differ_and_a_poor_class_is_refused(task):
    by_order = {o: made(RDED(squeeze=SQUEEZE, crops=CropSettings(order=o)), task) for o in ("low", "medium", "high")}
    assert len({image.float().sum().item() for image in by_order.values()}) == 3
    with pytest.raises(UsageError, match=r"there are 11 candidates .*: raise crops\.candidates=11"):
        made(RDED(squeeze=SQUEEZE, crops=CropSettings(factor=2, candidates=11)), task)
    with pytest.raises(UsageError, match=r"\(of \d+\): lower ipc or crops\.factor"):
        made(RDED(squeeze=SQUEEZE, crops=CropSettings(factor=8)), task)


@pytest.mark.parametrize("method", [RDED, SPP])
def test_too_few_images_are_refused_before_a_teacher_is_trained(method, task, tmp_path):
    fresh = replace(task, store=Store(tmp_path))
    with pytest.raises(UsageError, match=r"lower ipc or crops\.factor"):
        method(squeeze=SQUEEZE, crops=CropSettings(factor=8)).settle(fresh)
    assert not list(tmp_path.rglob("teachers"))


def test_parts_and_the_whole_take_the_same_patches(task):
    method = SPP(squeeze=SQUEEZE, iterations=0, batch=3)
    prepared = prepare(method, task)
    whole = method.start(task, prepared).images
    slots = method.parts(task)
    assert len(slots) == 6
    for part, places in zip(task.in_parts(slots), slots, strict=True):
        assert torch.equal(method.start(part, prepared).images, whole[places])
