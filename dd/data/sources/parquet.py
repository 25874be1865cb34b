"""Reader of images in parquet files, in the layout of the Hugging Face Hub and `datasets`."""

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
        root: the folder that image paths inside the files are relative to.
        train: files of the training part.
        tests: splits that may serve as the test part, preferred first, with their files.
        unread: files whose names indicate no split although other files' names do.
    """

    root: Path
    train: tuple[Path, ...]
    tests: tuple[tuple[str, tuple[Path, ...]], ...] = ()
    unread: tuple[Path, ...] = ()

    @property
    def test(self) -> tuple[Path, ...]:
        """The files of the preferred test part; empty if there is none."""
        return self.tests[0][1] if self.tests else ()


def find_parquet(folder: Path, test: tuple[str, ...] = ()) -> ParquetFiles | None:
    """Find the training and test files of a named data set, up to two levels below its folder; None if not found.

    Args:
        folder: of the data set.
        test: splits that may serve as the test part, preferred first; () for the usual ones.
    """
    paths = [*folder.glob("*.parquet"), *folder.glob("*/*.parquet"), *folder.glob("*/*/*.parquet")]
    groups, _ = _grouped(paths, folder)
    found = (_files(folder, group, test or TEST_ORDER) for _, group in sorted(groups.items()) if TRAIN in group)
    return next((files for files in found if files.test), None)


def parquet_at(path: Path) -> ParquetFiles:
    """The parquet files at a user's path, which is a file or a folder.

    Raises:
        UsageError: there is no file, no training part, or more than one configuration of a data set.
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
    """Read the images of parquet files.

    Args:
        files: the files.
        classes: published names in label order, or None; ignored if the files hold a different number of classes, or
            the same names in another order.
        notes: notes for the user; those of the reader are appended.
        only: the classes to use, in label order; None: all.
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
    """The training part, the first test part that has labels, and notes on what is not used."""
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
    """The images of the classes `only`, relabelled in that order."""
    if missing := [name for name in only if name not in names]:
        raise UsageError(f"{where} lacks {len(missing)} classes: {', '.join(missing[:5])}; it has {len(names)} others")
    return part.only([names.index(name) for name in only])


def _grouped(paths: Sequence[Path], root: Path) -> tuple[dict[Path, _Group], tuple[Path, ...]]:
    """Files by configuration and split, and the files whose split is unknown.

    As in Hugging Face `datasets`, folder names take precedence over file names if any folder name indicates a split.
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
    """The one data set in a user's folder; its splits may be in separate folders."""
    every = [split for group in groups.values() for split in group]
    if len(every) == len(set(every)):
        return {split: files for group in groups.values() for split, files in group.items()}
    names = ", ".join(map(str, sorted(groups)))
    raise UsageError(f"{root} holds several data sets: {names}; name one of these folders")


def _files(root: Path, group: _Group, test: tuple[str, ...], unread: tuple[Path, ...] = ()) -> ParquetFiles:
    tests = tuple((split, tuple(group[split])) for split in test if split in group)
    return ParquetFiles(root, tuple(group[TRAIN]), tests, unread)


def _hidden(path: Path) -> bool:
    """Whether it is hidden, by the same rules as in folders of images."""
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
