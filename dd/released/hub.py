"""List and fetch files of Hugging Face Hub repositories, by means of the Hub's own client.

The client manages tokens: it reads them from the environment (`HF_TOKEN`) or from its login. Files go to its cache
(`HF_HOME`), which other programs share.
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
"""Types of Hub repositories; both may contain sets."""

_PLACE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.%-]+))?(?:/(?P<path>.+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_TEXT = re.compile(r"(?i).*\.(?:md|txt|rst|pdf)|LICEN[CS]E.*|CITATION.*")
_MOST = 200_000  # maximum number of files in a repository
_NAMED = 500  # maximum number of files to name in a query; beyond it, the whole folder is listed
_ENTERED = "HF_TOKEN, or `hf auth login`"


@dataclass(frozen=True)
class HubPlace:
    """A repository at a revision, or a folder or file in it.

    Attributes:
        repo: the repository, "USER/NAME".
        revision: a commit, branch or tag; "" for the latest.
        path: path inside the repository; "" for all of it.
    """

    repo: str
    revision: str = ""
    path: str = ""

    def __str__(self) -> str:
        revision, path = f"@{self.revision}" if self.revision else "", f"/{self.path}" if self.path else ""
        return f"{PREFIX}{self.repo}{revision}{path}"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: the Hub states `sha256` for large files, and git's `blob` hash for small ones."""

    path: str
    size: int
    sha256: str
    blob: str


@dataclass(frozen=True)
class HubListing:
    """The files of a place at one commit.

    Attributes:
        place: the place, with the commit as its revision.
        kind: type of the repository.
        files: the files of the place, sorted by path.
    """

    place: HubPlace
    kind: RepoKind
    files: tuple[HubFile, ...]

    @cached_property
    def size(self) -> int:
        """Total size in bytes."""
        return sum(file.size for file in self.files)

    @property
    def data(self) -> list[HubFile]:
        """All files except documentation such as cards and licences."""
        return [file for file in self.files if not _TEXT.fullmatch(os.path.basename(file.path))]

    def named(self, path: str) -> HubFile | None:
        """Return the file at a path relative to the place, or None."""
        whole = f"{self.place.path}/{path}" if self.place.path else path
        return next((file for file in self.files if file.path == whole), None)


def hub_place(text: str) -> HubPlace:
    """Parse "hf:USER/NAME[@REVISION][/PATH]".

    Raises:
        UsageError: the text does not have this form.
    """
    found = _PLACE.fullmatch(text)
    path = (found["path"] or "").strip("/") if found else ""
    if not found or ".." in text or any(part.startswith(".") for part in path.split("/") if path):
        raise UsageError(f"{text!r} names nothing on the Hub; write hf:USER/NAME, hf:USER/NAME@REVISION or …/PATH")
    return HubPlace(found["repo"], (found["revision"] or "").replace("%2F", "/"), path)


def require_online(what: str) -> None:
    """Raise `ConnectionError` if an environment variable forbids downloads."""
    from huggingface_hub import constants

    for name in (OFFLINE, "HF_HUB_OFFLINE"):
        if offline() if name == OFFLINE else _is_set(name) or constants.HF_HUB_OFFLINE:
            raise ConnectionError(f"{what}: {name} is set")


def api() -> "HfApi":
    """Return the Hub's client, for the address in `$HF_ENDPOINT`."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="dd-workbench")


def listing(place: HubPlace, kinds: Sequence[RepoKind] = ("dataset", "model")) -> HubListing:
    """List the current files of a place.

    Args:
        place: the place to list.
        kinds: types of repositories to try, in order.

    Raises:
        UsageError: the place does not exist, or the user has no access.
        ConnectionError: the Hub cannot be reached.
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
        if size is None or not below or hidden:  # folders have no size
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
    """Fetch files of a listing to the Hub's cache, and verify their sizes and hashes.

    Returns:
        Local paths by path in the repository.

    Raises:
        UsageError: access was revoked in the meantime.
        ConnectionError: the files cannot be fetched, or differ from what the Hub states.
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
    """Run a download, and retry if the Hub is busy or the connection is lost; partial files are kept."""
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
    """Convert errors of the Hub's client to ours, with one line each."""
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
        cause = error.__cause__ if isinstance(error, RuntimeError) else None  # it names only the file
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
    """Return git's blob hash of a file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _common(names: Sequence[str]) -> str:
    """Return a glob pattern for the common folder of all names."""
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    return f"{escape(folder)}/*" if folder else "*"


def _cache() -> str:
    from huggingface_hub import constants

    home = os.environ.get("HF_HOME")
    return os.environ.get("HF_HUB_CACHE") or (os.path.join(home, "hub") if home else str(constants.HF_HUB_CACHE))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
