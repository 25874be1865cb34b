"""Forms of labels against slow loops and closed forms: what goes in comes out, as far as the form promises."""

import math

import pytest
import torch
import torch.nn.functional as F

from dd.errors import RunError, UsageError
from dd.labels.distances import dbr_loss, distances, reconstruct
from dd.labels.forms import FORMS, calibrate, form_of
from dd.rng import generator


def teacher(n=400, classes=10, scale=2.5, seed=0):
    """Logits, classes of the images and of what is mixed in; every tenth pair is one class."""
    rng = generator(seed, "teacher")
    logits = scale * torch.randn(n, classes, generator=rng)
    own, partner = (torch.randint(classes, (n,), generator=rng) for _ in range(2))
    partner[::10] = own[::10]
    return logits, own, partner


def through(form, logits, own, partner, temperature=1.0):
    encoded = form.encode(logits, own, partner)
    assert {name: tuple(values.shape[1:]) for name, values in encoded.items()} == {
        name: shape for name, (_, shape) in form.layout().items()
    }
    assert {name: values.dtype for name, values in encoded.items()} == {
        name: kind for name, (kind, _) in form.layout().items()
    }
    made = form.decode(encoded, own, partner, temperature)
    assert made.dtype == torch.float32
    assert (made >= 0).all()
    torch.testing.assert_close(made.double().sum(1), torch.ones(len(own), dtype=torch.float64), rtol=0, atol=1e-6)
    return made


def kl(p, q):
    return float((p * (p / q).log()).sum(1).mean())


# --- logits ----------------------------------------------------------------------------------------------------------


def test_float16_logits_lose_nothing_that_matters():
    """Oracle 37."""
    logits, own, partner = teacher(500, 1000)
    for temperature, most in ((20.0, 1e-8), (1.0, 1e-5)):
        made = through(form_of("logits", 1000), logits, own, partner, temperature).double()
        assert abs(kl((logits.double() / temperature).softmax(1), made / made.sum(1, keepdim=True))) < most


