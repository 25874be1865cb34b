"""Repositories of the Hugging Face Hub, through its own client: what is in one, and files of it.

Tokens are the client's affair: it takes them from the environment (`HF_TOKEN`) or from its own login.  Files go to its
own cache (`HF_HOME`), where other programs find them too.
"""

import contextlib
import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dd.errors import RunError, UsageError, in_one_line
from dd.io import existing, sha256_file
from dd.io.download import LATER, OFFLINE, PAUSE, TRIES, offline
from dd.runs.store import require_making
from dd.sizes import readable_size

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

PREFIX = "hf:"
RepoKind = Literal["dataset", "model"]
"""What the Hub calls a repository; sets are found in both."""

_PLACE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.%-]+))?(?:/(?P<path>.+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_TEXT = re.compile(r"(?i).*\.(?:md|txt|rst|pdf)|LICEN[CS]E.*|CITATION.*")
_MOST = 200_000  # files of a repository
_NAMED = 500  # files that are asked for one by one; of more the whole folder
_ENTERED = "HF_TOKEN, or `hf auth login`"


@dataclass(frozen=True)
class HubPlace:
    """A repository at a revision, or a folder or file in it.

    Attributes:
        repo: "USER/NAME".
        revision: a commit, branch or tag; "" for the newest.
        path: below the repository; "" for all of it.
    """

    repo: str
    revision: str = ""
    path: str = ""

    def __str__(self) -> str:
        revision, path = f"@{self.revision}" if self.revision else "", f"/{self.path}" if self.path else ""
        return f"{PREFIX}{self.repo}{revision}{path}"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the Hub states it: `sha256` of large ones, of small ones the `blob` that git names."""

    path: str
    size: int
    sha256: str
    blob: str


@dataclass(frozen=True)
class HubListing:
    """What is in a place, at one commit.

    Attributes:
        place: with the commit as its revision.
        kind: of the repository.
        files: below the place, in the order of their paths.
    """

    place: HubPlace
    kind: RepoKind
    files: tuple[HubFile, ...]

    @cached_property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def data(self) -> list[HubFile]:
        """Its files but for texts for people: cards, licences, lists."""
        return [file for file in self.files if not _TEXT.fullmatch(os.path.basename(file.path))]

    def named(self, path: str) -> HubFile | None:
        """The file of that path below the place, or None."""
        whole = f"{self.place.path}/{path}" if self.place.path else path
        return next((file for file in self.files if file.path == whole), None)


def hub_place(text: str) -> HubPlace:
    """What "hf:USER/NAME[@REVISION][/PATH]" names.

    Raises:
        UsageError: it is not written so.
    """
    found = _PLACE.fullmatch(text)
    path = (found["path"] or "").strip("/") if found else ""
    if not found or ".." in text or any(part.startswith(".") for part in path.split("/") if path):
        raise UsageError(f"{text!r} names nothing on the Hub; write hf:USER/NAME, hf:USER/NAME@REVISION or …/PATH")
    return HubPlace(found["repo"], (found["revision"] or "").replace("%2F", "/"), path)


def require_online(what: str) -> None:
    """Raise `ConnectionError` where a variable says that nothing may be fetched."""
    from huggingface_hub import constants

    for name in (OFFLINE, "HF_HUB_OFFLINE"):
        if offline() if name == OFFLINE else _is_set(name) or constants.HF_HUB_OFFLINE:
            raise ConnectionError(f"{what}: {name} is set")


def api() -> "HfApi":
    """The Hub's client, for the address in `$HF_ENDPOINT`."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="dd-workbench")


def listing(place: HubPlace, kinds: Sequence[RepoKind] = ("dataset", "model")) -> HubListing:
    """What is in a place now.

    Args:
        place: of a repository of the first of these kinds that has it.
        kinds: of repositories.

    Raises:
        UsageError: it is not there, or not open to this user.
        ConnectionError: the Hub cannot be asked.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    require_online(str(place))
    require_making(f"{place}, to be looked up on the Hub")
    with spoken(place):
        for kind in kinds[:-1]:
            try:
                return _listing(place, kind)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                continue
        return _listing(place, kinds[-1])


def _listing(place: HubPlace, kind: RepoKind) -> HubListing:
    client = api()
    commit = client.repo_info(place.repo, revision=place.revision or None, repo_type=kind).sha
    if not commit or not _COMMIT.fullmatch(commit):
        raise UsageError(f"{place}: the Hub names no commit of it")
    files = []
    for entry in client.list_repo_tree(place.repo, revision=commit, repo_type=kind, recursive=True):
        size, below = getattr(entry, "size", None), not place.path or f"{entry.path}/".startswith(f"{place.path}/")
        hidden = any(part.startswith(".") and part != ".." for part in entry.path.split("/"))
        if size is None or not below or hidden:  # a folder has no size
            continue
        if ".." in entry.path.split("/"):
            raise UsageError(f"{place} names a file outside of itself, {entry.path!r}")
        lfs = getattr(entry, "lfs", None)
        sha256 = str(lfs.sha256) if lfs else ""
        files.append(HubFile(entry.path, int(size), sha256, str(getattr(entry, "blob_id", ""))))
        if len(files) > _MOST:
            raise UsageError(f"{place} has more than {_MOST:,} files; name a folder in it, {PREFIX}{place.repo}/FOLDER")
    if not files:
        raise UsageError(f"{place} holds no files")
    return HubListing(replace(place, revision=commit), kind, tuple(sorted(files, key=lambda file: file.path)))


def fetch_from_hub(found: HubListing, files: Sequence[HubFile]) -> dict[str, Path]:
    """Files of a listing in the Hub's cache, each with the size and hash that the Hub states.

    Returns:
        Their paths here, by their paths in the repository.

    Raises:
        UsageError: the repository was closed in the meantime.
        ConnectionError: they cannot be had, or are not what the Hub states.
    """
    from huggingface_hub import snapshot_download

    place = found.place
    require_making(f"{place}, {readable_size(sum(file.size for file in files))} to download")
    names = [file.path for file in files]
    patterns = [escape(name) for name in names] if len(names) <= _NAMED else [_common(names)]
    with spoken(place):
        download = partial(
            snapshot_download,
            place.repo,
            repo_type=found.kind,
            revision=place.revision,
            allow_patterns=patterns,
            cache_dir=_cache(),
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
        folder = Path(_patiently(download, place))
    here = {file.path: folder / file.path for file in files}
    for file in files:
        _require_whole(place, file, here[file.path])
    return here


def _patiently(download: Callable[[], str], place: HubPlace) -> str:
    """What a download gives, asked for again where the Hub is busy or a connection is lost; what came is kept."""
    for failed in range(1, TRIES + 1):
        try:
            return download()
        except Exception as error:  # its client's errors share no class
            answer = getattr(error, "response", None)
            passes = answer.status_code in LATER if answer is not None else not isinstance(error, OSError | ValueError)
            if failed == TRIES or not passes:
                raise
            log.info("%s: %s; again in a moment", place, in_one_line(error))
            time.sleep(PAUSE * 2 ** (failed - 1))
    raise AssertionError("the last try raises")


@contextlib.contextmanager
def spoken(place: HubPlace) -> Iterator[None]:
    """What the Hub's client raises, in one line."""
    from huggingface_hub import errors

    try:
        yield
    except (UsageError, RunError):
        raise
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{place}: its owners want their terms to be accepted at https://huggingface.co/{place.repo} first, and a "
            f"token of yours: {_ENTERED}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{place}: the Hub has no revision {place.revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"{place}: the Hub has no such repository, or it is private and needs a token: {_ENTERED}"
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{place}: {in_one_line(error)}") from error
    except Exception as error:  # its client's errors share no class
        cause = error.__cause__ if isinstance(error, RuntimeError) else None  # which names the file alone
        why = f" ({in_one_line(cause)})" if cause else ""
        raise ConnectionError(f"{place}: {in_one_line(error)}{why}") from error


def _require_whole(place: HubPlace, file: HubFile, path: Path) -> None:
    existing(path, f"{place}: {file.path}")
    size = path.stat().st_size
    if size != file.size:
        raise ConnectionError(f"{place}: {file.path} has {size:,} bytes, not the {file.size:,} that the Hub states")
    wrong = sha256_file(path) != file.sha256 if file.sha256 else bool(file.blob) and git_blob(path) != file.blob
    if wrong:
        raise ConnectionError(f"{place}: {path} is not the file whose hash the Hub states; delete it and try again")


def git_blob(path: Path) -> str:
    """The name that git gives a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _common(names: Sequence[str]) -> str:
    """A pattern of the folder that all of them are in."""
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    return f"{escape(folder)}/*" if folder else "*"


def _cache() -> str:
    from huggingface_hub import constants

    home = os.environ.get("HF_HOME")
    return os.environ.get("HF_HUB_CACHE") or (os.path.join(home, "hub") if home else str(constants.HF_HUB_CACHE))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
