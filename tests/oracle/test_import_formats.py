"""Every format of tensors that others release: files built as documented come back as the sets they were made of."""

import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import kornia
import msgpack
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dd.data import DataSettings, open_data
from dd.data.preprocess import moments, standard, whitening, zca
from dd.data.sources.catalogue import CATALOGUE
from dd.data.sources.entry import CIFAR10
from dd.errors import UsageError
from dd.exchange import Draft, import_sets
from dd.exchange.front import matched
from dd.exchange.order import order_of
from dd.exchange.pixels import in_our_space
from dd.exchange.shapes import laid_out
from dd.exchange.spaces import NAMED, ValueSpace, constants_of, look, settle
from dd.exchange.targets import targets
from dd.sets import load
from dd.sets.origin import imported
from dd.sets.tiles import mosaic

DATASET = "fashion-mini"
ORDER = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])


@pytest.fixture(scope="module")
def data():
    return open_data(DATASET, DataSettings(), "cpu")


@pytest.fixture(scope="module")
def ours(data):
    """Two real images of each class: normalised, their labels, and as pixels from 0 to 1."""
    return some(data, 2)


def some(data, each, first=0):
    index = torch.cat([data.train.of_class(c)[first : first + each] for c in range(len(data.classes))])
    return SimpleNamespace(
        images=data.train.images(index), labels=data.train.labels[index], pixels=data.train.raw(index).float() / 255
    )


def one(paths, **said):
    (made,) = import_sets(paths, **{"dataset": DATASET} | said)
    return made


def close(made, pixels, data, tolerance=1e-5):
    return torch.allclose(data.preprocess.invert(made.images), pixels, atol=tolerance)


def centred(labels, classes=10):
    return F.one_hot(labels, classes).float() - 1 / classes


def packed(tensor):
    array = tensor.contiguous()
    return msgpack.ExtType(1, msgpack.packb((list(array.shape), "float32", array.numpy().tobytes()), use_bin_type=True))


# ---- DC, DSA, DM, DataDAM --------------------------------------------------------------------------------------------


@pytest.fixture
def experiments(data, tmp_path):
    """Three experiments, two accuracies of each, as DM writes them."""
    pairs = [some(data, 2, 2 * number) for number in range(3)]
    path = tmp_path / "res_DM_FashionMNIST_ConvNet_2ipc.pt"
    scores = {"ConvNet": [np.float64(0.5 + number / 100) for number in range(6)]}
    torch.save({"data": [[pair.images, pair.labels] for pair in pairs], "accs_all_exps": scores}, path)
    return path, pairs


def test_every_experiment_is_a_set_with_the_scores_of_its_own(experiments):
    path, pairs = experiments
    found = import_sets(path, dataset=DATASET)
    assert len(found) == 3
    for number, (made, pair) in enumerate(zip(found, pairs, strict=True)):
        assert torch.equal(made.images, pair.images)  # to the bit: our constants are theirs
        assert torch.equal(made.labels, pair.labels)
        assert made.protocol["protocol"] == "mtt"
        assert made.lr is None
        origin = imported(made.provenance)
        assert origin.entry == str(number)
        assert origin.files[0].bytes == path.stat().st_size
        assert origin.assumed == ()
        (score,) = origin.stated
        assert score.values == pytest.approx((50 + 2 * number, 51 + 2 * number))


