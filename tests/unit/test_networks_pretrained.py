"""Published weights: from the libraries' caches, and in one line where there is neither cache nor network."""

import os
import urllib.error
import urllib.request

import huggingface_hub.constants as hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from dd.errors import RunError, UsageError
from dd.networks.pretrained import published

TINY = "timm:test_resnet.r160_in1k"  # half a million weights
SMALL = "torchvision:shufflenet_v2_x0_5.IMAGENET1K_V1"


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    """No cache, and nobody answers."""

    def unplugged(*_args, **_options):
        raise urllib.error.URLError("the cable is unplugged")

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", unplugged)
    monkeypatch.setattr(torch.hub, "urlopen", unplugged)
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "torch")
    yield
    torch.hub.set_dir(before)


@pytest.mark.parametrize("offline", [False, True])
def test_timm_without_a_network(tmp_path, monkeypatch, offline):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
    with pytest.raises(RunError) as caught:
        published(TINY)
    line = str(caught.value)
    assert "\n" not in line
    assert f"teachers={TINY}: its weights timm/test_resnet.r160_in1k/model.safetensors are not in {tmp_path}" in line
    assert ("HF_HUB_OFFLINE is set" if offline else "the cable is unplugged") in line
    assert "teachers=PATH.safetensors@timm:test_resnet" in line


def test_torchvision_without_a_network(tmp_path):
    with pytest.raises(RunError) as caught:
        published(SMALL)
    line = str(caught.value)
    assert "\n" not in line
    assert "shufflenetv2_x0.5-f707e7126e.pth" in line
    assert str(tmp_path / "torch" / "checkpoints") in line
    assert "the cable is unplugged" in line


def test_timm_from_its_cache(tmp_path):
    """A hub cache as its client lays it out, with other weights than a fresh network has."""
    theirs = timm.create_model("test_resnet", num_classes=1000)
    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(theirs.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    before = torch.random.get_rng_state()
    found = published(TINY)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in found.network.state_dict().items())
    assert (found.outputs, found.size, found.declared) == (1000, None, None)
    assert found.classes is not None
    assert found.classes[:2] == ("n01440764", "n01443537")
    assert (len(found.mean), len(found.std)) == (3, 3)


def test_torchvision_from_its_cache(tmp_path):
    theirs = models.shufflenet_v2_x0_5(weights=None)
    folder = tmp_path / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / "shufflenetv2_x0.5-f707e7126e.pth")
    found = published(SMALL)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in found.network.state_dict().items())
    assert found.declared == 60.552  # stated in torchvision's table
    assert (found.outputs, found.size, list(found.mean)) == (1000, None, [0.485, 0.456, 0.406])
    assert found.classes is not None
    assert found.classes[0] == "n01440764"


class Evil:
    def __reduce__(self):
        return (print, ("it ran",))


@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_nothing_in_published_weights_is_executed(tmp_path, monkeypatch, capsys, variable):
    if variable:
        monkeypatch.setenv(variable, "1")
    folder = tmp_path / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"weight": Evil()}, folder / "shufflenetv2_x0.5-f707e7126e.pth")
    cached = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    torch.save({"weight": Evil()}, cached / "snapshots" / "abc" / "pytorch_model.bin")
    before = dict(os.environ)
    for name in (SMALL, TINY):
        with pytest.raises(RunError, match="could not be had"):
            published(name)
    assert "it ran" not in capsys.readouterr().out
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet18.a9_in1k", "unknown weights of timm:resnet18: 'resnet18.a9_in1k'; did you mean 'resnet18.a"),
        ("timm:resnet81.a1_in1k", "unknown timm network 'resnet81'; did you mean"),
        ("timm:vit_base_patch16_224.dino", "has no classifier"),
        ("timm:hf-hub:somebody/model.x", "unknown timm network"),
        ("torchvision:resnet18.IMAGENET1K_V9", "unknown weights of torchvision:resnet18: 'IMAGENET1K_V9'"),
        ("torchvision:resnet18.DEFAULT", "unknown weights of torchvision:resnet18: 'DEFAULT'; "),
        ("torchvision:resnet81.IMAGENET1K_V1", "unknown torchvision network 'resnet81'"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(UsageError) as caught:
        published(name)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400
