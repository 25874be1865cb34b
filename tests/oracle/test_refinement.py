"""NRR-DD's refinement and its choice of patches, against what is to be had of the paper."""

import importlib
from dataclasses import replace

import pytest
import torch

from dd.engine.method import prepare
from dd.engine.registry import get
from dd.engine.synthesise import synthesise
from dd.rng import generator
from dd.views import draw_boxes, resized_crop

from .conftest import SQUEEZE

NRRDD = get("nrrdd")
patches = importlib.import_module("dd.methods.decoupled._crops")
nrr = importlib.import_module("dd.methods.decoupled.nrrdd")
SRe2L = importlib.import_module("dd.methods.decoupled.sre2l").SRe2L


def refined(task, steps=12, method=NRRDD, **settings):
    """Images before and after, the mask, and the bytes of the set."""
    method = method(**{"squeeze": SQUEEZE, "iterations": steps, "lr_img": 0.3, "layout": "whole"} | settings)
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    before = syn.images.detach().clone()
    synthesise(method, task, prepared, syn)
    return before, syn.images.detach(), syn.mask, method.finish(syn, task, prepared).images


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_critical_pixels_stay_to_the_bit_and_others_move(task, steps):
    before, after, mask, pixels = refined(task, steps)
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


def test_above_every_activation_all_pixels_move_by_their_share_of_the_update(task):
    """Oracle 27: with epsilon > 1 nothing is critical, and the unmasked step is taken up to the mask."""

    class Unmasked(NRRDD):
        def mask(self, activation):
            return torch.ones_like(activation)

    before, after, mask, _ = refined(task, 1, epsilon=2.0, lr_img=0.05)
    same, unmasked, _, _ = refined(task, 1, Unmasked, epsilon=2.0, lr_img=0.05)
    assert torch.equal(before, same)
    assert (after != before).all()
    assert 0.5 <= mask.min() < mask.max() <= 1
    torch.testing.assert_close(after - before, mask * (unmasked - before), rtol=0, atol=1e-6)


def test_the_mask():
    activation = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert NRRDD(epsilon=0.5).mask(activation).tolist() == [1, 0.5, 0, 0, 0]
    assert NRRDD(epsilon=0.5, scaled=False).mask(activation).tolist() == [0.5, 0.25, 0, 0, 0]
    assert (NRRDD(epsilon=2.0).mask(activation) > 0).all()


class MaskedUpdate(NRRDD):
    """A mask that is epsilon everywhere, and a loss whose least value is far away."""

    def mask(self, activation):
        return torch.full_like(activation, self.epsilon)

    def loss(self, syn, task, prepared, it):
        super().loss(syn, task, prepared, it)
        goal = torch.randn(syn.images.shape, generator=generator(0, "goal"))
        return ((syn.images - goal) ** 2).sum()


class MaskedGradient(MaskedUpdate):
    """What is easily taken for the same."""

    def loss(self, syn, task, prepared, it):
        return self.epsilon * super().loss(syn, task, prepared, it)

    def project(self, syn, task):
        SRe2L.project(self, syn, task)


@pytest.mark.parametrize(("kind", "wanted"), [(MaskedUpdate, (0.1, 0.5)), (MaskedGradient, (1, 1))])
def test_an_update_is_as_large_as_its_mask_where_a_masked_gradient_would_not_be(task, kind, wanted):
    """Oracle 27: Adam divides a gradient by its size, and a mask on it with it."""
    moved = []
    for m in (0.1, 0.5, 1.0):
        method = kind(squeeze=SQUEEZE, iterations=3, lr_img=1e-3, r_bn=0.0, layout="whole", epsilon=m)
        prepared = prepare(method, task)
        syn = method.start(task, prepared)
        # grey, so that no pixel meets black or white
        with torch.no_grad():
            syn.images.zero_()
        synthesise(method, task, prepared, syn)
        moved.append(syn.images.detach().abs().mean().item())
    assert [m / moved[2] for m in moved[:2]] == pytest.approx(wanted, rel=0.02)


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


def boxes_of(task, settings, c):
    """Images and boxes of a class as they are drawn."""
    rng, pool = task.common("patches", c), task.data.train.of_class(c)
    index = pool[torch.randperm(len(pool), generator=rng)[: settings.candidates]]
    boxes = draw_boxes(len(index) * settings.crops, (8, 8), (settings.least, 1.0), rng, stretch=1)
    return task.data.train.images(index), boxes.view(len(index), settings.crops, 4)


def test_chosen_crops_hold_enough_of_the_map_and_are_the_least_confident(task):
    crops = nrr.CriticalCrops(crops=6, keep=2, share=0.1, candidates=30)
    method = NRRDD(squeeze=SQUEEZE, crops=crops)
    prepared = prepare(method, task)
    images, boxes = boxes_of(task, crops, 1)
    allowed = method.judge(prepared.teachers)(images, boxes.flatten(0, 1), 1)
    inside = nrr.held(nrr.looked_at(prepared.teachers, images, torch.full((30,), 1)), boxes)
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
    prepared = prepare(method, task)
    part = task.in_parts(method.parts(task))[0]
    syn = synthesise(method, part, prepared, method.start(part, prepared))
    assert syn.images.shape == (3, 1, 8, 8)
    assert replace(part, part=None).ranks.tolist() == [0, 0, 0]
