"""How students are trained and scored: one frozen record, with a fingerprint that numbers must share to be compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Annotated, Any, Literal

from pydantic import Field

from dd.data.settings import Resize
from dd.io import digest
from dd.settings import Outside, identity
from dd.training.criteria import CrossEntropy
from dd.training.loop import Fit
from dd.views import ViewPolicy

_TOLD = Outside("number", "it says how students are counted or watched, not how one is trained")
_Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Protocol:
    """A protocol.  Accuracy is always top-1 on the test images after the last step."""

    protocol: Annotated[str, Outside("number", "the settings that it names count")] = "quick"
    """The name it started from."""
    students: Annotated[int, Field(ge=1, le=10**6), _TOLD] = 5
    """Fresh networks per number; also the number of control draws."""
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = 300
    """Steps of a student; None where `epochs` counts."""
    epochs: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Passes over the set; None where `steps` counts."""
    batch: Annotated[int, Field(ge=1, le=10**6)] = 256
    """Images per step; a smaller set is used whole at every step."""
    lr: Annotated[float, Field(gt=0, le=1000)] = 0.01
    """Learning rate where the set has not learned one."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 5e-4
    """L2 penalty of SGD, or AdamW's own."""
    decay_at: _Share | tuple[_Share, ...] = 0.5
    """Fraction of the training, or several, after which lr is multiplied by `decay`, and the momentum dropped unless
    `keep_state`.
    """
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The factor of lr at each of `decay_at`; 1 for a constant rate."""
    momentum_after: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum after the first of `decay_at`; None for the same as before."""
    augment: bool = True
    """Augment by DSA, one operation per batch, with the strategy of the data set."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """The optimiser of a student."""
    cosine: Annotated[float, Field(ge=1, le=1000)] | None = None
    """Let lr fall as a half cosine over `cosine` times the training: 1 ends at zero, 2 at half of `lr`; None for no
    cosine.
    """
    keep_state: bool = False
    """Let lr fall in steps without recreating the optimiser."""
    spare_vectors: bool = False
    """Apply no weight decay to biases and norm layers."""
    inclusive: bool = True
    """Count epochs 0 to E inclusive, and let lr fall after index E // 2 + 1, as the evaluation code of the matching
    family does.
    """
    warmup: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Epochs in which lr rises linearly from a hundredth."""
    views: ViewPolicy = field(default_factory=ViewPolicy)
    """How images are cropped, mirrored, mixed."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Temperature of student and teacher, where labels are a teacher's."""
    temperature_squared: bool = False
    """Multiply the loss by the squared temperature, which matters to SGD alone."""
    micro: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Images that go through the student together, adding up to a step; None for all."""
    test_resize: Resize | None = None
    """How test images are brought to size, see `DataSettings.resize`; None for the way of all others."""
    pilots: Annotated[int, Field(ge=1, le=10**6), _TOLD] = 2
    """Students per candidate lr with which the lr of control and start is chosen on the held-out images."""
    full: Annotated[bool | None, _TOLD] = None
    """Train on all real images too; None: where `full_budget` allows it."""
    full_students: Annotated[int, Field(ge=1, le=10**6), _TOLD] = 2
    """Networks of the reference on all real images."""
    full_budget: Annotated[int, Field(ge=0, le=10**15), _TOLD] = 80_000
    """Image passes that the reference may cost; the default is about a minute for fashion-mini on 2 cores."""
    probes: Annotated[int, Field(ge=0, le=10**6), _TOLD] = 4
    """How often the synthesis is scored on held-out images on its way; 0 for never."""
    probe_steps: Annotated[int, Field(ge=1, le=10**9), _TOLD] = 100
    """Steps of a probe's student."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give one of steps and epochs, not steps={self.steps} with epochs={self.epochs}")

    def total_steps(self, n: int) -> int:
        """Steps of a student on a set of n images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return (self.epochs + self.inclusive) * self.passes_to_steps(n)

    def passes(self, n: int) -> int:
        """Passes over n images that a student begins."""
        return -(-self.total_steps(n) // self.passes_to_steps(n))

    def passes_to_steps(self, n: int) -> int:
        """Steps in one pass over n images."""
        return -(-n // self.batch)

    def fit(self, n: int, lr: float, strategy: str, temperature: float = 1.0) -> Fit:
        """The training of one student on n images; `temperature` is of labels that have one."""
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
        """The values that decide a student's accuracy, by dotted key."""
        return identity(self, "number")

    def in_words(self) -> str:
        """Its name, and what decides a student's accuracy and differs from the protocol of that name.

        Settings are in the words of the command line, without `eval.`: `"cvdd, batch=10"`.
        """
        published = PROTOCOLS[self.protocol].training()
        words = [self.protocol]
        for key, value in self.training().items():
            laid_down = key in ("steps", "epochs") and value is None  # by the other one
            if value != published[key] and not laid_down:
                words.append(f"{key}={'null' if value is None else value}")
        return ", ".join(words)

    def fingerprint(self, student: dict[str, Any], strategy: str, labels: Mapping[str, Any] | None = None) -> str:
        """Hash of all that two numbers must share to be compared, but the data and who teaches them.

        Args:
            student: the network.
            strategy: of augmentation.
            labels: how teachers' labels are made; None for the images' own.
        """
        shared = {"training": self.training(), "student": student, "augment": strategy if self.augment else "none"}
        return digest(shared if labels is None else shared | {"labels": dict(labels)})


