"""Publish a set: write it with card, preview and parquet file to a folder, and commit that folder to the Hub."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dd.errors import RunError, UsageError, in_one_line
from dd.exchange.contents import Contents
from dd.exchange.export import export_set
from dd.io import atomic_folder, sha256_file, writable, write_text
from dd.released.card import PARQUET, PREVIEW, CardFacts, card
from dd.released.hub import HubListing, HubPlace, api, git_blob, listing, require_online, spoken
from dd.runs import RunFolder
from dd.sets import DistilledSet, save
from dd.sizes import readable_size

log = logging.getLogger(__name__)

_CARD = "README.md"
_TOKEN = "HF_TOKEN, or `hf auth login`"


@dataclass(frozen=True)
class Publication:
    """The result of a publication.

    Attributes:
        where: the folder, or the web address on the Hub.
        place: the argument for `dd eval` and `dd pull`.
        files: sizes in bytes, by path.
        commit: the commit on the Hub; "" for a folder, or if nothing changed.
    """

    where: str
    place: str
    files: Mapping[str, int]
    commit: str = ""


def publish_folder(
    distilled: DistilledSet, facts: CardFacts, folder: Path, contents: Contents | None, *, force: bool = False
) -> Publication:
    """Write the folder of a published set; it is complete or does not appear.

    Args:
        distilled: the set.
        facts: for its card.
        folder: the folder to write, which must be new or empty.
        contents: its images for the parquet file; None for no such file.
        force: replace a folder that holds a published set.

    Raises:
        UsageError: the folder exists with other content.
        RunError: the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_ours = (folder / _CARD).is_file() and RunFolder(folder).set.is_file()
        if not (force and is_ours):
            way_out = "replace it with force=true" if is_ours else "choose another folder"
            raise UsageError(f"{folder} is there already; {way_out}")
    writable(folder.parent, "choose another folder")
    with atomic_folder(folder) as temporary:
        _write(distilled, facts, temporary, contents)
    return Publication(str(folder), str(folder), dict(_sizes(folder)))


def publish_to_hub(
    distilled: DistilledSet,
    facts: CardFacts,
    place: HubPlace,
    contents: Contents | None,
    *,
    private: bool = False,
    force: bool = False,
) -> Publication:
    """Write a set to a dataset repository of the Hub as one commit; the repository is created if necessary.

    Args:
        distilled: the set.
        facts: for its card.
        place: the repository, and the folder in it; without a revision.
        contents: its images for the parquet file; None for no such file.
        private: whether to make a new repository private.
        force: replace another set at the same place.

    Raises:
        UsageError: there is no token, the place has another set, or the Hub refuses the commit.
        RunError: the Hub cannot be reached, or the connection is lost; nothing is half-published.
    """
    from huggingface_hub import get_token

    if place.revision:
        raise UsageError(f"{place}: sets go to the newest revision; leave out @{place.revision}")
    if not get_token():
        raise UsageError(f"to publish on the Hub, tell its client who you are: {_TOKEN}")
    try:
        require_online(str(place))
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            _write(distilled, facts, folder, contents)
            return _committed(place, folder, private=private, force=force)
    except ConnectionError as error:
        raise RunError(f"{in_one_line(error)}; nothing was published by halves: repeat the command") from error


def _write(distilled: DistilledSet, facts: CardFacts, folder: Path, contents: Contents | None) -> None:
    """Write all files of a published set."""
    if distilled.views is not None:
        distilled.label_store().pack(folder)
    if distilled.path is not None:
        RunFolder(folder).set.write_bytes(distilled.path.read_bytes())  # bit for bit
    else:
        save(distilled, RunFolder(folder).set)
    lost = None
    if contents is not None:
        target = folder / PARQUET
        target.parent.mkdir()
        lost = export_set(contents, target, "parquet").lost
    if picture := distilled._repr_png_():
        (folder / PREVIEW).write_bytes(picture)
    from dataclasses import replace

    write_text(folder / _CARD, card(distilled, replace(facts, lost=lost, has_preview=bool(picture))))


def _committed(place: HubPlace, folder: Path, *, private: bool, force: bool) -> Publication:
    from huggingface_hub import CommitOperationAdd

    client, paths = api(), sorted(path for path in folder.rglob("*") if path.is_file())
    below = f"{place.path}/" if place.path else ""
    names = {below + path.relative_to(folder).as_posix(): path for path in paths}
    with spoken(place):
        address = str(client.create_repo(place.repo, repo_type="dataset", private=private or None, exist_ok=True))
    there = _there(place)
    changed = {name: path for name, path in names.items() if not _is_there(there, name, path)}
    if there is not None and not force:
        _require_same_set(place, there, below, changed)
    commit = ""
    if changed:
        size = sum(path.stat().st_size for path in changed.values())
        log.info("%s: %d files, %s", place, len(changed), readable_size(size))
        with spoken(place):
            commit = client.create_commit(
                place.repo,
                repo_type="dataset",
                operations=[CommitOperationAdd(name, path) for name, path in changed.items()],
                commit_message="A distilled set, its card and a preview, written by dd",
                parent_commit=there.place.revision if there is not None else None,
            ).oid
    return Publication(address, str(place), dict(_sizes(folder)), commit)


def _there(place: HubPlace) -> HubListing | None:
    """List the repository; None if it has no files."""
    try:
        return listing(HubPlace(place.repo), kinds=("dataset",))
    except UsageError as error:
        if "holds no files" in str(error):
            return None
        raise


def _is_there(there: HubListing | None, name: str, path: Path) -> bool:
    found = None if there is None else there.named(name)
    if found is None or found.size != path.stat().st_size:
        return False
    return found.sha256 == sha256_file(path) if found.sha256 else found.blob == git_blob(path)


def _require_same_set(place: HubPlace, there: HubListing, below: str, changed: Mapping[str, Path]) -> None:
    name = below + RunFolder(Path()).set.name
    if name in changed and there.named(name) is not None:
        raise UsageError(f"{place} holds another set; replace it with force=true, or choose another name")


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size
