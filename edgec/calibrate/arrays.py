"""Samples to calibrate models other than language models on: named inputs, some samples at a time."""

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.documents import keyed_hash
from edgec.calibrate.images import Pictures, list_pictures, read_picture
from edgec.calibrate.npy import ArrayFile, open_npz
from edgec.errors import UsageError

Batch = dict[str, NDArray[Any]]

Labels = NDArray[Any] | list[str]
"""What is right for each sample: class indices (int64), numbers to be predicted (float), or texts."""


def load_arrays(
    path: Path, *, samples: int, batch: int = 8, seed: int = 0, pictures: Pictures | None = None
) -> Iterator[Batch]:
    """Yield batches of a sample of what a file or folder holds, in its order, by the name of the model's input.

    Which samples are taken depends on their number and the seed alone, and is the same on every machine. Memory is
    bounded by three batches.

    Args:
        path: an .npz file with one array for each input, all with as many samples along the first axis; or a folder
            of PNG and JPEG files.
        samples: how many to take, at most.
        batch: samples in one batch; the last one may have fewer.
        seed: decides which samples are taken, 0 to 2**64 - 1.
        pictures: what to make of pictures; needed for a folder.

    Raises:
        UsageError: the path cannot be read, or something in it cannot be used.
        MissingRuntimeError: pictures need Pillow.
    """
    try:
        if path.is_dir():
            yield from _from_folder(path, samples, batch, seed, pictures)
        else:
            yield from _from_archive(path, samples, batch, seed)
    except OSError as error:
        raise UsageError(
            f"the samples cannot be read: {error.strerror or error}", where=str(path), hint="check the file"
        ) from error


def open_samples(file: IO[bytes], where: str) -> tuple[dict[str, ArrayFile], int]:
    """Read the headers of an .npz file of samples; return its arrays by their names, and how many samples they hold.

    Raises:
        UsageError: this is no such file, or its arrays do not have the same number of samples.
    """
    arrays = open_npz(file, where)
    counts = {array.shape[0] for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise UsageError(
            f"the arrays must have the same number of samples along their first axes, not none: {shapes}",
            where=where,
            hint="save them again: numpy.savez(path, NAME=array, ...) with an array for each input",
        )
    return arrays, counts.pop()


def choose(count: int, samples: int, seed: int) -> list[int]:
    """Return which of `count` samples to take, in order."""
    first = heapq.nsmallest(samples, range(count), lambda index: keyed_hash(index.to_bytes(8, "little"), seed))
    return sorted(first)


def _from_folder(folder: Path, samples: int, batch: int, seed: int, pictures: Pictures | None) -> Iterator[Batch]:
    if pictures is None:
        raise UsageError("a folder of pictures needs the size that the model takes", where=str(folder))
    files = list_pictures(folder)
    chosen = choose(len(files), samples, seed)
    for first in range(0, len(chosen), batch):
        some = [read_picture(files[index], pictures) for index in chosen[first : first + batch]]
        yield {pictures.input: np.stack(some)}


def _from_archive(path: Path, samples: int, batch: int, seed: int) -> Iterator[Batch]:
    with path.open("rb") as file:
        arrays, count = open_samples(file, str(path))
        yield from _batches(arrays, choose(count, samples, seed), batch)


def _batches(arrays: dict[str, ArrayFile], chosen: list[int], batch: int) -> Iterator[Batch]:
    """Read all arrays side by side, and yield the chosen samples."""
    names = list(arrays)
    kept: Batch = {}
    wanted = set(chosen)
    for number, blocks in enumerate(zip(*(array.blocks(batch) for array in arrays.values()), strict=True)):
        rows = [row for row in range(len(blocks[0])) if number * batch + row in wanted]
        taken = {name: block[rows] for name, block in zip(names, blocks, strict=True)}
        kept = {name: np.concatenate([kept[name], taken[name]]) if kept else taken[name] for name in names}
        while len(kept[names[0]]) >= batch:
            yield {name: array[:batch] for name, array in kept.items()}
            kept = {name: array[batch:] for name, array in kept.items()}
    if len(kept[names[0]]):
        yield kept