@pytest.mark.parametrize("disguise", ["renamed", "double", "half", "old torch", "old numpy", "with a history"])
def test_experiments_in_disguise(experiments, data, disguise):
    path, pairs = experiments
    held = torch.load(path, weights_only=False)
    if disguise in ("double", "half"):
        kind = {"double": torch.float64, "half": torch.float16}[disguise]
        held["data"] = [[images.to(kind), labels.int()] for images, labels in held["data"]]
    if disguise == "with a history":
        held["data"] = [[torch.nn.Parameter(images), labels] for images, labels in held["data"]]
    other = path.with_name("cifar10_ipc10.bin" if disguise == "renamed" else path.name)
    torch.save(held, other, _use_new_zipfile_serialization=disguise != "old torch")
    if disguise == "old numpy":  # whose module of scalars had another name
        with zipfile.ZipFile(other) as file:
            members = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(other, "w") as file:
            for name, content in members.items():
                file.writestr(name, content.replace(b"numpy._core", b"numpy.core"))
    (made,) = import_sets(other, dataset=DATASET, entry=1)
    assert close(made, pairs[1].pixels, data, 2e-3 if disguise == "half" else 1e-5)
    assert torch.equal(made.labels, pairs[1].labels)
    assert made.protocol["protocol"] == ("dc" if disguise == "renamed" else "mtt")
    assumed = imported(made.provenance).assumed
    assert any("whether DC, DSA or DM" in line for line in assumed) == (disguise == "renamed")
    unlike = [line for line in assumed if "the file's name speaks of" in line]
    assert len(unlike) == (2 if disguise == "renamed" else 0)  # another data set, and 10 images per class


def test_an_experiment_that_is_not_there(experiments):
    with pytest.raises(UsageError, match="no entry=7; it holds 0, 1, 2"):
        import_sets(experiments[0], dataset=DATASET, entry=7)


def test_unnormalised_images_are_refused_until_it_is_said(experiments, data):
    path, pairs = experiments
    torch.save({"data": [[pairs[0].pixels, pairs[0].labels]], "accs_all_exps": {}}, path)
    with pytest.raises(
        UsageError, match=r"look pixels.*has them normalised.*value_space=normalised or value_space=pixels"
    ):
        import_sets(path, dataset=DATASET)
    assert close(one(path, value_space="pixels"), pairs[0].pixels, data)


def test_shuffled_images_keep_their_labels_and_shuffled_classes_are_noticed(experiments, data):
    path, pairs = experiments
    places = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.save({"data": [[pairs[0].images[places], pairs[0].labels[places]]]}, path)
    assert torch.equal(one(path).labels, pairs[0].labels[places])
    torch.save({"data": [[pairs[0].images, ORDER[pairs[0].labels]]]}, path)
    with pytest.raises(UsageError, match="another order of the classes fits much better: class_order=") as caught:
        one(path)
    listed = str(caught.value).split("class_order=")[1].split()[0]
    made = one(path, class_order=[int(number) for number in listed.split(",")])
    assert torch.equal(made.labels, pairs[0].labels)
    names = [data.classes[number] for number in ORDER.argsort().tolist()]
    assert torch.equal(one(path, class_order=names).labels, pairs[0].labels)
    assert torch.equal(one(path, class_order="data").labels, ORDER[pairs[0].labels])


@pytest.mark.parametrize("disguise", ["plain", "renamed", "ten steps", "double", "shuffled", "with scores"])
def test_the_memories_of_continual_learning_are_one_set(data, tmp_path, disguise):
    """DM's files: one pair for each step, with classes of its own under their ids in the data set."""
    classes = ORDER.view(10 if disguise == "ten steps" else 5, -1)
    pairs = []
    for step in classes:
        index = torch.cat([data.train.of_class(c)[:3] for c in step.tolist()])
        if disguise == "shuffled":
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
        pairs.append([data.train.images(index), data.train.labels[index]])
    if disguise == "double":
        pairs = [[images.double(), labels.int()] for images, labels in pairs]
    held = {"data": pairs} | ({"accs_all_exps": {}} if disguise == "with scores" else {})
    name = "cl_res_DSA_CIFAR100_ConvNet_20ipc_5steps_seed0.pt" if disguise != "renamed" else "x.bin"
    torch.save(held, tmp_path / name)
    made = one(tmp_path / name)
    origin = imported(made.provenance)
    assert origin.format == "dm-continual"
    assert any("distilled from the classes of its step alone" in line for line in origin.assumed)
    assert f"{len(classes)} pairs" in origin.evidence[0]
    assert made.labels.tolist() == [c for c in range(10) for _ in range(3)]
    for c in range(10):  # each image under its own class, as bit-identical as its type allows
        theirs = torch.cat([images[labels == c] for images, labels in pairs]).float()
        assert torch.equal(made.images[made.labels == c], theirs)


