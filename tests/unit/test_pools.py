"""Stored experts as `dd experts` sees them."""

import logging
from dataclasses import replace

import pytest
import torch

from dd.runs import Store
from dd.runs.store import Wanted
from dd.training import ExpertSettings, trajectories
from dd.training.pools import damages, pools, price, remove

SETTINGS = ExpertSettings(count=2, epochs=3, lr=0.05, batch=24)


@pytest.fixture
def task(make_task):
    return make_task()


def test_a_pool_is_what_differs_in_the_number_alone(task):
    assert pools(task.store) == []
    trajectories(task, SETTINGS)
    trajectories(task, replace(SETTINGS, count=3))
    trajectories(task, replace(SETTINGS, lr=0.01, count=1))
    found = {len(pool.shards): pool for pool in pools(task.store)}
    assert set(found) == {1, 3}
    pool = found[3]
    assert [shard.member for shard in pool.shards] == [0, 1, 2]
    assert pool.bytes == sum(f.stat().st_size for f in task.store.root.glob("experts/*.safetensors")) * 3 // 4
    assert all(shard.info["data"] == "blobs" and shard.info["holdout"] > 20 for shard in pool.shards)


def test_damage_is_found_and_named(task):
    trajectories(task, SETTINGS)
    (pool,) = pools(task.store)
    assert [damage for _, damage in damages(task.store, pool)] == [None, None]
    payload = task.store.path("experts", pool.shards[1].spec).with_suffix(".safetensors")
    raw = bytearray(payload.read_bytes())
    raw[-5] ^= 1
    payload.write_bytes(raw)
    (first, sound), (second, damage) = damages(task.store, pool)
    assert (first.member, sound, second.member) == (0, None, 1)
    assert "hash" in damage


def test_a_removed_pool_is_gone_and_another_stays(task):
    trajectories(task, SETTINGS)
    trajectories(task, replace(SETTINGS, lr=0.01))
    one, other = pools(task.store)
    before = len(list(task.store.root.glob("pools/*.json")))
    assert remove(task.store, one) > one.bytes  # manifests too
    assert pools(task.store) == [other]
    assert before == 2
    assert len(list(task.store.root.glob("pools/*.json"))) == 1


def test_a_price_counts_what_is_missing(task):
    size = task.functional().size
    asked = price(task, SETTINGS)
    assert (asked.count, asked.missing, asked.bytes) == (2, 2, 2 * 4 * 4 * size)
    assert 0 < asked.seconds < 60
    trajectories(task, SETTINGS)
    files = [f.stat().st_size for f in task.store.root.glob("experts/*.safetensors")]
    assert sum(files) == pytest.approx(asked.bytes, rel=0.2)
    more = price(task, replace(SETTINGS, count=5, store="float32"))
    assert (more.missing, more.bytes) == (3, 3 * 4 * 4 * size)
    nothing = price(task, SETTINGS)
    assert (nothing.missing, nothing.seconds, nothing.bytes) == (0, None, 0)


def test_bfloat16_halves_the_disk_and_is_read_back_as_float32(task):
    exact, half = (trajectories(task, replace(SETTINGS, store=store)) for store in ("float32", "bfloat16"))
    assert half.snapshots[0].dtype == torch.bfloat16
    found = half.snapshot(0, 2, task.device)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact.snapshots[0][2].bfloat16().float())
    sizes = sorted(pool.bytes for pool in pools(task.store))
    assert sizes[0] < 0.65 * sizes[1]


def test_a_group_is_made_together_and_a_part_of_it_alone(task, caplog):
    caplog.set_level(logging.INFO, logger="dd.runs")
    store, made = task.store, []

    def make(missing):
        made.append(list(missing))
        return [({"x": torch.tensor([float(i)])}, {"i": i}) for i in missing]

    specs = [{"n": n} for n in range(4)]
    store.tensors("things", specs[2], lambda: ({"x": torch.tensor([7.0])}, {"i": 2}))
    wanted = [Wanted("things", spec, f"thing {n}") for n, spec in enumerate(specs)]
    found = store.tensors_of_many(wanted, make)
    assert made == [[0, 1, 3]]
    assert [float(a.tensors["x"]) for a in found] == [0, 1, 7, 3]
    again = Store(store.root).tensors_of_many(wanted, make)
    assert len(made) == 1
    assert [a.info["i"] for a in again] == [0, 1, 2, 3]
    said = [record.getMessage().split(" in ")[0] for record in caplog.records]
    assert said[1:] == [
        "kept thing 2",
        "made thing 0",
        "made thing 1",
        "made thing 3",
        *(f"kept thing {n}" for n in range(4)),
    ]
