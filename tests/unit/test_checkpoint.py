"""What a checkpoint keeps, and what it is not resumed from."""

import os

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.optim import SGD, Adam, AdamW

from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Synthetic
from dd.io import load_tensors, save_tensors
from dd.rng import generator


def make_syn(seed=0, lr=0.05, labels=True):
    rng = generator(seed, "syn")
    soft = torch.randn(4, 3, generator=rng) if labels else None
    syn = Synthetic(torch.randn(4, 1, 5, 5, generator=rng), torch.tensor([0, 0, 1, 2]), soft, lr)
    # variables of a method's own
    syn.extra = nn.Parameter(torch.randn(2, generator=rng))
    syn.register_buffer("average", torch.randn(4, 1, 5, 5, generator=rng))
    syn.register_buffer("visits", torch.tensor([3, 1], dtype=torch.int64))
    return syn


def make_optimisers(syn):
    return [
        SGD([syn.images], lr=10.0, momentum=0.5),
        SGD([syn.lr], lr=1e-3, momentum=0.9, nesterov=True),
        Adam([{"params": [syn.labels], "lr": 0.1}, {"params": [syn.extra], "lr": 0.2, "betas": (0.5, 0.9)}]),
    ]


def advance(syn, optimisers, its):
    for it in its:
        for p in syn.parameters():
            p.grad = torch.randn(p.shape, generator=generator(0, "gradient", it, p.numel())) * 0.01
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            syn.average.lerp_(syn.images, 0.1)
            syn.visits.add_(1)


def state(syn):
    return {name: value.clone() for name, value in syn.state_dict().items()}


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "run" / "checkpoint.safetensors", "this synthesis")


def test_a_restored_state_goes_on_with_the_same_bits(checkpoint):
    syn = make_syn()
    optimisers = make_optimisers(syn)
    advance(syn, optimisers, range(7))
    checkpoint.save(7, syn, optimisers, {"skips": 3, "note": "é"})
    saved = state(syn)
    advance(syn, optimisers, range(7, 12))

    other = make_syn(seed=1, lr=0.9)
    others = make_optimisers(other)
    assert checkpoint.load(other, others) == (7, {"skips": 3, "note": "é"})
    assert equal(state(other), saved)
    advance(other, others, range(7, 12))
    assert equal(state(other), state(syn))
    # momenta mattered
    forgetful = make_syn()
    forgetful.load_state_dict(saved)
    advance(forgetful, make_optimisers(forgetful), range(7, 12))
    assert not equal(state(forgetful), state(syn))


def test_before_the_first_step_there_are_no_momenta(checkpoint):
    syn = make_syn()
    optimisers = make_optimisers(syn)
    checkpoint.save(0, syn, optimisers, {})
    other = make_syn(seed=1)
    others = make_optimisers(other)
    assert checkpoint.load(other, others) == (0, {})
    for one, two in ((syn, optimisers), (other, others)):
        advance(one, two, range(3))
    assert equal(state(other), state(syn))


def test_settings_of_optimisers_that_changed_on_the_way_are_restored(checkpoint):
    syn = make_syn()
    optimisers = [AdamW([syn.images], lr=0.1, amsgrad=True)]
    advance(syn, optimisers, range(2))
    optimisers[0].param_groups[0]["lr"] = 0.025
    checkpoint.save(2, syn, optimisers, {})
    other = make_syn(seed=1)
    others = [AdamW([other.images], lr=0.1, amsgrad=True)]
    checkpoint.load(other, others)
    assert others[0].param_groups[0]["lr"] == 0.025
    for one, two in ((syn, optimisers), (other, others)):
        advance(one, two, range(2, 5))
    assert torch.equal(other.images, syn.images)


def test_more_than_ten_optimisers_keep_their_states_apart(checkpoint):
    syn = make_syn()
    for number in range(12):
        syn.register_parameter(f"p{number}", nn.Parameter(torch.full((number + 1,), float(number))))

    def optimisers_of(syn):
        return [SGD([getattr(syn, f"p{number}")], lr=1.0, momentum=0.9) for number in range(12)]

    optimisers = optimisers_of(syn)
    advance(syn, optimisers, range(3))
    checkpoint.save(3, syn, optimisers, {})
    others = optimisers_of(syn)
    checkpoint.load(syn, others)
    for one, other in zip(optimisers, others, strict=True):
        ((_, a),), ((_, b),) = one.state.items(), other.state.items()
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_what_was_loaded_is_not_tied_to_the_file(checkpoint):
    syn = make_syn()
    optimisers = make_optimisers(syn)
    advance(syn, optimisers, range(3))
    checkpoint.save(3, syn, optimisers, {})
    content, saved = checkpoint.path.read_bytes(), state(syn)
    checkpoint.load(syn, optimisers)
    advance(syn, optimisers, range(3, 6))  # in place, momenta included
    assert checkpoint.path.read_bytes() == content
    expected = state(syn)
    other = make_syn(seed=1)
    others = make_optimisers(other)
    checkpoint.load(other, others)
    assert equal(state(other), saved)
    # the file is replaced under a state that came from it
    checkpoint.save(6, syn, optimisers, {})
    advance(other, others, range(3, 6))
    assert equal(state(other), expected)


