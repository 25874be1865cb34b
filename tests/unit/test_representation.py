"""Encoders by name, the representation family's methods, and how their sets are scored."""

import json
import urllib.error
import urllib.request
from dataclasses import replace

import huggingface_hub.constants as hub
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from dd.methods.representation._frozen import NoiseSettings
from dd.methods.representation._pool import PoolSettings
from dd.methods.representation.clpdd import CLPDD
from dd.methods.representation.krrst import KRRST
from dd.methods.representation.lgm import LGM
from safetensors.torch import save_file
from sklearn.linear_model import Ridge
from torch import nn

from dd.engine.method import prepare
from dd.engine.needs import Got
from dd.engine.synthesise import synthesise
from dd.errors import RunError, UsageError
from dd.evaluation import Protocol
from dd.evaluation.arms import control_arm, full_arm, spread
from dd.evaluation.downstream import transfer
from dd.evaluation.downstream.linear import Linear, nearest_arm, nearest_to_means
from dd.evaluation.downstream.transfer import Transfer
from dd.evaluation.evaluate import Evaluator, evaluate, own_arm
from dd.evaluation.learners import HeadOn, Learner, LinearHead, Pretrained, learner_of, linear_probe
from dd.evaluation.read import report_from
from dd.networks import NetworkSpec, embed
from dd.networks.pretrained import published_encoder
from dd.pipeline.meant import learner_for
from dd.rng import generator
from dd.runs import Store
from dd.training.barlow import BarlowSettings
from dd.training.encoders import Encoders, EncoderSettings
from dd.training.squeeze import SqueezeSettings
from dd.views import ViewPolicy

STUDENT = NetworkSpec(depth=1, width=4, norm="batch")
SQUEEZE = SqueezeSettings(epochs=2, batch=16, lr=0.05, augment=False)
BARLOW = BarlowSettings(epochs=2, batch=16, width=8)
ENCODER = EncoderSettings(squeeze=SQUEEZE, barlow=BARLOW)
SELF_TRAINED = replace(ENCODER, name="barlow")
BRIEF = Protocol(steps=8, students=2, batch=8, lr=0.05, augment=False, decay=1.0, full=True, full_students=1)
POOL = PoolSettings(count=2, steps=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def task(make_task, blobs, store):
    return make_task(blobs(holdout=8), student=STUDENT, store=store)


def encoder(task, settings=ENCODER):
    return Encoders(task, settings).fetch(Got())


def distilled(method, task):
    prepared = prepare(method, task)
    return method.finish(synthesise(method, task, prepared, method.start(task, prepared)), task, prepared)


# ---- encoders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["student", "barlow", "barlow:convnet:depth=2:width=8", "convnet:depth=2:width=8"])
def test_an_encoder_trained_here(task, name):
    found = encoder(task, replace(ENCODER, name=name))
    images = task.data.train.images(torch.arange(5))
    features = found.of(images)
    assert features.shape == (5, found.features)
    assert not any(p.requires_grad for p in found.network.parameters())
    assert torch.equal(found.of(images[:2]), features[:2])
    (wanted,) = Encoders(task, replace(ENCODER, name=name)).artefacts()
    assert task.store.has(wanted.kind, wanted.spec)
    again = Encoders(replace(task, student=NetworkSpec(depth=1, width=8)), EncoderSettings(**_built(found.origin)))
    assert again.key() == found.key


def _built(origin):
    settings = {**origin["squeeze"]}
    views = ViewPolicy(**origin["barlow"]["views"])
    barlow = BarlowSettings(**{**origin["barlow"], "views": views})
    return {**origin, "squeeze": SqueezeSettings(**settings), "barlow": barlow}


def test_training_with_and_without_labels_differ(task):
    images = task.data.train.images(torch.arange(5))
    assert not torch.equal(encoder(task).of(images), encoder(task, SELF_TRAINED).of(images))
    assert encoder(task).key != encoder(task, SELF_TRAINED).key


def test_a_checkpoint_with_a_head_of_its_own(task, tmp_path):
    theirs = task.network("theirs")
    theirs.classifier = nn.Linear(theirs.classifier.in_features, 7)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pt")
    settings = EncoderSettings(name=f"{tmp_path}/theirs.pt")
    images = task.data.train.images(torch.arange(5))
    with torch.no_grad():
        assert torch.equal(encoder(task, settings).of(images), embed(theirs.eval(), images))
    assert settings.digests(task.student).keys() == {"encoder.name"}
    assert Encoders(task, settings).artefacts() == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("barlow:x.pt@convnet", "encoder.name=x.pt: no such file"),
        ("timm:nothing.at_all", "encoder.name=timm:nothing.at_all: unknown timm network"),
    ],
)
def test_no_such_encoder(task, name, words):
    with pytest.raises(UsageError, match=words) as caught:
        encoder(task, EncoderSettings(name=name))
    assert "teachers=" not in str(caught.value)


