"""Views: crops as torchvision resizes them, CutMix with the weight of its area, nothing random after the draw."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from dd.rng import generator
from dd.views import View, ViewPolicy, draw_boxes, draw_patch, draw_view, resized_crop, shuffled_tiles


def images_of(n=6, c=3, h=12, w=12):
    return torch.rand(n, c, h, w, generator=generator(0, "images"))


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
def test_a_crop_is_what_interpolate_makes_of_the_slice(size):
    images = images_of(h=size[0], w=size[1]).double()
    boxes = draw_boxes(6, size, (0.08, 1.0), generator(1, "boxes"))
    crops = resized_crop(images, boxes)
    for image, crop, (top, left, height, width) in zip(images, crops, boxes.tolist(), strict=True):
        part = image[None, :, top : top + height, left : left + width]
        expected = F.interpolate(part, size=size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(crop, expected, rtol=0, atol=1e-12)
    one = resized_crop(images, boxes[:1])
    torch.testing.assert_close(one[0], crops[0], rtol=0, atol=1e-12)


def test_boxes_stay_inside_and_their_area_is_as_published():
    for least, mean in ((0.08, 0.485), (0.54, 0.713), (1.0, 1.0)):
        boxes = draw_boxes(20_000, (64, 64), (least, 1.0), generator(2, "area"))
        top, left, height, width = boxes.T
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + height <= 64).all()
        assert (left + width <= 64).all()
        assert float((height * width).double().mean() / 64**2) == pytest.approx(mean, abs=0.02)
    assert (boxes == torch.tensor([0, 0, 64, 64])).all()  # a whole square can only be taken whole


def test_square_crops_are_square():
    boxes = draw_boxes(200, (32, 32), (0.08, 1.0), generator(3, "square"), stretch=1.0)
    assert (boxes[:, 2] == boxes[:, 3]).all()


def test_cutmix_weighs_a_label_by_the_area_that_is_left():
    """The weight is 1 - area / (h w) after clipping."""
    policy = ViewPolicy(mix="cutmix")
    images, onehot = images_of(8), torch.eye(8)
    for number in range(30):
        view = draw_view(policy, 8, (3, 12, 12), generator(number, "cutmix"))
        mixed, before = view(images), images.clone()
        assert torch.equal(images, before)  # no alias
        top, left, height, width = view.patch
        inside = torch.zeros(12, 12, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert torch.equal(mixed[:, :, inside], images[view.partner][:, :, inside])
        assert torch.equal(mixed[:, :, ~inside], images[:, :, ~inside])
        share = 1 - int(inside.sum()) / 144
        expected = share * onehot + (1 - share) * onehot[view.partner]
        torch.testing.assert_close(view.mixed(onehot), expected)


def test_an_image_mixed_with_itself_is_itself():
    """Oracle 38: in new memory all the same, and its label is its own to the bit."""
    images, onehot = images_of(8), torch.eye(8)
    view = draw_view(ViewPolicy(mix="cutmix"), 8, (3, 12, 12), generator(1, "cutmix"))
    assert not torch.equal(view(images), images)
    same = dataclasses.replace(view, partner=torch.arange(8))
    assert torch.equal(same(images), images)
    assert torch.equal(same.mixed(onehot), onehot)
    assert same(images).data_ptr() != images.data_ptr()


def test_the_mean_area_of_cutmix_is_what_clipping_leaves():
    rng, areas = generator(4, "patches"), []
    for _ in range(4000):
        share = float(torch.rand((), generator=rng))
        _, _, height, width = draw_patch(share, (64, 64), rng)
        areas.append(height * width / 64**2)
    assert sum(areas) / len(areas) == pytest.approx(0.30, abs=0.02)


def test_mixup_is_a_weighted_mean():
    """Oracle 39: also where the weight is all of one image or of the other."""
    view = draw_view(ViewPolicy(mix="mixup", mix_alpha=0.8), 6, (3, 12, 12), generator(5, "mixup"))
    images, onehot = images_of(), torch.eye(6)
    expected = view.weight * images + (1 - view.weight) * images[view.partner]
    torch.testing.assert_close(view(images), expected)
    assert 0 < view.weight < 1
    torch.testing.assert_close(view.mixed(onehot), view.weight * onehot + (1 - view.weight) * onehot[view.partner])
    assert not torch.equal(view.partner, torch.arange(6))
    own, other = (dataclasses.replace(view, weight=weight) for weight in (1.0, 0.0))
    assert torch.equal(own(images), images)
    assert torch.equal(own.mixed(onehot), onehot)
    assert torch.equal(other(images), images[view.partner])
    assert torch.equal(other.mixed(onehot), onehot[view.partner])


def test_the_share_of_mixed_batches():
    policy = ViewPolicy(mix="cutmix", mix_share=0.5)
    mixed = [draw_view(policy, 2, (1, 8, 8), generator(i, "share")).partner is not None for i in range(400)]
    assert 160 < sum(mixed) < 240


def test_tiles_move_by_columns_and_rows():
    images = torch.arange(4.0).view(1, 1, 2, 2).repeat_interleave(3, 2).repeat_interleave(3, 3)
    seen = set()
    for i in range(40):
        view = draw_view(ViewPolicy(tiles=2), 1, (1, 6, 6), generator(i, "tiles"))
        corners = view(images)[0, 0, ::3, ::3]
        seen.add(tuple(corners.flatten().int().tolist()))
    assert seen == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)}  # not all 24 orders
    odd = images_of(1, 1, 7, 7)
    moved = shuffled_tiles(odd, torch.tensor([[[1, 0], [0, 1]]]))
    torch.testing.assert_close(moved, torch.cat([odd[..., 4:], odd[..., :4]], 3))


def test_a_view_is_a_function_of_its_generator_and_replays():
    policy = ViewPolicy(crop=0.3, flip=True, tiles=2, strategy="data", mix="cutmix")
    images = images_of()
    first, again, other = (
        draw_view(policy, 6, (3, 12, 12), generator(seed, "view"), "color_crop_cutout") for seed in (7, 7, 8)
    )
    assert torch.equal(first(images), first(images))
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))
    assert [d.op for d in first.draws] == ["color", "crop"]  # CutMix cuts already


def test_nothing_asked_for_is_nothing_done():
    images = images_of()
    view = draw_view(ViewPolicy(), 6, (3, 12, 12), generator(0, "none"))
    assert view(images) is images
    assert isinstance(view, View)


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValidationError, match="colour"):
        TypeAdapter(ViewPolicy).validate_python({"strategy": "colour"})
