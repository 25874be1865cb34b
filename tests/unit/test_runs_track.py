import csv
import os
import subprocess
import sys
import time

import pytest
import torch

from dd.runs import RunFolder, Track, read_log


def table(folder: RunFolder) -> list[list[str]]:
    with folder.log_csv.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_rows_are_there_at_once_and_numbers_survive_to_the_bit(folder):
    track = Track(folder)
    track.log(0, loss=1 / 3, lr=torch.tensor(0.1), skipped=True, note='a "b", c\nd')
    assert table(folder) == [
        ["it", "loss", "lr", "skipped", "note"],
        ["0", repr(1 / 3), repr(torch.tensor(0.1).item()), "1", 'a "b", c\nd'],
    ]
    track.close()


def test_columns_may_appear_later(folder):
    with Track(folder) as track:
        track.log(0, loss=1.0)
        track.log(1, loss=2.0, probe=0.5)
        track.log(2, lr=0.1, loss=None)
        track.log(3, loss=4.0)
    assert table(folder) == [
        ["it", "loss", "probe", "lr"],
        ["0", "1.0", "", ""],
        ["1", "2.0", "0.5", ""],
        ["2", "", "", "0.1"],
        ["3", "4.0", "", ""],
    ]
    assert os.listdir(folder.path) == ["log.csv"]


def test_going_on_drops_what_comes_again(folder):
    with Track(folder) as track:
        for it in range(10):
            track.log(it, loss=it)
    with Track(folder, resume_at=6) as track:
        track.log(6, loss=60)
    assert [row["loss"] for row in read_log(folder.log_csv)[1]] == ["0", "1", "2", "3", "4", "5", "60"]
    Track(folder).close()
    assert table(folder) == [["it", "loss"]]


@pytest.mark.parametrize("torn", ["7,0.", "7,0.5", "7", "\n", "\0\0\0\0", "x,1\n", "7,1,2\n", '7,"a'])
def test_a_torn_last_line_is_dropped(folder, torn):
    with Track(folder) as track:
        track.log(0, loss=1.0)
    with folder.log_csv.open("a", newline="") as file:
        file.write(torn)
    with Track(folder, resume_at=8) as track:
        track.log(8, loss=2.0)
    assert table(folder) == [["it", "loss"], ["0", "1.0"], ["8", "2.0"]]


def test_a_file_that_is_no_log_is_started_afresh(folder):
    folder.path.mkdir()
    folder.log_csv.write_bytes(b"\xff\xfe what\nis,this\n")
    with Track(folder, resume_at=5) as track:
        track.log(5, loss=1)
    assert table(folder) == [["it", "loss"], ["5", "1"]]


ENDLESS = """
import sys
from pathlib import Path
from dd.runs import RunFolder, Track
track = Track(RunFolder(Path(sys.argv[1])))
it = 0
while True:
    track.log(it, loss=it / 3, **{f"column{it // 100}": it} if it < 2000 else {})
    it += 1
    if it == 300:
        print("going", flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.15])
def test_a_kill_at_any_time_leaves_a_valid_log(folder, delay):
    with subprocess.Popen([sys.executable, "-c", ENDLESS, folder.path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
    columns, rows = read_log(folder.log_csv)
    assert len(rows) >= 300
    assert [int(row["it"]) for row in rows] == list(range(len(rows)))
    assert all(float(row["loss"]) == i / 3 for i, row in enumerate(rows))
    assert len(table(folder)) - 1 - len(rows) in (0, 1)
    with Track(folder, resume_at=200) as track:
        track.log(200, loss=0.0)
    assert [len(cells) for cells in table(folder)] == [len(columns)] * 202
