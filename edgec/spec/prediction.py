"""What pruning will give on a target, from shapes alone, before anything is built."""

import math

import msgspec

from edgec.backends.backend import Limits, get_backend
from edgec.frontends.architecture import Decoder
from edgec.prune.pattern import Pattern
from edgec.quantize.scheme import Scheme
from edgec.spec.memory import artifact_bytes, other_numbers, sparse_bytes, stored_matrices
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
            waits for memory, so that is the ratio of the bytes that they read; where sparse kernels may be taken, at
            most.
    """

    dense: Cost
    pruned: Cost
    speed: float


def predict(dense: Decoder, pruned: Decoder, plan: Plan, target: Target) -> Prediction:
    """Return what a plan's pruning will give.

    Args:
        dense: the model as it came.
        pruned: what is left of it, in shapes.
        plan: of the build.
        target: the device.
    """
    before = _cost(dense, msgspec.structs.replace(plan, sparse=None), target)
    after = _cost(pruned, plan, target)
    return Prediction(before, after, before.bytes_per_token / after.bytes_per_token)


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
    storage, static = operation.storage or "fp32", plan.is_static(operation.matrix)
    size = artifact_bytes(storage, *operation.shape, limits, static=static)
    if plan.sparse is None or operation.matrix not in plan.sparse.matrices or not limits.sparse_files:
        return size
    if isinstance(storage, Scheme) and not static:
        return size  # blocked integers have their 0 in the middle
    numbers, zeros = math.prod(operation.shape), Pattern.parse(plan.sparse.pattern).sparsity
    itemsize = 1 if isinstance(storage, Scheme) else size // numbers
    return size - numbers * itemsize + sparse_bytes(numbers, itemsize, zeros)
