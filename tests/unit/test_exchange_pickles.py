"""Files that `torch.save` wrote, and what only looks like one: nothing in them runs."""

import pickle

import pytest
import torch

from dd.errors import UsageError
from dd.exchange import pickles


class Evil:
    def __reduce__(self):
        return (print, ("it ran",))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_nothing_in_an_imported_file_is_executed(tmp_path, capsys, form):
    path, content = tmp_path / "a.pt", {"data": [Evil()], "images": torch.zeros(2)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UsageError, match=r"a\.pt is refused: .*; nothing in it was run"):
        pickles.read(path)
    assert "it ran" not in capsys.readouterr().out


def test_tensors_and_plain_values_are_read(tmp_path):
    torch.save({"data": [torch.arange(3.0), 1, "x"]}, tmp_path / "a.pt")
    images, one, text = pickles.read(tmp_path / "a.pt")["data"]
    assert images.tolist() == [0, 1, 2]
    assert (one, text) == (1, "x")
