"""Recognise the layout of a user's folders: which are splits, which are classes, and what is skipped.

    PATH/train/CLASS/…, PATH/test/CLASS/…    splits, by the keywords of `split_names`; validation if there is no test
    PATH/CLASS/…                             classes only
    PATH/CLASS/train/…, PATH/CLASS/test/…    splits within classes
    PATH/WRAPPER/…                           any of these, inside a single folder

Nothing is guessed: ambiguous trees are refused, and unused files are named.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dd.data.sources.split_names import TEST_ORDER, TRAIN, split_of, strict
from dd.data.sources.walk import Folder, some
from dd.errors import UsageError

# names of folders that hold all images of a part, without labels
_NO_CLASS = {"images", "image", "img", "imgs", "unknown", "unlabeled", "unlabelled", "all", "all_classes"}
_NUMBERED = re.compile(r"(.*[^\W\d_].*?)[-._ (]+\d+\)?\.\w+")  # cat.0.jpg, Abyssinian_12.png
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".xlsx", ".mat", ".parquet")

ClassFolders = dict[str, list[Folder]]


@dataclass
class FolderLayout:
    """The folders of each class, part by part.

    Attributes:
        train: folders by class, in label order.
        test: folders by class; None if there is no labelled test part.
        listed: the test part, if a file beside its folder `images` lists the labels; then `test` is None.
        notes: what a user should know.
    """

    train: ClassFolders
    test: ClassFolders | None = None
    listed: Folder | None = None
    notes: list[str] = field(default_factory=list)


def laid_out(top: Folder, root: Path) -> FolderLayout:
    """Recognise the layout of a tree.

    Args:
        top: its folders.
        root: its path, for messages.

    Raises:
        UsageError: it holds no class folders, or it is ambiguous.
    """
    return _Reading(root).read(top)


def annotations(part: Folder) -> str | None:
    """The file that lists the labels of a part's folder `images`, as in Tiny-ImageNet; None if there is none."""
    found = [name for name in part.others if name.endswith("_annotations.txt")]
    return found[0] if "images" in part.filled and found else None


def class_folders(part: Folder, place: Path) -> ClassFolders:
    """The folders of a part that hold images; each is a class.

    Raises:
        UsageError: there is no such folder.
    """
    if part.filled:
        return {name: [folder] for name, folder in part.filled.items()}
    if part.images:
        raise _flat(part, place)
    if any(name.endswith(".parquet") for name in part.others):
        raise UsageError(f"{place} holds no class folders, but parquet files; dataset=parquet:{place} reads those")
    if part.folders:
        raise UsageError(f"the {len(part.folders)} folders in {place} hold no images (png, jpg, bmp, webp, …)")
    raise UsageError(f"{place} holds no class folders; it wants {place.name}/CLASS/IMAGE.png")


def layout_notes(part: Folder) -> list[str]:
    """Notes on what was skipped in a part: folders without images, and images beside the class folders."""
    notes = []
    if part.empty:
        notes.append(f"without images, so no class: {some([folder.path for folder in part.empty])}")
    if part.images and part.filled:
        notes.append(f"not read: {len(part.images):,} images beside the class folders{_of(part)}")
    return notes