def test_steps_that_leave_classes_out_are_said(data, tmp_path):
    steps = [some(data, 2) for _ in range(2)]
    pairs = [
        [step.images[:6], step.labels[:6]] if i else [step.images[6:12], step.labels[6:12]]
        for i, step in enumerate(steps)
    ]
    torch.save({"data": pairs}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=r"it holds none of .*uneven=true"):
        one(tmp_path / "x.pt")


def test_files_that_do_not_belong_together(experiments):
    path, _ = experiments
    other = path.with_name("other.pt")
    other.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="do not belong together, the first is a set by itself"):
        import_sets([path, other], dataset=DATASET)


def test_states_of_a_run_must_be_chosen(experiments):
    path, pairs = experiments
    history = path.with_name("res_DataDAM_FashionMNIST_ConvNet_2ipc_.pt")
    path.rename(history)
    with pytest.raises(UsageError, match=r"3 states .* say entry=0 to entry=2, or entry=all"):
        import_sets(history, dataset=DATASET)
    (made,) = import_sets(history, dataset=DATASET, entry=2)
    assert torch.equal(made.images, pairs[2].images)
    assert made.protocol["protocol"] == "datadam"
    assert imported(made.provenance).stated == ()  # of which state the scores are is not known
    assert len(import_sets(history, dataset=DATASET, entry="all")) == 3
    renamed = history.rename(history.with_name("x.pt"))
    assert len(import_sets(renamed, dataset=DATASET)) == 3
    with pytest.raises(UsageError, match="3 states"):
        import_sets(renamed, dataset=DATASET, format="datadam-history")


def test_the_pair_that_datadam_released_has_float_class_ids(ours, tmp_path):
    path = tmp_path / "syn_data.pt"
    torch.save({"data": [ours.images, ours.labels.float()]}, path)
    made = one(path)
    assert torch.equal(made.labels, ours.labels)
    assert made.protocol["protocol"] == "datadam"
    assert torch.equal(one(path, entry=0).images, made.images)


# ---- MTT, FTD, TESLA, DATM -------------------------------------------------------------------------------------------


def saved(folder, **tensors):
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    return [folder / f"{name}.pt" for name in tensors]


def test_images_and_labels_of_the_trajectory_family(ours, tmp_path):
    images, _ = saved(tmp_path, images_best=ours.images, labels_best=ours.labels)
    for made in (one(images), one(tmp_path)):  # labels are found beside images, and both in a folder
        assert torch.equal(made.images, ours.images)
        assert torch.equal(made.labels, ours.labels)
        assert made.protocol["protocol"] == "mtt"
        assert any("no learning rate: students use the protocol's 0.01" in x for x in imported(made.provenance).assumed)
    assert one(images, lr=0.03).lr == 0.03


def test_renamed_files_are_told_apart_by_their_contents(ours, tmp_path):
    logits = F.one_hot(ours.labels, 10) * 4.2 - 1
    paths = saved(tmp_path, a=torch.tensor(0.02, requires_grad=True), b=logits.requires_grad_(), c=ours.images.double())
    made = one(paths)
    assert made.label_kind == "logits"
    assert torch.equal(made.labels, logits)
    assert torch.allclose(made.targets().sum(1), torch.ones(20))
    assert torch.equal(made.targets().argmax(1), ours.labels)
    assert made.lr == pytest.approx(0.02)
    assert made.protocol["protocol"] == "datm"


def test_labels_of_tesla_are_ids_at_first_and_probabilities_later(ours, tmp_path):
    probabilities = (F.one_hot(ours.labels, 10) * 5.0).softmax(1)
    images, first, later = saved(tmp_path, images=ours.images, labels_0=ours.labels, labels_500=probabilities)
    assert one([images, first]).label_kind == "hard"
    made = one([images, later])
    assert made.label_kind == "probabilities"
    assert torch.equal(made.labels, probabilities)  # no softmax again
    assert imported(made.provenance).format == "tesla"


