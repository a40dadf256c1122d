"""What candidates cost: bytes in the artifact, and the time of a token."""

from collections.abc import Sequence

import msgspec
import numpy as np

from edgec.backends.backend import Limits
from edgec.frontends.architecture import Decoder
from edgec.prune.pattern import Pattern
from edgec.quantize.scheme import Scheme
from edgec.spec.memory import artifact_bytes, other_numbers, stored_matrices
from edgec.spec.operation import operations
from edgec.spec.plan import Plan
from edgec.spec.preflight import preflight
from edgec.spec.prune_plan import SparsePlan
from edgec.spec.target import Target
from edgec.tune.solve import Table
from edgec.tune.units import EMBEDDING, Candidate, Unit


def unit_sizes(decoder: Decoder, units: Sequence[Unit], candidates: Sequence[Candidate], limits: Limits) -> Table:
    """Return the bytes of each unit in an artifact, scales and zero points included, by candidate."""
    table = np.zeros((len(units), len(candidates)))
    place = _places(units)
    for column, candidate in enumerate(candidates):
        for operation in stored_matrices(decoder, lambda _: "fp32"):
            unit = place.get(operation.matrix, 0)
            pattern = candidate.of(units[unit]).pattern
            zeros = Pattern.parse(pattern).sparsity if pattern else 0.0
            table[unit, column] += artifact_bytes(candidate.storage, *operation.shape, limits, zeros=zeros)
    return table


def fixed_bytes(decoder: Decoder, plan: Plan, tokenizer_files: dict[str, bytes]) -> int:
    """Return a first guess of what an artifact holds besides: norms, rotary tables, the tokenizer."""
    ropes = {layer.attention.rope for layer in decoder.layers if layer.attention.rope}
    angles = sum(2 * 4 * len(rope.inverse_frequencies) * plan.context_length for rope in ropes)
    return 4 * other_numbers(decoder) + angles + sum(map(len, tokenizer_files.values()))


def unit_traffic(
    decoder: Decoder, plan: Plan, target: Target, units: Sequence[Unit], candidates: Sequence[Candidate]
) -> tuple[Table, float, Table]:
    """Return the bytes that units move for a token, what everything else moves, and which units fall back (1.0)."""
    moved, fallen = np.zeros((2, len(units), len(candidates)))
    place, rest = _places(units), 0.0
    for column, candidate in enumerate(candidates):
        uniform = uniform_plan(plan, units, candidate)
        rest = 0.0
        rows = preflight(decoder, uniform, target).rows
        for operation, row in zip(operations(decoder, uniform.storage_of), rows, strict=True):
            if operation.kind in ("matmul", "lookup"):
                unit = place.get(operation.matrix, 0)
                moved[unit, column] += row.bytes_per_token
                fallen[unit, column] = max(fallen[unit, column], row.fallback is not None)
            else:
                rest += row.bytes_per_token
    return moved, rest, fallen


def uniform_plan(plan: Plan, units: Sequence[Unit], candidate: Candidate) -> Plan:
    """Return the plan in which all units take one candidate; static activations stay where its weights take them."""
    storage = candidate.storage
    takes = isinstance(storage, Scheme) and storage.multiplies_int8
    sparse = None
    if candidate.pattern is not None:
        matrices = tuple(matrix for unit in units if not unit.dense for matrix in unit.matrices)
        sparse = SparsePlan(candidate.pattern, candidate.method, "uniform", matrices)
    return msgspec.structs.replace(
        plan, weights=storage, embedding=storage, layers={}, static=plan.static if takes else None, sparse=sparse
    )


def unit_shapes(decoder: Decoder, units: Sequence[Unit]) -> list[tuple[int, int]]:
    """Return the (out, in) of the matmul of each unit, whose matrices are joined."""
    place = _places(units)
    shapes = [(0, 0)] * len(units)
    for operation in operations(decoder, lambda _: "fp32"):
        if operation.kind == "matmul":
            unit = place.get(operation.matrix, 0)
            rows, cols = operation.shape
            shapes[unit] = (shapes[unit][0] + rows, cols)
    return shapes


def _places(units: Sequence[Unit]) -> dict[str, int]:
    """Return matrix -> index of its unit; what is in none is the embedding's, which is the first."""
    assert units[0].name == EMBEDDING
    return {matrix: index for index, unit in enumerate(units) for matrix in unit.matrices}
