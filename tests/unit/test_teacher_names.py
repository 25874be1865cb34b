"""What a teacher's name stands for."""

import pytest

from dd.errors import UsageError
from dd.networks import NetworkSpec
from dd.training.teacher_names import PublishedWeights, SavedWeights, Untrained, teacher_source

STUDENT = NetworkSpec(depth=2, width=8)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("student", STUDENT),
        ("convnet", NetworkSpec(norm="batch")),
        ("convnet:width=48", NetworkSpec(width=48, norm="batch")),
        ("convnet:width=48:norm=instance:depth=2", NetworkSpec(width=48, depth=2, norm="instance")),
        ("resnet18:width=16", NetworkSpec("resnet18", width=16, norm="batch")),
        ("timm:resnet18", NetworkSpec("timm:resnet18")),
        ("torchvision:resnet18", NetworkSpec("torchvision:resnet18")),
    ],
)
def test_trained_here(name, spec):
    assert teacher_source(name, STUDENT) == Untrained(spec)


@pytest.mark.parametrize("name", ["timm:resnet18.a1_in1k", "torchvision:resnet18.IMAGENET1K_V1"])
def test_published(name):
    assert teacher_source(name, STUDENT) == PublishedWeights(name)


@pytest.mark.parametrize(
    ("arch", "spec"),
    [
        ("", STUDENT),
        ("@student", STUDENT),
        ("@convnet:width=48", NetworkSpec(width=48, norm="batch")),
        ("@timm:resnet18", NetworkSpec("timm:resnet18")),
    ],
)
@pytest.mark.parametrize("file", ["a.pt", "a.pth", "a.safetensors", "me@home.pt", "timm:odd.pt"])
def test_a_checkpoint(tmp_path, arch, spec, file):
    (tmp_path / file).touch()
    assert teacher_source(f"{tmp_path / file}{arch}", STUDENT) == SavedWeights(tmp_path / file, spec)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("convnet:width=0", "teachers=convnet:width=0: width=0: Input should be greater than or equal to 1"),
        ("convnet:width=wide", "teachers=convnet:width=wide: width=wide: Input should be a valid integer"),
        ("convnet:norm=bach", "teachers=convnet:norm=bach: norm=bach: Input should be 'instance'"),
        ("convnet:wide=3", "unknown setting in teachers=convnet:wide=3: 'wide'; did you mean 'width'?"),
        ("convnet:48", "'48' is not a setting; write ARCH:field=value"),
        ("convnet:arch=resnet18", "unknown setting"),
        ("./nowhere.pt", "teachers=./nowhere.pt: no such file"),
        ("nowhere.pt@convnet", "teachers=nowhere.pt: no such file"),
        ("good.safetensorz", "looks like a path, but a checkpoint ends in .safetensors, .pt, .pth"),
        ("teacher.ckpt@convnet:width=4", "looks like a path, but a checkpoint ends in"),
        ("./teacher.bin", "looks like a path, but a checkpoint ends in .safetensors, .pt, .pth"),
    ],
)
def test_refused_in_one_line(name, words):
    with pytest.raises(UsageError) as caught:
        teacher_source(name, STUDENT)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