def test_parts_of_a_set_are_joined_by_number(ours, tmp_path):
    parts = {f"images_best_{number}": part for number, part in enumerate(ours.images.split(4))}
    paths = saved(tmp_path, **parts, labels_best=ours.labels)
    made = one([*reversed(paths[:-1]), paths[-1]])
    assert torch.equal(made.images, ours.images)
    assert torch.equal(made.labels, ours.labels)


def test_whitened_images_by_kornia_come_back_in_our_own_whitening(data, ours, tmp_path):
    """Theirs is of all training images, ours of those that are not held out."""
    whole = open_data(DATASET, DataSettings(holdout=0), "cpu")
    pixels = whole.train.raw(torch.arange(len(whole.train))).float() / 255
    white = kornia.enhance.ZCAWhitening(eps=0.1, detach_transforms=True).fit(pixels)(ours.pixels)
    paths = saved(tmp_path, images_best=white, labels_best=ours.labels)
    assert look(white).kind == "whitened"
    made = one(paths, value_space="zca")
    space = open_data(DATASET, DataSettings(preprocess="zca"), "cpu")
    assert made.space == space.preprocess.spec()
    assert torch.allclose(space.preprocess.invert(made.images), ours.pixels, atol=2e-4)
    assert made.provenance["data"]["preprocess"] == "zca"
    assert torch.equal(one(paths).images, made.images)  # which the values say by themselves
    back = one(paths, value_space="zca", preprocess="standard")
    assert close(back, ours.pixels, data, 1e-3)


def test_the_inverse_of_whitened_images_is_pixels(ours, data, tmp_path):
    images, _ = saved(tmp_path, images_zca_500=ours.pixels, labels_500=ours.labels)
    made = one(images)
    assert close(made, ours.pixels, data)
    assert made.space["kind"] == "standard"


# ---- IDC, DREAM, NCFM; LGM; plain tensors ----------------------------------------------------------------------------


def test_mosaics_need_their_factor_and_any_order(data, tmp_path):
    four = some(data, 4)
    mosaics, labels = mosaic(four.pixels, 2), torch.arange(10)
    places = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    path = tmp_path / "data_10000.pt"
    torch.save([mosaics[places], labels[places]], path)
    with pytest.raises(UsageError, match=r"factor=2 .*factor=3 .*factor=1"):
        one(path)
    made = one(path, factor=2)
    assert (made.image_kind, made.decode_factor, made.protocol["protocol"]) == ("tiles", 2, "ncfm")
    assert torch.equal(made.labels, labels)
    assert close(made, mosaics, data)
    assert len(made.as_dataset()) == 40  # four times as many as are stored
    assert one(path, factor=1, class_order="data").image_kind == "pixels"


@pytest.mark.parametrize("form", ["nchw", "nhwc", "bytes", "uint8", "npz"])
def test_images_alone_are_ordered_by_class(ours, data, tmp_path, form):
    pixels = ours.pixels
    kinds = {
        "nchw": pixels,
        "nhwc": pixels.permute(0, 2, 3, 1).contiguous(),
        "bytes": (pixels * 255).round(),
        "uint8": (pixels * 255).round().byte(),
    }
    if form == "npz":
        np.savez(tmp_path / "x.npz", images=pixels.numpy(), labels=ours.labels.numpy())
    else:
        np.save(tmp_path / "x.npy", kinds[form].numpy())
    (found,) = matched(next(tmp_path.iterdir()), {"dataset": DATASET})
    assert torch.allclose(found.set.pixels(data.preprocess), ours.images, atol=1e-5)
    assert torch.equal(found.set.labels, ours.labels)
    assert any("ordered by class" in line for line in imported(found.set.provenance).assumed) == (form != "npz")
    assert "nearest to the real images of their class" in found.remark


def test_images_in_turn(ours, tmp_path):
    torch.save(ours.pixels.unflatten(0, (10, 2)).transpose(0, 1).flatten(0, 1), tmp_path / "x.pt")
    made = one(tmp_path / "x.pt", labels="cycle")
    assert made.labels.tolist() == [*range(10), *range(10)]
    with pytest.raises(UsageError, match="class_order"):
        one(tmp_path / "x.pt")