@dataclass
class _Reading:
    root: Path
    train: list[Folder] = field(default_factory=list)

    def read(self, top: Folder) -> FolderLayout:
        wrapper = None
        while (only := _only(top)) and only.filled and (split_of(only.name) is None or TRAIN in _parts(only)):
            top = wrapper = only
        if only and not only.filled and only.name.lower() in _NO_CLASS:
            raise _flat(only, self._place(only), top)
        found = self._parts(top) or self._within_classes(top) or self._classes(top)
        if wrapper:
            found.notes.insert(0, f"read from the folder {wrapper.path}, the only one with images")
        return found

    def _place(self, folder: Folder) -> Path:
        return self.root / folder.path

    def _classes(self, top: Folder) -> FolderLayout:
        return FolderLayout(class_folders(top, self._place(top)), notes=layout_notes(top))

    def _parts(self, top: Folder) -> FolderLayout | None:
        """The splits among the folders of `top`; None if the folders are classes."""
        parts, rest = _parts(top), [folder for folder in top.filled.values() if split_of(folder.name) is None]
        plain = {split for folder in top.filled.values() if (split := strict(folder.name))}
        if TRAIN not in parts:
            if plain or (parts and not rest) or any(folder.filled for part in parts.values() for folder in part):
                raise self._no_training(top, parts, rest)
            return None
        train = [_opened(folder) for folder in parts[TRAIN]]
        if len(parts) == 1 and rest:
            if all(folder.filled for folder in train):
                raise self._both(top, parts, rest)
            return None  # "train" may be a class, as among vehicles
        if flat := [folder for folder in train if not folder.filled]:
            if not rest or len(plain) > 1:
                raise self._flat_part(top, flat[0], parts, rest)
            return None
        return self._layout(top, train, parts, rest)

    def _layout(
        self, top: Folder, train: list[Folder], parts: dict[str, list[Folder]], rest: list[Folder]
    ) -> FolderLayout:
        self.train, found = train, FolderLayout(_merged(train))
        for folder in train:
            found.notes += layout_notes(folder)
        for split in TEST_ORDER:
            if split in parts:
                self._test(found, parts[split], split)
        missing = [folder for folder in top.empty if split_of(folder.name) in TEST_ORDER]
        if unread := [*(folder.path for folder in rest), *(f"{folder.path} (no images)" for folder in missing)]:
            found.notes.append(f"not used: {some(unread)}")
        return found

    def _test(self, found: FolderLayout, folders: list[Folder], split: str) -> None:
        """Use a part as the test part, unless there is one already or it has no labels; add a note otherwise."""
        names = some([folder.path for folder in folders])
        opened = [_opened(folder, found.train) for folder in folders]
        if found.test is not None or found.listed is not None:
            found.notes.append(f"not used: {names}, the {split} part")
        elif len(folders) == 1 and annotations(folders[0]):
            found.listed = folders[0]
        elif all(folder.filled for folder in opened):
            found.test = _merged(opened)
            # keep test classes whose training folder is empty, so that the error later says "no training images"
            bare = {inner.name: [inner] for folder in self.train for inner in folder.empty if inner.name in found.test}
            found.train = dict(sorted((bare | found.train).items()))
            for folder in opened:
                found.notes += layout_notes(folder)
        else:
            count = sum(len(folder.files()) for folder in folders)
            found.notes.append(f"not used: {names}, {count:,} images without class folders and so without labels")

    def _within_classes(self, top: Folder) -> FolderLayout | None:
        """The layout CLASS/train/… and CLASS/test/…; None if no class has such folders."""
        split = [folder for folder in top.filled.values() if _inner_parts(folder)]
        if not split:
            return None
        if any(not _inner_parts(folder) for folder in top.filled.values()):
            raise UsageError(
                f"{self._place(top)}: some of its folders hold a training part ({some(_names(split))}) and some do "
                f"not; name one of them, or sort them into {top.name}/train/CLASS/… and {top.name}/test/CLASS/…"
            )
        if any(part.filled for folder in split for part in folder.filled.values()):
            raise UsageError(f"{self._place(top)} holds several data sets: {some(_names(split))}; name one of them")
        found = FolderLayout({folder.name: _parts(folder)[TRAIN] for folder in split})
        used = next((s for s in TEST_ORDER if any(s in _parts(folder) for folder in split)), None)
        if used:
            found.test = {folder.name: parts[used] for folder in split if used in (parts := _parts(folder))}
        unread = [
            part.path for folder in split for part in folder.filled.values() if split_of(part.name) not in (TRAIN, used)
        ]
        if unread:
            found.notes.append(f"not used: {some(unread)}")
        return found

    def _no_training(self, top: Folder, parts: dict[str, list[Folder]], rest: Sequence[Folder]) -> UsageError:
        named = [folder for folders in parts.values() for folder in folders]
        place, first = self._place(top), named[0]
        if rest:
            return UsageError(
                f"{place} holds {some(_names(named))}, by its name a part, beside class folders "
                f"({some(_names(rest))}); move those into {place.name}/train, or rename {first.name}"
            )
        return UsageError(
            f"{place} holds no training part, only {some(_names(named))}; name one of them alone, as "
            f"folder:{self._place(first)}, or rename one to train"
        )

    def _both(self, top: Folder, parts: dict[str, list[Folder]], rest: Sequence[Folder]) -> UsageError:
        first = self._place(parts[TRAIN][0])
        return UsageError(
            f"{self._place(top)} holds {first.name}, a training part with class folders, beside {some(_names(rest))}, "
            f"which may be classes; name it alone, as folder:{first}, or rename it if it is a class"
        )

    def _flat_part(
        self, top: Folder, flat: Folder, parts: dict[str, list[Folder]], rest: Sequence[Folder]
    ) -> UsageError:
        named = [folder for folders in parts.values() for folder in folders]
        if rest or not flat.images:
            return UsageError(
                f"the folders {some(_names(named))} in {self.root} are parts by their names, but they hold images and "
                f"no class folders; sort them into {flat.name}/CLASS/…, or rename them if they are classes"
            )
        return _flat(flat, self._place(flat), top)


