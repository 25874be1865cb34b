"""Learning curves: what a student reaches while it is trained."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dd.views import Batches


@dataclass(frozen=True)
class Curve:
    """The accuracies of one student at several times of its training, the last at its end.

    Attributes:
        steps: training steps done at each time, ascending.
        images: images shown until then, each as often as it was shown.
        seconds: seconds of training until then, with the loading of the images and without the measurements.
        test: accuracy in percent on all test images.
        holdout: accuracy in percent on the held-out images; empty without a hold-out.
    """

    steps: tuple[int, ...]
    images: tuple[int, ...]
    seconds: tuple[float, ...]
    test: tuple[float, ...]
    holdout: tuple[float, ...] = ()

    @property
    def best(self) -> float:
        """The best test accuracy: chosen on test images, so it is no estimate of the accuracy on others."""
        return max(self.test)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return a JSON-serialisable dict."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Curve":
        """Rebuild a curve from the result of `to_dict`."""
        return cls(**{name: tuple(value[name]) for name in cls.__dataclass_fields__})


class CurveRecorder:
    """Records the curve of one student; `after_step` of `Trainer.train`.

    Args:
        steps: the steps after which the student is scored.
        measure: scores the network, which may be left in another mode; returns its accuracies in percent on test and
            on held-out images (None without a hold-out).
        device: where the student is trained.
        began: when the training began, as `time.perf_counter` says it.
    """

    def __init__(
        self,
        steps: Collection[int],
        measure: Callable[[nn.Module], tuple[float, float | None]],
        device: torch.device,
        began: float,
    ) -> None:
        self._steps, self._measure, self._device = frozenset(steps), measure, device
        self._began, self._paused, self._shown = began, 0.0, 0
        self._points: list[tuple[int, int, float, float, float | None]] = []

    def counted(self, batches: Batches) -> Batches:
        """Return the same batches; the images in them are counted as shown."""

        def passes(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches(rng, number):
                self._shown += len(batch[0])
                yield batch

        return passes

    def __call__(self, step: int, network: nn.Module) -> None:
        """Score the network if it is time to; its mode is restored, and the time that this takes does not count."""
        if step not in self._steps:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        stopped, training = time.perf_counter(), network.training
        test, holdout = self._measure(network)
        network.train(training)
        self._points.append((step, self._shown, stopped - self._began - self._paused, test, holdout))
        self._paused += time.perf_counter() - stopped

    def curve(self) -> Curve:
        """Return what was recorded."""
        steps, images, seconds, test, holdout = zip(*self._points, strict=True)
        return Curve(steps, images, seconds, test, () if None in holdout else holdout)
