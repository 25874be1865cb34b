"""Features of the training images: what is stored, by whom it is shared, and what the methods choose with it."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dd.engine.method import prepare
from dd.engine.needs import Got
from dd.engine.registry import get
from dd.errors import UsageError
from dd.networks import NetworkSpec, build_network, embed
from dd.networks.adapted import Adapted
from dd.recipes import resolve
from dd.rng import generator
from dd.runs import Store
from dd.training import embeddings
from dd.training.embeddings import KIND, Embeddings, head_of
from dd.training.teachers import Teachers

from .conftest import SQUEEZE, STUDENT

NAMES = ("herding", "kcenter", "kmeans", "graphcut", "facility")
OfCad = importlib.import_module("dd.methods.selection._cad").OfCad


def needed(task, head=False, name="student"):
    staff = Teachers(task, (name,), SQUEEZE, field="proxy")
    need = Embeddings(task, staff, head)
    return need, need.fetch(Got([staff]))


def chosen(name, task, **settings):
    method = get(name)(squeeze=SQUEEZE, **settings).settle(task)
    given = prepare(method, task)
    return method.choose(task, given), given


def test_features_are_those_of_each_image_and_errors_the_gradients_of_its_logits(task, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK", 3)  # four classes: two artefacts
    need, got = needed(task, head=True)
    assert len(need.artefacts()) == len(got.files) == 2
    train, network = task.data.train, got.teacher.network
    for c in range(4):
        found = got.of_class(c)
        assert found.shape == (32, found.shape[1])
        for row, place in zip(found[::7], train.of_class(c)[::7].tolist(), strict=True):
            image = train.images(torch.tensor([place]))
            assert torch.allclose(row, embed(network, image)[0], atol=1e-5)
        logits = network(train.images(train.of_class(c))).double().requires_grad_()
        target = torch.full((32,), c)
        (wanted,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), logits)
        assert torch.allclose(got.errors(found, c), wanted, atol=1e-5)


def test_every_seed_and_method_shares_them_and_another_network_does_not(make_task, tmp_path):
    store = Store(tmp_path)
    task, other = (make_task(student=STUDENT, store=store, ipc=3, seed=seed) for seed in (0, 1))
    for name in NAMES:
        chosen(name, task)
    before = {file: file.stat().st_mtime_ns for file in (store.root / KIND).glob("*.safetensors")}
    assert len(before) == 1
    for name in NAMES:
        chosen(name, other)
    assert before == {file: file.stat().st_mtime_ns for file in (store.root / KIND).glob("*.safetensors")}
    wider = make_task(student=NetworkSpec(depth=2, width=9, norm="batch"), store=store)
    assert needed(wider)[0].artefacts()[0].spec != needed(task)[0].artefacts()[0].spec


def test_a_head_behind_another_order_of_classes():
    inner = build_network(STUDENT, channels=1, size=8, classes=6, generator=generator(0), device="cpu").eval()
    network = Adapted(inner, lambda x: x, None, None, [4, 0, 2])
    images = torch.randn(5, 1, 8, 8, generator=generator(1))
    with torch.no_grad():
        assert torch.allclose(F.linear(embed(network, images), *head_of(network)), network(images), atol=1e-6)


def test_a_network_whose_logits_are_not_of_its_last_layer_is_refused(task, monkeypatch):
    def halved(network):
        weight, bias = head_of(network)
        return weight / 2, bias

    monkeypatch.setattr(embeddings, "head_of", halved)
    needed(task)  # features alone do not need it
    with pytest.raises(UsageError, match="proxy=student: its logits are not those of its last linear layer"):
        needed(task, head=True)


def test_a_proxy_from_a_file_and_what_is_said_of_a_wrong_one(task, tmp_path):
    network = needed(task)[1].teacher.network
    path = tmp_path / "net.safetensors"
    save_file(network.state_dict(), path)
    index, got = chosen("kcenter", task, proxy=str(path))
    assert torch.equal(index, chosen("kcenter", task)[0])
    method = get("kcenter")(proxy=str(path))
    assert set(method.digests(task.student)) == {"proxy"}
    assert method.facts(task, got, index)["outside_data"] is False
    for bad in ("nowhere.pt", "convnet:depht=3", "x/y"):
        method = get("kcenter")(proxy=bad)
        for wrong in (lambda m=method: m.digests(task.student), lambda m=method: prepare(m, task)):
            with pytest.raises(UsageError, match="proxy=") as error:
                wrong()
            assert "teachers=" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_has_the_classes_and_the_number_requested(name, make_task, store):
    small, large, whole = (make_task(student=STUDENT, store=store, ipc=ipc) for ipc in (2, 5, 32))
    index, _ = chosen(name, large)
    assert torch.equal(large.data.train.labels[index], large.targets)
    assert len(index.unique()) == len(index)
    assert torch.equal(index, chosen(name, large)[0])
    if name != "kmeans":  # which has no order
        assert torch.equal(index.view(4, 5)[:, :2].flatten(), chosen(name, small)[0])
    assert torch.equal(chosen(name, whole)[0].sort().values, torch.arange(128))
    with pytest.raises(UsageError, match="33 real images of class 'class 0' needed, but it has 32: lower ipc"):
        get(name)().settle(make_task(student=STUDENT, ipc=33))


@pytest.mark.parametrize("name", NAMES)
def test_over_all_classes_together(name, task):
    index, _ = chosen(name, task, balanced=False)
    labels = task.data.train.labels[index]
    assert len(index.unique()) == len(task.targets)
    assert (labels.diff() >= 0).all()
    assert not torch.equal(index, chosen(name, task)[0])


def test_herding_beats_chance_in_the_proxys_own_features(task):
    index, given = chosen("herding", task)
    got = given.embedded
    farthest, _ = chosen("herding", task, farthest=True)
    train = task.data.train

    def error(some):
        rows = torch.cat([got.of_class(c) for c in range(4)])
        places = torch.cat([train.of_class(c) for c in range(4)]).argsort()
        return sum(
            float((rows[places][some[3 * c : 3 * c + 3]].mean(0) - got.of_class(c).mean(0)).norm()) for c in range(4)
        )

    assert error(index) < error(task.real_indices("chance")) < error(farthest)


def test_settings_of_the_choice_are_heeded(task):
    plain = {name: chosen(name, task)[0] for name in NAMES}
    for name, settings in (
        ("herding", {"normalise": True}),
        ("herding", {"farthest": True}),
        ("kcenter", {"first": "mean"}),
        ("graphcut", {"gradients": False}),
        ("graphcut", {"epsilon": 0.1}),
        ("graphcut", {"trade": 0.01}),
        ("facility", {"gradients": False}),
        ("facility", {"epsilon": 0.1}),
    ):
        assert not torch.equal(chosen(name, task, **settings)[0], plain[name]), (name, settings)
    both = [chosen("facility", task, clipped=clipped, balanced=False)[0] for clipped in (False, True)]
    assert not torch.equal(*both)  # within a class all cosines are positive, and nothing is clipped


@pytest.mark.parametrize("name", ["graphcut", "facility"])
def test_all_candidates_are_looked_at_unless_asked_and_never_a_single_one(name):
    assert get(name)().candidates(5000, 500, lambda: generator(0)) is None
    with pytest.raises(UsageError, match=r"epsilon=0\.9"):  # DeepCore's, a random choice
        resolve({"method": name, "epsilon": 0.9, "device": "cpu"})


def test_the_first_of_k_center_is_drawn_by_the_seed_and_anew_for_every_class(make_task, store):
    first = [chosen("kcenter", make_task(student=STUDENT, store=store, ipc=1, seed=seed))[0] // 4 for seed in range(6)]
    assert len({tuple(index.tolist()) for index in first}) > 3
    assert any(len(set(index.tolist())) > 1 for index in first)
    assert math.prod(first[0].shape) == 4


def test_demand_is_the_cad_of_a_recorded_run_and_weighs_every_image(task):
    facility = get("facility")(squeeze=SQUEEZE, demand="cad", cad=OfCad(student_epochs=60)).settle(task)
    assert facility.cad.record.epochs == 6  # 60 passes over 12 images are 5.6 over 128
    given = prepare(facility, task)
    weights, train = given.demand, task.data.train
    assert torch.equal(weights, prepare_cad(task))
    assert weights.min() >= 0
    facts = facility.facts(task, given, torch.arange(12))
    assert (facts["demand"], facts["cad_epochs"], facts["cad_window"]) == ("cad", 6, 4)
    index = facility.choose(task, given)
    assert not torch.equal(index, chosen("facility", task)[0])
    for c in range(4):
        place = train.of_class(c)
        features = given.embedded.of_class(c).double()
        errors = given.embedded.errors(features, c)
        products = (errors @ errors.T) * (1 + features @ features.T)
        s = 0.5 + 0.5 * products / (products.diag()[:, None] * products.diag()).sqrt()
        best = []
        for _ in range(3):
            value = [float((weights[place] * s[[*best, j]].amax(0)).sum()) for j in range(32)]
            best.append(value.index(max(value)))
        assert place[best].tolist() == index[3 * c : 3 * c + 3].tolist()


def prepare_cad(task):
    """The score of method `cad` with the same settings, from the same record."""
    cad = get("cad")(student_epochs=60).settle(task)
    return cad.cad(prepare(cad, task))
