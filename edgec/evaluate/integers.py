"""Compare the integers of weights, bit for bit: an artifact's with its canonical graph's, or another artifact's."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.weights import Codes, stored_codes, weight_nodes
from edgec.quantize.activations import activation_scales
from edgec.quantize.scheme import Scheme
from edgec.report.model import Integers


def check_integers(
    canonical: ir.Model,
    found: Iterable[tuple[str, Codes]],
    scales: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
) -> Integers:
    """Compare every quantized weight and activation of `canonical` with what a backend read back from its artifact.

    Args:
        canonical: the graph.
        found: the weights of the artifact.
        scales: those of its activations, by their names.
    """
    weights, expected = compare_integers(canonical_codes(canonical), found), activation_scales(canonical.graph)
    names = sorted({*expected, *scales})
    different = tuple(name for name in names if expected.get(name) != scales.get(name))
    return Integers(weights.weights, (*weights.different, *different), len(names))


def compare_integers(reference: Iterable[tuple[str, Codes]], test: Iterable[tuple[str, Codes]]) -> Integers:
    """Compare the quantized weights of two models by name; one weight is in memory at a time."""
    a, b = _digests(reference), _digests(test)
    names = sorted({*a, *b})
    different = tuple(name for name in names if len(a[name]) != 1 or a[name] != b[name])
    return Integers(len(names), different)


def canonical_codes(canonical: ir.Model) -> Iterator[tuple[str, Codes]]:
    """Yield (name, integers) of each quantized weight of a canonical graph."""
    for stored in map(stored_codes, weight_nodes(canonical.graph)):
        zeros = None if stored.scheme.symmetric else stored.zero_points()
        yield stored.name, Codes(stored.codes(), stored.scales(), zeros, stored.scheme, stored.global_scale())


def _digests(weights: Iterable[tuple[str, Codes]]) -> defaultdict[str, set[bytes]]:
    """Return the digests of each weight: more than one where an artifact holds copies that differ."""
    found: defaultdict[str, set[bytes]] = defaultdict(set)
    for name, codes in weights:
        found[name].add(_digest(codes))
    return found


def _digest(weight: Codes) -> bytes:
    """Return what is the same for the same integers: backends may pad columns with zeros, and write smaller blocks."""
    codes = weight.codes
    used = np.flatnonzero(codes.any(axis=0))
    codes = codes[:, : used[-1] + 1 if used.size else 0]
    blocks = -(-codes.shape[1] // _BLOCK)
    state = blake2b(f"{weight.scheme.dtype} {weight.global_scale}".encode())
    for array in (codes, *(_per_block(a, weight.scheme, blocks) for a in (weight.scales, weight.zero_points))):
        if array is not None:
            state.update(f"{array.dtype}{array.shape}".encode())
            state.update(np.ascontiguousarray(array).data)
    return state.digest()


# Every group consists of whole blocks of this size.
_BLOCK = 16


def _per_block(array: NDArray[np.generic] | None, scheme: Scheme, blocks: int) -> NDArray[np.generic] | None:
    """Return scales or zero points (rows, groups) as (rows, blocks)."""
    if array is None:
        return None
    return np.repeat(array, blocks if scheme.group is None else scheme.group // _BLOCK, axis=1)[:, :blocks]