def test_lgm_has_pixels_of_256(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), dtype=np.uint8)
    arrays = {
        f"{part}_{what}": value
        for part in ("train", "test")
        for what, value in (("images", images), ("labels", np.arange(8) % 2))
    }
    np.savez(tmp_path / "real.npz", **arrays)
    pixels = torch.from_numpy(images[:2]).permute(0, 3, 1, 2) / 255
    torch.save({"images": pixels, "labels": torch.arange(2)}, tmp_path / "data.pth")
    made = one(tmp_path / "data.pth", dataset=f"npz:{tmp_path / 'real.npz'}", class_order="data")
    assert imported(made.provenance).format == "lgm"
    space = standard(torch.empty(0), (made.space["mean"], made.space["std"]))
    assert torch.allclose(space.invert(made.images), pixels, atol=1e-5)


@pytest.mark.parametrize("family", ["dc", "mtt", "idc", "frepo"])
def test_constants_of_others_lead_to_ours_through_pixels(family):
    """CIFAR-100, which dd and the trajectory family normalise with CIFAR-10's constants, and others with its own."""
    space = standard(torch.empty(0), CIFAR10)
    data = SimpleNamespace(name="cifar100", channels=3, preprocess=space)
    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2  # beyond black and white
    name = constants_of(family, "cifar100")
    theirs = standard(torch.empty(0), NAMED[name]).encode(pixels)
    images, note = in_our_space(theirs, ValueSpace("normalised", name), data, lambda kind: data)
    assert torch.allclose(space.invert(images), pixels, atol=1e-6)
    assert torch.equal(images, theirs) == (family in ("mtt", "idc")) == (note == "")


# ---- FRePo, RCIG, KIP ------------------------------------------------------------------------------------------------


def test_frepo_and_rcig_hold_centred_targets(ours, tmp_path):
    images, labels = ours.images.permute(0, 2, 3, 1), centred(ours.labels)
    np.savez(tmp_path / "step000500.npz", image=images.numpy(), label=labels.numpy())
    state = {"x_proto": packed(images), "y_proto": packed(labels), "log_temp": 0.1}
    wrong = {"x_proto": packed(images * 0), "y_proto": packed(labels)}
    (tmp_path / "checkpoint_1").write_bytes(msgpack.packb({"step": 1, "params": state}))
    (tmp_path / "checkpoint_2").write_bytes(msgpack.packb({"ema_average": state, "params": wrong}))
    for name, kind in (("step000500.npz", "frepo"), ("checkpoint_1", "frepo"), ("checkpoint_2", "rcig")):
        made = one(tmp_path / name)
        assert torch.equal(made.images, ours.images)
        assert torch.equal(made.labels, ours.labels)
        assert made.label_kind == "hard"
        origin = imported(made.provenance)
        assert origin.format == kind
        assert any("regression targets" in line for line in origin.assumed)


def test_images_that_were_normalised_before_they_were_whitened(data, ours, tmp_path):
    """FRePo's whitening of colour images, here of grey ones: it is not MTT's, and comes back by its own inverse."""
    whole = open_data(DATASET, DataSettings(holdout=0), "cpu")
    raw = whole.train.raw(torch.arange(len(whole.train)))
    mean, covariance = moments(raw)
    scale = float(1 / whole.preprocess.std)
    matrix, _ = whitening(covariance * scale**2, 0.1)
    theirs = ((ours.pixels.flatten(1).double() - mean) * scale @ matrix).float().view(ours.pixels.shape)
    np.savez(tmp_path / "x.npz", image=theirs.permute(0, 2, 3, 1).numpy(), label=centred(ours.labels).numpy())
    made = one(tmp_path / "x.npz", value_space="zca-normalised")
    assert close(made, ours.pixels, data, 1e-4)
    mtt = zca(raw, 0.1)(ours.pixels.mul(255).round().byte())
    assert (mtt - theirs).abs().mean() > 0.05


