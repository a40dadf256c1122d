"""What a torch model is traced with: the name, type and shape of each input, and arrays to try it on."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError

Feed = dict[str, NDArray[Any]]

BATCH = "batch"
DTYPES = ("float32", "int64", "int32", "bool")
SPELLING = (
    "write NAME:TYPE[SIZE,...], such as image:float32[batch,3,224,224] or ids:int64[batch,length=128]<30522; "
    f"TYPE is one of {', '.join(DTYPES)}, a named size may change from run to run (=128 is the largest to try), "
    "and <N bounds integers"
)

_LARGEST = 16  # of a size that only has a name
_ARGUMENT = re.compile(r"(?P<name>[A-Za-z_]\w*):(?P<dtype>\w+)\[(?P<sizes>[^\]]*)\](?:<(?P<below>[1-9]\d*))?")
_SIZE = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:=(?P<largest>[1-9]\d*))?|(?P<fixed>[1-9]\d*)")


class Axis(msgspec.Struct, frozen=True):
    """A size that is only known when the model runs.

    Args:
        name: axes of one name have one size.
        largest: the largest size that the traced model is tried with.
    """

    name: str
    largest: int = _LARGEST


class Argument(msgspec.Struct, frozen=True, kw_only=True):
    """An input of a torch model.

    Args:
        name: of the parameter of `forward`.
        dtype: one of `DTYPES`.
        shape: sizes.
        below: integers are from 0 to one less than this.
        mask: ones, followed by zeros in all rows but the first.
    """

    name: str
    dtype: str
    shape: tuple[int | Axis, ...]
    below: int = 2
    mask: bool = False


def parse_argument(text: str) -> Argument:
    """Read an input as people write it; an integer input with "mask" in its name is a mask.

    Raises:
        UsageError: it is not written as `SPELLING` says.
    """
    match = _ARGUMENT.fullmatch(text.replace(" ", ""))
    if match is None or match["dtype"] not in DTYPES:
        raise UsageError(f"the input {text!r} cannot be understood", where=text, hint=SPELLING)
    integer = match["dtype"].startswith("int")
    if match["below"] and not integer:
        raise UsageError(f"the input {text!r} bounds numbers that are no integers", where=text, hint=SPELLING)
    return Argument(
        name=match["name"],
        dtype=match["dtype"],
        shape=tuple(_parse_size(size, text) for size in match["sizes"].split(",")) if match["sizes"] else (),
        below=int(match["below"] or 2),
        mask=integer and "mask" in match["name"],
    )


def parse_arguments(texts: Iterable[str]) -> tuple[Argument, ...]:
    """Read all inputs of a model.

    Raises:
        UsageError: one is not written as `SPELLING` says, or two have one name.
    """
    arguments = tuple(parse_argument(text) for text in texts)
    names = [argument.name for argument in arguments]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"the input '{twice[0]}' is given twice", hint="name each input once")
    return arguments


def arguments_of(feed: Feed) -> tuple[Argument, ...]:
    """Describe arrays that somebody gave as an example: what they share as their first size is the batch.

    Raises:
        UsageError: an array is of a type that no input may have.
    """
    firsts = {array.shape[0] if array.ndim else None for array in feed.values()}
    arguments = []
    for name, array in feed.items():
        if array.dtype.name not in DTYPES:
            raise UsageError(f"the example input '{name}' is {array.dtype.name}", hint=f"give {', '.join(DTYPES)}")
        shape: tuple[int | Axis, ...] = array.shape
        if len(firsts) == 1 and array.ndim:
            shape = (Axis(BATCH), *array.shape[1:])
        mask = array.dtype.kind == "i" and "mask" in name
        below = int(array.max(initial=0)) + 1 if array.dtype.kind == "i" else 2
        arguments.append(Argument(name=name, dtype=array.dtype.name, shape=shape, below=below, mask=mask))
    return tuple(arguments)


def axes_of(arguments: Iterable[Argument]) -> dict[str, int]:
    """Return the open sizes by name: the largest that the model may be tried with."""
    axes: dict[str, int] = {}
    for argument in arguments:
        for size in argument.shape:
            if isinstance(size, Axis):
                axes[size.name] = min(size.largest, axes.get(size.name, size.largest))
    return axes


def pin(arguments: Iterable[Argument], sizes: dict[str, int]) -> tuple[Argument, ...]:
    """Return the inputs with some open sizes fixed."""
    return tuple(
        msgspec.structs.replace(
            argument,
            shape=tuple(sizes.get(s.name, s) if isinstance(s, Axis) else s for s in argument.shape),
        )
        for argument in arguments
    )


def tracing_sizes(axes: dict[str, int]) -> dict[str, int]:
    """Return what to trace with: no 0 and no 1, which torch takes for fixed, and room above."""
    return {name: 2 if name == BATCH else max(2, largest * 3 // 4) for name, largest in axes.items()}


def trial_sizes(axes: dict[str, int]) -> tuple[dict[str, int], ...]:
    """Return what to try the traced model with: other sizes than it was traced with, smaller and larger."""
    return tuple(
        {name: batch if name == BATCH else max(1, largest * quarters // 4) for name, largest in axes.items()}
        for batch, quarters in ((3, 4), (1, 2))
    )


def draw(arguments: Iterable[Argument], sizes: dict[str, int], seed: int) -> Feed:
    """Return an array for each input: normal floats, uniform integers below their bound, masks; seeded."""
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for argument in arguments:
        shape = tuple(sizes[size.name] if isinstance(size, Axis) else size for size in argument.shape)
        feed[argument.name] = _draw(argument, shape, rng)
    return feed


def _draw(argument: Argument, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    if argument.mask and shape:
        rows = int(np.prod(shape[:-1]))
        kept = rng.integers((shape[-1] + 1) // 2, shape[-1], rows, endpoint=True)
        kept[:1] = shape[-1]
        return (np.arange(shape[-1]) < kept[:, None]).reshape(shape).astype(argument.dtype)
    if argument.dtype == "float32":
        return np.asarray(rng.standard_normal(shape, np.float32))
    return np.asarray(rng.integers(0, argument.below, shape), argument.dtype)


def _parse_size(text: str, where: str) -> int | Axis:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"the size {text!r} cannot be understood", where=where, hint=SPELLING)
    if match["fixed"]:
        return int(match["fixed"])
    return Axis(match["name"], int(match["largest"] or _LARGEST))
