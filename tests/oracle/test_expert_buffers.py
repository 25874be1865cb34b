"""The authors' expert buffers as a pool: read as they are written, and refused where they do not belong to the run."""

from dataclasses import replace

import pytest
import torch

from dd.data import DataSettings, open_data
from dd.errors import UsageError
from dd.networks import NetworkSpec
from dd.training import Experts, ExpertSettings, trajectories
from dd.training.buffers import buffer_hash
from dd.training.experts import stack_size
from dd.training.pools import pools, price

SETTINGS = ExpertSettings(count=5, epochs=3, lr=0.05, batch=24)


@pytest.fixture
def data(blobs):
    return blobs(holdout=64)


@pytest.fixture
def task(make_task, data):
    return make_task(data)


def written(task, folder, kept, per_file=2, numbers=(2, 10, 11)):
    """Experts as the official code writes them: `torch.save` of lists of lists of the parameters, in their order."""
    folder.mkdir(exist_ok=True)
    names = [name for name, _ in task.network("any").named_parameters()]
    for at, number in zip(range(0, len(kept), per_file), numbers, strict=False):
        buffer = []
        for rows in kept[at : at + per_file]:
            networks = [task.functional().unflatten(row.clone()) for row in rows]
            buffer.append([[network[name].clone() for name in names] for network in networks])
        torch.save(buffer, folder / f"replay_buffer_{number}.pt")
    return replace(SETTINGS, from_=str(folder), count=len(kept))


@pytest.fixture
def ours(task):
    return trajectories(task, SETTINGS).snapshots


def test_they_are_the_pool_that_was_written(task, ours, tmp_path):
    settings = written(task, tmp_path / "theirs", ours)
    found = trajectories(task, settings)
    assert len(found) == 5  # file 10 comes after file 2
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, found.snapshots, strict=True))
    assert found.holdout == trajectories(task, SETTINGS).holdout
    assert stack_size(task, replace(settings, stack=4)) == 1
    fewer = trajectories(task, replace(settings, count=3, epochs=2))
    assert all(torch.equal(mine[:3], theirs) for mine, theirs in zip(ours, fewer.snapshots, strict=False))
    half = trajectories(task, replace(settings, count=1, store="bfloat16"))
    assert torch.equal(half.snapshots[0], ours[0].bfloat16())
    one = trajectories(task, replace(settings, count=1, from_=str(tmp_path / "theirs" / "replay_buffer_11.pt")))
    assert torch.equal(one.snapshots[0], ours[4])


def test_they_are_an_ordinary_pool_which_their_content_names(task, ours, tmp_path):
    settings = written(task, tmp_path / "theirs", ours)
    assert price(task, settings).seconds is None
    assert (price(task, settings).missing, price(task, settings).bytes) == (5, 5 * 4 * 4 * task.functional().size)
    trajectories(task, settings)
    assert price(task, settings).missing == 0
    assert sorted((len(p.shards), p.spec["settings"]["kind"]) for p in pools(task.store)) == [(5, "files"), (5, "sgd")]
    elsewhere = written(task, tmp_path / "moved", ours)
    needs = [
        Experts(task, s).artefacts() for s in (settings, elsewhere, replace(elsewhere, lr=1.0, kind="ftd", seed=3))
    ]
    assert [[spec for _, spec, _ in need] for need in needs] == [[spec for _, spec, _ in needs[0]]] * 3
    other = Experts(task, written(task, tmp_path / "moved", [rows + 1e-3 for rows in ours])).artefacts()
    assert other[0][1] != needs[0][0][1]
    assert buffer_hash(str(tmp_path / "theirs")) != buffer_hash(str(tmp_path / "moved"))
    assert Experts(task, SETTINGS).artefacts()[0][1] != needs[0][0][1]


def refused(task, settings, says):
    with pytest.raises(UsageError, match=says) as caught:
        trajectories(task, settings)
    assert "\n" not in str(caught.value)
    assert not any(pool.spec["settings"]["kind"] == "files" for pool in pools(task.store))