def test_kip_is_refused_with_the_reason(ours, tmp_path):
    unit = F.normalize((ours.pixels - ours.pixels.mean((1, 2, 3), keepdim=True)).flatten(1)).view(ours.pixels.shape)
    np.savez(tmp_path / "x.npz", images=unit.permute(0, 2, 3, 1).numpy(), labels=centred(ours.labels).numpy())
    with pytest.raises(UsageError, match="KIP centres every image"):
        one(tmp_path / "x.npz")


def test_real_images_of_any_size_are_brought_to_the_set(tmp_path):
    """A user's pictures, and a set that was made of them at 16 pixels."""
    chance = np.random.default_rng(0)
    for part in ("train", "test"):
        for c, colour in enumerate(((200, 20, 20), (20, 200, 20), (20, 20, 200))):
            folder = tmp_path / "pictures" / part / f"class{c}"
            folder.mkdir(parents=True)
            for number in range(6):
                noise = chance.integers(0, 40, (20 + 3 * number, 30, 3), dtype=np.uint8)
                Image.fromarray(noise + np.array(colour, dtype=np.uint8)).save(folder / f"{number}.png")
    colours = torch.tensor([[200.0, 20, 20], [20, 200, 20], [20, 20, 200]]) / 255
    pixels = colours.repeat_interleave(4, 0)[:, :, None, None] + torch.rand(12, 3, 16, 16) * 0.15
    paths = saved(tmp_path, images_best=pixels, labels_best=torch.arange(3).repeat_interleave(4))
    with pytest.raises(UsageError, match=r"size=16 brings the real images to theirs"):
        one(paths, dataset=f"folder:{tmp_path / 'pictures'}")
    made = one(paths, dataset=f"folder:{tmp_path / 'pictures'}", size=16)
    assert made.images.shape == (12, 3, 16, 16)
    assert made.provenance["data"]["size"] == 16
    assert made.provenance["data"]["resize"] == "squash"  # as the trajectory family does
    made.require_match(open_data(made.source, DataSettings(size=16, resize="squash"), "cpu"))
    with pytest.raises(UsageError, match=r"images are 3 x 16 x 16.* 3 x 24 x 24"):
        one(paths, dataset=f"folder:{tmp_path / 'pictures'}", size=24)


# ---- KRR-ST ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disguise", ["plain", "alone", "folder", "with a history", "double", "renamed"])
def test_images_with_representations(ours, tmp_path, disguise):
    """KRR-ST's `x_syn.pt`, raw pixels that networks see without normalisation, and `y_syn.pt`, (m, 512)."""
    targets = torch.randn(20, 512, generator=torch.Generator().manual_seed(0)).abs()
    x, y = ours.pixels, targets
    if disguise == "with a history":
        x, y = torch.nn.Parameter(x), torch.nn.Parameter(y)
    if disguise == "double":
        x, y = x.double(), y.double()
    names = ("a.pt", "b.pt") if disguise == "renamed" else ("x_syn.pt", "y_syn.pt")
    for name, tensor in zip(names, (x, y), strict=True):
        torch.save(tensor, tmp_path / name)
    paths = {"alone": [tmp_path / "x_syn.pt"], "folder": [tmp_path]}.get(disguise, [tmp_path / name for name in names])
    if disguise == "renamed":
        with pytest.raises(UsageError, match=r"labels are of 512 classes.*format=krrst if these are representations"):
            one(paths, value_space="pixels")
    made = one(paths, **({"format": "krrst"} if disguise == "renamed" else {}))
    assert torch.equal(made.images, ours.pixels)  # to the bit: no constants are applied
    assert torch.equal(made.labels, targets)
    assert made.label_kind == "representations"
    assert imported(made.provenance).format == "krrst"
    made.save(tmp_path / "set.safetensors")
    assert load(tmp_path / "set.safetensors").digest() == made.digest()


