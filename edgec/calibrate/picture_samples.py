"""Pictures for a network: the files of a folder, sized and normalised as it takes them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgec.calibrate.arrays import Batch, choose
from edgec.calibrate.cache import key
from edgec.calibrate.classes import classes_of_files
from edgec.calibrate.images import Pictures, list_pictures, read_picture
from edgec.calibrate.ports import Shape, listed
from edgec.calibrate.preparation import PREPROCESSOR, find_pictures, read_preprocessor
from edgec.calibrate.source import Source, in_slices
from edgec.errors import UsageError
from edgec.frontends.network import Port


def picture_source(
    folder: Path, ports: Sequence[Port], pictures: Pictures | None, labels: Sequence[str], samples: int, seed: int
) -> Source:
    """Choose pictures; see `edgec.calibrate.samples.load_samples`.

    Raises:
        UsageError: a file cannot be read, or the network takes no pictures.
        MissingRuntimeError: Pillow is not installed.
    """
    found = list_pictures(folder)
    pictures, how = (pictures, ()) if pictures else _preparation(folder, ports)
    files = [found[index] for index in choose(len(found), samples, seed)]
    truth, remarks = classes_of_files(files, folder, labels)
    shape = next((port.shape for port in ports if port.name == pictures.input), ())
    order = (1, 2, 0) if shape[-1:] == (3,) and shape[-3:-2] != (3,) else (0, 1, 2)
    sizes = [(3, pictures.height, pictures.width)[axis] for axis in order]

    def read(some: range) -> Batch:
        read = [read_picture(file, pictures) for file in files[some.start : some.stop]]
        return {pictures.input: np.stack(read).transpose(0, *(axis + 1 for axis in order))}

    content = [f"{file.relative_to(folder).as_posix()} {_hash(file)}" for file in files]
    classes = [] if truth is None else [str(label) for label in truth]
    return Source(
        where=str(folder),
        sha256=key(msgspec.json.encode(pictures), *content, *classes),
        shapes={pictures.input: Shape(tuple(sizes), np.dtype(np.float32))},
        places=[file.relative_to(folder).as_posix() for file in files],
        rows=in_slices(read, len(files), truth),
        remarks=(*remarks, *how),
    )


def _preparation(folder: Path, ports: Sequence[Port]) -> tuple[Pictures, tuple[str, ...]]:
    """Return how to prepare pictures for a network that does not say so itself, and what the user should know of it."""
    preprocessor, _ = read_preprocessor(folder)
    pictures = find_pictures(ports, preprocessor)
    if pictures is None:
        raise UsageError(
            f"the model has no input for pictures of three channels and of known size: it takes {listed(ports)}",
            where=str(folder),
            hint="state the sizes that it leaves open, such as --input image:float32[batch,3,224,224], or give .npz",
        )
    if preprocessor:
        return pictures, (f"pictures were prepared as {PREPROCESSOR} in their folder says",)
    how = f"resized to {pictures.height} x {pictures.width}, scaled to 0..1, ImageNet's mean and standard deviation"
    return pictures, (f"pictures were {how}: a {PREPROCESSOR} beside the model or in their folder may say otherwise",)


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"the picture cannot be read: {error.strerror or error}", where=str(path)) from error