def _flat(folder: Folder, place: Path, top: Folder | None = None) -> UsageError:
    """The error for images without class folders, with a hint at where their labels may be."""
    others = folder.others + (top.others if top and top is not folder else [])
    tables = [name for name in others if name.lower().endswith(_TABLES)]
    numbered = [match for name in folder.images if (match := _NUMBERED.fullmatch(name))]
    kinds = {match[1] for match in numbered}
    if 2 * len(numbered) > len(folder.images) and 1 < len(kinds) <= len(numbered) / 2:
        hint = f"named by class, like {numbered[0][0]}: move them into folders, as {numbered[0][1]}/{numbered[0][0]}"
    elif tables:
        hint = f"beside {some(tables)}, which is not read: move them into a folder for each class by what it says"
    else:
        hint = "move them into a folder for each class"
    return UsageError(
        f"{place} holds {len(folder.images):,} images and no class folders (PATH/CLASS/… or PATH/train/CLASS/…), {hint}"
        "; or write a parquet file with columns image and label"
    )


def _opened(part: Folder, classes: ClassFolders | None = None) -> Folder:
    """A part, or the only folder inside it if that is a wrapper and not a class."""
    while (only := _only(part)) and not (classes and only.name in classes):
        bare = only.name.lower() in _NO_CLASS or only.name == part.name or split_of(only.name) is not None
        if not only.filled and not bare:
            break
        part = only
    return part


def _only(folder: Folder) -> Folder | None:
    """The one subfolder that holds all images of `folder`, if there is one."""
    return next(iter(folder.filled.values())) if len(folder.filled) == 1 and not folder.images else None


def _parts(top: Folder) -> dict[str, list[Folder]]:
    found: dict[str, list[Folder]] = {}
    for folder in top.filled.values():
        if split := split_of(folder.name):
            found.setdefault(split, []).append(folder)
    return found


def _inner_parts(folder: Folder) -> bool:
    """Whether a folder's subfolders are splits, by unambiguous names."""
    splits = {strict(inner.name) for inner in folder.filled.values()}
    return TRAIN in splits and len(splits - {None}) > 1


def _merged(parts: Sequence[Folder]) -> ClassFolders:
    names = sorted({name for part in parts for name in part.filled})
    return {name: [part.filled[name] for part in parts if name in part.filled] for name in names}


def _names(folders: Sequence[Folder]) -> list[str]:
    return [folder.name for folder in folders]


def _of(folder: Folder) -> str:
    return f" of {folder.path}" if folder.path else ""
