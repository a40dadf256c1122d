"""Storage of single matrices: what a profile says about some of them, resolved for the matrices of one model."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from edgec.errors import UsageError
from edgec.frontends.architecture import Decoder
from edgec.graph.tags import HEAD_ROTATION
from edgec.spec.operation import Storage, operations
from edgec.spec.profile import LayerWeights


class MatrixStorage(msgspec.Struct, frozen=True):
    """How one matrix is stored, and why, for people."""

    storage: Storage
    reason: str = ""


def matrix_names(decoder: Decoder) -> list[str]:
    """Return the names of the matrices inside the layers, such as `layers.7.mlp.down`, in the order of the graph."""
    found = operations(decoder, lambda _: "fp32")
    return [o.matrix for o in found if o.kind == "matmul" and o.matrix.startswith("layers.")]


def resolve_layers(
    decoder: Decoder, weights: Storage, overrides: Sequence[LayerWeights], where: str
) -> dict[str, MatrixStorage]:
    """Return the storage of each matrix that is not stored as `weights`; the last override that matches wins.

    Args:
        decoder: the model.
        weights: storage of the other matrices.
        overrides: of the profile.
        where: the profile's name, for messages.

    Raises:
        UsageError: an override matches no matrix.
    """
    names = matrix_names(decoder)
    found: dict[str, MatrixStorage] = {}
    for number, override in enumerate(overrides):
        for pattern in override.patterns:
            matched = matching(pattern, names, f"{where}: layers[{number}].match")
            found.update(dict.fromkeys(matched, MatrixStorage(override.storage(), override.reason)))
    return {name: found[name] for name in names if name in found and found[name].storage != weights}


def matching(pattern: str, names: Sequence[str], where: str) -> list[str]:
    """Return the matrices that a pattern, as in a shell, matches.

    Raises:
        UsageError: it matches none.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise _no_match(pattern, names, where)
    return found


def storage_lookup(
    weights: Storage, embedding: Storage, layers: Mapping[str, MatrixStorage]
) -> Callable[[str], Storage]:
    """Return what gives the storage of a matrix by its name; those outside the layers are stored as `embedding`."""

    def storage_of(matrix: str) -> Storage:
        if matrix == HEAD_ROTATION:
            return "fp32" if embedding == "fp32" else "fp16"
        if matrix in layers:
            return layers[matrix].storage
        return weights if matrix.startswith("layers.") else embedding

    return storage_of


def describe_matrices(names: Iterable[str]) -> str:
    """Return matrices in few words: `mlp.down 0-3, 7; attention.o 5`."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        _, number, matrix = name.split(".", 2)
        numbers.setdefault(matrix, []).append(int(number))
    return "; ".join(f"{matrix} {ranges(sorted(layers))}" for matrix, layers in numbers.items())


def ranges(numbers: Iterable[int]) -> str:
    """Return "0-3, 5" for 0, 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _no_match(pattern: str, names: Sequence[str], where: str) -> UsageError:
    near = difflib.get_close_matches(pattern, names, n=3) or [name for name in names if name.startswith("layers.0.")]
    return UsageError(
        f"'{pattern}' matches no matrix of this model, whose layers are 0 to {names[-1].split('.')[1]}",
        where=where,
        hint=f"a matrix is named as in {', '.join(near)}; `*` stands for anything, as in layers.*.mlp.down",
    )
