"""Files of the gradient and distribution matching family: dicts with the sets of several experiments as `data`.

DC, DSA and DM (Zhao & Bilen) write `{"data": [[images, labels], ...], "accs_all_exps": {network: accuracies}}`, with an
entry for each finished experiment. DataDAM's training code writes the same, but with an entry for each evaluation; its
released files hold `{"data": [images, labels]}`. DM's files of continual learning have an entry for each step, with
the classes of that step.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dd.errors import UsageError, printable
from dd.exchange.draft import Asked, Draft
from dd.exchange.reader import Reader, Recognised
from dd.exchange.source import ForeignFiles
from dd.exchange.tree import Tree
from dd.sets.origin import StatedScore

_EXPERIMENTS = 5  # number of experiments that the family's code runs
_METHOD = re.compile(r"res_(DC|DSA|DM|DataDAM)_|(datadam)", re.IGNORECASE)
_HISTORY = re.compile(r"ipc_\.\w+$")
_PROTOCOLS = {"dc": "dc", "dsa": "mtt", "dm": "mtt", "datadam": "datadam"}
_APART = "the memories of all steps are one set, though each was distilled from the classes of its step alone"
_MNIST = "crop_scale_rotate"  # DC's augmentation for evaluation on MNIST; it uses none elsewhere
_HISTORIES, _CONTINUAL = "datadam-history", "dm-continual"


class _Pair(NamedTuple):
    images: Tensor
    labels: Tensor


class Experiments(Reader):
    """`data`, a list of images with labels."""

    formats: ClassVar[dict[str, str]] = {
        "dc": "DC, DSA, DM: the sets of independent experiments",
        _HISTORIES: "DataDAM's training file: the same run at several times",
        "datadam": "DataDAM's released pair of images and labels",
        _CONTINUAL: "DM's continual learning: the memory of each step, together the set",
    }

    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """See `Reader`."""
        if len(source.paths) != 1 or source.container(source.paths[0]) != "torch":
            return ()
        found = source.content(source.paths[0])
        if not isinstance(found, Mapping) or "data" not in found:
            return ()
        data, scored = found["data"], "accs_all_exps" in found
        if _pair(data) is not None:
            return (Recognised("datadam", ("a dict whose data are images and labels",)),)
        pairs = _pairs(data)
        if not pairs:
            return ()
        if classes := _classes_of_steps(pairs):
            steps = f"a dict with data of {len(pairs)} pairs of images and labels, no two of which share a class"
            each = ", ".join(dict.fromkeys(map(str, classes)))
            return (Recognised(_CONTINUAL, (f"{steps}: steps of {each} classes",)),)
        scores = " and accs_all_exps" if scored else ""
        evidence = f"a dict with data of {len(pairs)} pairs of images and labels{scores}"
        history = _is_history(source.paths[0], len(pairs))
        why = f"{evidence}; {history}" if history else evidence
        return Recognised("dc", (evidence,), not history), Recognised(_HISTORIES, (why,), bool(history))

    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """See `Reader`."""
        path = source.paths[0]
        found = source.content(path)
        assert isinstance(found, Mapping), "it was recognised"
        single = _pair(found["data"])
        if single is not None:
            return [_draft(single, path, recognised, "datadam", asked)]
        pairs = _pairs(found["data"])
        if recognised.format == _CONTINUAL:
            return [_draft(_joined(pairs), path, recognised, "dm", asked, (_APART,))]
        if recognised.format == _HISTORIES and len(pairs) > 1 and asked.entry is None:
            raise UsageError(
                f"{path} holds {len(pairs)} states of the same run or of several, in the order of their evaluations: "
                f"say entry=0 to entry={len(pairs) - 1}, or entry=all"
            )
        stated = _stated(found.get("accs_all_exps"), len(pairs), recognised.format != _HISTORIES)
        method = "datadam" if recognised.format == _HISTORIES else _method(path)
        drafts = [_draft(pair, path, recognised, method, asked) for pair in pairs]
        entries = [str(number) for number in range(len(pairs))] if len(pairs) > 1 else [""]
        return [
            Draft(**{**vars(draft), "entry": entry, "stated": scores})
            for draft, entry, scores in zip(drafts, entries, stated, strict=True)
        ]


def _draft(
    pair: _Pair, path: Path, recognised: Recognised, method: str, asked: Asked, assumed: tuple[str, ...] = ()
) -> Draft:
    datadam = method == "datadam"
    unsaid = "the file does not say whether DC, DSA or DM made it: scored as DC's, unaugmented (protocol=mtt otherwise)"
    mnist = method == "dc" and asked.dataset == "mnist"
    return Draft(
        format=recognised.format,
        images=pair.images,
        labels=pair.labels,
        files=(path,),
        family="datadam" if datadam else "dc",
        evidence=recognised.evidence,
        assumed=assumed if method else (unsaid,),
        value_space=("normalised", "zca") if datadam else "normalised",
        class_order="sorted" if datadam and asked.dataset.startswith("image") else None,
        protocol="mtt" if mnist else _PROTOCOLS[method or "dc"],
        augment=_MNIST if mnist else None,
    )


def _method(path: Path) -> str:
    """Return the method from a file name of the family's code; "" if the name does not tell."""
    match = _METHOD.search(path.name)
    return (match[1] or match[2]).lower() if match else ""


