"""What a build does to prune: parts go before anything else, weights become 0 before they are rounded."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.backends.backend import Job, get_backend
from edgec.backends.session import Session
from edgec.build_calibration import device_of
from edgec.build_ranges import with_ranges
from edgec.calibrate.cache import cache_dir, key
from edgec.checkpoint.model import Checkpoint
from edgec.errors import EdgecError
from edgec.frontends.architecture import Decoder
from edgec.frontends.families import describe
from edgec.graph.rewrite import array_of
from edgec.graph.store import Store
from edgec.graph.weights import matrix_name, stored_codes, weight_nodes
from edgec.measure.paired import paired_ms, ratio_interval
from edgec.prune.allocate import allocate
from edgec.prune.importance import choose
from edgec.prune.keep import Keep
from edgec.prune.methods import keep_mask
from edgec.prune.pattern import Pattern
from edgec.prune.slim import slim
from edgec.quantize.block import Pruning
from edgec.quantize.scheme import Scheme
from edgec.quantize.transforms import ROTATION
from edgec.quantize.transforms.quarot import emit_turned
from edgec.quantize.weights import quantize_weights
from edgec.report.model import AgainstDense, Zeros
from edgec.report.model import Pruning as Evidence
from edgec.spec.exploit import eligible, what_of_zeros
from edgec.spec.operation import Storage
from edgec.spec.plan import Plan
from edgec.spec.prediction import dense_plan, predict
from edgec.spec.target import Target

Tick = Callable[[str], object]

# Of a race against the dense model: tokens decoded in each run, and pairs of runs.
_NEW, _PAIRS = 16, 15


class Left(NamedTuple):
    """What is left of a model: the checkpoint and its description, and what was kept; None where all of it is."""

    checkpoint: Checkpoint
    decoder: Decoder
    keep: Keep | None

    def graph(self, plan: Plan, transforms: Sequence[str] | None = None) -> ir.Model:
        """Return its float graph, transformed as the plan says, or as `transforms` does."""
        turned = plan.transforms if transforms is None else transforms
        return emit_turned(self.decoder, self.checkpoint, plan.context_length, turned)

    def key(self, plan: Plan, transforms: Sequence[str] | None = None) -> str:
        """Return what tells apart what `graph` returns, for names of cached results."""
        turned = plan.transforms if transforms is None else transforms
        files = (part for file in plan.source.files.items() for part in file)
        return key(*files, repr(self.decoder), repr(self.keep), str(ROTATION in turned))


def shrink(dense: Left, plan: Plan, windows: NDArray[np.int64] | None, ignored: frozenset[str], tick: Tick) -> Left:
    """Return what stays of a model by the plan's sizes, chosen on a calibration text where the plan's importance asks.

    What was measured is in the cache: also for builds that store weights in another way, or for another backend.

    Raises:
        CheckpointError: the model computes something that is not finite.
    """
    assert plan.slim is not None
    checkpoint, decoder, _ = dense
    keep = choose(
        dense.graph(plan, ()),
        decoder,
        windows,
        plan.slim.sizes,
        plan.slim.importance,
        source=dense.key(plan, ()),
        folder=cache_dir() / "importance",
        device=device_of(plan),
        tick=tick,
    )
    smaller = slim(checkpoint, decoder, keep, ignored)
    return Left(smaller, describe(smaller, ignored), keep)


def pruning_of(model: ir.Model, plan: Plan, windows: NDArray[np.int64] | None, source: str, tick: Tick) -> Pruning:
    """Return how sparse each matrix of a float graph becomes; `source` tells that graph from others.

    Raises:
        CheckpointError: the model computes something that is not finite.
    """
    if plan.sparse is None:
        return Pruning()
    wanted = plan.sparse
    patterns = allocate(
        model,
        wanted.matrices,
        Pattern.parse(wanted.pattern),
        wanted.allocation,
        windows,
        method=wanted.method,
        source=source,
        folder=cache_dir() / "sensitivity",
        device=device_of(plan),
        tick=tick,
    )
    return Pruning(wanted.method, patterns)


def evidence(dense: Left, left: Left, model: ir.Model, target: Target, plan: Plan) -> Evidence:
    """Return what pruning was to give, and what there is of zeros in a quantized canonical graph.

    Raises:
        EdgecError: a matrix does not have its pattern; that would be a bug in edgec.
    """
    predicted = predict(dense.decoder, left.decoder, plan, target)
    if plan.sparse is None:
        return Evidence(predicted, None, None)
    pattern, stored = Pattern.parse(plan.sparse.pattern), {node.outputs[0]: node for node in weight_nodes(model.graph)}
    zeros, count = 0, 0
    for node in (node for node in model.graph if node.name in plan.sparse.matrices):
        rows = torch.from_numpy(_floats(node.inputs[1], stored))
        zeros, count = zeros + int((rows == 0).sum()), count + rows.numel()
        if pattern.block is not None and (rows[~keep_mask(rows.abs(), pattern, "row")] != 0).any():
            raise EdgecError(f"a matrix that was pruned to {pattern} has other weights", where=node.name)
    runtime = what_of_zeros(plan, target, len(eligible(left.decoder, plan, target)))
    found = Zeros(len(plan.sparse.matrices), zeros / count if count else 0.0, runtime)
    return Evidence(predicted, found, None)


def _floats(weight: ir.Value | None, stored: dict[ir.Value, ir.Node]) -> NDArray[np.float32]:
    """Return the (out, in) numbers that a matmul of a canonical graph multiplies with."""
    assert weight is not None
    if weight in stored:
        return stored_codes(stored[weight]).floats()
    node = weight.producer()
    source = weight if node is None else node.inputs[0]  # a Cast of float16
    assert source is not None
    return np.ascontiguousarray(array_of(source).T, np.float32)


def race(dense: Left, target: Target, plan: Plan, artifact: Path, scratch: Path) -> AgainstDense:
    """Time an artifact in turn with one of the dense model that is stored alike.

    The dense weights are rounded to nearest, and ranges of activations made up: neither is slower or faster for it.

    Args:
        dense: the model as it came.
        target: the device.
        plan: of the build.
        artifact: what was built.
        scratch: a directory for the other one.
    """
    backend, (checkpoint, decoder, _) = get_backend(plan.backend), dense
    unpruned = dense_plan(plan, decoder)
    folder = scratch / "dense"
    folder.mkdir()
    with Store(scratch / "dense.bin") as store:
        model = dense.graph(plan, ())
        quantize_weights(model, lambda value, _: _to_nearest(unpruned.storage_of(matrix_name(value))), store, _ignore)
        shipped = with_ranges(model, unpruned, _made_up)
        backend.compile_decoder(
            Job(shipped, decoder, unpruned, target, checkpoint.config, checkpoint.tokenizer_files()), folder, _ignore
        )
    new = min(_NEW, plan.context_length - 1)
    sessions = [backend.open_session(path, "generate", max_length=1 + new) for path in (artifact, folder)]
    times = paired_ms(*(partial(_decode, session, new) for session in sessions), pairs=_PAIRS)
    speed, low, high = ratio_interval(times[:, 1], times[:, 0])
    here, there = (sum(file.stat().st_size for file in path.iterdir()) for path in (artifact, folder))
    shutil.rmtree(folder)
    return AgainstDense(here, there, speed, low, high, 1e3 * new / float(np.median(times[:, 1])))


def _made_up(parts: Mapping[str, int], _: str) -> dict[str, NDArray[np.float64]]:
    return {name: np.ones(count) for name, count in parts.items()}


def _to_nearest(storage: Storage) -> Storage:
    return msgspec.structs.replace(storage, algorithm="rtn") if isinstance(storage, Scheme) else storage


def _decode(session: Session, new: int) -> None:
    session.reset(1)
    ids = np.zeros((1, 1), np.int64)
    for _ in range(new):
        ids = session.step(ids)[:, -1].argmax(axis=1)[:, None]


def _ignore(_: object) -> None:
    pass
