"""ImageNet's cells from command to report, on made-up pictures and weights made by hand, streamed and not.

Pictures are JPEGs of 300 to 500 pixels in folders of WordNet ids, grey and CMYK ones among them.  The weights are
random but for the last layer, which is fitted so that a network knows the pictures.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.imagenet_info import ImageNetInfo
from torch import nn
from torchvision import models
from torchvision.transforms import functional as tv

from dd.data.sources.pixels import Target, pixels_of

from .conftest import Place

IDS = ImageNetInfo().label_names()
NETTE = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
WOOF = [193, 182, 258, 162, 155, 167, 159, 273, 207, 229]
SIZES = [(500, 375), (375, 500), (500, 333), (300, 400), (420, 420)]
FILES = {  # what torchvision calls the files of its weights
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "shufflenet_v2_x1_0": "shufflenetv2_x1-5666bf0f80.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "densenet121": "densenet121-a639ec97.pth",
}
BRIEF = (
    "device=cpu",
    "compile=false",
    "eval.students=1",
    "eval.full=false",
    "eval.probes=0",
    "--json",
)


class World:
    """Pictures of so many classes, and networks that know them."""

    def __init__(self, root, classes, train=5, sizes=SIZES):
        self.root, self.torch_home, self.classes = root / "imagenet-1k", root / "torch", classes
        rng = np.random.default_rng(0)
        for number, label in enumerate(classes):
            for part, count in (("train", train), ("val", 1)):
                folder = self.root / part / IDS[label]
                folder.mkdir(parents=True)
                for i in range(count):
                    image = self._picture(rng, number, sizes[(number + i) % len(sizes)])
                    form = {3: "L", 4: "CMYK"}.get((number + i) % 5, "RGB")
                    image.convert(form).save(folder / f"{IDS[label]}_{i}.JPEG", quality=85)

    @staticmethod
    def _picture(rng, number, size):
        """Stripes of a brightness, an angle and a width of the class's own, with noise."""
        across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        angle, width = number * 0.7, 12 + 9 * (number % 7)
        wave = np.sin((across * np.cos(angle) + down * np.sin(angle)) / width)
        pixels = (
            40
            + 17 * (number % 10)
            + 40 * wave[..., None] * rng.uniform(0.5, 1, 3)
            + rng.normal(0, 20, (*wave.shape, 3))
        )
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def make_weights(self, name):
        """Random weights, statistics of the pictures, and a last layer that tells the training pictures apart."""
        path = self.torch_home / "hub" / "checkpoints" / FILES[name]
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network = models.get_model(name, weights=None)
        files = [(label, file) for label in self.classes for file in (self.root / "train" / IDS[label]).iterdir()]
        pixels = (
            torch.stack([torch.from_numpy(pixels_of(file, Target(3, 224)).copy()) for _, file in files]).float() / 255
        )
        images = tv.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        last = next(layer for layer in reversed(list(network.modules())) if isinstance(layer, nn.Linear))
        caught = []
        last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].double()))
        with torch.no_grad():
            network.train()
            for layer in network.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 1.0
            network(images[:: max(1, len(images) // 24)])
            network.eval()
            caught.clear()
            for part in images.split(24):
                network(part)
            features = torch.cat(caught)
            wanted = torch.full((len(files), 1000), -4.0, dtype=torch.float64)
            wanted[torch.arange(len(files)), [label for label, _ in files]] = 4.0
            known = torch.cat([features, torch.ones(len(files), 1, dtype=torch.float64)], 1)
            solved = torch.linalg.lstsq(known, wanted, driver="gelsd").solution.float()
            last.weight.copy_(solved[:-1].T)
            last.bias.copy_(solved[-1])
        torch.save(network.state_dict(), path)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Six classes."""
    return World(tmp_path_factory.mktemp("few"), WOOF[:6])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twenty-four classes, ImageNette's and ImageWoof's among them."""
    return World(tmp_path_factory.mktemp("many"), sorted([*NETTE, *WOOF, 1, 2, 30, 950]))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command on a world, streamed or not, and gives report and images."""
    before = torch.hub.get_dir()

    def go(world, stream, *words):
        torch.hub.set_dir(str(world.torch_home / "hub"))
        place = Place(tmp_path / f"place-{stream}")
        done = place.dd("run", *words, *BRIEF, f"data.stream={str(stream).lower()}", DD_DATA=str(world.root.parent))
        assert done.code == 0, done.err
        return done.report, load_file(place.folder() / "set.safetensors")["images"]

    yield go
    torch.hub.set_dir(before)


def require_the_same(run, world, *words, shape):
    """Both ways to the same set and to the same accuracies."""
    (whole, images), (streamed, theirs) = (run(world, stream, *words) for stream in (False, True))
    assert images.shape[1:] == shape
    assert torch.equal(images, theirs)
    for arm in ("accuracy", "control", "start"):
        assert whole[arm] == streamed[arm]
    assert whole["accuracy"]["n"] == 1
    return whole


ONCE = "eval.epochs=1"
SRE2L = (ONCE, "method=sre2l", "dataset=imagenet-1k", "ipc=1", "like=imagenet-1k.ipc10", "iterations=1")
RDED = (ONCE, "method=rded", "dataset=imagenet-1k", "ipc=1")
SQUASHED = ("data.size=128", "data.resize=squash", "student.width=8", "eval.steps=2")


@pytest.mark.slow
@pytest.mark.parametrize("words", [SRE2L, RDED], ids=["sre2l", "rded"])
def test_six_classes_at_224_pixels(run, few, words):
    few.make_weights("resnet18")
    report, images = run(few, True, *words)
    assert images.shape == (6, 3, 224, 224)
    assert report["protocol"]["test_resize"] == "shorter"
    assert report["labels"]["accuracies"][0] > 90


@pytest.mark.parametrize(
    "words",
    [
        ("method=dm", "iterations=2", "batch_real=2"),
        ("method=mtt", "iterations=1", "experts.count=1", "experts.epochs=2", "start_max=1", "span=1", "steps=2"),
    ],
    ids=["dm", "mtt"],
)
def test_six_classes_at_128_pixels_streamed_and_not(run, few, words):
    require_the_same(run, few, *words, "dataset=imagenet-1k", "ipc=1", *SQUASHED, shape=(3, 128, 128))


SLOW = {
    "sre2l": SRE2L,
    "cda": (ONCE, "method=cda", "dataset=imagenet-1k", "ipc=1", "like=imagenet-1k.ipc10", "iterations=2"),
    "sre2lpp": (ONCE, "method=sre2lpp", "dataset=imagenet-1k", "ipc=1", "iterations=2"),
    "rded": (ONCE, "method=rded", "dataset=imagenet-1k", "ipc=1"),
    "cvdd": (ONCE, "method=cvdd", "dataset=imagenet-1k", "ipc=1", "iterations=1", "crops.crops=1"),
}
TRAINED = {
    "rded": (ONCE, "method=rded", "dataset=imagenette", "ipc=1"),
    "cda": (ONCE, "method=cda", "dataset=imagenette", "ipc=1", "like=imagenet-21k.ipc10", "iterations=1"),
}
EASY = ("squeeze.epochs=30", "squeeze.lr=0.05", "squeeze.batch=10", "teachers=convnet:depth=5:width=16")


def test_the_command_of_the_readme_can_start(tmp_path):
    world = World(tmp_path, NETTE, train=12, sizes=[(30, 20)])
    words = ("run", "method=sre2l", "dataset=imagenette", "ipc=10", "teachers=timm:resnet18.a1_in1k", "--dry-run")
    done = Place(tmp_path / "place").dd(*words, DD_DATA=str(world.root.parent))
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", SLOW)
def test_twenty_four_classes_streamed_and_not(run, many, method):
    for name in FILES if method == "cvdd" else ["resnet18"]:
        many.make_weights(name)
    report = require_the_same(run, many, *SLOW[method], shape=(3, 224, 224))
    assert report["protocol"]["test_resize"] == "shorter"
    assert "a part of imagenet-1k: 24 of its 1000 classes" in report["dataset"]["notes"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", TRAINED)
def test_teachers_are_trained_on_crops_of_files_streamed_and_not(run, many, method):
    """Of ImageNette at 224 pixels, and in CDA's value space of pixels from 0 to 1."""
    report = require_the_same(run, many, *TRAINED[method], *EASY, shape=(3, 224, 224))
    assert report["labels"]["accuracies"][0] > 30  # or it would have been refused


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_rdeds_convnet_at_128_pixels_streamed_and_not(run, many):
    words = (ONCE, "method=rded", "dataset=imagewoof", "ipc=1", "like=imagewoof.ipc10", "preset=convnet")
    require_the_same(run, many, *words, "student.width=16", *EASY[:3], shape=(3, 128, 128))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", ["mtt", "dm"])
def test_imagenette_at_128_pixels_streamed_and_not(run, many, method):
    words = {
        "mtt": ("iterations=1", "experts.count=1", "experts.epochs=2", "start_max=1", "span=1", "steps=2"),
        "dm": ("iterations=2", "batch_real=2", *SQUASHED[:2]),
    }[method]
    brief = ("student.width=8", "eval.epochs=1") if method == "mtt" else SQUASHED[2:]
    require_the_same(run, many, f"method={method}", "dataset=imagenette", "ipc=1", *words, *brief, shape=(3, 128, 128))
