"""Teachers: by name, as artefacts, across a kill, from a file, behind another normalisation."""

import json
import logging
from dataclasses import asdict, replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import functional as tv

from dd.data import DataSettings, open_data
from dd.errors import RunError, UsageError
from dd.io import digest, sha256_file, sha256_tensors
from dd.networks import NetworkSpec, build_network
from dd.rng import generator
from dd.runs import Store
from dd.training import loop
from dd.training.squeeze import squeeze_fit, squeeze_spec
from dd.training.teachers import SqueezeSettings, Teachers, teacher_keys, teachers
from dd.views import draw_boxes
from dd.views.dsa import augment

DSA = "color_crop_cutout_flip_scale_rotate"
SETTINGS = SqueezeSettings(epochs=3, lr=0.1, batch=24)  # 128 images: five batches of 24 and one of 8
NAME = "convnet:width=6:depth=2"
SPEC = NetworkSpec(depth=2, width=6, norm="batch")


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(strategy=DSA))


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def by_hand(task, settings, spec=SPEC):
    """The loop that everybody writes, on the same draws: SGD, lr on half a cosine."""
    network = build_network(
        spec, channels=1, size=8, classes=4, generator=generator(settings.seed, "teacher", "weights")
    )
    optimiser = torch.optim.SGD(
        network.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * 6
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(settings.epochs):
        draws = generator(settings.seed, "teacher", "augment", epoch)
        for images, labels in task.data.train.batches(24, generator(settings.seed, "teacher", "order", epoch)):
            optimiser.zero_grad()
            F.cross_entropy(network(augment(DSA, images, draws)), labels).backward()
            optimiser.step()
            schedule.step()
    return network.eval()


# --- trained here ----------------------------------------------------------------------------------------------------


def test_a_teacher_by_hand(task):
    (teacher,) = teachers(task, [NAME], SETTINGS)
    expected = by_hand(task, SETTINGS)
    ours = teacher.network.state_dict()
    assert "features.0.norm.running_var" in ours
    assert all(torch.allclose(ours[name], value, atol=1e-5) for name, value in expected.state_dict().items())
    held = task.data.holdout
    right = [int(expected(held.images(torch.tensor([i]))).argmax()) == int(held.labels[i]) for i in range(len(held))]
    assert teacher.holdout == teacher.declared == pytest.approx(100 * sum(right) / len(right))
    assert teacher.holdout > 60  # it learnt something: chance is 25
    assert teacher.classes == task.data.classes
    assert teacher.sha256 == sha256_tensors(ours)


def loops(task, settings, batches_of, kind=torch.optim.SGD):
    """The same loop over batches that are already augmented."""
    network = build_network(
        SPEC, channels=1, size=8, classes=4, generator=generator(settings.seed, "teacher", "weights")
    )
    momentum = {"momentum": settings.momentum} if kind is torch.optim.SGD else {}
    optimiser = kind(network.parameters(), settings.lr, weight_decay=settings.weight_decay, **momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * 6)
    for epoch in range(settings.epochs):
        for images, labels in batches_of(generator(settings.seed, "teacher", "order", epoch)):
            optimiser.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimiser.step()
            schedule.step()
    return network.eval().state_dict()


def test_adam_by_hand(task):
    settings = replace(SETTINGS, optimiser="adam", lr=1e-3, augment=False)
    (teacher,) = teachers(task, [NAME], settings)
    expected = loops(task, settings, lambda rng: task.data.train.batches(24, rng), torch.optim.Adam)
    ours = teacher.network.state_dict()
    assert all(torch.allclose(ours[name], value, atol=1e-5) for name, value in expected.items())


def test_on_padded_images_by_hand(task):
    """torchvision's RandomCrop with padding, and its flip: pixels are bytes there, so what comes in is black."""
    settings = replace(SETTINGS, augment="pad")
    (teacher,) = teachers(task, [NAME], settings)

    def batches(rng):
        for index in torch.randperm(128, generator=rng).split(24):
            shifts = torch.randint(-4, 5, (len(index), 2), generator=rng).tolist()
            flips = torch.rand(len(index), generator=rng) < 0.5
            images = []
            for pixels, (down, right), flip in zip(task.data.train.raw(index), shifts, flips, strict=True):
                crop = tv.crop(tv.pad(pixels, [4]), 4 - down, 4 - right, 8, 8)
                images.append(tv.hflip(crop) if flip else crop)
            yield task.data.preprocess(torch.stack(images)), task.data.train.labels[index]

    expected, ours = loops(task, settings, batches), teacher.network.state_dict()
    assert all(torch.allclose(ours[name], value, atol=1e-5) for name, value in expected.items())


def test_on_crops_of_the_images_by_hand(task):
    settings = replace(SETTINGS, augment="crops")
    (teacher,) = teachers(task, [NAME], settings)

    def batches(rng):
        for index in torch.randperm(128, generator=rng).split(24):
            boxes = draw_boxes(len(index), (8, 8), (0.08, 1.0), rng)
            flips = torch.rand(len(index), generator=rng) < 0.5
            images = []
            for image, box, flip in zip(task.data.train.images(index), boxes.tolist(), flips, strict=True):
                crop = tv.resized_crop(image, *box, size=[8, 8])
                images.append(tv.hflip(crop) if flip else crop)
            yield torch.stack(images), task.data.train.labels[index]

    expected, ours = loops(task, settings, batches), teacher.network.state_dict()
    assert all(torch.allclose(ours[name], value, atol=1e-4) for name, value in expected.items())


@pytest.mark.parametrize("stream", [False, True])
def test_on_crops_of_files_where_there_are_files(make_task, tmp_path, monkeypatch, stream):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    for number in range(64):
        folder = tmp_path / "set" / f"class {number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 20), dtype=np.uint8)).save(folder / f"{number:02}.png")
    data = open_data(f"folder:{tmp_path / 'set'}", DataSettings(size=8, stream=stream, holdout=0), "cpu")
    task, settings = make_task(data), replace(SETTINGS, augment="crops", batch=len(data.train) // 6 + 1)
    (teacher,) = teachers(task, [NAME], settings)
    shown = data.train.originals
    expected = loops(task, settings, lambda rng: shown.batches(settings.batch, rng, 8, 0.08))
    ours = teacher.network.state_dict()
    assert all(torch.allclose(ours[name], value, atol=1e-5) for name, value in expected.items())
    spec = squeeze_spec(task, SPEC, settings)
    assert spec["augment"] == "crops of files"
    squares = make_task(
        replace(data, train=replace(data.train, **({"sized": False} if stream else {"originals": None})))
    )
    assert squeeze_spec(squares, SPEC, settings)["augment"] == "crops"


def test_it_is_frozen_and_in_evaluation_mode(task):
    (teacher,) = teachers(task, [NAME], SETTINGS)
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not any(layer.training for layer in teacher.network.modules())
    before = sha256_tensors(teacher.network.state_dict())
    images = torch.randn(5, 1, 8, 8, requires_grad=True)
    teacher.network(images).sum().backward()  # recovering goes through it
    assert images.grad is not None
    assert sha256_tensors(teacher.network.state_dict()) == before == teacher.sha256


def test_it_is_kept_with_what_it_is(task, caplog):
    caplog.set_level(logging.INFO, logger="dd")
    first, again = (teachers(task, [NAME], SETTINGS)[0] for _ in range(2))
    assert equal(first.network.state_dict(), again.network.state_dict())
    assert (first.sha256, first.holdout) == (again.sha256, again.holdout)
    made, kept = (record.getMessage() for record in caplog.records)
    held = f": {first.holdout:.1f} % of held-out images"
    assert made.startswith(f"made teacher {NAME} (blobs, 3 epochs) in ")
    assert made.endswith(held)
    assert kept == f"kept teacher {NAME} (blobs, 3 epochs){held}"
    (manifest,) = task.store.manifests("teachers")
    assert manifest["info"] == {
        "network": asdict(SPEC),
        "preprocess": task.data.preprocess.spec(),
        "classes": list(task.data.classes),
        "holdout": first.holdout,
        "data": "blobs",
    }


def test_names_in_their_order_and_the_student_s_architecture(task):
    found = teachers(task, ["student", NAME, "resnet18:width=2"], SETTINGS)
    assert [teacher.name for teacher in found] == ["student", NAME, "resnet18:width=2"]
    assert [type(teacher.network).__name__ for teacher in found] == ["ConvNet", "ConvNet", "ResNet18"]
    assert found[0].network.state_dict().keys() == task.network("x").state_dict().keys()
    assert all(teacher.network(torch.zeros(2, 1, 8, 8)).shape == (2, 4) for teacher in found)


def test_an_architecture_of_another_library_is_trained_here(task):
    (teacher,) = teachers(task, ["timm:test_resnet"], replace(SETTINGS, epochs=1, augment=False))
    assert teacher.network(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def test_what_a_plan_needs_is_what_is_made(task, tmp_path):
    torch.save(
        build_network(SPEC, channels=1, size=8, classes=4, generator=generator(0, "x")).state_dict(), tmp_path / "a.pt"
    )
    names = ["student", f"{tmp_path}/a.pt@{NAME}", "timm:resnet18.a1_in1k", NAME]
    needs = Teachers(task, names, SETTINGS).artefacts()
    assert [kind for kind, _, _ in needs] == ["teachers", "teachers"]
    assert not any(task.store.has(kind, spec) for kind, spec, _ in needs)
    teachers(task, ["student", NAME], SETTINGS)
    assert all(task.store.has(kind, spec) for kind, spec, _ in needs)
    keys = teacher_keys(task, names, SETTINGS)
    assert keys == [
        {"trained": digest(needs[0][1])},
        {"file": sha256_file(tmp_path / "a.pt"), "network": asdict(SPEC)},
        {"published": "timm:resnet18.a1_in1k"},
        {"trained": digest(needs[1][1])},
    ]
    json.dumps(keys)


def test_every_setting_is_part_of_the_key(task, make_task, blobs):
    changes = {
        "epochs": 4, "lr": 0.2, "momentum": 0.5, "weight_decay": 0.0, "batch": 16, "schedule": "constant", "warmup": 1,
        "augment": False, "seed": 1, "optimiser": "adam",
    }  # fmt: skip
    assert changes.keys() == asdict(SETTINGS).keys()
    specs = [squeeze_spec(task, SPEC, SETTINGS)]
    specs += [squeeze_spec(task, SPEC, replace(SETTINGS, augment=how)) for how in ("pad", "crops")]
    specs += [squeeze_spec(task, SPEC, replace(SETTINGS, **{name: value})) for name, value in changes.items()]
    specs += [squeeze_spec(task, replace(SPEC, width=7), SETTINGS)]
    specs += [squeeze_spec(make_task(blobs(seed=1, strategy=DSA)), SPEC, SETTINGS)]
    assert len({digest(spec) for spec in specs}) == len(specs)
    # the run's own seed and size are not: runs share their teachers
    assert digest(squeeze_spec(make_task(task.data, ipc=7, seed=9), SPEC, SETTINGS)) == digest(specs[0])


def test_every_setting_reaches_the_training():
    fit = squeeze_fit(replace(SETTINGS, warmup=1), 128, DSA)
    assert (fit.steps, fit.warmup, fit.cosine, fit.strategy) == (18, 6, 1.0, DSA)
    assert (fit.lr, fit.momentum, fit.weight_decay) == (0.1, 0.9, 5e-4)
    for how in (False, "pad", "crops"):
        assert squeeze_fit(replace(SETTINGS, augment=how, schedule="constant"), 128, DSA).strategy == "none"
    assert squeeze_fit(replace(SETTINGS, optimiser="adam"), 128, DSA).optimiser == "adam"
    with pytest.raises(ValueError, match=r"squeeze\.warmup=3 must be less than squeeze\.epochs=3"):
        replace(SETTINGS, warmup=3)


def test_a_rest_of_one_image_is_left_out(make_task, blobs):
    """Batch norm has no statistics of a single value."""
    task = make_task(blobs(classes=2, per_class=17))  # 34 images, 3 * 11 + 1
    (teacher,) = teachers(task, ["resnet18:width=2"], replace(SETTINGS, batch=11))
    counters = [value for name, value in teacher.network.state_dict().items() if name.endswith("num_batches_tracked")]
    assert all(value == 3 * 3 for value in counters)


def test_divergence_is_said(task):
    with pytest.raises(
        RunError, match=r"teacher convnet.* diverged: its weights are not finite; lower squeeze\.lr=1e\+30"
    ):
        teachers(task, [NAME], replace(SETTINGS, lr=1e30))
    assert not list((task.store.root / "teachers").glob("*.safetensors"))


class Killed(BaseException):
    pass


def test_killed_between_passes_it_goes_on_and_ends_in_the_same_bits(task, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="dd")
    (whole,) = teachers(task, [NAME], SETTINGS)
    again = replace(task, store=Store(tmp_path))
    passes, real = [], loop.augment

    def mortal(*args):
        passes.append(1)
        if len(passes) == 15:  # in the third pass of six steps
            raise Killed
        return real(*args)

    monkeypatch.setattr(loop, "augment", mortal)
    with pytest.raises(Killed):
        teachers(again, [NAME], SETTINGS)
    assert [path.name.partition(".")[2] for path in (tmp_path / "teachers").glob("*.safetensors")] == [
        "unfinished.safetensors"
    ]
    (teacher,) = teachers(again, [NAME], SETTINGS)
    assert len(passes) == 15 + 6  # the third pass, and nothing else
    assert f"resuming teacher {NAME} (blobs, 3 epochs) after pass 2" in caplog.text
    assert equal(teacher.network.state_dict(), whole.network.state_dict())
    assert (teacher.sha256, teacher.holdout) == (whole.sha256, whole.holdout)
    assert not list((tmp_path / "teachers").glob("*unfinished*"))


# --- from a file -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(task):
    return teachers(task, [NAME], SETTINGS)[0]


def test_a_file_is_the_teacher_it_was_saved_from(task, trained, tmp_path):
    torch.save(trained.network.state_dict(), tmp_path / "a.pt")
    (teacher,) = teachers(task, [f"{tmp_path}/a.pt@{NAME}"], SETTINGS)
    images = task.data.test.images(torch.arange(9))
    assert torch.equal(teacher.network(images), trained.network(images))
    assert (teacher.sha256, teacher.holdout) == (trained.sha256, trained.holdout)
    assert (teacher.classes, teacher.declared) == (None, None)


def test_a_file_without_an_architecture_is_the_student_s(make_task, task, trained, tmp_path):
    torch.save({"state_dict": trained.network.state_dict(), "accuracy": 91}, tmp_path / "a.pt")
    student = make_task(task.data, student=SPEC)
    (teacher,) = teachers(student, [f"{tmp_path}/a.pt"], SETTINGS)
    assert (teacher.sha256, teacher.declared) == (trained.sha256, 91.0)
    with pytest.raises(UsageError, match=r"a\.pt does not fit this network: its first layer that differs is features"):
        teachers(task, [f"{tmp_path}/a.pt"], SETTINGS)


def test_a_file_s_own_normalisation(task, trained, tmp_path):
    """The first layer in [0, 1] units, with the file saying so, is the same teacher."""
    state = dict(trained.network.state_dict())
    torch.save({"state_dict": state, "mean": [128 / 255], "std": [16 / 255]}, tmp_path / "same.pt")
    torch.save({"state_dict": state, "mean": [0.0], "std": [1.0]}, tmp_path / "other.pt")
    same, other = teachers(task, [f"{tmp_path}/same.pt@{NAME}", f"{tmp_path}/other.pt@{NAME}"], SETTINGS)
    images = task.data.test.images(torch.arange(9))
    assert torch.allclose(same.network(images), trained.network(images), atol=1e-4)
    pixels = task.data.preprocess.invert(images)
    assert torch.allclose(other.network(images), trained.network(pixels), atol=1e-4)
    assert same.sha256 == other.sha256 == trained.sha256


def test_a_file_of_more_classes_gives_those_of_the_data(task, tmp_path):
    wide = build_network(SPEC, channels=1, size=8, classes=6, generator=generator(0, "wide")).eval()
    names = ["class 3", "other", "class 1", "class 0", "more", "class 2"]
    torch.save({"state_dict": wide.state_dict(), "classes": names}, tmp_path / "a.pt")
    torch.save({"state_dict": wide.state_dict()}, tmp_path / "nameless.pt")
    (teacher,) = teachers(task, [f"{tmp_path}/a.pt@{NAME}"], SETTINGS)
    images = task.data.test.images(torch.arange(9))
    assert torch.equal(teacher.network(images), wide(images)[:, [3, 2, 5, 0]])
    assert teacher.classes == task.data.classes
    with pytest.raises(UsageError, match=r"6 outputs for 4 classes, and their names are not known: save {'state_dict'"):
        teachers(task, [f"{tmp_path}/nameless.pt@{NAME}"], SETTINGS)


# --- published, for a few classes of ImageNet ------------------------------------------------------------------------

WNIDS = ("n02979186", "n01440764", "n03417042", "n02102040")  # outputs 482, 0, 569 and 217


@pytest.fixture
def wnid_task(task):
    return replace(task, data=replace(task.data, classes=WNIDS))


def test_a_published_network_takes_model_space_and_gives_the_classes_of_the_data(wnid_task, tmp_path, monkeypatch):
    theirs = timm.create_model("test_resnet", num_classes=1000).eval()
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(theirs.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (teacher,) = teachers(wnid_task, ["timm:test_resnet.r160_in1k"], SETTINGS)
    index = torch.arange(9)
    pixels = wnid_task.data.test.raw(index).float().div(255).repeat(1, 3, 1, 1)
    config = theirs.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = theirs((pixels - mean) / std)[:, [482, 0, 569, 217]]
    assert torch.allclose(teacher.network(wnid_task.data.test.images(index)), expected, atol=1e-4)
    assert teacher.classes == WNIDS
    assert teacher.sha256 == sha256_tensors(theirs.state_dict())
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_a_file_of_a_thousand_outputs_is_read_as_imagenet_s(wnid_task, task, tmp_path):
    wide = build_network(SPEC, channels=1, size=8, classes=1000, generator=generator(0, "wide")).eval()
    torch.save(wide.state_dict(), tmp_path / "a.pt")
    (teacher,) = teachers(wnid_task, [f"{tmp_path}/a.pt@{NAME}"], SETTINGS)
    images = task.data.test.images(torch.arange(9))
    assert torch.equal(teacher.network(images), wide(images)[:, [482, 0, 569, 217]])
    with pytest.raises(UsageError, match="1000 outputs for 4 classes, and none of them is 'class 0'"):
        teachers(task, [f"{tmp_path}/a.pt@{NAME}"], SETTINGS)


# --- wrong names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("convnet:depth=9", "teachers=convnet:depth=9: depth=9 must be at least 1 and at most 3"),
        ("convnot", "teachers=convnot: unknown network 'convnot'; did you mean 'convnet'?"),
        ("nowhere.pt", "teachers=nowhere.pt: no such file"),
        ("timm:resnet81.a1_in1k", "teachers=timm:resnet81.a1_in1k: unknown timm network 'resnet81'"),
        ("resnte18", "teachers=resnte18: unknown network 'resnte18'; did you mean 'resnet18'?; others by timm:NAME"),
        ("resnet18:depth=3", "teachers=resnet18:depth=3: depth=3 means nothing to resnet18: leave it out"),
    ],
)
def test_refused_before_anything_is_trained(task, name, words):
    with pytest.raises(UsageError) as caught:
        teachers(task, ["student", name], SETTINGS)
    assert words in str(caught.value)
    assert not list(task.store.manifests("teachers"))


def test_a_network_that_cannot_take_the_images_is_said_of_the_teacher(task):
    with pytest.raises(UsageError) as caught:
        teachers(task, ["torchvision:vgg11"], SETTINGS)
    text = str(caught.value)
    assert text.startswith("teachers=torchvision:vgg11: torchvision:vgg11 cannot take 1x8x8 images: ")
    assert text.endswith("; name another teacher")


def test_the_student_as_a_teacher_is_said_of_the_student(make_task, blobs):
    task = make_task(blobs(strategy=DSA), student=NetworkSpec("torchvision:vgg11"))
    with pytest.raises(UsageError, match=r"teachers=student: .*; use another student\.arch$"):
        teachers(task, ["student"], SETTINGS)


def test_no_names(task):
    with pytest.raises(UsageError, match="no teacher is named"):
        teachers(task, [], SETTINGS)
