"""Sets in the memory of their own bytes: loaded, looked at and read by students without a second copy."""

import subprocess
import sys

import pytest
import torch

from dd.errors import RunError
from dd.io import load_tensors, read_tensors, save_tensors, tensor_in_file, tensors
from dd.rng import generator
from dd.sets import DistilledSet, save

# a process of its own, whose high-water mark the kernel can reset; MB above a set of two images, after the same work
PROBE = """
import re, sys
from pathlib import Path
import torch
from dd.data.preprocess import standard
from dd.evaluation.arms import set_arm
from dd.sets import load

space = standard(torch.empty(0), ((0.5,) * 3, (0.25,) * 3))

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def work(file):
    made = load(file)
    made.digest()
    made.outside(space)
    images, targets = set_arm("set", made, space).load(0)
    index = torch.arange(2)
    assert (images[index] if isinstance(images, torch.Tensor) else images(index)).dtype == torch.float32
    return made, images

work(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
held = work(sys.argv[2])
print(peak() - before)
"""


def a_set(n, dtype):
    rng = generator(0, "set")
    if dtype == torch.uint8:
        images = torch.randint(0, 256, (n, 3, 128, 128), generator=rng, dtype=dtype)
    else:
        images = torch.randn(n, 3, 128, 128, generator=rng)
    space = {"kind": "standard", "mean": [0.5] * 3, "std": [0.25] * 3}
    return DistilledSet(images=images, labels=torch.arange(n) % 2, classes=("a", "b"), source="noise", space=space)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize(("n", "dtype"), [(700, torch.float32), (2800, torch.uint8)])  # 131 MB each
def test_a_set_is_in_memory_once(n, dtype, tmp_path):
    few, whole = tmp_path / "few.safetensors", tmp_path / "set.safetensors"
    save(a_set(200, dtype), few)  # as many as the largest piece of the work
    save(a_set(n, dtype), whole)
    told = subprocess.run(
        [sys.executable, "-c", PROBE, str(few), str(whole)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert 0.5 < float(told.stdout) / (whole.stat().st_size / 2**20) < 1.5


def test_tensors_are_read_in_pieces_as_they_were_written(tmp_path, monkeypatch):
    rng = generator(0, "written")
    written = {
        "floats": torch.randn(7, 3, 2, generator=rng),
        "bytes": torch.randint(0, 256, (5, 4), generator=rng, dtype=torch.uint8),
        "classes": torch.arange(9),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
    }
    save_tensors(tmp_path / "a.safetensors", written)
    for piece in (1, 50, 1 << 20):
        monkeypatch.setattr(tensors, "_PIECE", piece)
        found = read_tensors(tmp_path / "a.safetensors")
        assert found.keys() == written.keys()
        for name, tensor in load_tensors(tmp_path / "a.safetensors").items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_a_tensor_in_a_file_outlives_its_name(tmp_path):
    path = tmp_path / "new" / "joined"
    whole = tensor_in_file(path, (4, 3), torch.int64)
    whole[torch.tensor([2, 0])] = torch.arange(6).view(2, 3)
    assert list(path.parent.iterdir()) == []
    assert whole[2].tolist() == [0, 1, 2]
    assert whole[0].tolist() == [3, 4, 5]


def test_a_full_disk_is_named_before_a_page_is_missing(tmp_path):
    with pytest.raises(RunError, match="make room"):
        tensor_in_file(tmp_path / "joined", (1 << 45,), torch.float32)
    assert list(tmp_path.iterdir()) == []
