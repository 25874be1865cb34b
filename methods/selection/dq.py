"""DQ: Dataset Quantization (Zhou et al., ICCV 2023, arXiv:2308.10524)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from dd.engine.method import Synthetic, Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.engine.selection import SELECTION, Chosen
from dd.errors import UsageError
from dd.io import existing, sha256_file, user_path
from dd.networks import NetworkSpec
from dd.networks.masked import Completer, read_completer
from dd.networks.saliency import grad_cam_pp
from dd.selection.bins import bins_of, sampled
from dd.selection.patches import kept_patches, pasted, visible
from dd.sets import DistilledSet
from dd.settings import Outside
from dd.training.fitness import require_fit
from dd.training.teachers import Teachers, file_digests, named_by

from ._features import FromFeatures, Rng, SelectionPool
from .graphcut import GraphCut

AT_ONCE = 64  # images completed at a time

_VIEWER = "viewer"


class _Viewer(Teachers):
    """The need for the network that says which patches matter."""

    name = _VIEWER


@dataclass(frozen=True, eq=False)
class Equipped(FromFeatures):
    """Features, and the networks that drop and complete patches, if they are used."""

    viewer: nn.Module | None = None
    completer: Completer | None = None


class Completed(Chosen):
    """Chosen images with some patches dropped and completed again.

    Args:
        chosen: the chosen images.
        pixels: uint8 (n, c, h, w), completed.
        kept: bool (n, patches).
    """

    pixels: Tensor
    kept: Tensor

    def __init__(self, chosen: Chosen, pixels: Tensor, kept: Tensor) -> None:
        super().__init__(chosen.index, chosen.targets, chosen.chosen_labels, chosen.kind)
        self.register_buffer("pixels", pixels)
        self.register_buffer("kept", kept)


@register("dq")
@dataclass(frozen=True)
class DQ(GraphCut):
    """Random real images from bins, each chosen by graph cut from what the bins before it left.

    1. Divide every class into bins: the first ones hold typical images, the last one the rest.
    2. Draw images from every bin.
    3. If an autoencoder is named: drop the patches that matter least, and complete the images without them.  What
       counts as stored are the kept patches, the mask and the autoencoder.

    A plain graph cut would be the first bin alone.
    """

    paper = "https://arxiv.org/abs/2308.10524"

    bins: Annotated[int, Field(ge=1, le=10**6)] = 10
    """Number of bins."""
    autoencoder: Annotated[str | None, Outside("run", "the digest of the file counts")] = None
    """Weights of a masked autoencoder with its decoder (.safetensors, .pt or .pth), which completes the images; None to
    store the indices of whole images.
    """
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of an image's patches that are dropped, if there is an autoencoder."""
    viewer: Annotated[str, Field(min_length=1)] | None = None
    """The convolutional network whose Grad-CAM++ maps say which patches matter, named like `proxy`; None for the proxy.
    """

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """The digests of proxy, viewer and autoencoder, if they are files."""
        found = dict(super().digests(student))
        if self.autoencoder is not None:
            found["autoencoder"] = sha256_file(self._file())
            if self.viewer is not None:
                with named_by(_VIEWER):
                    files = file_digests([self.viewer], student)
                found |= {_VIEWER: files["teachers[0]"]} if files else {}
        return found

    def _file(self) -> Path:
        assert self.autoencoder is not None
        return existing(user_path(self.autoencoder, "autoencoder"), f"autoencoder={self.autoencoder}")

    def needs(self, task: Task) -> list[Need[Any]]:
        """The proxy, its features of the training images and, if it is another network, the viewer."""
        viewer = self._viewer(task)
        return [*super().needs(task), *([viewer] if viewer else [])]

    def _viewer(self, task: Task) -> "_Viewer | None":
        if self.autoencoder is None or self.viewer is None:
            return None
        return _Viewer(task, (self.viewer,), self.squeeze, partial(require_fit, task=task), field=_VIEWER)

    def prepare(self, task: Task, got: Got) -> Equipped:
        """The features, the viewer and the autoencoder."""
        found = super().prepare(task, got)
        if self.autoencoder is None:
            return Equipped(found.embedded)
        need, completer = self._viewer(task), read_completer(self._file(), task.device)
        if completer.network.spec.channels not in (task.data.channels, 3):
            ours, theirs = task.data.channels, completer.network.spec.channels
            raise UsageError(f"autoencoder={self.autoencoder}: it takes images of {theirs} channels, not of {ours}")
        viewer = found.embedded.teacher.network if need is None else got[need][0].network
        return Equipped(found.embedded, viewer=viewer, completer=completer)

    def pick(self, pool: SelectionPool, count: int, rng: Rng) -> Tensor:
        """Fill the bins by graph cut, and draw from them."""
        draws, cut = rng(), super().pick
        bins = bins_of(torch.arange(len(pool)), self.bins, lambda left, size: cut(pool.part(left), size, lambda: draws))
        return sampled(bins, count, draws)

    def start(self, task: Task, prepared: FromFeatures) -> Chosen:
        """The chosen images; with an autoencoder, completed."""
        chosen, ready = super().start(task, prepared), cast(Equipped, prepared)
        if ready.completer is None or ready.viewer is None:
            return chosen
        parts = [self._completed(task, ready.viewer, ready.completer, some) for some in chosen.index.split(AT_ONCE)]
        pixels, kept = (torch.cat(list(part)) for part in zip(*parts, strict=True))
        return Completed(chosen, pixels, kept)

    def _completed(self, task: Task, viewer: nn.Module, completer: Completer, index: Tensor) -> tuple[Tensor, Tensor]:
        """The images at some indices, uint8 (n, c, h, w), and which patches are theirs, bool (n, patches)."""
        raw = task.data.train.raw(index)
        if completer.grid > raw.shape[-1]:
            raise UsageError(
                f"autoencoder={self.autoencoder} has {completer.grid} patches per side, more than images of "
                f"{raw.shape[-1]} pixels can hold: name another, or give a larger data.size"
            )
        name = f"viewer={self.viewer}" if self.viewer else f"proxy={self.proxy}"
        kept = kept_patches(grad_cam_pp(viewer, task.data.train.images(index), name), completer.grid, self.drop)
        made = (completer(raw.float() / 255, kept) * 255).round().byte()
        return pasted(raw, made, kept).cpu(), kept.cpu()

    def finish(self, syn: Synthetic, task: Task, prepared: FromFeatures) -> DistilledSet:
        """The set of indices or, with an autoencoder, of images, whose labels are those at their indices."""
        made, ready = super().finish(syn, task, prepared), cast(Equipped, prepared)
        if ready.completer is None:
            return made
        done = cast(Completed, syn)
        sizes = {
            "patch_bytes": int(visible(done.kept, done.pixels.shape[-1]).sum()) * done.pixels.shape[1],
            "mask_bytes": len(done.kept) * -(-done.kept.shape[1] // 8),
            "decoder_bytes": ready.completer.bytes,
        }
        facts = {**made.provenance[SELECTION], "patches_kept": int(done.kept[0].sum()), "drop": self.drop, **sizes}
        provenance = {**made.provenance, SELECTION: facts}
        return replace(made, images=done.pixels.clone(), image_kind="pixels", provenance=provenance)
