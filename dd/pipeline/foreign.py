"""What a set that was not made here may ask of this machine: no path that the user did not name.

A set is one's own where a run below this `$DD_HOME` wrote exactly these bytes.  Anyone else's is data: the paths that
it names are read once the user names them.
"""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from dd.data import is_local
from dd.errors import UsageError
from dd.runs import Store
from dd.sets import DistilledSet
from dd.sets.formats import seal
from dd.training.teacher_names import is_file

_KIND = "own"


def remember(file: Path) -> None:
    """Note that the set in `file` was made here."""
    with contextlib.suppress(UsageError):  # without the note it is asked for one word more
        Store().note(_KIND, {"set": seal(file)}, {})


def is_foreign(distilled: DistilledSet) -> bool:
    """Whether a set came in a file that no run of this user wrote."""
    if distilled.path is None:
        return False
    said = seal(distilled.path)
    return not said or not Store().path(_KIND, {"set": said}).is_file()


def require_no_path(what: str, key: str, names: Sequence[str]) -> None:
    """Raise `UsageError` where a set names something by a path of this machine, with the word that allows it.

    Args:
        what: the set asks for: "images".
        key: "dataset" or "teachers", the setting by which the user names it.
        names: as the set has them.
    """
    if any(is_local(name) if key == "dataset" else is_file(name) for name in names):
        word = shlex.quote(f"{key}={','.join(names)}")
        raise UsageError(f"the set asks for its {what} at a path, and was not made here; if you mean them, add {word}")
