"""What a label store keeps as integers comes back as the same integers: oracle 31 of the decoupled family."""

import pytest
import torch
import torch.nn.functional as F

from dd.labels import LabelStore
from dd.labels._rows import recorded_view, rows_of
from dd.labels.forms import form_of
from dd.labels.spec import Batch, StoreSpec
from dd.labels.writer import writing
from dd.views import ViewPolicy

CROPS = ViewPolicy(crop=0.08, flip=True, mix="cutmix")


@pytest.mark.parametrize("size", [(1024, 1024), (500, 375), (224, 224)])
def test_boxes_flips_partners_and_patches_of_large_images(size):
    """Boxes as bytes, or as shares of a side in half precision, would not."""
    spec = StoreSpec(64, tuple("abcde"), 1, 64, form_of("logits", 5), CROPS, (3, *size), replay="records")
    view, images = spec.view(0, 0), spec.order(0)
    nothing = torch.zeros(64, dtype=torch.int64)
    labels = spec.form.encode(torch.zeros(64, 5), nothing, nothing)
    back = recorded_view(rows_of(spec, 0, Batch(images, view, labels)), spec, images)
    assert torch.equal(back.boxes, view.boxes)
    assert torch.equal(back.flips, view.flips)
    assert torch.equal(back.partner, view.partner)
    assert back.patch == view.patch
    assert back.weight == view.weight
    assert view.boxes.max() > 0.6 * max(size)


@pytest.mark.parametrize("classes", [10_450, 40_000])
@pytest.mark.parametrize(("name", "parameters"), [("topk", {"k": 2}), ("hard", {}), ("distances", {})])
def test_class_numbers_above_2048_survive_the_file(tmp_path, classes, name, parameters):
    """Half precision has no 2049, and a signed integer of 16 bits no 39,999."""
    own = torch.tensor([2049, classes - 1, 7, 2050])
    names = tuple(map(str, range(classes)))
    spec = StoreSpec(4, names, 1, 4, form_of(name, classes, **parameters), ViewPolicy(), (1, 2, 2))

    def load(index):
        return torch.zeros(len(index), 1, 2, 2)

    def label(views, view, images):
        return 20 * F.one_hot(own[images], classes).float()

    with writing(tmp_path, spec, own) as writer:
        writer.write_epoch(0, load, label)
    store = LabelStore(tmp_path)
    batch = next(store.epoch(0))
    assert torch.equal(store.own, own)
    assert torch.equal(store.probabilities(batch).argmax(1), own[batch.images])
