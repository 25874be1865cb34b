"""RDED's patches, and NRR-DD's refinement, against what their papers say of them."""

import importlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.data.views import draw_boxes, resized_crop
from dd.engine.registry import get
from dd.engine.synthesise import synthesise
from dd.errors import UsageError
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.sets.tiles import mosaic
from dd.training.teachers import SqueezeSettings

RDED, NRRDD, SPP = get("rded"), get("nrrdd"), get("sre2lpp")
patches = importlib.import_module("dd.methods.decoupled._crops")
nrr = importlib.import_module("dd.methods.decoupled.nrrdd")
CropSettings = patches.CropSettings

STUDENT = NetworkSpec(depth=2, width=8, norm="batch")
SQUEEZE = SqueezeSettings(epochs=6, batch=16, lr=0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def task(make_task, store):
    return make_task(student=STUDENT, store=store, ipc=3)


@pytest.fixture
def net(task):
    return RDED(squeeze=SQUEEZE).prepare(task).teachers[0].network


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
    prepared = method.prepare(task)
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


def test_four_tiles_are_the_patches_k_n_plus_k_and_so_on(task, net):
    settings = CropSettings(factor=2, crops=3, candidates=30)
    images = made(RDED(squeeze=SQUEEZE, crops=settings), task)
    for c in range(4):
        real, boxes = boxes_of(task, settings, c)
        scores = patches.score([net], real, boxes.flatten(0, 1), c, 4)
        best, crop = scores.min(1)
        order = best.argsort()[:12].tolist()
        for k in range(3):
            for quadrant in range(4):
                i = order[quadrant * 3 + k]
                wanted = resized_crop(real[i : i + 1], boxes[i, crop[i]][None], 4)
                pixels = (task.data.preprocess.invert(wanted).clamp(0, 1) * 255).round().byte()[0]
                row, column = divmod(quadrant, 2)
                tile = images[3 * c + k, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert torch.equal(tile, pixels)


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
        method(squeeze=SQUEEZE, crops=CropSettings(factor=8)).prepare(fresh)
    assert not list(tmp_path.rglob("teachers"))


def test_parts_and_the_whole_take_the_same_patches(task):
    method = SPP(squeeze=SQUEEZE, iterations=0, batch=3)
    prepared = method.prepare(task)
    whole = method.start(task, prepared).images
    slots = method.parts(task)
    assert len(slots) == 6
    for part, places in zip(task.in_parts(slots), slots, strict=True):
        assert torch.equal(method.start(part, prepared).images, whole[places])


# --- NRR-DD ----------------------------------------------------------------------------------------------------------


def refined(task, steps=12, **settings):
    """Bytes before and after, and the mask."""
    method = NRRDD(**{"squeeze": SQUEEZE, "iterations": steps, "lr_img": 0.3, "layout": "whole"} | settings)
    prepared = method.prepare(task)
    syn = method.start(task, prepared)
    before = syn.images.detach().clone()
    synthesise(method, task, prepared, syn)
    return before, syn.images.detach(), syn.mask, method.finish(syn, task, prepared).images


def test_critical_pixels_stay_to_the_bit_and_others_move(task):
    before, after, mask, pixels = refined(task)
    critical = (mask == 0).expand_as(before)
    assert 0 < critical.float().mean() < 1
    assert torch.equal(before[critical], after[critical])
    assert (before != after)[~critical].float().mean() > 0.9
    start = (task.data.preprocess.invert(before) * 255).round().byte()
    assert torch.equal(start[critical], pixels[critical])
    assert (task.data.preprocess.invert(after) >= -1e-6).all()
    assert (task.data.preprocess.invert(after) <= 1 + 1e-6).all()


def test_no_epsilon_refines_nothing(task):
    before, after, _, _ = refined(task, epsilon=0.0)
    assert torch.equal(before, after)


def test_the_mask():
    activation = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert NRRDD(epsilon=0.5).mask(activation).tolist() == [1, 0.5, 0, 0, 0]
    assert NRRDD(epsilon=0.5, scaled=False).mask(activation).tolist() == [0.5, 0.25, 0, 0, 0]
    assert (NRRDD(epsilon=2.0).mask(activation) > 0).all()


def test_an_update_is_as_large_as_its_mask_where_a_masked_gradient_would_not_be(task):
    class Constant(NRRDD):
        def mask(self, activation):
            return torch.full_like(activation, self.epsilon)

        def loss(self, syn, task, prepared, it):
            super().loss(syn, task, prepared, it)
            goal = torch.randn(syn.images.shape, generator=generator(0, "goal"))
            return ((syn.images - goal) ** 2).sum()

    moved = {}
    settings = {"squeeze": SQUEEZE, "iterations": 3, "lr_img": 1e-3, "r_bn": 0.0, "layout": "whole"}
    for m in (0.1, 0.5, 1.0):
        method = Constant(**settings, epsilon=m)
        prepared = method.prepare(task)
        syn = method.start(task, prepared)
        # grey, so that no pixel meets black or white
        with torch.no_grad():
            syn.images.zero_()
        synthesise(method, task, prepared, syn)
        moved[m] = syn.images.detach().abs().mean().item()
    assert moved[0.1] / moved[1.0] == pytest.approx(0.1, rel=0.02)
    assert moved[0.5] / moved[1.0] == pytest.approx(0.5, rel=0.02)


def test_the_share_of_a_map_inside_a_box():
    maps = torch.rand(3, 8, 8, generator=generator(0))
    maps[2] = 0  # a constant map: the area counts
    boxes = draw_boxes(12, (8, 8), (0.1, 1.0), generator(1)).view(3, 4, 4)
    found = nrr.held(maps, boxes)
    for i in range(3):
        for j in range(4):
            top, left, height, width = boxes[i, j].tolist()
            inside = maps[i, top : top + height, left : left + width].sum() / maps[i].sum()
            wanted = height * width / 64 if i == 2 else inside.item()
            assert found[i, j].item() == pytest.approx(wanted, rel=1e-5)


def test_chosen_crops_hold_enough_of_the_map_and_are_the_least_confident(task):
    crops = nrr.CriticalCrops(crops=6, keep=2, share=0.1, candidates=30)
    method = NRRDD(squeeze=SQUEEZE, crops=crops)
    prepared = method.prepare(task)
    images, boxes = boxes_of(task, crops, 1)
    allowed = method.judge(prepared)(images, boxes.flatten(0, 1), 1)
    inside = nrr.held(nrr.looked_at(prepared, images, torch.full((30,), 1)), boxes)
    assert (allowed.sum(1) <= 2).all()
    assert (inside[allowed] >= 0.1).all()
    for own, mine in zip(inside, allowed, strict=True):
        assert mine.sum() == min(2, int((own >= 0.1).sum()))
        assert not mine.any() or own[mine].min() >= own[~mine].max() or (own[~mine] < 0.1).all()
    net = prepared.teachers[0].network
    scores = patches.score([net], images, boxes.flatten(0, 1), 1, 8)
    best = scores.masked_fill(~allowed, -torch.inf).max(1).values
    order = best.argsort(descending=True)[:3]
    own = method.start(task, prepared).images[3:6]
    for k, i in enumerate(order.tolist()):
        j = int(scores[i].masked_fill(~allowed[i], -torch.inf).argmax())
        wanted = resized_crop(images[i : i + 1], boxes[i, j][None], 8)
        assert (own[k] - wanted[0]).abs().max() <= 0.5 / 16 + 1e-5  # half a byte


def test_its_sets_are_refined_in_parts_as_well(task):
    method = NRRDD(squeeze=SQUEEZE, iterations=2, batch=3)
    prepared = method.prepare(task)
    part = task.in_parts(method.parts(task))[0]
    syn = synthesise(method, part, prepared, method.start(part, prepared))
    assert syn.images.shape == (3, 1, 8, 8)
    assert replace(part, part=None).ranks.tolist() == [0, 0, 0]