def test_the_same_state_is_the_same_bytes(checkpoint, tmp_path):
    contents = []
    for name in ("a", "b"):
        syn = make_syn()
        optimisers = make_optimisers(syn)
        advance(syn, optimisers, range(3))
        one = Checkpoint(tmp_path / name, "key")
        one.save(3, syn, optimisers, {"skips": 0})
        contents.append(one.path.read_bytes())
    assert contents[0] == contents[1]


def test_the_file_says_what_it_is(checkpoint):
    syn = make_syn(labels=False, lr=None)
    checkpoint.save(41, syn, [SGD([syn.images], lr=1.0)], {"skips": 2})
    with safe_open(checkpoint.path, "pt") as file:
        meta = file.metadata()
        names = set(file.keys())
    assert (meta["format"], meta["key"], meta["it"]) == ("dd-checkpoint", "this synthesis", "41")
    assert names == {"syn.images", "syn.targets", "syn.extra", "syn.average", "syn.visits"}
    assert checkpoint.iteration() == 41


def not_there(checkpoint):
    checkpoint.path.unlink()


def one_flipped_bit(checkpoint):
    content = bytearray(checkpoint.path.read_bytes())
    content[-1] ^= 1
    checkpoint.path.write_bytes(content)


def another_iteration(checkpoint):
    """As a file that says that all is done."""
    with safe_open(checkpoint.path, "pt") as file:
        meta = file.metadata()
    save_tensors(checkpoint.path, load_tensors(checkpoint.path), {**meta, "it": "99999"})


def of_an_earlier_dd(checkpoint):
    with safe_open(checkpoint.path, "pt") as file:
        meta = file.metadata()
    del meta["sha256"]
    save_tensors(checkpoint.path, load_tensors(checkpoint.path), meta)


def a_pipe(checkpoint):
    checkpoint.path.unlink()
    os.mkfifo(checkpoint.path)


def of_another_synthesis(checkpoint):
    Checkpoint(checkpoint.path, "another").save(5, make_syn(), [], {})


def no_checkpoint(checkpoint):
    save_tensors(checkpoint.path, {"syn.images": torch.zeros(1)}, {"key": checkpoint.key, "it": "5"})


def no_metadata(checkpoint):
    save_tensors(checkpoint.path, {"syn.images": torch.zeros(1)})


def truncated(checkpoint):
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-3])


def rubbish(checkpoint):
    checkpoint.path.write_bytes(b"rubbish")


def empty(checkpoint):
    checkpoint.path.write_bytes(b"")


def a_folder(checkpoint):
    checkpoint.path.unlink()
    checkpoint.path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        not_there,
        of_another_synthesis,
        no_checkpoint,
        no_metadata,
        truncated,
        rubbish,
        empty,
        a_folder,
        a_pipe,
        one_flipped_bit,
        another_iteration,
        of_an_earlier_dd,
    ],
)
def test_there_is_nothing_to_resume(checkpoint, spoil):
    syn = make_syn()
    optimisers = make_optimisers(syn)
    advance(syn, optimisers, range(3))
    checkpoint.save(3, syn, optimisers, {})
    assert checkpoint.iteration() == 3
    spoil(checkpoint)
    before = state(syn)
    assert checkpoint.iteration() == 0
    assert checkpoint.load(syn, optimisers) is None
    assert equal(state(syn), before)


def test_a_save_that_fails_leaves_the_old_state(checkpoint):
    syn = make_syn()
    optimisers = make_optimisers(syn)
    checkpoint.save(3, syn, optimisers, {})
    content = checkpoint.path.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(4, syn, optimisers, {"not": object()})
    syn.images = nn.Parameter(torch.zeros(2).to_sparse())
    with pytest.raises((ValueError, RuntimeError)):
        checkpoint.save(5, syn, optimisers, {})
    assert checkpoint.path.read_bytes() == content
    assert [path.name for path in checkpoint.path.parent.iterdir()] == [checkpoint.path.name]


def test_it_goes_on_from_the_state_before_a_damaged_one(checkpoint, caplog):
    syn = make_syn()
    optimisers = make_optimisers(syn)
    advance(syn, optimisers, range(3))
    checkpoint.save(3, syn, optimisers, {"skips": 1}, "it,loss\n0,1\n")
    before = state(syn)
    advance(syn, optimisers, range(3, 6))
    checkpoint.save(6, syn, optimisers, {"skips": 2}, "it,loss\n0,1\n5,2\n")
    assert (checkpoint.iteration(), checkpoint.log()) == (6, "it,loss\n0,1\n5,2\n")
    one_flipped_bit(checkpoint)
    assert (checkpoint.iteration(), checkpoint.log()) == (3, "it,loss\n0,1\n")
    other = make_syn(seed=1)
    assert checkpoint.load(other, make_optimisers(other)) == (3, {"skips": 1})
    assert equal(state(other), before)
    assert len(caplog.messages) == 1
