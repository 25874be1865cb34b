"""Votes, label ensembles and batch-specific labels: oracles 17, 19 and 35 of the decoupled family."""

import math

import pytest
import torch
from torch import nn

from dd.errors import UsageError
from dd.networks import NetworkSpec, build_network
from dd.rng import generator
from dd.training.committee import PRIORS, batch_statistics, ensemble, logits, published_prior, votes
from dd.training.teachers import Teacher

# --- votes -----------------------------------------------------------------------------------------------------------


def softmax(values):
    """exp(v) / sum exp(v), as it is written."""
    exps = [math.exp(v - max(values)) for v in values]
    return [e / sum(exps) for e in exps]


def test_votes_are_a_softmax():
    prior = [63.0, 65.3, 68.5]
    found = votes(prior, 5)
    assert found.tolist() == pytest.approx(softmax([p / 5 for p in prior]))
    assert found.dtype == torch.float32
    assert float(found.sum()) == pytest.approx(1)
    assert torch.allclose(votes([p + 10 for p in prior], 5), found)  # only differences count
    assert votes(prior, 1e9).tolist() == pytest.approx([1 / 3] * 3)
    assert votes([64, 51.6], 5).tolist() == pytest.approx([0.9227, 0.0773], abs=5e-5)
    assert votes([50], 5).tolist() == [1]
    with pytest.raises(UsageError, match="above 0"):
        votes(prior, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("cifar10", (0.39, 0.61)),
        ("cifar100", (0.66, 0.34)),
        ("tiny-imagenet", (0.97, 0.03)),
        ("imagenette", (0.89, 0.11)),
        ("imagenet-1k", (0.94, 0.06)),
    ],
)
def test_the_votes_of_resnet18_and_resnet50(data, expected):
    prior = [PRIORS[data]["resnet18"], PRIORS[data]["resnet50"]]
    assert votes(prior, 5).tolist() == pytest.approx(expected, abs=0.006)


def test_the_labelling_votes_of_all_five_on_imagenet():
    assert votes(list(PRIORS["imagenet-1k"].values()), 10).tolist() == pytest.approx(
        [0.41, 0.10, 0.28, 0.12, 0.09], abs=0.006
    )


@pytest.mark.parametrize(
    ("arch", "prior"),
    [
        ("resnet18:width=16", 63.0),
        ("torchvision:resnet50.IMAGENET1K_V1", 65.3),
        ("timm:resnet50", 65.3),
        ("torchvision:shufflenet_v2_x0_5", 68.5),
        ("torchvision:mobilenet_v2", 67.6),
        ("timm:mobilenetv2_100.ra_in1k", 67.6),
        ("timm:densenet121", 67.4),
        ("convnet:width=32", None),
        ("timm:resnet50d", None),
        ("timm:mobilenetv3_small_050", None),
    ],
)
def test_published_priors_by_architecture(arch, prior):
    assert published_prior("cifar10", arch) == prior
    assert published_prior("fashion-mini", arch) is None


# --- ensembles -------------------------------------------------------------------------------------------------------

Z = torch.randn(3, 7, 5, generator=generator(0, "z")) * 3


def test_logit_mean():
    assert torch.allclose(ensemble(Z), (Z[0] + Z[1] + Z[2]) / 3)
    assert torch.equal(ensemble(torch.stack([Z[0], Z[0]])), Z[0])  # two identical teachers are that teacher


def test_logit_weighted():
    weights = votes([60, 62, 70], 5)
    by_hand = sum(float(w) * z for w, z in zip(weights, Z, strict=True))
    assert torch.allclose(ensemble(Z, "logit_weighted", weights), by_hand, atol=1e-6)
    assert torch.equal(ensemble(Z, "logit_weighted", torch.tensor([0.0, 1, 0])), Z[1])
    assert torch.allclose(ensemble(Z, "logit_weighted", torch.full((3,), 1 / 3)), ensemble(Z), atol=1e-6)
    assert ensemble(Z, "logit_weighted", weights.double()).dtype == torch.float32


def test_prob_mean():
    found = ensemble(Z, "prob_mean")
    assert torch.allclose(found.exp(), Z.softmax(2).mean(0), atol=1e-6)
    assert torch.allclose(found.softmax(1), Z.softmax(2).mean(0), atol=1e-6)
    assert torch.allclose(found.exp().sum(1), torch.ones(7))
    assert (found.softmax(1) - ensemble(Z).softmax(1)).abs().max() > 0.01
    far = torch.tensor([[[0.0, 500.0]], [[500.0, 0.0]]])  # probabilities that underflow
    assert ensemble(far, "prob_mean").exp().tolist() == [[0.5, 0.5]]


def test_ensembles_that_make_no_sense():
    with pytest.raises(UsageError, match="need weights"):
        ensemble(Z, "logit_weighted")
    with pytest.raises(UsageError, match="take no weights"):
        ensemble(Z, "logit_mean", torch.ones(3))
    with pytest.raises(UsageError, match="unknown ensemble 'median'"):
        ensemble(Z, "median")  # pyright: ignore[reportArgumentType]


# --- batch-specific labels -------------------------------------------------------------------------------------------


def teacher(norm="batch", dropout=False, dtype=torch.float64):
    spec = NetworkSpec(depth=2, width=6, norm=norm)
    network = build_network(spec, channels=1, size=8, classes=4, generator=generator(0, "teacher")).to(dtype)
    for name, buffer in network.named_buffers():
        if name.endswith("var"):
            buffer.uniform_(0.5, 2, generator=generator(0, name))
    if dropout:
        network = nn.Sequential(network, nn.Dropout(0.5))
    return Teacher("it", network.eval().requires_grad_(False), None, None, None, "")


