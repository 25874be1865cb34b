"""The folder for shared data, the address that it may stand for, and a check that a folder is writable."""

import os
import tempfile
from pathlib import Path

from dd.errors import UsageError
from dd.io.hashing import digest
from dd.io.object_store import ObjectStore, remote
from dd.io.paths import is_address, user_path


def home() -> Path:
    """Return the folder that runs share: `$DD_HOME`, else the user's cache folder.  It may not exist yet.

    If `$DD_HOME` is an address, this is the folder of the copies on this machine.
    """
    named = os.environ.get("DD_HOME")
    if named and not is_address(named):
        return user_path(named, "DD_HOME")
    import platformdirs

    cache = Path(platformdirs.user_cache_dir("dd"))
    return cache / "copies" / digest(named.rstrip("/")) if named else cache


def home_address() -> ObjectStore | None:
    """Return the address that `$DD_HOME` names; None if it is a folder."""
    named = os.environ.get("DD_HOME", "")
    return remote(named, f"DD_HOME={named}") if is_address(named) else None


def writable(folder: Path, way_out: str) -> Path:
    """Create `folder` if needed and check that files can be created in it.

    Args:
        folder: the folder to write to.
        way_out: what the user can do instead, for example "choose another place with out=FOLDER".

    Raises:
        UsageError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror or error}); {way_out}") from error
    return folder
