"""What a plan will run on its target, operation by operation, before anything is built."""

from collections.abc import Mapping

import msgspec

from edgec.backends.backend import Limits, get_backend
from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder
from edgec.quantize.scheme import Scheme
from edgec.spec.exploit import spared_bytes
from edgec.spec.memory import artifact_bytes
from edgec.spec.operation import Kernel, Operation, operations
from edgec.spec.plan import Plan
from edgec.spec.target import Target


class Row(msgspec.Struct, frozen=True):
    """An operation and its kernel.

    Args:
        block: where it is, such as `layers.3.mlp`.
        operation: what it is, with its size.
        kernel: what runs it.
        bytes_per_token: weights that it reads to decode one token, and what a fallback moves besides.
        fallback: why it is not the kernel that the storage is meant for; None where it is.
        fallback_bytes: of `bytes_per_token`, what the fallback costs.
        caveat: why the kernel is not certain; None where it is.
    """

    block: str
    operation: str
    kernel: str
    bytes_per_token: int
    fallback: str | None = None
    fallback_bytes: int = 0
    caveat: str | None = None


class Preflight(msgspec.Struct, frozen=True):
    """The kernels of a plan.

    Args:
        rows: one for each operation, in the order of the graph.
        bytes_per_token: weights read to decode one token, by sparse kernels where those may be taken, and what
            fallbacks move, with a full cache.
        memory_ms_per_token: the time that this takes at the target's memory bandwidth, a lower bound of the time of a
            token; None where the bandwidth is not known.
    """

    rows: tuple[Row, ...]
    bytes_per_token: int
    memory_ms_per_token: float | None

    @property
    def fallbacks(self) -> tuple[Row, ...]:
        """The operations that do not get the kernel that their storage is meant for."""
        return tuple(row for row in self.rows if row.fallback)


def preflight(decoder: Decoder, plan: Plan, target: Target) -> Preflight:
    """Return the kernels that a plan's operations get on its target."""
    backend, spared = get_backend(plan.backend), spared_bytes(decoder, plan, target)
    rows = tuple(
        _row(operation, backend.kernel_of(operation, plan, target), plan, backend.LIMITS, spared)
        for operation in operations(decoder, plan.storage_of)
    )
    total = sum(row.bytes_per_token for row in rows)
    bandwidth = target.memory_bandwidth_gbps
    return Preflight(rows, total, 1e3 * total / (bandwidth * 1e9) if bandwidth else None)


def refuse_fallbacks(found: Preflight) -> None:
    """Make sure that every operation gets the kernel that its storage is meant for.

    Raises:
        PlanError: one does not.
    """
    if found.fallbacks:
        first = found.fallbacks[0]
        raise PlanError(
            f"{len(found.fallbacks)} operations would fall back on this target; the first: {first.fallback}",
            where=f"{first.block}, {first.operation}",
            hint="choose a profile that the target's kernels take (`edgec plan` shows them), or allow fallbacks",
        )


def _row(operation: Operation, kernel: Kernel, plan: Plan, limits: Limits, spared: Mapping[str, float]) -> Row:
    if operation.kind != "matmul":
        size = f" {operation.size[0]} x {operation.size[1]}" if operation.size else ""
        scores = operation.attention.heads * plan.context_length * limits.activation_bytes if operation.attention else 0
        moved = 2 * kernel.spills * scores
        name = f"{operation.name}{size}"
        return Row(operation.block, name, kernel.name, moved, kernel.fallback, moved, kernel.caveat)
    rows, cols = operation.shape
    static = plan.is_static(operation.matrix)
    stored = artifact_bytes(operation.storage or "fp32", rows, cols, limits, static=static)
    read = stored if kernel.read_as is None else int(rows * cols * kernel.read_as)
    # A weight that is widened first is read, written and read again.
    extra = 0
    if kernel.read_as is not None:
        extra = 2 * read if isinstance(operation.storage, Scheme) else read - stored
    name = f"{operation.name} {cols} x {rows}"
    skipped = int(spared.get(operation.matrix, 0))
    caveat = kernel.caveat or (_SPARSE if skipped else None)
    return Row(operation.block, name, kernel.name, stored + extra - skipped, kernel.fallback, extra, caveat)


_SPARSE = "sparse kernels, which read less, are taken where TensorRT finds them faster"
