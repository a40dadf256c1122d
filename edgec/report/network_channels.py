"""What became of a network's channels and weights, and what that was to give and gave."""

import msgspec

from edgec.report.model import Zeros
from edgec.report.page import zeros_rows
from edgec.spec.network_plan import NetworkPlan, NetworkPrediction

_MIB = 2**20


class BesideDense(msgspec.Struct, frozen=True):
    """The artifact beside one of the dense network that is stored alike, run in turn on the build machine.

    Args:
        size_bytes: of the artifact's files.
        dense_size_bytes: of those of the dense one.
        speed: time of the dense one over the artifact's: median over pairs of runs.
        low: lower end of its 95 % interval.
        high: upper end.
        dense_latency_ms: of one run of the dense one, median.
    """

    size_bytes: int
    dense_size_bytes: int
    speed: float
    low: float
    high: float
    dense_latency_ms: float


class NetworkPruning(msgspec.Struct, frozen=True):
    """What pruning was to give, and what it gave.

    Args:
        predicted: by the plan, of taking channels out; None where all of them stay.
        parameters: of the float graph that is left.
        multiply_adds: of it; None where sizes are open.
        measured: None without samples to measure on, and where the artifact does not run here.
        zeros: None where none were wanted.
    """

    predicted: NetworkPrediction | None
    parameters: int
    multiply_adds: int | None
    measured: BesideDense | None
    zeros: Zeros | None = None


def channel_rows(plan: NetworkPlan) -> list[tuple[str, str]]:
    """Return (what, how) for the channels that a plan takes out."""
    if plan.channels is None or plan.wishes.channels is None:
        return []
    wishes, groups = plan.wishes.channels, plan.channels.groups
    before, after = (sum(sizes) for sizes in zip(*((g.channels, g.kept) for g in groups), strict=True))
    fewer = sum(group.kept < group.channels for group in groups)
    by = f"by {_IMPORTANCE[wishes.importance]}{', all groups alike' if wishes.uniform else ''}"
    fitted = "; the layers that read them make up for it" if wishes.refit else ""
    return [("channels", f"{before} -> {after}, in {fewer} of {len(groups)} groups of layers; {by}{fitted}")]


def group_rows(plan: NetworkPlan) -> list[tuple[str, str, str]]:
    """Return (layers, channels, why they stay) of each group of channels."""
    rows = []
    for group in plan.channels.groups if plan.channels else ():
        others = len(group.layers) - 1
        sizes = str(group.channels) if group.kept == group.channels else f"{group.channels} -> {group.kept}"
        why = f"stay: {group.refused}" if group.refused else ""
        rows.append((f"{group.name} and {others} more" if others else group.name, sizes, why))
    return rows


def prediction_rows(predicted: NetworkPrediction, found: NetworkPruning | None = None) -> list[tuple[str, str]]:
    """Return (what, dense to pruned) of a prediction, with what was measured beside it."""
    before, after, measured = predicted.dense, predicted.pruned, found and found.measured
    size = f"{before.weight_bytes / _MIB:.1f} -> {after.weight_bytes / _MIB:.1f} MiB"
    speed = f"up to {predicted.speed:.2f} times that of the dense network"
    if measured:
        sizes = f"{measured.dense_size_bytes / _MIB:.1f} -> {measured.size_bytes / _MIB:.1f} MiB"
        size += f" predicted, {sizes} measured with all files"
        speed += f" predicted, {measured.speed:.2f} ({measured.low:.2f} to {measured.high:.2f}) measured"
    else:
        speed += f", by the {'weights, for sizes are open' if before.multiply_adds is None else 'multiply-adds'}"
    left = after if found is None else found
    rows = [
        ("parameters", f"{before.parameters / 1e6:.2f} -> {left.parameters / 1e6:.2f} M"),
        ("weights", size),
        ("speed", speed),
    ]
    if before.multiply_adds is not None and left.multiply_adds is not None:
        work = f"{before.multiply_adds / 1e6:.1f} -> {left.multiply_adds / 1e6:.1f} M for a sample"
        rows.insert(2, ("multiply-adds", work))
    return rows


def sparse_rows(plan: NetworkPlan) -> list[tuple[str, str]]:
    """Return (what, how) for the weights that a plan makes 0."""
    if plan.sparse is None or plan.wishes.sparse is None:
        return []
    wishes, layers, dense = plan.wishes.sparse, len(plan.sparse.layers), len(plan.sparse.dense)
    what = "zeros" if wishes.parsed.block is None else "weights that stay"
    return [(what, f"{wishes.pattern} by {wishes.method}, in {layers} of {layers + dense} layers")]


def layer_rows(plan: NetworkPlan) -> list[tuple[str, str, str]]:
    """Return (layer, zeros, why it stays dense, or what may skip its zeros) of each layer with constant weights."""
    if plan.sparse is None or plan.wishes.sparse is None:
        return []
    kernels, pattern = frozenset(plan.sparse.kernels), plan.wishes.sparse.pattern
    sparse = [(name, pattern, "sparse kernels" if name in kernels else "") for name in plan.sparse.layers]
    return sparse + [(name, "dense", f"stays: {why}") for name, why in plan.sparse.dense.items()]


def pruning_rows(plan: NetworkPlan, found: NetworkPruning | None) -> list[tuple[str, str]]:
    """Return what a build pruned, and what came of it."""
    rows = [*channel_rows(plan), *sparse_rows(plan)]
    if found is None:
        return rows
    if found.predicted is not None:
        rows += prediction_rows(found.predicted, found)
    elif found.measured is not None:
        beside = found.measured
        sizes = f"{beside.dense_size_bytes / _MIB:.1f} -> {beside.size_bytes / _MIB:.1f} MiB with all files"
        speed = f"{beside.speed:.2f} ({beside.low:.2f} to {beside.high:.2f}) times its speed"
        rows.append(("beside the dense network", f"{sizes}, {speed}"))
    return rows + zeros_rows(found.zeros)


_IMPORTANCE = {
    "magnitude": "size of the weights that give them",
    "activation": "size of what they give",
    "wanda": "what they give times the weights that read it",
}
