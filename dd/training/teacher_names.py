"""Parse the names of teachers: a network to train, the path of a checkpoint, or published weights."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from dd.errors import UsageError, unknown
from dd.io import existing, user_path
from dd.networks.names import is_zoo_name
from dd.networks.spec import NetworkSpec

STUDENT = "student"
NO_TEACHER = "no teacher is named; teachers=student trains one with the student's architecture"
SUFFIXES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Untrained:
    """A network to be trained here."""

    spec: NetworkSpec


@dataclass(frozen=True)
class SavedWeights:
    """A checkpoint's path and its architecture."""

    path: Path
    spec: NetworkSpec


@dataclass(frozen=True)
class PublishedWeights:
    """Pretrained weights, `timm:NAME.TAG` or `torchvision:NAME.WEIGHTS`."""

    name: str


TeacherSource: TypeAlias = Untrained | SavedWeights | PublishedWeights


def teacher_source(name: str, student: NetworkSpec) -> TeacherSource:
    """Parse a teacher's name.

    Args:
        name: "student"; `ARCH[:field=value…]`, for example "convnet:width=48:norm=batch"; `timm:NAME` or
            `torchvision:NAME`, trained here, or pretrained with a tag of weights after a dot; or
            `PATH[@ARCH[:field=value…]]`, a file that ends in .safetensors, .pt or .pth.
        student: the network that "student" refers to, and the default architecture of a checkpoint.

    Raises:
        UsageError: the name is invalid, or the file does not exist.
    """
    path, at, arch = name.rpartition("@")
    if at and path.endswith(SUFFIXES):
        return SavedWeights(_existing(path), _network(arch, student))
    if name.endswith(SUFFIXES):
        return SavedWeights(_existing(name), student)
    if "/" in name or "\\" in name:
        raise _no_checkpoint(name)
    if is_zoo_name(name):
        return PublishedWeights(name) if "." in name else Untrained(NetworkSpec(arch=name))
    if "." in (path if at else name).partition(":")[0]:
        raise _no_checkpoint(name)
    return Untrained(_network(name, student))


def is_file(name: str) -> bool:
    """Whether a teacher's name is the path of a checkpoint."""
    path, at, _ = name.rpartition("@")
    return name.endswith(SUFFIXES) or (bool(at) and path.endswith(SUFFIXES))


def _network(text: str, student: NetworkSpec) -> NetworkSpec:
    """Parse `ARCH[:field=value…]`; the norm defaults to "batch", because recovery reads BatchNorm statistics."""
    if text == STUDENT:
        return student
    if is_zoo_name(text):
        return NetworkSpec(arch=text)
    arch, *settings = text.split(":")
    known = [field.name for field in fields(NetworkSpec) if field.name != "arch"]
    values: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(
                f"teachers={text}: {setting!r} is not a setting; write ARCH:field=value, for example convnet:width=48"
            )
        if key not in known:
            raise unknown(f"setting in teachers={text}:", key, known)
        values[key] = value
    try:
        # non-strict validation, so that "48" is a valid width
        return TypeAdapter(NetworkSpec).validate_python({"arch": arch, "norm": "batch"} | values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"teachers={text}: {first['loc'][0]}={first['input']}: {first['msg']}") from error


def _no_checkpoint(name: str) -> UsageError:
    return UsageError(
        f"teachers={name} looks like a path, but a checkpoint ends in {', '.join(SUFFIXES)}; published weights are "
        "timm:NAME.TAG or torchvision:NAME.WEIGHTS"
    )


def _existing(path: str) -> Path:
    found = existing(user_path(path, "teachers"), f"teachers={path}")
    if not found.is_file():
        raise UsageError(f"teachers={path}: not a file")
    return found
