"""Runs that trackers follow, each for real: W&B offline, whose file is read back, and Trackio on this machine."""

import json
import signal
import sqlite3

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from .conftest import Place

BRIEF = ("method=mtt", "ipc=1", "device=cpu", "compile=false", "student.depth=1", "student.width=4", "seed=3")
BRIEF += ("eval.protocol=smoke", "experts.count=2", "experts.epochs=2", "start_max=1", "iterations=4", "lr_lr=1e-6")
BRIEF += ("steps=2", "eval.steps=3", "eval.full=false", "eval.probe_steps=3")
BLOCK, HEAD = 2**15, 7  # bytes of a block of the file, and of what stands before each piece of a record


def records(path):
    """The records of a .wandb file, which is a log in LevelDB's format after a header of seven bytes.

    Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    data, at, whole, found = path.read_bytes(), HEAD, b"", []
    assert data[:4] == b":W&B"
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + HEAD : at + HEAD + size]
        at += HEAD + size
        if kind in (1, 4):  # whole, or last
            found.append(Record.FromString(whole))
            whole = b""
    return found


def offline(place, *words, **environment):
    """Words and environment of a run that W&B and Trackio follow here."""
    own = {"WANDB_MODE": "offline", "HOME": str(place.path), "TRACKIO_DIR": str(place.path / "trackio")}
    return words, own | {"WANDB_SILENT": "true"} | environment


def name_of(item):
    return item.key or "/".join(item.nested_key)


@pytest.fixture(scope="module")
def followed(tmp_path_factory, few):
    """A place where W&B and Trackio have followed a run, and its report."""
    place = Place(tmp_path_factory.mktemp("followed"))
    words, environment = offline(place, *BRIEF, few, "track=wandb,trackio", "--json")
    ended = place.process("run", *words, **environment)
    assert ended.code == 0, ended.err
    assert "no longer follows" not in ended.err
    return place, ended.report


def test_an_offline_run_of_wandb_holds_settings_history_and_the_set(followed):
    place, report = followed
    (file,) = place.folder().glob("wandb/offline-run-*/run-*.wandb")
    found = records(file)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert run.run_id == (place.folder() / "wandb-id").read_text().strip()
    assert run.display_name == report["name"]
    config = {}
    for update in [run.config, *(record.config for record in found if record.HasField("config"))]:
        config |= {name_of(item): json.loads(item.value_json) for item in update.update}
    assert (config["method"], config["experts.count"], config["lr_lr"], config["seed"]) == ("mtt", 2, 1e-6, 3)
    assert config["recipe_hash"] == report["recipe_hash"]
    assert config["eval.views.crop"] is None

    rows = [
        {name_of(item): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    assert [row["it"] for row in rows if "loss" in row] == [0, 1, 2, 3]
    assert [row["it"] for row in rows if "probe" in row] == [2, 4]
    (last,) = [row for row in rows if "eval/holdout" in row]
    holdout = report["accuracy"]["holdout"]
    assert last["eval/holdout"] == pytest.approx(sum(holdout) / len(holdout))
    assert last["eval/test"] == report["accuracy"]["mean"]
    assert last["eval/test_control"] == report["control"]["mean"]
    assert last["eval/test_gap"] == report["gap"]
    (shown,) = [row for row in rows if "report/path" in row]
    table = json.loads((file.parent / "files" / shown["report/path"]).read_text())
    assert table["data"][0][:2] == ["the distilled set", 2]
    assert table["data"][1][3:5] == [report["control"]["mean"], report["control"]["std"]]
    assert (file.parent / "files" / shown["images/path"]).read_bytes() == (place.folder() / "images.png").read_bytes()
    steps = {record.metric.name or record.metric.glob_name for record in found if record.HasField("metric")}
    assert {"it", "*"} <= steps

    (kept,) = [r.artifact for r in found if r.HasField("artifact") and r.artifact.type == "dataset"]
    assert report["recipe_hash"] in list(kept.aliases)
    facts = json.loads(kept.metadata)
    assert [one["kind"] for one in facts["made_with"]] == ["experts"]
    assert facts["fingerprint"] == report["fingerprint"]
    assert {entry.path for entry in kept.manifest.contents} == {"set.safetensors", "recipe.toml", "report.json"}


def test_trackio_keeps_the_same_on_this_machine(followed):
    place, report = followed
    (file,) = (place.path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(text) for (text,) in database.execute("select metrics from metrics order by step, id")]
        (config,) = {text for (text,) in database.execute("select config from configs")}
    database.close()
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(
        [float(line.split(",")[1]) for line in (place.folder() / "log.csv").read_text().splitlines()[1:5]]
    )
    assert json.loads(config)["experts.count"] == 2
    (last,) = [row for row in rows if "eval/holdout" in row]
    assert last["eval/test"] == report["accuracy"]["mean"]
    assert (place.folder() / "trackio-id").read_text().strip().startswith("mtt-")


@pytest.mark.slow
def test_a_finished_run_is_told_once_to_who_has_not_heard_of_it(followed, few):
    place, _ = followed
    words, environment = offline(place, *BRIEF, few, "track=wandb,trackio", "--json")
    ended = place.process("run", *words, **environment)
    assert ended.report["fresh"] is False
    assert len(list(place.folder().glob("wandb/offline-run-*"))) == 1
    assert {path.name for path in place.folder().glob("*-told")} == {"wandb-told", "trackio-told"}
    (place.folder() / "wandb-told").unlink()  # as where the connection was lost at the end
    ended = place.process("run", *words, **environment)
    assert len(list(place.folder().glob("wandb/offline-run-*"))) == 2
    assert (place.folder() / "wandb-told").is_file()
    words, environment = offline(place, *BRIEF, few, "--json", WANDB_SWEEP_ID="s", WANDB_RUN_ID="again")
    ended = place.process("run", *words, **environment, WANDB_DIR=str(place.path))
    assert ended.report["fresh"] is False, ended.err
    (file,) = place.path.glob("wandb/offline-run-*-again/run-again.wandb")
    rows = [[name_of(item) for item in r.history.item] for r in records(file) if r.HasField("history")]
    assert sum("loss" in row for row in rows) == 4
    assert sum("eval/holdout" in row for row in rows) == 1


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_the_same_run(place, long):
    words, environment = offline(place, *long, "track=wandb,trackio", "--json")
    run = place.start("run", *words, **environment)
    assert run.signal_when(signal.SIGKILL, lambda: place.logged() > 20).code == -signal.SIGKILL
    name = (place.folder() / "wandb-id").read_text()
    ended = place.process("run", *words, **environment)
    assert ended.code == 0, ended.err
    assert (place.folder() / "wandb-id").read_text() == name
    folders = list(place.folder().glob("wandb/offline-run-*"))
    assert len(folders) == 2
    assert all(folder.name.endswith(name.strip()) for folder in folders)
    with sqlite3.connect(next((place.path / "trackio").glob("*.db"))) as database:
        assert database.execute("select count(distinct run_id) from metrics").fetchone() == (1,)
    database.close()


def test_an_agent_refuses_a_trial_that_nothing_could_choose(place, few):
    ended = place.dd("run", *BRIEF, few, "data.holdout=0", WANDB_SWEEP_ID="s")
    assert ended.code == 2
    assert "data.holdout=0 leaves a sweep without held-out images" in ended.err
    assert not place.runs.exists()
