"""Which class a sample is of, from what files say: an index, the name of a class, or the name of a folder."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError

CLASSES_FILE = "labels.csv"

_SHOWN = 3


def classes_of(
    names: Sequence[str], places: Sequence[str], labels: Sequence[str]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return the class of each sample, and remarks; no classes where no name is one.

    Args:
        names: of the class of each sample, in any case and with _ for spaces, or its index.
        places: of each sample, for messages.
        labels: the model's classes by index; any index is taken where it has none.

    Raises:
        UsageError: some of the names are no classes of the model, or a name is that of two.
    """
    known: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        known.setdefault(_folded(label), []).append(index)
    found = {name: _indices(name, known, len(labels)) for name in set(names)}
    if not any(found.values()):
        shown = ", ".join(repr(name) for name in sorted(filter(None, found))[:_SHOWN])
        return None, (f"samples have no labels: the model has no class {shown}",)
    for name, place in zip(names, places, strict=True):
        if len(found[name]) != 1:
            what = "no class" if not found[name] else f"the name of the classes {found[name]}"
            raise UsageError(f"{name!r} is {what} of the model", where=place, hint="name the class by its index")
    return np.array([found[name][0] for name in names], np.int64), ()


def classes_of_files(
    files: Sequence[Path], folder: Path, labels: Sequence[str]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return the class of each file, and remarks.

    `labels.csv` in the folder says it, with a line `path,class` for each file and perhaps a heading; else the first
    folder of the path of each file is named after the class.

    Raises:
        UsageError: only some of the files have a class.
    """
    paths = [file.relative_to(folder).as_posix() for file in files]
    if (folder / CLASSES_FILE).is_file():
        listed = _read(folder / CLASSES_FILE)
        if lacking := [path for path in paths if path not in listed]:
            raise UsageError(
                f"it has no line for {lacking[0]}",
                where=str(folder / CLASSES_FILE),
                hint="add `path,class` for each file",
            )
        return classes_of([listed[path] for path in paths], paths, labels)
    if not any("/" in path for path in paths):
        return None, ()
    return classes_of([path.rpartition("/")[0].partition("/")[0] for path in paths], paths, labels)


def _indices(name: str, known: Mapping[str, list[int]], count: int) -> list[int]:
    if found := known.get(_folded(name)):
        return found
    return [int(name)] if name.isdecimal() and (int(name) < count or not count) else []


def _folded(name: str) -> str:
    return name.strip().casefold().replace("_", " ")


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the file cannot be read: {error}", where=str(path), hint="write CSV in UTF-8") from error
    if odd := next((row for row in rows if len(row) != 2), None):
        raise UsageError(
            f"a line is not `path,class`: {','.join(odd)}",
            where=str(path),
            hint="write a path and a class in each line",
        )
    return {name.strip(): kind.strip() for name, kind in rows}