def test_too_few_of_them_are_counted(task, ours, tmp_path):
    settings = written(task, tmp_path / "theirs", ours[:3])
    with pytest.raises(UsageError, match=r"holds 3 experts: experts\.count=3"):
        trajectories(task, replace(settings, count=4))
    assert len(trajectories(task, settings)) == 3  # what was read before is kept
    with pytest.raises(UsageError, match=r"has 3 epochs, not experts\.epochs=4: experts\.epochs=3"):
        trajectories(task, replace(settings, epochs=4))


def test_another_network_is_named_by_its_first_layer(make_task, data, task, ours, tmp_path):
    settings = written(task, tmp_path / "theirs", ours)
    wide = make_task(data, student=NetworkSpec(depth=1, width=6))
    refused(wide, settings, r"replay_buffer_2.pt\) do not fit this network: layer 0 is features.0.conv.weight \(")
    bare = make_task(data, student=NetworkSpec(depth=1, width=4, norm="none"))
    refused(bare, settings, r"layer 2 is classifier.weight \(4\) there and classifier.weight \(")


def test_what_is_no_buffer_is_refused(task, ours, tmp_path):
    for nothing in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match=r"experts\.from=.*(no such folder or file|no replay_buffer_N\.pt in it)"):
            trajectories(task, replace(SETTINGS, from_=str(nothing)))
    settings = written(task, tmp_path / "theirs", ours[:1])
    file = tmp_path / "theirs" / "replay_buffer_2.pt"

    class Code:
        def __reduce__(self):
            return (print, ("run",))

    for content, says in (
        (Code(), "could run code"),
        ({"a": torch.ones(2)}, "is not a list of experts"),
        ([], "is not a list of experts"),
        ([torch.ones(3)], "not a list of lists of parameter tensors"),
        ([[[1.0, 2.0]] * 4], "not a list of lists of parameter tensors"),
    ):
        torch.save(content, file)
        refused(task, settings, says)
    file.write_bytes(b"PK\x03\x04 cut off")
    refused(task, settings, "cannot be read|could run code")


def test_weights_that_are_worth_nothing_are_refused(task, ours, tmp_path):
    folder = tmp_path / "theirs"
    bad = ours[1].clone()
    bad[2, 5] = torch.nan
    refused(task, written(task, folder, [bad]), "is not finite: it has diverged")
    refused(task, written(task, folder, [ours[0][-1:].expand(4, -1)]), "does not move: all its snapshots")
    untrained = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(3))
    refused(task, written(task, folder, [untrained]), r"expert 1 of experts\.from=.*chance")


def test_another_order_of_classes_is_refused(task, ours, tmp_path):
    network = task.functional()
    rows = []
    for row in ours[0]:
        parts = network.unflatten(row.clone())
        for name in ("classifier.weight", "classifier.bias"):
            parts[name].copy_(parts[name].roll(1, 0).clone())
        rows.append(torch.cat([part.reshape(-1) for part in parts.values()]))
    refused(task, written(task, tmp_path / "theirs", [torch.stack(rows)]), "another order")


@pytest.mark.parametrize(("trained", "run"), [("zca", "standard"), ("standard", "zca")])
def test_another_value_space_is_found_out(make_task, tmp_path, monkeypatch, trained, run):
    # photographs: whitening does little to blobs.  What was trained with the one is right on 60 % with the other
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    theirs, here = (
        make_task(
            open_data("fashion-mini", DataSettings(preprocess=kind), "cpu"), student=NetworkSpec(depth=2, width=4)
        )
        for kind in (trained, run)
    )
    settings = replace(SETTINGS, count=1, epochs=1, batch=64)
    kept = trajectories(theirs, settings).snapshots
    settings = replace(written(here, tmp_path / "theirs", list(kept)), epochs=1)
    refused(here, settings, rf"which seems to be what it was trained on: data\.preprocess={trained}")
    assert torch.equal(trajectories(theirs, settings).snapshots[0], kept[0])
