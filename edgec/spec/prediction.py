"""What pruning will give on a target, from shapes alone, before anything is built."""

import math

import msgspec

from edgec.backends.backend import Limits, get_backend
from edgec.frontends.architecture import Decoder
from edgec.prune.pattern import Pattern
from edgec.spec.exploit import eligible
from edgec.spec.layers import matrix_names
from edgec.spec.memory import artifact_bytes, other_numbers, stored_matrices
from edgec.spec.operation import Operation, operations
from edgec.spec.plan import Plan
from edgec.spec.preflight import preflight
from edgec.spec.prune_plan import parameters
from edgec.spec.target import Target


class Cost(msgspec.Struct, frozen=True):
    """What one form of a model costs on its target.

    Args:
        parameters: of the model.
        weight_bytes: of the artifact's weights.
        operations_per_token: multiplications and additions of matrices to decode one token; attention comes on top,
            with the length of the text.
        bytes_per_token: weights read to decode one token, and what fallbacks move.
    """

    parameters: int
    weight_bytes: int
    operations_per_token: int
    bytes_per_token: int


class Prediction(msgspec.Struct, frozen=True):
    """A pruned model beside the dense one that is stored alike.

    Args:
        dense: of the model as it came.
        pruned: of what is left.
        speed: tokens per second of the pruned model over those of the dense one, for short texts: decoding one row
            waits for memory, so that is the ratio of the bytes that they read.
        at_most: the speed takes all sparse kernels for granted that the runtime may take.
    """

    dense: Cost
    pruned: Cost
    speed: float
    at_most: bool = False


def predict(dense: Decoder, pruned: Decoder, plan: Plan, target: Target) -> Prediction:
    """Return what a plan's pruning will give.

    Args:
        dense: the model as it came.
        pruned: what is left of it, in shapes.
        plan: of the build.
        target: the device.
    """
    before, after = _cost(dense, dense_plan(plan, dense), target), _cost(pruned, plan, target)
    skips = bool(eligible(pruned, plan, target))
    return Prediction(before, after, before.bytes_per_token / after.bytes_per_token, skips)


def dense_plan(plan: Plan, dense: Decoder) -> Plan:
    """Return the plan of the dense model that is stored alike: layers that are gone as the last one that stays.

    Args:
        plan: that prunes.
        dense: the model as it came.
    """
    last = len(dense.layers) - 1 if plan.slim is None else plan.slim.sizes.layers - 1
    twins = {name: _in_layer(name, last) for name in matrix_names(dense) if int(name.split(".")[1]) > last}
    layers = plan.layers | {name: plan.layers[twin] for name, twin in twins.items() if twin in plan.layers}
    static = plan.static
    if static is not None:
        more = tuple(name for name, twin in twins.items() if twin in static.matrices)
        static = msgspec.structs.replace(static, matrices=(*static.matrices, *more))
    return msgspec.structs.replace(plan, slim=None, sparse=None, static=static, layers=layers)


def _in_layer(matrix: str, layer: int) -> str:
    """Return "layers.3.mlp.down" for "layers.7.mlp.down" and 3."""
    first, _, rest = matrix.split(".", 2)
    return f"{first}.{layer}.{rest}"


def _cost(decoder: Decoder, plan: Plan, target: Target) -> Cost:
    limits = get_backend(plan.backend).LIMITS
    stored = sum(_stored_bytes(o, plan, limits) for o in stored_matrices(decoder, plan.storage_of))
    products = sum(math.prod(o.size) for o in operations(decoder, plan.storage_of) if o.kind == "matmul")
    return Cost(
        parameters=parameters(decoder),
        weight_bytes=stored + 4 * other_numbers(decoder),
        operations_per_token=2 * products,
        bytes_per_token=preflight(decoder, plan, target).bytes_per_token,
    )


def _stored_bytes(operation: Operation, plan: Plan, limits: Limits) -> int:
    sparse = plan.sparse is not None and operation.matrix in plan.sparse.matrices
    zeros = Pattern.parse(plan.sparse.pattern).sparsity if plan.sparse is not None and sparse else 0.0
    static = plan.is_static(operation.matrix)
    return artifact_bytes(operation.storage or "fp32", *operation.shape, limits, static=static, zeros=zeros)
