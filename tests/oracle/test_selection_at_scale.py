"""Selection from 1.28 million images: memory grows with a class, not with the square of the number of images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dd.engine.registry import get
from dd.training.embeddings import BLOCK

from .scale import features_of, made_up

IMAGENET = (1000, 1_281_167)  # classes, training images
NAMES = ("herding", "kcenter", "graphcut", "facility")
COUNT = 10


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation."""
        found = func(*args, **kwargs or {})
        if isinstance(found, torch.Tensor):
            self.numel = max(self.numel, found.numel())
        return found


@pytest.mark.parametrize("name", [*NAMES, "kmeans"])
def test_no_tensor_is_larger_than_a_class_needs(name, tmp_path):
    classes, images, width = 120, 4800, 8
    task = made_up(tmp_path, classes, images, width, 2)
    given = features_of(task, width)
    assert len(given.embedded.files) == -(-classes // BLOCK) == 2
    with Largest() as largest:
        index = get(name)().choose(task, given)
    assert torch.equal(task.data.train.labels[index], task.targets)
    assert len(index.unique()) == len(index)
    own = images // classes
    mapped = BLOCK * own * width * 4  # bytes of a file, of which only the pages of a class are read
    assert largest.numel <= max(mapped, own * classes, own * own, classes * (width + 1), len(task.targets))
    assert largest.numel < images**2 / 100  # or the bound would say nothing


def measured(name, folder, width):
    """Select from as many images as ImageNet-1k has, in a process of its own; see `scale.main`."""
    numbers = [str(number) for number in (*IMAGENET, width, COUNT)]
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), name, str(folder), *numbers]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["valid"]
    return facts["made"] - facts["before"], facts["peak"] - facts["made"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_as_many_images_as_imagenet_class_by_class(name, tmp_path):
    width, largest = 64, -(-IMAGENET[1] // IMAGENET[0])
    making, choosing = measured(name, tmp_path, width)
    assert making < 4 * BLOCK * largest * width * 4 + (100 << 20)
    # similarities of a class with itself, errors for all classes, and features, in float64: a few at a time
    assert choosing < 6 * 8 * largest * (largest + IMAGENET[0] + width)


@pytest.mark.slow
def test_as_many_images_as_imagenet_over_all_classes(tmp_path):
    epochs = 10
    _, choosing = measured("ccs", tmp_path, epochs)
    assert choosing < 3 * 8 * IMAGENET[1] * epochs