def test_representations_name_no_class(ours, tmp_path):
    torch.save(ours.pixels, tmp_path / "x_syn.pt")
    torch.save(torch.randn(20, 32), tmp_path / "y_syn.pt")
    with pytest.raises(UsageError, match="class_order= does not apply to representations"):
        one(tmp_path / "x_syn.pt", class_order="data")
    assert close(
        one(tmp_path / "x_syn.pt", value_space="pixels"), ours.pixels, open_data(DATASET, DataSettings(), "cpu")
    )
    torch.save(torch.randn(19, 32), tmp_path / "y_syn.pt")
    with pytest.raises(UsageError, match="19"):
        one(tmp_path / "x_syn.pt")


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_a_name_that_says_another_data_set_is_not_believed(ours, tmp_path):
    path = tmp_path / "cifar10_ipc10.pt"
    torch.save({"data": [ours.images, ours.labels]}, path)
    with pytest.raises(
        UsageError, match=r"images are 1 x 28 x 28, whatever its name says \(cifar10\).*3 x 32 x 32.*fashion"
    ):
        one(path, dataset="cifar10")
    assert torch.equal(one(path).images, ours.images)


def test_images_of_something_else_are_refused(tmp_path):
    images = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    torch.save({"data": [images, torch.arange(10).repeat_interleave(2)]}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="may be images of something else than fashion-mini"):
        one(tmp_path / "x.pt", value_space="normalised")
    assert torch.equal(one(tmp_path / "x.pt", value_space="normalised", class_order="data").images, images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x, y + 1), "labels go from 1 to 10, and the data have 10 classes"),
        (lambda x, y: (x, y.float() + 0.5), "class id, but 9.5 is among them"),
        (lambda x, y: (x[:-1], y[:-1]), "1 to 2 per class; if that is so, say uneven=true"),
        (lambda x, y: (x[:-1], y), "labels"),
        (lambda x, y: (x[:-2], y[:-2]), "none of Ankle boot"),
        (lambda x, y: (x.clone().fill_(torch.nan), y), "NaN or infinite"),
        (lambda x, y: (x, F.one_hot(y, 11).float()), "11 classes, and the data have 10"),
        (lambda x, y: (x[:0], y[:0]), "empty"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(ours, tmp_path, change, words):
    torch.save({"data": list(change(ours.images, ours.labels))}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=words) as caught:
        one(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(caught.value)


def test_classes_of_different_sizes_if_it_is_said(ours, tmp_path):
    torch.save({"data": [ours.images[:-1], ours.labels[:-1]]}, tmp_path / "x.pt")
    assert one(tmp_path / "x.pt", uneven=True).ipc is None


@pytest.mark.parametrize("shape", [(30,), (3, 10)])
def test_positions_are_of_all_training_images(tmp_path, shape):
    """A selection, and one for each epoch; images are counted before any are held out."""
    whole = open_data(DATASET, DataSettings(holdout=0), "cpu")
    chosen = torch.cat([whole.train.of_class(c)[5:8] for c in range(10)]).view(shape)
    np.save(tmp_path / "x.npy", chosen.numpy())
    made = one(tmp_path / "x.npy")
    assert made.image_kind == ("indices" if len(shape) == 1 else "schedule")
    assert torch.equal(made.images, chosen)
    assert torch.equal(made.labels, whole.train.labels[chosen])
    np.save(tmp_path / "x.npy", torch.cat([chosen, chosen], -1).numpy())
    with pytest.raises(UsageError, match="occurs twice"):
        one(tmp_path / "x.npy")


# ---- the rules by themselves -----------------------------------------------------------------------------------------


def draft(images=None, labels=None, **more):
    return Draft("x", torch.zeros(4, 1, 2, 2) if images is None else images, labels, (Path("file.pt"),), **more)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (torch.tensor([0.0, 0, 1, 1]), "hard"),
        (torch.tensor([[0], [0], [1], [1]]), "hard"),
        (torch.eye(2)[[0, 0, 1, 1]], "hard"),
        (torch.tensor([[0.7, 0.3]] * 4), "probabilities"),
        (torch.tensor([[4.2, 0.3]] * 4), "logits"),
    ],
)
def test_kinds_of_labels(labels, kind):
    assert targets(draft(labels=labels), 2, None).kind == kind


