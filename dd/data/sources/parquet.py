"""Images in parquet files, as the Hugging Face hub and its libraries lay them out."""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dd.data.sources.content import EncodedSet, EncodedSplit, Listing, file_identity, with_test_part
from dd.data.sources.split_names import TEST_ORDER, TRAIN, split_of
from dd.data.sources.tables import Labels, Table, split_column
from dd.data.sources.walk import some
from dd.errors import UsageError

_Group = dict[str, list[Path]]


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files of one data set.

    Attributes:
        root: what the names of images that the files only name begin from.
        train: of the training part.
        tests: of the parts that may be the test part, the preferred first.
        unread: those whose names tell no part, where others' do.
    """

    root: Path
    train: tuple[Path, ...]
    tests: tuple[tuple[str, tuple[Path, ...]], ...] = ()
    unread: tuple[Path, ...] = ()

    @property
    def test(self) -> tuple[Path, ...]:
        """Those of the preferred test part; empty when there is none."""
        return self.tests[0][1] if self.tests else ()


def find_parquet(folder: Path, test: tuple[str, ...] = ()) -> ParquetFiles | None:
    """The training and test files of a known data set, in its folder or up to two folders deeper; None without them.

    Args:
        folder: of the data set.
        test: the parts that may be its test part, the preferred first; () takes the usual ones.
    """
    paths = [*folder.glob("*.parquet"), *folder.glob("*/*.parquet"), *folder.glob("*/*/*.parquet")]
    groups, _ = _grouped(paths, folder)
    found = (_files(folder, group, test or TEST_ORDER) for _, group in sorted(groups.items()) if TRAIN in group)
    return next((files for files in found if files.test), None)


def parquet_at(path: Path) -> ParquetFiles:
    """The files that a user names: one file, or a folder.

    Raises:
        UsageError: there is nothing there, several configurations of a data set, or no training part.
    """
    if os.path.isfile(path):
        return ParquetFiles(path.parent, (path,))
    paths = [file for file in sorted(path.rglob("*.parquet")) if not _hidden(file.relative_to(path))]
    if not paths:
        raise UsageError(f"there is no parquet file at {path}")
    for file in paths:
        _require_regular(file)
    groups, unread = _grouped(paths, path)
    if not groups:
        return ParquetFiles(path, tuple(paths))
    group = _only_group(groups, path)
    if TRAIN not in group:
        raise UsageError(
            f"{path} holds no training part, only {some([_shown(files[0], path) for files in group.values()])}; name "
            "that file or folder itself, or rename it to train"
        )
    return _files(path, group, TEST_ORDER, unread)


def read_parquet(
    files: ParquetFiles,
    classes: tuple[str, ...] | None = None,
    notes: tuple[str, ...] = (),
    only: tuple[str, ...] | None = None,
) -> EncodedSet:
    """The images of parquet files.

    Args:
        files: where they are.
        classes: names in label order where they are known, used unless the files hold another number of them, or the
            same ones in an order of their own.
        notes: what a user should know, added to what is found.
        only: the classes to take, in label order; None: all of them.
    """

    @cache
    def listing() -> Listing:
        train, test, said = _chosen(files)
        labels = Labels.of([train, *([test] if test else [])], classes)
        parts = [table.part(labels, files.root) for table in (train, test) if table]
        names = labels.names
        if only is not None:
            wheres = [table.where for table in (train, test) if table]
            parts = [_selected(part, names, only, where) for part, where in zip(parts, wheres, strict=True)]
            names = only
        said = (*notes, *said)
        return Listing(parts[0], parts[1], names, said) if test else with_test_part(parts[0], names, said)

    paths = [*files.train, *files.test]
    identity = {"files": file_identity(paths, files.root), "split": bool(files.test), "classes": classes}
    if not files.test and (column := split_column(files.train[0])):
        identity["split column"] = column
    beside = [_shown(path, files.root) for path in (*files.unread, *(p for _, part in files.tests[1:] for p in part))]
    return EncodedSet(identity if only is None else {**identity, "only": only}, listing, tuple(beside))


def _chosen(files: ParquetFiles) -> tuple[Table, Table | None, list[str]]:
    """The training part, the first test part that has labels, and what is not used."""
    train = Table.of(files.train)
    tests = [(split, paths, Table.of(paths)) for split, paths in files.tests]
    notes, used = [], None
    if files.unread:
        names = [_shown(path, files.root) for path in files.unread]
        notes.append(f"not used: {some(names)}, which no name tells a part of")
    if not tests:
        train, used, said = train.by_column()
        return train, used, notes + said
    for split, paths, table in tests:
        name = _shown(paths[0], files.root) + (" …" if len(paths) > 1 else "")
        if used:
            notes.append(f"not used: {name}, the {split} part")
        elif table.unlabelled:
            notes.append(f"not used: {name}, the {split} part, which has no labels")
        else:
            used = table
    return train, used, notes


def _selected(part: EncodedSplit, names: tuple[str, ...], only: tuple[str, ...], where: str) -> EncodedSplit:
    """The images of some classes, labelled by their position among these."""
    if missing := [name for name in only if name not in names]:
        raise UsageError(f"{where} lacks {len(missing)} classes: {', '.join(missing[:5])}; it has {len(names)} others")
    return part.only([names.index(name) for name in only])


def _grouped(paths: Sequence[Path], root: Path) -> tuple[dict[Path, _Group], tuple[Path, ...]]:
    """ParquetFiles by configuration and split, and those of which neither is told.

    As for Hugging Face `datasets`, a folder's name tells the split before a file's does, if any folder's does.
    """
    by_folder = _told(paths, root, _by_folder)
    by_name = _told(paths, root, _by_name)
    trains = any(TRAIN in group for group in by_folder.values())
    groups = by_folder if trains or not any(TRAIN in group for group in by_name.values()) else by_name
    groups = groups or by_name
    told = {path for group in groups.values() for files in group.values() for path in files}
    return groups, tuple(path for path in sorted(paths) if path not in told)


def _told(paths: Sequence[Path], root: Path, tell: Callable[[Path], tuple[Path, str] | None]) -> dict[Path, _Group]:
    groups: dict[Path, _Group] = {}
    for path in sorted(paths):
        if found := tell(path.relative_to(root)):
            configuration, split = found
            groups.setdefault(root / configuration, {}).setdefault(split, []).append(path)
    return groups


def _by_folder(path: Path) -> tuple[Path, str] | None:
    return next(((folder.parent, split) for folder in path.parents if (split := split_of(folder.name))), None)


def _by_name(path: Path) -> tuple[Path, str] | None:
    split = split_of(path.stem)
    return (path.parent, split) if split else None


def _only_group(groups: dict[Path, _Group], root: Path) -> _Group:
    """The one data set that a user's folder holds; parts may lie in folders of their own."""
    every = [split for group in groups.values() for split in group]
    if len(every) == len(set(every)):
        return {split: files for group in groups.values() for split, files in group.items()}
    names = ", ".join(map(str, sorted(groups)))
    raise UsageError(f"{root} holds several data sets: {names}; name one of these folders")


def _files(root: Path, group: _Group, test: tuple[str, ...], unread: tuple[Path, ...] = ()) -> ParquetFiles:
    tests = tuple((split, tuple(group[split])) for split in test if split in group)
    return ParquetFiles(root, tuple(group[TRAIN]), tests, unread)


def _hidden(path: Path) -> bool:
    """Whether programs put it there, not users, as for folders of images."""
    return any(part.startswith((".", "__")) for part in path.parent.parts) or path.name.startswith(".")


def _require_regular(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); fetch it again, or remove it") from error
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file; remove it, or name the files beside it")


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