TIMM = "timm:test_resnet.r160_in1k"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the Hub's, and no network."""

    def unplugged(*_args, **_options):
        raise urllib.error.URLError("the cable is unplugged")

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", unplugged)
    return tmp_path / "hub"


def put(network, cache):
    """Store the weights of a network as those of `TIMM`."""
    folder = cache / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(network.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")


def test_pretrained_encoders_of_timm(task, hub_cache):
    """Weights made by hand in the Hub's cache; grey images in model space, broadcast and normalised as published."""
    with pytest.raises(RunError, match=f"encoder.name={TIMM}: its weights"):
        encoder(task, EncoderSettings(name=TIMM))
    theirs = timm.create_model("test_resnet", num_classes=1000).eval()
    put(theirs, hub_cache)
    images = task.data.train.images(torch.arange(3))
    there = published_encoder(TIMM)
    pixels = F.interpolate(task.data.preprocess.invert(images), (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (there.mean, there.std))
    with torch.no_grad():
        wanted = theirs.forward_head(theirs.forward_features((pixels - mean) / std), pre_logits=True)
    found = encoder(task, EncoderSettings(name=TIMM, size=32))
    torch.testing.assert_close(found.of(images), wanted)
    assert found.key == {"published": TIMM, "size": 32}


# ---- methods -------------------------------------------------------------------------------------------------------


def test_equal_batches_match_exactly(task):
    """LGM's objective is 0 where both batches are the same, and does not change with the scale of a gradient."""
    features, labels = torch.randn(6, 5, generator=generator(0, "features")), F.one_hot(torch.arange(6) % 4, 4).float()
    assert float(LGM().objective(features, labels, features, labels, generator(0, "head"))) == pytest.approx(
        0, abs=1e-6
    )
    twice = [value.repeat(2, 1) for value in (features, labels)]
    other = torch.randn(6, 5, generator=generator(1, "features"))
    losses = [
        float(LGM().objective(*ours, other, labels, generator(0, "head"))) for ours in ((features, labels), twice)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] > 0.01
    # half way to undecided labels, the gradient of a head of zeros is half as long
    undecided, zeros = labels.lerp(torch.full((6, 4), 0.25), 0.5), LGM(scale=0.0)
    losses = [float(zeros.objective(features, own, other, labels, generator(0, "head"))) for own in (labels, undecided)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0] > 0.01


def test_features_of_real_images_are_computed_once_where_views_are_off(task):
    method = CLPDD(encoder=ENCODER, iterations=2, batch_real=16).settle(task)
    prepared = prepare(method, task)
    assert prepared.features is not None
    assert torch.equal(prepared.features, prepared.encoder.of_split(task.data.train))
    augmented = replace(method, views=ViewPolicy(flip=True))
    assert prepare(augmented, task).features is None
    # a view that changes nothing gives the same objective as the stored features
    same = replace(method, views=ViewPolicy(crop=1.0, stretch=1.0))
    syn = method.start(task, prepared)
    one = method.loss(syn, task, prepared, 0)
    other = same.loss(syn, task, prepare(same, task), 0)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_noise_is_of_pixels(task):
    images = task.data.train.images(torch.arange(4))
    noisy = NoiseSettings(share=1.0, mean=0.5, std=0.0)(images, task.data, generator(0, "noise"))
    shifted = task.data.preprocess.invert(noisy) - task.data.preprocess.invert(images)
    torch.testing.assert_close(shifted, torch.full_like(shifted, 0.5))
    drawn = NoiseSettings(share=0.5)(images.repeat(100, 1, 1, 1), task.data, generator(0, "noise"))
    noisy = (drawn != images.repeat(100, 1, 1, 1)).flatten(1).any(1)
    assert 0.4 < float(noisy.double().mean()) < 0.6


@pytest.mark.parametrize("method", [LGM(level_every=3, copies=2), CLPDD(lr_img=0.05), CLPDD(variables="pyramid")])
def test_the_objective_falls(task, method):
    method = replace(method, encoder=ENCODER, iterations=12, views=ViewPolicy(), noise=NoiseSettings(share=0.0))
    method = replace(method.settle(task), batch_real=128, lr_img=0.05, added="zero")
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    with torch.no_grad():
        before = float(method.loss(syn, task, prepared, 0))
    synthesise(method, task, prepared, syn)
    with torch.no_grad():
        assert float(method.loss(syn, task, prepared, 0)) < before - 0.005


def test_the_regression_by_hand(task):
    """KRR-ST's objective in float64 with an explicit inverse; its pool trains on the updated set."""
    method = KRRST(encoder=SELF_TRAINED, iterations=4, batch_real=16, pool=POOL, ridge=1e-3, views=ViewPolicy())
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    with torch.no_grad():
        found = float(method.loss(syn, task, prepared, 0))
    network = syn.pool.networks[method._drawn(task, 0)].double()
    index = torch.randperm(len(task.data.train), generator=task.generator("real", 0))[:16]
    real = task.data.train.images(index)
    with torch.no_grad():
        ours, theirs = (
            np.hstack([embed(network, images.double()).numpy(), np.ones((len(images), 1))])
            for images in (syn.images, real)
        )
    network.float()
    kernel = ours @ ours.T
    inverse = np.linalg.inv(kernel + 1e-3 * np.trace(kernel) * np.eye(len(kernel)))
    predicted = theirs @ ours.T @ inverse @ syn.labels.detach().double().numpy()
    assert found == pytest.approx(np.square(predicted - prepared.of(real).double().numpy()).mean(), rel=1e-4)
    torch.testing.assert_close(syn.labels.detach(), prepared.of(syn.images.detach()))


def test_a_visited_network_learns_the_updated_set(task):
    method = KRRST(encoder=SELF_TRAINED, iterations=2, batch_real=16, pool=replace(POOL, steps=10), lr_img=0.1)
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    last = method._drawn(task, 0)
    before = {name: value.clone() for name, value in syn.pool.state_dict().items()}
    synthesise(replace(method, iterations=1), task, prepared, syn)
    assert all(torch.equal(value, before[name]) for name, value in syn.pool.state_dict().items())
    images, labels = syn.images.detach().clone(), syn.labels.detach().clone()
    method.loss(syn, task, prepared, 1)
    after = syn.pool.state_dict()
    other = method.start(task, prepared).pool
    other.load_state_dict(before)
    other.visit(last, images, labels, lambda: None)
    assert all(torch.equal(value, after[name]) for name, value in other.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in after.items())


def test_raw_pixels_as_in_the_released_code(task):
    method = KRRST(encoder=SELF_TRAINED, iterations=0, pool=POOL, start_from="raw")
    prepared = prepare(method, task)
    raw, real = (replace(method, start_from=how).start(task, prepared) for how in ("raw", "real"))
    low, high = raw.images.detach().aminmax()
    assert low >= 0
    assert high <= 1
    torch.testing.assert_close(raw.images, task.data.preprocess.invert(real.images))
    assert torch.equal(raw.labels, real.labels)


def test_other_initial_images_get_the_encoders_representations(task):
    method = KRRST(encoder=SELF_TRAINED, iterations=0, pool=POOL)
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    images = task.data.train.images(torch.arange(len(task.targets)))
    syn.take(images, torch.zeros(len(images), 4))  # logits of classes are no representations
    torch.testing.assert_close(syn.labels.detach(), prepared.of(images))
    given = torch.ones_like(syn.labels)
    syn.take(images, given)
    assert torch.equal(syn.labels.detach(), given)


# ---- scores --------------------------------------------------------------------------------------------------------


def test_linear_probe_is_ridge_regression(task):
    network = task.network("probed").eval()
    train, held = task.data.train, task.data.holdout
    with torch.no_grad():
        features, theirs = (
            np.hstack([embed(network, s.images(torch.arange(len(s)))).double().numpy(), np.ones((len(s), 1))])
            for s in (train, held)
        )
    targets = F.one_hot(train.labels).double().numpy()
    hits = {}
    for power in range(-8, 1):
        ridge = Ridge(alpha=10.0**power * np.trace(features.T @ features), fit_intercept=False, solver="cholesky")
        coefficients = ridge.fit(features, targets).coef_.T
        hits[power] = (int(((theirs @ coefficients).argmax(1) == held.labels.numpy()).sum()), power, coefficients)
    best = max(hits.values(), key=lambda one: one[:2])
    probe = linear_probe(network, task.data)
    np.testing.assert_allclose(probe.weights.numpy(), best[2], rtol=1e-5, atol=1e-7)


def test_a_head_leaves_its_encoder_alone(task):
    found = encoder(task)
    before = {name: value.clone() for name, value in found.network.state_dict().items()}
    evaluator = Evaluator(task, BRIEF, learner=LinearHead(task, found))
    head = evaluator.learner.build(generator(0, "head"))
    assert isinstance(head, HeadOn)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    assert float(head.linear.weight.detach().std()) == pytest.approx(0.01, rel=0.3)
    score = evaluator.score(control_arm(task), 0.05, 2)
    assert all(torch.equal(value, before[name]) for name, value in found.network.state_dict().items())
    assert score.n == 2
    other = Evaluator(task, BRIEF).score(control_arm(task), 0.05, 2)
    assert other.values != score.values  # students of their own, not these from the store


def test_a_set_says_how_it_is_scored(task):
    short = {"iterations": 1, "batch_real": 16}
    lgm = distilled(LGM(encoder=ENCODER, copies=1, **short).settle(task), task)
    krrst = distilled(KRRST(encoder=SELF_TRAINED, pool=POOL, **short), task)
    assert isinstance(learner_for(lgm, task), LinearHead)
    learner = learner_for(krrst, task)
    assert isinstance(learner, Pretrained)
    assert learner.build(generator(0, "x")).classifier.out_features == krrst.labels.shape[1]
    plain = replace(lgm, provenance={})
    assert learner_for(plain, task).student == Evaluator(task, BRIEF).learner.student
    with pytest.raises(UsageError, match=r"barlow gives 64 numbers, .* have 5"):
        learner_of(replace(krrst, labels=torch.zeros(8, 5)), task, SELF_TRAINED)


@pytest.mark.parametrize("method", [LGM(level_every=3, copies=2, added="zero"), CLPDD()])
@pytest.mark.parametrize("file", [True, False], ids=["file", "cache"])
def test_images_for_an_encoder_of_timm(task, hub_cache, tmp_path, method, file):
    """Weights made by hand, in a file and in the Hub's cache: images are distilled for them, and scored with them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = timm.create_model("test_resnet", num_classes=1000)
        put(theirs, hub_cache)
        grey = timm.create_model("test_resnet", num_classes=len(task.data.classes), in_chans=task.data.channels)
    save_file(grey.state_dict(), tmp_path / "weights.safetensors")
    name = f"{tmp_path}/weights.safetensors@timm:test_resnet" if file else TIMM
    settings = EncoderSettings(name=name, size=None if file else 16)
    method = replace(method, encoder=settings, iterations=8, views=ViewPolicy(), noise=NoiseSettings(share=0.0))
    method = replace(method.settle(task), batch_real=len(task.data.train), lr_img=0.05)
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    with torch.no_grad():
        before = float(method.loss(syn, task, prepared, 0))
    synthesise(method, task, prepared, syn)
    with torch.no_grad():
        assert float(method.loss(syn, task, prepared, 0)) < before
    made = method.finish(syn, task, prepared)
    learner = learner_for(made, task)
    assert isinstance(learner, LinearHead)
    assert learner.encoder.key == prepared.encoder.key
    if file:
        images = task.data.train.images(torch.arange(3))
        with torch.no_grad():
            theirs = grey.eval().forward_head(grey.forward_features(images), pre_logits=True)
        torch.testing.assert_close(learner.encoder.of(images), theirs)
    report = evaluate(made, None, Evaluator(task, BRIEF, learner=learner))
    assert report.accuracy.n == report.control.n == BRIEF.students
    assert "a linear head on" in report.student["arch"]
    written = json.loads(json.dumps(report.to_dict()))
    assert report_from(written).to_dict() == report.to_dict()


def test_real_images_get_the_encoders_representations(task):
    found = encoder(task, SELF_TRAINED)
    learner = Pretrained(task, found.features, found)
    arm, plain = learner.labelled(control_arm(task)), control_arm(task)
    images, targets = arm.load(1)
    assert torch.equal(images, plain.load(1)[0])
    torch.testing.assert_close(targets, found.of(images))
    assert arm.key(1) != arm.key(0) != plain.key(0)
    for images, targets in learner.labelled(full_arm(task.data, 16)).batches(generator(0, "order"), 0):
        torch.testing.assert_close(targets, found.of(images))


def test_a_report_of_representations(task):
    method = KRRST(encoder=SELF_TRAINED, iterations=2, batch_real=16, pool=POOL)
    made = distilled(method, task)
    report = evaluate(made, made, Evaluator(task, BRIEF, learner=learner_for(made, task)))
    assert report.control is not None
    assert report.full is not None
    assert report.start is not None
    assert report.start.values == report.accuracy.values  # the same set, from the store
    assert any("pre-trained" in note for note in report.notes)
    assert report.student["outputs"] == made.labels.shape[1]
    unknown = replace(made, provenance={})
    report = evaluate(unknown, None, Evaluator(task, BRIEF, learner=learner_for(unknown, task)))
    assert report.control is None
    assert "not known" in report.missing["control"]
    assert report.accuracy.n == 2


def test_classes_of_representations():
    assert spread(5, 2).tolist() == [0, 0, 0, 1, 1]
    assert torch.bincount(spread(100, 10)).tolist() == [10] * 10


# ---- downstream tasks ----------------------------------------------------------------------------------------------


def test_nearest_to_the_means_by_brute_force():
    features, labels = torch.randn(40, 3, generator=generator(0, "nearest")), torch.arange(40) % 4
    found = nearest_to_means(features, labels, torch.tensor([0, 0, 1, 2, 2, 2, 3])).tolist()
    wanted = []
    for c, count in enumerate((2, 1, 3, 1)):
        rows = [i for i in range(40) if int(labels[i]) == c]
        mean = sum(features[i] for i in rows) / len(rows)
        wanted += sorted(rows, key=lambda i: float(((features[i] - mean) ** 2).sum()))[:count]
    assert found == wanted


def test_linear_heads_on_several_encoders(task):
    made = distilled(LGM(encoder=ENCODER, copies=1, iterations=1).settle(task), task)
    evaluator = Evaluator(task, BRIEF, learner=learner_for(made, task))
    own = Linear().measure(made, evaluator)
    (name,) = own.scores["accuracy"]
    assert own.scores["accuracy"][name].values == evaluator.score(own_arm(made, evaluator, None), 0.05, 2).values
    other = Linear(encoders=("barlow", "student"), barlow=BARLOW, squeeze=SQUEEZE).measure(made, evaluator)
    assert list(other.scores["accuracy"]) == ["barlow", "student"]
    assert other.scores["accuracy"]["student"].values == own.scores["accuracy"][name].values
    assert set(other.scores) == {"accuracy", "control", "nearest"}
    assert other.fingerprint != own.fingerprint
    assert [len(row) for row in other.rows()] == [len(other.headings())] * 2
    assert evaluator.learner.encoder.key == nearest_arm(task, evaluator.learner.encoder).key(0)["encoder"]
    with pytest.raises(UsageError, match="use task=transfer"):
        Linear().require_usable(replace(made, label_kind="representations"), taught=False)


def test_transfer_of_pretrained_students(task, blobs, monkeypatch):
    """The linear accuracy is that of the plain report; a second data set has a head of its own."""
    second = replace(blobs(classes=3, holdout=8, seed=5), name="second", fingerprint="second")
    monkeypatch.setattr(transfer, "open_data", lambda name, settings, device: second)
    made = distilled(KRRST(encoder=SELF_TRAINED, iterations=1, batch_real=16, pool=POOL), task)
    evaluator = Evaluator(task, BRIEF, learner=learner_for(made, task))
    settings = Transfer(to=("second",), fine_tune=3, batch=16, views=ViewPolicy(flip=True))
    report = settings.measure(made, evaluator)
    measures = ["linear, blobs", "fine-tuned, blobs", "linear, second", "fine-tuned, second"]
    assert all(list(arm) == measures for arm in report.scores.values())
    assert set(report.scores) == {"accuracy", "control", "untrained"}
    plain = evaluate(made, None, evaluator)
    assert report.scores["accuracy"]["linear, blobs"].values == plain.accuracy.values
    assert report.scores["control"]["linear, blobs"].values == plain.control.values
    again = settings.measure(made, evaluator)
    assert again.scores == report.scores
    assert json.loads(json.dumps(report.to_dict()))["gaps"]["linear, blobs"]["n"] == 2
    hard = made.__class__(
        images=made.images, labels=task.targets, classes=task.data.classes, source="blobs", space=made.space
    )
    assert set(Transfer().measure(hard, Evaluator(task, BRIEF)).scores["accuracy"]) == {"linear, blobs"}


def test_other_channels_do_not_transfer(task, blobs, monkeypatch):
    colour = replace(blobs(), channels=3)
    monkeypatch.setattr(transfer, "open_data", lambda name, settings, device: colour)
    with pytest.raises(UsageError, match=r"transfer.to=colour has 3 channels, the set's images have 1"):
        transfer.opened("colour", task.data, task.device)


def test_fine_tuning_leaves_the_trained_network_alone(task):
    network = task.network("tuned").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learner = transfer.Pretraining(Learner(task), Transfer(fine_tune=4, batch=16), [task.data])
    found = learner.also(network, learner.classifier(network), generator(0, "also"))
    assert set(found) == {"linear, blobs", "fine-tuned, blobs"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
