"""What determines a store of soft labels, its manifest, and the arithmetic of its size."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dd.errors import UsageError
from dd.io import SEAL, digest, existing, holds, sealed, write_json
from dd.labels.forms import LabelForm, form_of
from dd.rng import generator
from dd.views import View, ViewPolicy, draw_view
from dd.views.dsa import Shape

FORMAT = "dd-soft-labels"
VERSION = 1
MANIFEST = "manifest.json"
CLASSES = "classes.npy"
_ENTRY = re.compile(r'"(epoch-\d{5}\.npy)":\s*(\{[^{}]*\})')

Files = dict[str, dict[str, Any]]
"""By name: "bytes", "sha256", and for an epoch "of", the hash of the spec, and in replay="seed" "views", a fingerprint
of what was drawn."""


@dataclass(frozen=True)
class StoreSpec:
    """Everything that determines the labels of a store, and its views.

    Attributes:
        n: number of images.
        classes: names in label order.
        epochs: how many are stored.
        batch: images per batch; the last one of an epoch may be smaller.
        form: what a label is stored as.
        policy: how views are drawn.
        shape: (channels, height, width) of an image.
        seed: root of orders and views.
        micro: for labels that depend on their batch (teachers with batch statistics) the size of the micro-batches that
            were labelled together; None for labels of every view alone.
        strategy: what the policy's strategy "data" stands for.
        black: per channel in model space, where the policy pads; else None.
        replay: "seed" to draw the views again, "records" to keep them.
        images: SHA-256 of the images the labels were made for.
        teacher: JSON-able facts about who made them: names, hashes, mode, ensemble, weights.
    """

    n: int
    classes: tuple[str, ...]
    epochs: int
    batch: int
    form: LabelForm
    policy: ViewPolicy
    shape: Shape
    seed: int = 0
    micro: int | None = None
    strategy: str = "none"
    black: tuple[float, ...] | None = None
    replay: Literal["seed", "records"] = "seed"
    images: str = ""
    teacher: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("n", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"soft labels: {name} is {getattr(self, name)}, but at least 1 is needed")
        if self.micro is not None and not 1 < self.micro <= self.batch:
            raise UsageError(
                f"soft labels: eval.micro={self.micro} is out of range; it is from 2 to eval.batch, {self.batch}"
            )
        if self.micro is not None and self.n % self.batch == 1:
            raise UsageError(
                f"soft labels: {self.n} images in batches of {self.batch} leave one alone, of which batch statistics "
                "say nothing; choose another eval.batch"
            )
        if self.form.classes != len(self.classes):
            raise UsageError(
                f"soft labels: a form for {self.form.classes} classes, where there are {len(self.classes)}"
            )
        if self.replay not in ("seed", "records"):
            raise UsageError(f"soft labels: replay is {self.replay!r}; known: seed, records")
        policy = self.policy
        if self.replay == "records" and (policy.tiles > 1 or policy.pad or policy.operations(self.strategy) != "none"):
            raise UsageError(
                "soft labels: replay='records' keeps no tiles, no pad and no strategy of a view; use replay='seed'"
            )

    @property
    def batches(self) -> int:
        """Batches per epoch."""
        return -(-self.n // self.batch)

    def order(self, epoch: int) -> Tensor:
        """int64 (n,): the images in the order in which an epoch shows them."""
        return torch.randperm(self.n, generator=generator(self.seed, "views", "order", epoch))

    def view(self, epoch: int, number: int) -> View:
        """The view of one batch of an epoch, drawn from the seed."""
        images = min(self.batch, self.n - number * self.batch)
        rng = generator(self.seed, "views", epoch, number)
        return draw_view(self.policy, images, self.shape, rng, self.strategy, self.black)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {"form": self.form.spec(), "policy": asdict(self.policy), "teacher": dict(self.teacher)}
        if not self.policy.pad:  # as before views had one: what earlier stores are known by stands
            del values["policy"]["pad"], values["black"]
        return json.loads(json.dumps(values))

    def digest(self) -> str:
        """Hash of all of it."""
        return digest(self.to_json())

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "StoreSpec":
        """What `to_json` wrote; TypeError, KeyError, ValueError or UsageError where it is something else."""
        plain = {**values, "classes": tuple(values["classes"]), "shape": tuple(values["shape"])}
        plain["black"] = None if values.get("black") is None else tuple(values["black"])
        return StoreSpec(**{**plain, "form": form_of(**values["form"]), "policy": ViewPolicy(**values["policy"])})


class Batch(NamedTuple):
    """One batch of an epoch: `images` (b,) int64, their `view`, and the encoded `labels`, on the CPU."""

    images: Tensor
    view: View
    labels: dict[str, Tensor]


class DamagedManifest(UsageError):
    """There is a manifest, and it does not hold."""


def file_of(epoch: int) -> str:
    """Name of the file of an epoch."""
    return f"epoch-{epoch:05d}.npy"


def read_manifest(path: Path) -> tuple[StoreSpec, Files]:
    """Spec and finished files of the store in the folder `path`.

    Raises:
        UsageError: there is none, or it is of another version.
        DamagedManifest: it is damaged.
    """
    file = path / MANIFEST
    if os.path.exists(file):
        existing(file, str(file))
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"no soft labels in {path} ({error.strerror or error}); "
            f"copy the folder {path.name}/ beside the set that it was made for"
        ) from error
    except ValueError as error:
        raise _damaged(file, error) from error
    if isinstance(manifest, dict) and SEAL in manifest and not holds(manifest):
        raise _damaged(file, "its hash is wrong")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        foreign = isinstance(manifest, dict) and "format" in manifest
        kind = UsageError if foreign else DamagedManifest  # what is another program's is not to be mended
        raise kind(f"{file} describes no soft labels (its 'format' is not {FORMAT!r})")
    if manifest.get("version") != VERSION:
        raise UsageError(f"{path} was written by another dd (format version {manifest.get('version')}, not {VERSION})")
    try:
        return StoreSpec.from_json(manifest["spec"]), dict(manifest["files"])
    except (TypeError, KeyError, ValueError, AttributeError, UsageError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, why: object) -> DamagedManifest:
    return DamagedManifest(f"{file} is damaged: {why}")


def salvaged(path: Path, spec: StoreSpec) -> Files:
    """The epochs that a damaged manifest still lists in full, as those of `spec`; the files themselves say the rest."""
    text, found = (path / MANIFEST).read_bytes().decode(errors="replace"), Files()
    wanted = {"bytes", "sha256", "of"} | ({"views"} if spec.replay == "seed" else set())
    for name, entry in _ENTRY.findall(text):
        try:
            facts = json.loads(entry)
        except ValueError:
            continue
        if facts.keys() == wanted and facts["of"] == spec.digest():
            found[name] = facts
    return found


def write_manifest(path: Path, spec: StoreSpec, files: Files) -> None:
    """Write the manifest of the store in the folder `path`, atomically, with the versions of what draws views."""
    from importlib.metadata import version

    libraries = {"torch": torch.__version__, "numpy": np.__version__, "dd-workbench": version("dd-workbench")}
    facts = {"format": FORMAT, "version": VERSION, "spec": spec.to_json(), "libraries": libraries}
    write_json(path / MANIFEST, sealed({**facts, "files": dict(sorted(files.items()))}))