def _is_history(path: Path, entries: int) -> str:
    """Return why the entries are taken for states of one run; "" if they are not."""
    if entries > _EXPERIMENTS:
        return f"more entries than the {_EXPERIMENTS} experiments that DC, DSA and DM run"
    if entries > 1 and (_method(path) == "datadam" or _HISTORY.search(path.name)):
        return "its name is one that DataDAM's training code gives"
    return ""


def _pair(value: Tree) -> _Pair | None:
    """Return images of three or four axes with as many labels, or None."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != 2:
        return None
    images, labels = value
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        return None
    return _Pair(images, labels) if images.dim() == 4 and labels.dim() in (1, 2) else None


def _pairs(value: Tree) -> list[_Pair]:
    """Return the pairs of a list; empty unless it consists of pairs."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return []
    found = [_pair(one) for one in value]
    pairs = [one for one in found if one is not None]
    return pairs if len(pairs) == len(found) else []


def _classes_of_steps(pairs: Sequence[_Pair]) -> list[int]:
    """Return the number of classes of each pair if there are several and no two have a class in common, else []."""
    if len(pairs) < 2 or any(
        pair.labels.dim() != 1 or pair.images.shape[1:] != pairs[0].images.shape[1:] for pair in pairs
    ):
        return []
    found = [set(pair.labels.tolist()) for pair in pairs]
    counts = [len(one) for one in found]
    return counts if len(set().union(*found)) == sum(counts) else []


def _joined(pairs: Sequence[_Pair]) -> _Pair:
    """Return the images of all steps, ordered by class."""
    labels = torch.cat([pair.labels for pair in pairs])
    order = labels.argsort(stable=True)
    return _Pair(torch.cat([pair.images for pair in pairs])[order], labels[order])


def _stated(scores: Tree, entries: int, apart: bool) -> list[tuple[StatedScore, ...]]:
    """Return the accuracies of each entry, in percent, if they divide equally among the experiments."""
    every: list[tuple[StatedScore, ...]] = [()] * entries
    if not isinstance(scores, Mapping) or not apart:
        return every
    for network, values in scores.items():
        numbers = _percentages(values)
        each, rest = divmod(len(numbers), entries)
        if not numbers or rest:
            continue
        where = f"{printable(str(network), keep='')[:100]}, their own protocol"
        for entry in range(entries):
            every[entry] += (StatedScore(tuple(numbers[entry * each : (entry + 1) * each]), where=where),)
    return every


def _percentages(values: Tree) -> list[float]:
    if isinstance(values, Tensor):
        values = values.flatten().tolist()
    if not isinstance(values, Sequence) or not all(isinstance(one, int | float) for one in values):
        return []
    numbers = [float(one) for one in values if isinstance(one, int | float)]
    if not numbers or not all(math.isfinite(one) and 0 <= one <= 100 for one in numbers):
        return []
    return [100 * one for one in numbers] if max(numbers) <= 1 else numbers


READERS = [Experiments()]