def test_the_temperature_is_applied_when_labels_are_used():
    logits, own, partner = teacher(5, 3)
    for temperature in (1.0, 4.0, 20.0):
        made = through(form_of("logits", 3), logits, own, partner, temperature)
        for row, wanted in zip(made.tolist(), logits.half().double().tolist(), strict=True):
            parts = [math.exp(z / temperature) for z in wanted]
            assert row == pytest.approx([part / sum(parts) for part in parts], rel=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(broken):
    logits, own, partner = teacher(4)
    logits[2, 3] = broken
    for name in FORMS:
        with pytest.raises(RunError, match="teacher"):
            form_of(name, 10).encode(logits, own, partner)


@pytest.mark.parametrize("huge", [1e5, -1e5, 3e30])
def test_logits_beyond_float16_keep_their_label(huge):
    logits, own, partner = teacher(4)
    others = logits[[0, 1, 3]]
    logits[2, 3] = huge
    for name in FORMS:
        form = form_of(name, 10)
        there = form.decode(form.encode(logits, own, partner), own, partner)
        wanted = logits[2].softmax(0)
        if name != "distances":  # which hold only what the two classes of a view see
            assert there[2].argmax() == wanted.argmax()
        if name == "logits":
            assert torch.allclose(there[2], wanted, atol=2e-3)
            kept = form.encode(others, own[[0, 1, 3]], partner[[0, 1, 3]])["logits"]
            assert torch.equal(form.encode(logits, own, partner)["logits"][[0, 1, 3]], kept)


def test_distillation_at_a_high_temperature_matches_centred_logits():
    """Oracle 36: KL is zero iff rows differ by a constant; T² KL has the gradient of centred logits over K B."""
    wanted, own, partner = teacher(64, 10, 1.0)
    targets = form_of("logits", 10).decode({"logits": wanted}, own, partner, 20.0).double()
    student = teacher(64, 10, 1.0, seed=1)[0].double().requires_grad_()

    def loss(logits):
        return F.kl_div((logits / 20).log_softmax(1), targets, reduction="batchmean")

    assert float(loss(wanted.double() + 7 * torch.arange(64).view(-1, 1))) < 1e-7
    assert float(loss(student.detach())) > 1e-4
    (slope,) = torch.autograd.grad(400 * loss(student), student)
    difference = student.detach() - wanted
    expected = (difference - difference.mean(1, keepdim=True)) / (10 * 64)
    assert float(slope.norm() / expected.norm()) == pytest.approx(1, abs=0.02)
    assert float(F.cosine_similarity(slope.flatten(), expected.flatten(), 0)) > 0.999


# --- top-k -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.1, 2.5, 30.0])
@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_top_k_keeps_the_largest_and_smooths_the_rest(k, scale):
    """Oracle 32, also for teachers that are nearly undecided, whose differences float16 cannot tell."""
    logits, own, partner = teacher(scale=scale)
    exact = logits.softmax(1)
    largest, indices = exact.topk(k, 1)
    smooth = through(form_of("topk", 10, k=k), logits, own, partner)
    renorm = through(form_of("topk", 10, k=k, rest="renorm"), logits, own, partner)
    torch.testing.assert_close(smooth.gather(1, indices), largest, rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(renorm.gather(1, indices), largest / largest.sum(1, keepdim=True), rtol=2e-3, atol=1e-6)
    others = torch.ones(400, 10, dtype=torch.bool).scatter(1, indices, False)
    assert not renorm[others].any()
    if scale:
        for made in (smooth, renorm):
            assert torch.equal(made.argmax(1), exact.argmax(1))
    if k < 10:
        rest = smooth[others].view(400, 10 - k)
        assert (rest == rest[:, :1]).all()
        assert (rest <= smooth.gather(1, indices).amin(1, keepdim=True)).all()
        wanted = (1 - largest.sum(1, keepdim=True)) / (10 - k)
        torch.testing.assert_close(rest[:, :1], wanted, rtol=0, atol=1e-3)


def test_top_1_of_two_classes_is_exact():
    logits, own, partner = teacher(classes=2, scale=1.0)
    made = through(form_of("topk", 2, k=1), logits, own, partner)
    torch.testing.assert_close(made, logits.softmax(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("classes", [2050, 10_450, 40_000])
def test_class_numbers_above_2048_survive(classes):
    """Oracle 31: float16, in which published stores keep them, has no 2049."""
    wanted = [2049, classes - 1, 7]
    logits = torch.zeros(3, classes)
    logits[torch.arange(3), torch.tensor(wanted)] = 20
    own = torch.zeros(3, dtype=torch.int64)
    for name, parameters in (("topk", {"k": 2}), ("hard", {})):
        form = form_of(name, classes, **parameters)
        assert form.decode(form.encode(logits, own, own), own, own).argmax(1).tolist() == wanted


# --- hard ------------------------------------------------------------------------------------------------------------


def test_hard_labels_are_the_argmax_smoothed():
    logits, own, partner = teacher()
    made = through(form_of("hard", 10, smoothing=0.2), logits, own, partner)
    for row, best in zip(made.tolist(), logits.argmax(1).tolist(), strict=True):
        assert row == pytest.approx([0.02 + 0.8 * (c == best) for c in range(10)], abs=1e-6)
    plain = through(form_of("hard", 10), logits, own, partner)
    assert torch.equal(plain, F.one_hot(logits.argmax(1), 10).float())


# --- NRR-DD's distances ----------------------------------------------------------------------------------------------


def test_distances_are_two_cross_entropies():
    """Oracle 33."""
    logits, own, partner = teacher()
    found = distances(logits, own, partner)
    assert (found >= 0).all()
    assert torch.equal(found[own == partner][:, 0], found[own == partner][:, 1])
    both = found.double().neg().exp().sum(1)[own != partner]
    assert (both <= 1 + 1e-6).all()
    for row, y, z in zip(
        found.tolist(), zip(own.tolist(), partner.tolist(), strict=True), logits.tolist(), strict=True
    ):
        total = math.log(sum(math.exp(v) for v in z))
        assert row == pytest.approx([total - z[y[0]], total - z[y[1]]], abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e-2, 0.1, 2.5, 30.0])
def test_the_reconstruction_is_the_flattest_with_these_distances(scale):
    """Oracle 33, through float16: sums to one, exact at y and y', argmax kept where it is one of the two."""
    logits, own, partner = teacher(2000, scale=scale)
    exact = logits.softmax(1)
    made = through(form_of("distances", 10), logits, own, partner)
    both = torch.stack([own, partner], 1)
    torch.testing.assert_close(made.gather(1, both), exact.gather(1, both), rtol=0, atol=2e-3)
    best = exact.argmax(1)
    held = (best == own) | (best == partner) if scale else torch.zeros(2000, dtype=torch.bool)
    assert held.any() == bool(scale)
    assert torch.equal(made.argmax(1)[held], best[held])
    others = torch.ones(2000, 10, dtype=torch.bool).scatter(1, both, False)
    for row, mask in zip(made[:50], others[:50], strict=True):
        assert (row[mask] == row[mask][0]).all()

    def entropy(p):
        return -(p.double() * p.double().clamp_min(1e-300).log()).sum(1)

    unrounded = reconstruct(distances(logits, own, partner), own, partner, 10)
    torch.testing.assert_close(unrounded.gather(1, both), exact.gather(1, both), rtol=0, atol=1e-6)
    assert (entropy(unrounded) >= entropy(exact) - 1e-5).all()


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_reconstruction_sums_to_one(classes):
    """Oracle 33, before float16 has its say."""
    logits, own, partner = teacher(2000, classes)
    made = reconstruct(distances(logits, own, partner), own, partner, classes)
    assert (made >= 0).all()
    assert (made.double().sum(1) - 1).abs().max() <= 5e-7


def test_two_classes_are_reconstructed_exactly():
    logits, own, partner = teacher(classes=2)
    made = through(form_of("distances", 2), logits, own, partner)
    torch.testing.assert_close(made, logits.softmax(1), rtol=0, atol=2e-3)
    unrounded = reconstruct(distances(logits, own, 1 - own), own, 1 - own, 2)
    torch.testing.assert_close(unrounded, logits.softmax(1), rtol=0, atol=1e-6)
    # a teacher that sees nothing but the two classes, among ten
    logits, own, partner = teacher()
    sees = torch.full_like(logits, -1e3)
    sees.scatter_(1, torch.stack([own, partner], 1), logits.gather(1, torch.stack([own, partner], 1)))
    made = through(form_of("distances", 10), sees, own, partner)
    torch.testing.assert_close(made, sees.softmax(1), rtol=0, atol=2e-3)


def test_the_distance_loss_is_the_formula():
    student, own, partner = teacher(40, seed=1)
    wanted = distances(teacher(40)[0], own, partner)
    weights = torch.rand(40, generator=generator(2, "weights"))
    for weight in (0.3, weights):
        slow = 0.0
        for i in range(40):
            log_p = F.log_softmax(student[i].double(), 0)
            d = [-float(log_p[own[i]]), -float(log_p[partner[i]])]
            w = float(weight[i]) if isinstance(weight, torch.Tensor) else weight
            slow += (
                w * d[0]
                + (1 - w) * d[1]
                + 0.7 * sum(abs(a - b) for a, b in zip(d, wanted[i].tolist(), strict=True)) / 2
            )
        assert float(dbr_loss(student, wanted, own, partner, weight, 0.7)) == pytest.approx(slow / 40, rel=1e-5)


def test_a_student_that_is_the_teacher_has_no_distance_left():
    """Oracle 33: L_dbr = 0, so that only the hard cross-entropy remains, which is CutMix's."""
    logits, own, partner = teacher(40)
    rest = dbr_loss(logits, distances(logits, own, partner), own, partner, 0.3, 100.0)
    hard = 0.3 * F.cross_entropy(logits, own) + 0.7 * F.cross_entropy(logits, partner)
    torch.testing.assert_close(rest, hard)


# --- what is asked for wrongly ---------------------------------------------------------------------------------------


def test_only_logits_have_a_temperature():
    logits, own, partner = teacher(4)
    for name in FORMS:
        form = form_of(name, 10)
        if name != "logits":
            with pytest.raises(UsageError, match=f"{name}.*temperature 1, .*20.*logits") as error:
                form.decode(form.encode(logits, own, partner), own, partner, 20.0)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("top", {}, "'top'.*topk"),
        ("topk", {"K": 3}, "'K'"),
        ("topk", {"k": 11}, "k=11 of 10"),
        ("topk", {"k": 0}, "k=0"),
        ("topk", {"rest": "smoth"}, "'smoth'.*smooth"),
        ("hard", {"smoothing": 1.5}, "1.5"),
        ("logits", {"k": 5}, "'k'"),
    ],
)
def test_a_form_that_is_none_is_refused(name, parameters, message):
    with pytest.raises(UsageError, match=message):
        form_of(name, 10, **parameters)
    with pytest.raises(UsageError, match="2 classes"):
        form_of("logits", 1)


# --- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_believes_doubts_and_drops():
    logits, own, _ = teacher()
    probabilities = logits.softmax(1)
    made = calibrate(probabilities, own, 0.1, 0.5, 0.2)
    seen = set()
    for row, before, c in zip(made.tolist(), probabilities.tolist(), own.tolist(), strict=True):
        if before[c] >= 0.5:
            wanted = before
        elif before[c] >= 0.1:
            wanted = [0.02 + 0.8 * (j == c) for j in range(10)]
        else:
            wanted = [0.1] * 10
        seen.add((before[c] >= 0.1) + (before[c] >= 0.5))
        assert row == pytest.approx(wanted, abs=1e-6)
    assert seen == {0, 1, 2}
    assert torch.equal(calibrate(probabilities, own, 0.0, 0.0, 0.2), probabilities)
    with pytest.raises(UsageError, match=r"low=0\.6, high=0\.5"):
        calibrate(probabilities, own, 0.6, 0.5, 0.2)
