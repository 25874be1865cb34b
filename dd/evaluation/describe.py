"""Protocols in words."""

from dd.evaluation.origins import ORIGINS, Origin
from dd.evaluation.protocols import PROTOCOLS, Protocol
from dd.io import digest

_OPTIMISERS = {"sgd": "SGD", "nesterov": "SGD with Nesterov's momentum", "adamw": "AdamW"}


def origin_of(name: str) -> Origin:
    """Return the origin of a protocol; that of a plug-in is its package."""
    package = f"the package {PROTOCOLS.package(name)}"
    return ORIGINS.get(name) or Origin(package, "plug-in", package)


def described(protocol: Protocol) -> dict[str, str]:
    """Return one sentence each about how students are trained and scored, by subject, in reading order."""
    origin = origin_of(protocol.protocol)
    return {
        "of": origin.of,
        "family": origin.family,
        "source": origin.source,
        "differs": origin.differs,
        "optimiser": optimiser_in_words(protocol),
        "learned lr": "a set's own lr, if it learned one, replaces this lr",
        "schedule": schedule_in_words(protocol),
        "length": length_in_words(protocol),
        "images": views_in_words(protocol),
        "labels": labels_in_words(protocol),
        "accuracy": accuracy_in_words(protocol),
        "best on test": best_in_words(origin),
        "students": f"{protocol.students} per accuracy, each from fresh weights",
        "fingerprint": f"{digest(protocol.training())} of these settings; a number's also covers network and labels",
    }


def optimiser_in_words(protocol: Protocol) -> str:
    """`SGD, lr 0.01, momentum 0.9, weight decay 0.0005`."""
    words = [_OPTIMISERS[protocol.optimiser], f"lr {protocol.lr:g}"]
    words += [f"momentum {protocol.momentum:g}"] if protocol.optimiser != "adamw" else []
    words.append(f"weight decay {protocol.weight_decay:g}")
    words += ["none on biases and norm layers"] if protocol.spare_vectors and protocol.weight_decay else []
    return ", ".join(words)


def schedule_in_words(protocol: Protocol) -> str:
    """How lr changes during training."""
    words = [f"linear warm-up of {protocol.warmup} epochs"] if protocol.warmup else []
    if protocol.cosine is not None:
        end = f"{protocol.min_lr:g}" if protocol.min_lr else "zero"
        words.append(
            f"cosine to {end}" if protocol.cosine == 1 else f"the first 1/{protocol.cosine:g} of a cosine to {end}"
        )
    if protocol.decay < 1:
        shares = protocol.decay_at if isinstance(protocol.decay_at, tuple) else (protocol.decay_at,)
        at = ", ".join(f"{100 * share:.4g}" for share in shares)
        words.append(f"lr times {protocol.decay:g} at {at} % of the training")
        words.append("the optimiser's state is kept" if protocol.keep_state else "the optimiser starts anew there")
    if protocol.momentum_after is not None:
        words.append(f"momentum {protocol.momentum_after:g} afterwards")
    return ", ".join(words) or "a constant lr"


def length_in_words(protocol: Protocol) -> str:
    """Epochs or steps, and images per step."""
    if protocol.steps is not None:
        length = f"{protocol.steps} steps"
    else:
        last = f", counted from 0 to {protocol.epochs} inclusive" if protocol.inclusive else ""
        length = f"{protocol.epochs} epochs{last}"
    micro = f", {protocol.micro} images at a time" if protocol.micro else ""
    return f"{length}, batches of {protocol.batch}{micro}"


def views_in_words(protocol: Protocol) -> str:
    """What students see of an image."""
    views = protocol.views
    parts = [
        "DSA, one operation per batch" if protocol.augment else "",
        f"{views.tiles} x {views.tiles} tiles" if views.tiles > 1 else "",
        f"crops of at least {100 * views.crop:g} %" if views.crop else "",
        f"crops of images padded by {views.pad}" if views.pad else "",
        "flips" if views.flip else "",
        {"none": "", "data": "IDC's augmentation"}.get(views.strategy, views.strategy),
        _mixed(protocol),
    ]
    return ", ".join(filter(None, parts)) or "the images as they are"


def accuracy_in_words(protocol: Protocol) -> str:
    """What is reported."""
    resized = "" if protocol.test_resize is None else f", resized as data.resize={protocol.test_resize} does,"
    return f"top-1 on the test images{resized} after the last step; nothing is chosen on test images"


def best_in_words(origin: Origin) -> str:
    """What the source chose on test images, and how that is seen here; empty if nothing is known."""
    if not origin.best_on_test:
        return ""
    beside = "" if "distillation" in origin.best_on_test else "; eval.curve=N shows the best of N tests beside the last"
    return f"the source reports {origin.best_on_test} by test accuracy; here the last{beside}"


def labels_in_words(protocol: Protocol) -> str:
    """Which labels students learn, and at what temperature."""
    squared = ", loss times the squared temperature" if protocol.temperature_squared else ""
    return f"the set's own; a teacher's, if the set has one, at temperature {protocol.temperature:g}{squared}"


def _mixed(protocol: Protocol) -> str:
    mix, share = protocol.views.mix, protocol.views.mix_share
    if mix == "none":
        return ""
    return mix if share == 1 else f"{mix} of {100 * share:g} % of the batches"
