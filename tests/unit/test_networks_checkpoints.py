"""Checkpoints that users bring, and networks behind the conventions of a run."""

import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dd.data.preprocess import standard
from dd.errors import UsageError
from dd.networks import NetworkSpec, build_network
from dd.networks.adapted import Adapted, pick
from dd.networks.checkpoints import load_weights, outputs_of, read_weights
from dd.rng import generator

FACTS = {"classes": ["cat", "dog"], "accuracy": 87.5, "mean": [0.5], "std": [0.25]}


def network(width=4, classes=2, seed=0, **spec):
    spec = NetworkSpec(depth=2, width=width, norm="batch", **spec)
    return build_network(spec, channels=1, size=8, classes=classes, generator=generator(seed, "n"))


def written(path, state, facts):
    if path.suffix == ".safetensors":
        save_file(dict(state), path, {key: json.dumps(value) for key, value in facts.items()})
    else:
        torch.save({"state_dict": state} | facts if facts else state, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("facts", [{}, FACTS], ids=["plain", "with facts"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_read_and_loaded(tmp_path, suffix, facts, prefix):
    theirs, ours = network(seed=1), network()
    state = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
    found = read_weights(written(tmp_path / f"a{suffix}", state, facts))
    load_weights(ours, found.state, "a")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    if facts:
        assert (found.classes, found.accuracy, found.normalise) == (("cat", "dog"), 87.5, ((0.5,), (0.25,)))
    else:
        assert (found.classes, found.accuracy, found.normalise) == (None, None, None)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_lie_where_trainers_put_them(tmp_path, key):
    theirs, beside = network(seed=1).state_dict(), {"epoch": 7, "optimizer": {"lr": 0.1}, "classes": ["cat", "dog"]}
    torch.save({key: theirs} | beside, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert found.state.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in found.state.items())
    assert (found.classes, found.accuracy) == (("cat", "dog"), None)


def test_a_layer_that_is_called_model_is_a_layer(tmp_path):
    torch.save({"model": torch.zeros(2)}, tmp_path / "a.pt")
    assert set(read_weights(tmp_path / "a.pt").state) == {"model"}


def test_counters_of_batch_norm_may_be_missing():
    state = {k: v for k, v in network(seed=1).state_dict().items() if not k.endswith("num_batches_tracked")}
    load_weights(network(), state, "a")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"width": 6}, "features.0.conv.weight, (6x1x3x3) there and (4x1x3x3) here"),
        ({"classes": 3}, "classifier.weight, (3x16) there and (2x16) here"),
        ({"depth": 1}, "features.1.conv.weight, missing there and (4x4x3x3) here"),
        ({"depth": 3}, "classifier.weight, (2x4) there and (2x16) here"),
    ],
)
def test_another_architecture_names_the_first_layer(other, words):
    spec = NetworkSpec(**{"depth": 2, "width": 4, "norm": "batch"} | {k: v for k, v in other.items() if k != "classes"})
    theirs = build_network(spec, channels=1, size=8, classes=other.get("classes", 2), generator=generator(0, "n"))
    ours = network()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(ours, theirs.state_dict(), "a.pt")
    assert str(caught.value).startswith("a.pt does not fit this network: its first layer that differs is ")
    assert words in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_a_layer_too_many():
    state = network().state_dict() | {"extra.weight": torch.zeros(3)}
    with pytest.raises(UsageError, match=r"extra\.weight, \(3\) there and missing here"):
        load_weights(network(), state, "a.pt")


