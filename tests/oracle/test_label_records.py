"""What a label store keeps as integers comes back as the same integers: oracle 31 of the decoupled family."""

import pytest
import torch
import torch.nn.functional as F

from dd.labels import LabelSettings, LabelStore
from dd.labels._records import record, view_of
from dd.labels.spec import LabelSpec
from dd.views import ViewPolicy

CROPS = ViewPolicy(crop=0.08, flip=True, mix="cutmix")


@pytest.mark.parametrize("size", [(1024, 1024), (500, 375), (224, 224)])
def test_boxes_flips_partners_and_patches_of_large_images(size):
    """Boxes as bytes, or as shares of a side in half precision, would not."""
    settings = LabelSettings(replay="records")
    spec = LabelSpec(64, 5, 1, 64, (3, *size), CROPS, settings)
    view, images = spec.view(0, 0), spec.order(0)
    kept = record(view, images, 0)
    kept = {name: kept[name].to(kind) for name, (kind, _) in spec.layout().items() if name in kept}
    back = view_of(kept, images, spec.shape)
    assert torch.equal(back.boxes, view.boxes)
    assert torch.equal(back.flips, view.flips)
    assert torch.equal(back.partner, view.partner)
    assert back.patch == view.patch
    assert back.weight == view.weight
    assert view.boxes.max() > 0.6 * max(size)


@pytest.mark.parametrize("classes", [10_450, 40_000])
@pytest.mark.parametrize("form", ["topk", "hard", "distances"])
def test_class_numbers_above_2048_survive_the_file(tmp_path, classes, form):
    """Half precision has no 2049, and a signed integer of 16 bits no 39,999."""
    own = torch.tensor([2049, classes - 1, 7, 2050])
    spec = LabelSpec(4, classes, 1, 4, (1, 2, 2), ViewPolicy(), LabelSettings(form=form, top=2))

    def load(index):
        return torch.zeros(len(index), 1, 2, 2)

    def label(views, view, images):
        return 20 * F.one_hot(own[images], classes).float()

    store = LabelStore(tmp_path, spec, own)
    store.make(0, load, label)
    batch = next(LabelStore(tmp_path, spec, own).epoch(0))
    assert torch.equal(store.probabilities(batch).argmax(1), own[batch.images])