def test_centred_targets_give_their_class():
    found = targets(draft(labels=torch.eye(2)[[0, 1, 1, 0]] - 0.5), 2, None)
    assert found.kind == "hard"
    assert found.values.tolist() == [0, 1, 1, 0]
    assert targets(draft(labels=torch.eye(2)[[0, 1, 1, 0]] - 0.5), 2, "logits").kind == "logits"


def test_values_say_what_images_are(data):
    """Ten real images are enough, also of those that are whitened in either way."""
    raw = some(data, 1).pixels.mul(255).round().byte()
    everything = data.train.raw(torch.arange(len(data.train)))
    assert look(raw / 255).kind == "pixels"
    assert look(raw.float()).kind == "bytes"
    assert look(standard(everything)(raw)).kind == "normalised"
    assert look(zca(everything, 0.1)(raw)).kind == "whitened"
    assert look(standard(everything)(raw) * 3).kind == "normalised"  # beyond +-4 too
    assert look(torch.randn(10, 3, 8, 8) * 0.7).kind == "unclear"


def test_what_is_not_clear_must_be_said():
    unclear = draft(torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.7)
    with pytest.raises(UsageError, match=r"value_space=pixels or .*value_space=zca"):
        settle(unclear, "cifar10", None)
    both = replace(unclear, value_space=("normalised", "zca"), family="mtt")
    with pytest.raises(UsageError, match=r"say value_space=normalised or value_space=zca$"):
        settle(both, "cifar10", None)
    rough = replace(both, images=both.images * 3)  # spread as normalised ones, but neighbours have nothing in common
    with pytest.raises(UsageError, match=r"say value_space=normalised or value_space=zca$"):
        settle(rough, "cifar10", None)
    assert settle(replace(both, value_space="normalised"), "cifar10", None).constants == "cifar10"
    assert settle(both, "cifar100", "normalised:cifar100").constants == "cifar100"
    with pytest.raises(UsageError, match="did you mean 'cifar10'"):
        settle(both, "cifar10", "normalised:cifar1")


def test_whose_constants_are_whose():
    assert constants_of("mtt", "cifar100") == constants_of("idc", "cifar100") == "cifar10"
    assert constants_of("dc", "cifar100") == constants_of("frepo", "cifar100") == "cifar100"
    assert constants_of("frepo", "cifar10") != constants_of("dc", "cifar10")
    assert {constants_of(family, "imagewoof") for family in ("dc", "mtt", "idc", "datadam")} == {"imagenet"}
    assert constants_of("", "folder:x") == "ours"
    assert NAMED["cifar100"] == ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))


def test_two_orders_of_imagewoof():
    """MTT's label 0 is ImageNet's 193; DataDAM's, sorted as `ImageFolder` sorts, is 155."""
    woof = SimpleNamespace(name="imagewoof", classes=CATALOGUE["imagewoof"].classes)
    numbers = (193, 182, 258, 162, 155, 167, 159, 273, 207, 229)  # among ImageNet's sorted ids, in MTT's order
    mtt, _ = order_of(draft(), woof, None)
    datadam, why = order_of(draft(class_order="sorted"), woof, None)
    assert [numbers[c] for c in mtt] == list(numbers)
    assert [numbers[c] for c in datadam] == [155, 159, 162, 167, 182, 193, 207, 229, 258, 273]
    assert "class_order=data otherwise" in why
    assert order_of(draft(class_order="sorted"), woof, "data")[0].tolist() == list(range(10))
    with pytest.raises(UsageError, match="must name each once"):
        order_of(draft(), woof, ["0"] * 10)


def test_images_whose_axes_are_not_told_apart():
    images = torch.rand(3, 32, 32, 3)
    with pytest.raises(UsageError, match="may be nhwc or chwn"):
        laid_out(draft(images), (3, 32, 32), "cifar10")
    assert torch.equal(laid_out(draft(images, family="frepo"), (3, 32, 32), "cifar10"), images.permute(0, 3, 1, 2))
    assert laid_out(draft(torch.rand(100, 32, 32, 3)), (3, 32, 32), "cifar10").shape == (100, 3, 32, 32)