class Evil:
    def __reduce__(self):
        return (print, ("it ran",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="could run code"):
        read_weights(tmp_path / "a.pt")
    assert "it ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pt", b"nothing of the sort", "a.pt"),
        ("a.pt", b"", "a.pt cannot be read: EOFError"),
        ("a.safetensors", b"", "a.safetensors cannot be read"),
        ("a.safetensors", b"nothing of the sort", "cannot be read"),
        ("a.pt", pickle.dumps([1], 2), "a.pt"),
        ("a.pt", {}, "holds no state dict"),
        ("a.pt", {"weights": [1.0]}, "holds no state dict"),
        ("a.pt", [torch.zeros(1)], "holds no state dict"),
        ("a.pt", {"model": {"layers": 3}, "epoch": 1}, "holds no state dict"),
        ("a.pt", {"state_dict": {"w": torch.zeros(1)}, "accuracy": "good"}, "its facts do not read"),
        ("a.pt", {"state_dict": {"w": torch.zeros(1)}, "mean": 0.5, "std": 1.0}, "its facts do not read"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, name, content, words):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(UsageError) as caught:
        read_weights(tmp_path / name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_number_of_outputs_is_read_off_the_last_linear_layer():
    assert outputs_of(network(classes=7).state_dict(), network()) == 7
    assert outputs_of({"something": torch.zeros(1)}, network()) is None


# --- adapted ---------------------------------------------------------------------------------------------------------


def test_a_network_sees_pixels_in_its_own_normalisation():
    inner, space = network().eval(), standard(torch.empty(0), ((0.3,), (0.2,)))
    pixels = torch.rand(3, 1, 8, 8, generator=generator(0, "p"))
    there = Adapted(inner, space.invert, ((0.5,), (0.25,)))
    assert torch.allclose(there(space.encode(pixels)), inner((pixels - 0.5) / 0.25), atol=1e-5)
    assert not torch.allclose(there(pixels), inner((pixels - 0.5) / 0.25), atol=1e-2)


def test_without_a_normalisation_images_pass_as_they_are():
    inner, space = network(classes=5).eval(), standard(torch.empty(0), ((0.3,), (0.2,)))
    images = torch.randn(3, 1, 8, 8, generator=generator(0, "p"))
    assert torch.equal(Adapted(inner, space.invert, outputs=[4, 0])(images), inner(images)[:, [4, 0]])


def test_grey_images_for_a_network_of_three_channels_and_one_size():
    spec = NetworkSpec(depth=2, width=4, norm="batch")
    inner = build_network(spec, channels=3, size=16, classes=2, generator=generator(0, "n")).eval()
    space, pixels = standard(torch.empty(0), ((0.3,), (0.2,))), torch.rand(3, 1, 8, 8, generator=generator(0, "p"))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    large = F.interpolate(pixels, scale_factor=2, mode="bilinear")
    by_hand = torch.cat([(large - m) / s for m, s in zip(mean, std, strict=True)], 1)
    assert torch.allclose(
        Adapted(inner, space.invert, (mean, std), 16)(space.encode(pixels)), inner(by_hand), atol=1e-5
    )


def test_images_get_gradients_through_it():
    images = torch.randn(3, 1, 8, 8, requires_grad=True)
    there = Adapted(
        network().eval(), standard(torch.empty(0), ((0.3,), (0.2,))).invert, ((0.5,), (0.25,)), outputs=[1, 0]
    )
    there(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


IMAGENETTE = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413")


def test_outputs_are_picked_by_wnid():
    from dd.networks.pretrained import wnids

    names = wnids(1000)
    assert names is not None
    assert list(names) == sorted(names)
    chosen = pick(names, 1000, IMAGENETTE)
    assert chosen is not None
    assert [names[at] for at in chosen] == list(IMAGENETTE)
    # published positions of the classes of imagenette: tench 0, English springer 217, cassette player 482
    assert chosen[:3] == [0, 217, 482]
    assert pick(names, 1000, tuple(reversed(IMAGENETTE))) == chosen[::-1]
    assert pick(names, 1000, names) is None
    assert wnids(10) is None


def test_without_names_as_many_outputs_keep_their_order():
    assert pick(None, 2, ("cat", "dog")) is None
    assert pick(("n1", "n2"), 2, ("cat", "dog")) is None
    assert pick(("dog", "cat"), 2, ("cat", "dog")) == [1, 0]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (None, "their names are not known: save {'state_dict': …, 'classes': "),
        (("cat", "n1", "n2"), "none of them is 'dog': retrain its last layer"),
    ],
)
def test_no_telling_which_outputs_are_wanted(theirs, words):
    with pytest.raises(UsageError, match=f"3 outputs for 2 classes, and {words}"):
        pick(theirs, 3, ("cat", "dog"))
    with pytest.raises(UsageError, match="it has 1 outputs for 2 classes, and their names are not known: retrain"):
        pick(None, 1, ("cat", "dog"))