IMAGES = torch.randn(8, 1, 8, 8, generator=generator(0, "images"), dtype=torch.float64)


def by_hand(network, images):
    """The ConvNet with every map normalised by its own mean and biased variance over (batch, h, w)."""
    x = images
    for block in network.features:
        x = block.conv(x)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        norm = block.norm
        x = (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        x = block.pooling(x.relu())
    return network.classifier(x.flatten(1))


def test_batch_mode_by_hand():
    it = teacher()
    assert torch.allclose(logits(it, IMAGES, "batch"), by_hand(it.network, IMAGES))
    halves = torch.cat([by_hand(it.network, IMAGES[:4]), by_hand(it.network, IMAGES[4:])])
    assert torch.allclose(logits(it, IMAGES, "batch", 4), halves)
    assert (logits(it, IMAGES, "batch") - halves).abs().max() > 1e-3


def test_permuting_a_batch_permutes_its_labels():
    order = torch.randperm(8, generator=generator(0, "order"))
    assert torch.allclose(logits(teacher(), IMAGES[order], "batch"), logits(teacher(), IMAGES, "batch")[order])
    found = logits(teacher(), IMAGES, "batch", 4)
    assert (logits(teacher(), IMAGES[order], "batch", 4) - found[order]).abs().max() > 1e-3


def test_evaluation_mode_asks_about_every_image_alone():
    it = teacher()
    whole = logits(it, IMAGES)
    assert torch.allclose(whole, it.network(IMAGES))
    assert torch.allclose(torch.cat([logits(it, image[None]) for image in IMAGES]), whole)
    assert torch.allclose(logits(it, IMAGES, "eval", 3), whole)
    assert (whole - logits(it, IMAGES, "batch")).abs().max() > 1e-3


def test_scaling_the_input_changes_nothing_in_batch_mode():
    """The first convolution is linear up to its bias, which the batch mean takes away."""
    assert torch.allclose(logits(teacher(), 3 * IMAGES, "batch"), logits(teacher(), IMAGES, "batch"), rtol=0, atol=1e-5)
    assert (logits(teacher(), 3 * IMAGES) - logits(teacher(), IMAGES)).abs().max() > 0.1


@pytest.mark.parametrize("fails", [False, True])
def test_the_teacher_is_left_as_it_was(fails):
    it = teacher(dropout=True)
    before = {name: value.clone() for name, value in it.network.state_dict().items()}
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in it.network.modules()]
    if fails:
        with pytest.raises(RuntimeError):
            logits(it, IMAGES[:, :, :1, :1].repeat(1, 2, 1, 1), "batch")
    else:
        logits(it, IMAGES, "batch", 4)
    assert all(torch.equal(value, before[name]) for name, value in it.network.state_dict().items())
    assert [(m.training, getattr(m, "track_running_stats", None)) for m in it.network.modules()] == modes


def test_dropout_stays_off():
    with_dropout = logits(teacher(dropout=True), IMAGES, "batch")
    assert torch.equal(with_dropout, logits(teacher(), IMAGES, "batch"))


@pytest.mark.parametrize("n", [8, 7, 4])
def test_train_mode_is_a_network_in_training_mode_on_two_halves(n):
    """CV-DD's code: what is left over of an epoch is halved too, and dropout drops; nothing is left behind."""
    it = teacher(dropout=True)
    before = {name: value.clone() for name, value in it.network.state_dict().items()}
    state = torch.random.get_rng_state()
    found = logits(it, IMAGES[:n], "train", 3, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in it.network.state_dict().items())
    assert not any(layer.training for layer in it.network.modules())
    network = teacher(dropout=True).network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        wanted = torch.cat([network(half) for half in (IMAGES[: n // 2], IMAGES[n // 2 : n])])
    assert torch.allclose(found, wanted)
    assert (found == 0).any()  # dropped
    assert torch.equal(logits(it, IMAGES[:n], "train", None, seed=5), found)
    assert not torch.equal(logits(it, IMAGES[:n], "train", seed=6), found)


def test_train_mode_without_dropout_is_batch_mode_on_halves():
    assert torch.equal(logits(teacher(), IMAGES, "train"), logits(teacher(), IMAGES, "batch", 4))
    with pytest.raises(UsageError, match="a single image has no batch statistics"):
        logits(teacher(), IMAGES[:3], "train")


def test_without_batch_norm_the_modes_agree():
    it = teacher("instance", dropout=True)
    assert torch.allclose(logits(it, IMAGES, "batch", 4), logits(it, IMAGES))


def test_gradients_flow_inside_the_block_and_no_graph_leaves_logits():
    it, images = teacher(), IMAGES.clone().requires_grad_()
    assert not logits(it, images, "batch").requires_grad
    with batch_statistics(it.network):
        it.network(images).sum().backward()
    assert images.grad is not None


def test_an_image_alone_has_no_batch():
    with pytest.raises(UsageError, match="a single image has no batch statistics"):
        logits(teacher(), IMAGES[:1], "batch", 7)
    # one that is left over joins the piece before it
    assert torch.equal(logits(teacher(), IMAGES, "batch", 7), logits(teacher(), IMAGES, "batch"))
    with pytest.raises(UsageError, match="unknown mode of a teacher 'trained'"):
        logits(teacher(), IMAGES, "trained")  # pyright: ignore[reportArgumentType]