# Where the family agrees, unless said: AdamW with a cosine, no decay of vectors, temperature 20, mixed crops
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

PROTOCOLS: dict[str, Protocol] = {
    # 300 steps at batch 128, measured to separate sets well on 2 cores
    "quick": Protocol(batch=128),
    # MTT, FTD, TESLA: 1000 epochs, batch 256 (Cazenavette et al. 2022, official evaluation)
    "mtt": Protocol(protocol="mtt", steps=None, epochs=1000, probe_steps=500),
    # DATM: the same at batch 128 (official configurations)
    "datm": Protocol(protocol="datm", steps=None, epochs=1000, batch=128, probe_steps=500),
    # DC without augmentation: 300 epochs (Zhao et al. 2021, official evaluation); "mtt" was first DSA's and DM's
    "dc": Protocol(protocol="dc", steps=None, epochs=300, augment=False, probe_steps=300),
    # DataDAM: 1800 epochs at batch 64 (Sajedi et al. 2023, official code; there the best checkpoint on the test set is
    # the result, here the last)
    "datadam": Protocol(protocol="datadam", steps=None, epochs=1800, batch=64, probe_steps=500),
    # for 2 cores, with a teacher's labels of views (measured to tell sets apart in half a minute)
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
    # SRe2L on Tiny-ImageNet: SGD .2 with 5 epochs of warm-up, all parameters decayed, nothing mixed, the loss times T^2
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
    # SRe2L on CIFAR-100: images padded with 4 black pixels and cropped, MixUp, T 30, all parameters decayed
    "sre2l-cifar": replace(
        _SOFT,
        protocol="sre2l-cifar",
        epochs=400,
        batch=128,
        spare_vectors=False,
        views=ViewPolicy(pad=4, flip=True, mix="mixup", mix_alpha=0.8),
        temperature=30.0,
    ),
    # CDA: as SRe2L with batches of 128 (Yin & Shen 2024, official scripts)
    "cda": replace(_SOFT, protocol="cda", batch=128, test_resize="shorter"),
    # SRe2L++ and CV-DD: 16 images as two times 8 (Cui et al. 2025, official scripts; there cosine and lr also change
    # with data set, ipc and network, and images of 224 pixels are tested as SRe2L's: eval.test_resize=shorter)
    "cvdd": replace(_SOFT, protocol="cvdd", batch=16, micro=8),
    # MEAL V2: plain SGD on the mean of the teachers' probabilities (labels.ensemble=prob_mean), no weight decay (Shen &
    # Savvides 2020, official code; there the student begins pretrained, here fresh as all)
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
    # RDED: tiles are shuffled, crops keep half of the area, lr ends at half, test images of any size lose an eighth
    # (Sun et al. 2024, official code; there the batch changes with data set and ipc, and the best of the last epochs on
    # the test set is the result)
    "rded": replace(
        _SOFT,
        protocol="rded",
        batch=50,
        cosine=2.0,
        views=ViewPolicy(tiles=2, crop=0.5, flip=True, mix="cutmix"),
        test_resize="shorter",
    ),
    # NCFM: AdamW, lr halved at every fifth, IDC's augmentation of every image, CutMix for half the batches (Wang et al.
    # 2025, official code; there the best of every 100th epoch on the test set is the result, here the last)
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
    # AST: weight decay 1e-3, lr halved and momentum .8 from the middle on (Shen et al. 2023, scripts; there the
    # best of every 20th epoch on the test set is the result, here the last)
    "ast": Protocol(
        protocol="ast", steps=None, epochs=1000, weight_decay=1e-3, decay=0.5, momentum_after=0.8, probe_steps=500
    ),
    # to see that everything works
    "smoke": Protocol(
        protocol="smoke", students=2, steps=150, batch=128, pilots=1, full_budget=40_000, probes=2, probe_steps=50
    ),
}


def list_protocols(pattern: str = "*") -> list[Protocol]:
    """The evaluation protocols; each one's name is its field `protocol`.

    Args:
        pattern: of names, with `*` and `?`, as "sre2l*".
    """
    return [protocol for name, protocol in PROTOCOLS.items() if fnmatch(name, pattern)]


def default_protocol(dataset: str) -> Protocol:
    """Where neither recipe nor command line names one: the papers' for their data sets, else the quick one."""
    return PROTOCOLS["mtt" if dataset in ("cifar10", "cifar100", "tiny-imagenet", "svhn") else "quick"]
