"""Evaluation protocols: how students are trained and scored, with a fingerprint that comparable numbers share."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from typing import Annotated, Any, Literal

from pydantic import Field

from dd.data.settings import Resize
from dd.io import digest
from dd.io.typed import typed
from dd.plugins import Named
from dd.settings import OnlyWith, Outside, identity
from dd.training.criteria import CrossEntropy
from dd.training.loop import Fit
from dd.views import ViewPolicy

_TOLD = Outside("number", "it says how students are counted or watched, not how one is trained")
Regime = Literal["hard", "soft", "views"]
ReferenceRow = Literal["decoded", "start", "noise", "mixed", "bytes"]
ALL_ROWS: tuple[ReferenceRow, ...] = ("decoded", "start", "noise", "mixed", "bytes")
_Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Protocol:
    """How students are trained and scored.  Accuracy is always top-1 on the test images after the last step."""

    protocol: Annotated[str, Outside("number", "the settings that it names count")] = "quick"
    """Name of the protocol that supplies the defaults."""
    students: Annotated[int, Field(ge=1, le=10**6), _TOLD] = 5
    """Fresh networks per accuracy; also the number of control draws."""
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = 300
    """Training steps of a student; None if `epochs` is given."""
    epochs: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Passes over the set; None if `steps` is given."""
    batch: Annotated[int, Field(ge=1, le=10**6)] = 256
    """Images per step; a smaller set is used as one batch."""
    lr: Annotated[float, Field(gt=0, le=1000)] = 0.01
    """Learning rate, unless the set has a learned one."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 5e-4
    """L2 penalty of SGD, or decoupled weight decay of AdamW."""
    decay_at: _Share | tuple[_Share, ...] = 0.5
    """One or several fractions of the training at which to multiply lr by `decay`, and reset the momentum buffer unless
    `keep_state`.
    """
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor applied to lr at each of `decay_at`; 1 for a constant rate."""
    momentum_after: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum after the first of `decay_at`; None to keep it."""
    augment: bool = True
    """Augment with DSA, one operation per batch, using the data set's strategy."""
    optimiser: Literal["sgd", "nesterov", "adamw"] = "sgd"
    """Optimiser of the students; "nesterov" is SGD with Nesterov's momentum, which must not be 0."""
    cosine: Annotated[float, Field(ge=1, le=1000)] | None = None
    """Decay lr along a half cosine over `cosine` times the training: 1 ends at zero, 2 at half of `lr`; None for no
    cosine.
    """
    min_lr: Annotated[float, Field(ge=0, le=1000), OnlyWith("min_lr")] = 0.0
    """Learning rate that the cosine approaches instead of zero."""
    keep_state: bool = False
    """Keep the optimiser and its momentum buffer at each of `decay_at`."""
    spare_vectors: bool = False
    """Exempt biases and norm layers from weight decay."""
    inclusive: bool = True
    """Count epochs 0 to E inclusive, and decay lr after epoch E // 2 + 1, as the evaluation code of the matching family
    does.
    """
    warmup: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Epochs of linear lr warm-up, starting at a hundredth of lr."""
    views: ViewPolicy = field(default_factory=ViewPolicy)
    """Cropping, flipping and mixing of training images."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Softmax temperature of student and teacher, if a teacher provides the labels."""
    temperature_squared: bool = False
    """Multiply the loss by the squared temperature; this affects SGD only."""
    micro: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Micro-batch size: images per forward pass, accumulated into one step; None for the whole batch."""
    test_resize: Resize | None = None
    """How test images are resized, see `DataSettings.resize`; None to use the data's setting."""
    pilots: Annotated[int, Field(ge=1, le=10**6), _TOLD] = 2
    """Students per candidate lr when the lr of control and start is chosen on held-out images."""
    full: Annotated[bool | None, _TOLD] = None
    """Also train on all real images; None: if `full_budget` allows it."""
    full_students: Annotated[int, Field(ge=1, le=10**6), _TOLD] = 2
    """Students of the reference on all real images."""
    full_budget: Annotated[int, Field(ge=0, le=10**15), _TOLD] = 80_000
    """Maximum image passes for the reference; the default takes about a minute for fashion-mini on 2 cores."""
    probes: Annotated[int, Field(ge=0, le=10**6), _TOLD] = 4
    """Number of times to score the set on held-out images during synthesis; 0 for never."""
    probe_steps: Annotated[int, Field(ge=1, le=10**9), _TOLD] = 100
    """Training steps of a probe's students."""
    probe_students: Annotated[int, Field(ge=1, le=10**6), _TOLD, OnlyWith("probe_students", unless=1)] = 1
    """Students of each probe; with several, their standard deviation is logged beside the mean."""
    curve: Annotated[int, Field(ge=0, le=10_000), _TOLD, OnlyWith("curve")] = 0
    """Number of evenly spaced times at which each student is scored on all test and held-out images, the last at the
    end: its learning curve, by which nothing is chosen.  0 for none.
    """
    target: Annotated[Annotated[float, Field(gt=0, le=100)] | None, _TOLD, OnlyWith("curve")] = None
    """Test accuracy in percent; the report states when students first reach it, at the times of `curve`.  None for
    none.
    """
    references: Annotated[tuple[ReferenceRow, ...], _TOLD, OnlyWith("references", unless=ALL_ROWS)] = ALL_ROWS
    """What to train students on besides the set and random real images, where it exists: "decoded", mosaics of random
    real images; "start", the set at iteration 0.  In the regimes of `labels` also "noise"; "mixed", the set with labels
    that are half hard, half soft; "bytes", random real images that take as many bytes as the set.  () for none.
    """
    lengths: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], _TOLD, OnlyWith("labels")] = ()
    """Further lengths of training, as factors of the protocol's, at which to score the set, random images and the
    coreset in every regime of `labels`: coresets gain little from longer training, distilled images more.
    """
    labels: Annotated[tuple[Regime, ...], _TOLD, OnlyWith("labels")] = ()
    """Label regimes in which to score the set and its references, in addition to the set's own labels: "hard", the
    images' classes; "soft", one label of a teacher for each image; "views", a teacher asked on every view.
    """
    suite: Annotated[str | None, _TOLD, OnlyWith("labels")] = None
    """The protocols of these regimes: "quick", "hardtruths" or "smoke"; None: "hardtruths" for the papers' data sets,
    else "quick".
    """
    teachers: Annotated[tuple[str, ...], _TOLD, OnlyWith("labels")] = ()
    """Teachers of "soft" and "views", see `teachers` of a decoupled method; (): those of the set, if it has any, else
    one of the student's architecture, trained here.
    """
    coreset: Annotated[tuple[str, ...], _TOLD, OnlyWith("labels")] = ()
    """Selection methods whose images stand beside the set in every regime; of several, the best on held-out images."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give one of steps and epochs, not steps={self.steps} with epochs={self.epochs}")
        if self.optimiser == "nesterov" and 0 in (self.momentum, self.momentum_after):
            raise ValueError("optimiser=nesterov needs a momentum above 0; without momentum, use optimiser=sgd")
        if self.target is not None and not self.curve:
            raise ValueError(f"target={self.target:g} needs a learning curve, for example curve=20")

    def total_steps(self, n: int) -> int:
        """Return the number of training steps on a set of n images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return (self.epochs + self.inclusive) * self.passes_to_steps(n)

    def passes(self, n: int) -> int:
        """Return the number of passes over n images that a student starts."""
        return -(-self.total_steps(n) // self.passes_to_steps(n))

    def passes_to_steps(self, n: int) -> int:
        """Return the number of steps in one pass over n images."""
        return -(-n // self.batch)

    def stretched(self, factor: float) -> "Protocol":
        """Return a protocol with `factor` times the training, rounded to steps or epochs, at least one of them.

        The schedule keeps its shape, and a warm-up its share.
        """
        steps, epochs = (n and max(round(n * factor), 1) for n in (self.steps, self.epochs))
        return replace(self, steps=steps, epochs=epochs, warmup=round(self.warmup * factor))

    def curve_steps(self, n: int) -> tuple[int, ...]:
        """Return the steps after which a student on n images is scored for its curve: ascending, the last at the end.

        There are `curve` of them, or one for each step if a student has fewer.
        """
        total = self.total_steps(n)
        count = min(self.curve, total)
        return tuple(k * total // count for k in range(1, count + 1))

    def fit(self, n: int, lr: float, strategy: str, temperature: float = 1.0) -> Fit:
        """Return the training settings of one student on n images; `temperature` applies to soft labels only."""
        steps = self.total_steps(n)
        return Fit(
            steps=steps,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            decay_at=tuple(drop for drop in self._drops(n, steps) if drop < steps) if self.decay < 1 else (),
            decay=self.decay,
            momentum_after=self.momentum_after,
            keep_state=self.keep_state,
            optimiser=self.optimiser,
            cosine=self.cosine,
            min_lr=self.min_lr,
            warmup=self.warmup * self.passes_to_steps(n),
            spare_vectors=self.spare_vectors,
            criterion=CrossEntropy(temperature, self.temperature_squared),
            micro=self.micro,
            strategy=strategy if self.augment else "none",
        )

    def _drops(self, n: int, steps: int) -> list[int]:
        shares = self.decay_at if isinstance(self.decay_at, tuple) else (self.decay_at,)
        if self.epochs is None:
            return [int(steps * share) for share in shares]
        return [(int(self.epochs * share) + 2 * self.inclusive) * self.passes_to_steps(n) for share in shares]

    def training(self) -> dict[str, Any]:
        """Return the values that affect a student's accuracy, by dotted key."""
        return identity(self, "number")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    def in_words(self) -> str:
        """Return the protocol's name, followed by the accuracy-relevant settings that differ from the named protocol.

        Settings are written as on the command line, without `eval.`: `"cvdd, batch=10"`.
        """
        words = [self.protocol]
        if self.protocol not in PROTOCOLS:  # of a plug-in that is not installed here
            return self.protocol
        published = PROTOCOLS[self.protocol].training()
        for key, value in self.training().items():
            laid_down = key in ("steps", "epochs") and value is None  # because the other one is given
            if value != published[key] and not laid_down:
                words.append(f"{key}={'null' if value is None else value}")
        return ", ".join(words)

    def fingerprint(self, student: dict[str, Any], strategy: str, labels: Mapping[str, Any] | None = None) -> str:
        """Return the hash of everything that comparable numbers must share, except the data and the teachers.

        Args:
            student: the network.
            strategy: the augmentation strategy.
            labels: how the teachers' labels are made; None if the images have labels of their own.
        """
        shared = {"training": self.training(), "student": student, "augment": strategy if self.augment else "none"}
        return digest(shared if labels is None else shared | {"labels": dict(labels)})


# shared by the SRe2L family unless overridden: AdamW, cosine, no weight decay of vectors, temperature 20, CutMix crops
_SOFT = Protocol(
    steps=None,
    epochs=300,
    lr=1e-3,
    weight_decay=0.01,
    decay=1.0,
    augment=False,
    optimiser="adamw",
    cosine=1.0,
    spare_vectors=True,
    inclusive=False,
    views=ViewPolicy(crop=0.08, flip=True, mix="cutmix"),
    temperature=20.0,
    probe_steps=300,
)

# shared by the protocols of coresets: epochs of the subset, however small it is
_CORESET = Protocol(
    protocol="deepcore",
    steps=None,
    epochs=200,
    lr=0.1,
    decay=1.0,
    augment=False,
    optimiser="nesterov",
    cosine=1.0,
    min_lr=1e-4,
    inclusive=False,
    views=ViewPolicy(pad=4, flip=True),
    probe_steps=300,
)

_OURS: dict[str, Protocol] = {
    # 300 steps at batch 128; measured to separate sets well on 2 cores
    "quick": Protocol(batch=128),
    # MTT, FTD, TESLA: 1000 epochs, batch 256 (Cazenavette et al. 2022, official evaluation)
    "mtt": Protocol(protocol="mtt", steps=None, epochs=1000, probe_steps=500),
    # DATM: the same at batch 128 (official configurations)
    "datm": Protocol(protocol="datm", steps=None, epochs=1000, batch=128, probe_steps=500),
    # DC without augmentation: 300 epochs (Zhao et al. 2021, official evaluation); DSA and DM introduced "mtt"
    "dc": Protocol(protocol="dc", steps=None, epochs=300, augment=False, probe_steps=300),
    # DataDAM: 1800 epochs at batch 64 (Sajedi et al. 2023, official code, which reports the best checkpoint on the test
    # set; we report the last)
    "datadam": Protocol(protocol="datadam", steps=None, epochs=1800, batch=64, probe_steps=500),
    # "quick" with one soft label for each image, at the temperature of "quick-soft"
    "quick-static": Protocol(protocol="quick-static", batch=128, temperature=4.0, temperature_squared=True),
    # teacher-labelled views, for 2 cores (measured to separate sets in half a minute)
    "quick-soft": replace(
        _SOFT,
        protocol="quick-soft",
        epochs=150,
        batch=50,
        lr=2e-3,
        views=ViewPolicy(crop=0.3, flip=True, mix="cutmix"),
        temperature=4.0,
    ),
    # SRe2L on ImageNet-1K: batch 1024, AdamW, cosine to zero, T 20 (Yin et al. 2023, official scripts)
    "sre2l": replace(_SOFT, protocol="sre2l", batch=1024, test_resize="shorter"),
    # SRe2L on Tiny-ImageNet: SGD .2, 5 warm-up epochs, weight decay on all parameters, no mixing, loss times T^2
    "sre2l-tiny": replace(
        _SOFT,
        protocol="sre2l-tiny",
        epochs=100,
        batch=256,
        optimiser="sgd",
        lr=0.2,
        weight_decay=1e-4,
        warmup=5,
        spare_vectors=False,
        temperature_squared=True,
        views=ViewPolicy(crop=0.08, flip=True),
    ),
    # SRe2L on CIFAR-100: images padded with 4 black pixels and cropped, MixUp, T 30, weight decay on all parameters
    "sre2l-cifar": replace(
        _SOFT,
        protocol="sre2l-cifar",
        epochs=400,
        batch=128,
        spare_vectors=False,
        views=ViewPolicy(pad=4, flip=True, mix="mixup", mix_alpha=0.8),
        temperature=30.0,
    ),
    # CDA: SRe2L with batches of 128 (Yin & Shen 2024, official scripts)
    "cda": replace(_SOFT, protocol="cda", batch=128, test_resize="shorter"),
    # SRe2L++ and CV-DD: batches of 16 as 2 x 8 (Cui et al. 2025, official scripts, which also vary cosine and lr with
    # data set, ipc and network, and test 224-pixel images like SRe2L: eval.test_resize=shorter)
    "cvdd": replace(_SOFT, protocol="cvdd", batch=16, micro=8),
    # MEAL V2: SGD on the mean of the teachers' probabilities (labels.ensemble=prob_mean), no weight decay (Shen &
    # Savvides 2020, official code, which starts from a pretrained student; here it is fresh)
    "mealv2": replace(
        _SOFT,
        protocol="mealv2",
        epochs=180,
        batch=512,
        optimiser="sgd",
        lr=0.01,
        weight_decay=0.0,
        cosine=None,
        decay_at=100 / 180,
        decay=0.1,
        keep_state=True,
        views=ViewPolicy(crop=0.08, flip=True),
        temperature=1.0,
    ),
    # RDED: shuffled tiles, crops of at least half the area, lr ends at half, test images of any size lose an eighth
    # (Sun et al. 2024, official code, which varies the batch with data set and ipc and reports the best of the last
    # epochs on the test set)
    "rded": replace(
        _SOFT,
        protocol="rded",
        batch=50,
        cosine=2.0,
        views=ViewPolicy(tiles=2, crop=0.5, flip=True, mix="cutmix"),
        test_resize="shorter",
    ),
    # rethinkdc: the same for every set, pruned or distilled.  Soft: torchvision's resnet18 (IMAGENET1K_V1) labels the
    # mixed views while students train; hard: the images' own classes, nothing mixed (Yang et al. 2025, official code;
    # there lr changes once an epoch, here at every step, and teacher and student are ImageNet-1K's 1000 classes)
    "rethinkdc-soft": replace(_SOFT, protocol="rethinkdc-soft", batch=128, test_resize="shorter"),
    "rethinkdc-hard": replace(
        _SOFT,
        protocol="rethinkdc-hard",
        batch=128,
        views=ViewPolicy(crop=0.08, flip=True),
        temperature=1.0,
        test_resize="shorter",
    ),
    # RD3: one recipe for sets of decoupled methods, 400 epochs of batches of 50 (arXiv 2509.19743, ICLR 2026, as others
    # read it; the cosine ends at half for students other than a ResNet-18)
    "rd3": replace(_SOFT, protocol="rd3", epochs=400, batch=50, test_resize="shorter"),
    # Hard Truths about Soft Labels, small images: lr drops once, before epoch 151 of 300 (Dey et al. 2026, as others
    # read it; momentum, weight decay and the factor are assumed)
    "hardtruths-hl": Protocol(
        protocol="hardtruths-hl",
        steps=None,
        epochs=300,
        decay_at=151 / 300,
        keep_state=True,
        inclusive=False,
        probe_steps=300,
    ),
    # the same source with one teacher's label for each image: AdamW, cosine, T 20 (weight decay and T^2 are assumed)
    "hardtruths-sl": Protocol(
        protocol="hardtruths-sl",
        steps=None,
        epochs=300,
        lr=1e-3,
        weight_decay=0.01,
        decay=1.0,
        optimiser="adamw",
        cosine=1.0,
        inclusive=False,
        temperature=20.0,
        temperature_squared=True,
        probe_steps=300,
    ),
    # NCFM: AdamW, lr halved at every fifth, IDC's augmentation per image, CutMix for half the batches (Wang et al.
    # 2025, official code, which reports the best of every 100th epoch on the test set; we report the last)
    "ncfm": Protocol(
        protocol="ncfm",
        steps=None,
        epochs=2000,
        batch=128,
        lr=1e-3,
        weight_decay=0.01,
        decay_at=(0.2, 0.4, 0.6, 0.8),
        decay=0.5,
        augment=False,
        optimiser="adamw",
        keep_state=True,
        inclusive=False,
        views=ViewPolicy(strategy="data", mix="cutmix", mix_share=0.5),
        probe_steps=500,
    ),
    # AST: weight decay 1e-3, lr halved and momentum .8 from the middle on (Shen et al. 2023, scripts, which report the
    # best of every 20th epoch on the test set; we report the last)
    "ast": Protocol(
        protocol="ast", steps=None, epochs=1000, weight_decay=1e-3, decay=0.5, momentum_after=0.8, probe_steps=500
    ),
    # DeepCore: epochs of the subset (Guo et al. 2022, official code, which pads by reflection)
    "deepcore": _CORESET,
    # RS2: the same at batch 128, where passes are rounds (Okanovic et al. 2024, official code)
    "rs2": replace(_CORESET, protocol="rs2", batch=128),
    # DQ on CIFAR-10: plain momentum, cosine to zero (Zhou et al. 2023, official code)
    "dq": replace(_CORESET, protocol="dq", batch=128, optimiser="sgd", min_lr=0.0),
    # "A Label is Worth a Thousand Images": DSA, lr times .3 after every quarter (Qin et al. 2024, official code)
    "softlabel": Protocol(
        protocol="softlabel",
        steps=None,
        epochs=3000,
        decay_at=(0.25, 0.5, 0.75),
        decay=0.3,
        keep_state=True,
        inclusive=False,
        probe_steps=500,
    ),
    # KRR-ST: pre-training on images and representations, constant lr, no augmentation, squared error; then a linear
    # head on the real images, see dd.evaluation.learners (Lee et al. 2024, official code)
    "krrst": Protocol(
        protocol="krrst",
        steps=None,
        epochs=1000,
        lr=0.1,
        weight_decay=1e-3,
        decay=1.0,
        augment=False,
        inclusive=False,
        probe_steps=300,
    ),
    # LGM: a linear head on a frozen encoder, Adam at 1e-3 for 256 images, cosine, crops and flips (Cazenavette et al.
    # 2025, official code; there the rate changes once an epoch)
    "lgm": Protocol(
        protocol="lgm",
        steps=None,
        epochs=1000,
        batch=100,
        lr=1e-3 * 100 / 256,
        weight_decay=0.0,
        decay=1.0,
        augment=False,
        optimiser="adamw",
        cosine=1.0,
        inclusive=False,
        views=ViewPolicy(crop=0.08, flip=True),
        probe_steps=300,
    ),
    # for smoke tests
    "smoke": Protocol(
        protocol="smoke", students=2, steps=150, batch=128, pilots=1, full_budget=40_000, probes=2, probe_steps=50
    ),
}


def _accept(name: str, given: object) -> Protocol:
    """The protocol that a plug-in gives under a name."""
    if not isinstance(given, Protocol):
        raise ValueError(f"it is of type {type(given).__name__}, not a dd.Protocol")
    return typed(Protocol, {**asdict(given), "protocol": name}, f"protocol {name}")


_OF_PAPERS = ("cifar10", "cifar100", "tiny-imagenet", "svhn")
PROTOCOLS = Named("protocol", _OURS, _accept)


def list_protocols(pattern: str = "*") -> list[Protocol]:
    """Return the evaluation protocols; the name of each is its field `protocol`.

    Args:
        pattern: filter on the name, with `*` and `?`, for example "sre2l*".
    """
    return [protocol for name, protocol in PROTOCOLS.items() if fnmatch(name, pattern)]


def default_protocol(dataset: str) -> Protocol:
    """Return the default protocol of a data set: the papers' for their data sets, else the quick one."""
    return PROTOCOLS["mtt" if dataset in _OF_PAPERS else "quick"]


def default_suite(dataset: str) -> str:
    """Return the default suite of the label regimes, see `dd.evaluation.suites`."""
    return "hardtruths" if dataset in _OF_PAPERS else "quick"
