"""The straight line from a checkpoint to a pruned one, whose weights are floats."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from edgec.build_calibration import check_device, device_of, planned_text
from edgec.build_prune import Left, evidence, pruning_of, shrink
from edgec.calibrate.cache import cache_dir
from edgec.checkpoint.export import Dtype
from edgec.checkpoint.model import Array, Checkpoint
from edgec.errors import UsageError
from edgec.frontends.architecture import Decoder
from edgec.generate.tokenizer import Tokenizer
from edgec.prune.put_back import put_back
from edgec.quantize.block import Recipe
from edgec.quantize.sequential import quantize_model
from edgec.report.model import Pruning
from edgec.spec.plan import Plan
from edgec.spec.target import Target

Tick = Callable[[str], object]


class Pruned(NamedTuple):
    """A pruned checkpoint, its description, what was predicted and found of it, and what the user should know."""

    checkpoint: Checkpoint
    decoder: Decoder
    evidence: Pruning
    remarks: tuple[str, ...]


def prune_checkpoint(
    checkpoint: Checkpoint,
    decoder: Decoder,
    target: Target,
    plan: Plan,
    tick: Tick,
    ignored: frozenset[str] = frozenset(),
) -> Pruned:
    """Prune a decoder as a plan says, and do nothing else to it: transforms and storage are left to a build.

    Sparse weights are kept in the cache, block by block: after an interruption the work goes on where it stopped.

    Args:
        checkpoint: the opened checkpoint.
        decoder: its description.
        target: the device, for what is predicted.
        plan: the resolved plan for all three; it prunes.
        tick: called with the name of each block that was worked on.
        ignored: keys of config.json that the user declared harmless.

    Raises:
        EdgecError: the checkpoint is refused, the calibration text cannot be used, or there is no GPU to calibrate on.
    """
    dataset = None
    if any(part is not None and part.reads_text for part in (plan.slim, plan.sparse)):
        check_device(plan)
        dataset = planned_text(plan, Tokenizer.from_files(checkpoint.tokenizer_files()))
    windows = None if dataset is None else dataset.windows
    left = dense = Left(checkpoint, decoder, None)
    if plan.slim is not None:
        left = shrink(dense, plan, windows, ignored, tick)
    model, smaller = left.graph(plan, ()), left.checkpoint
    if plan.sparse is not None:
        source = left.key(plan, ())
        pruning = pruning_of(model, plan, windows, source, tick)
        recipe = Recipe(source, lambda _: "fp32", device=device_of(plan), pruning=pruning)
        quantize_model(model, windows, recipe, cache_dir() / "calibration", tick).put_floats(model)
        smaller = put_back(smaller, left.decoder, model)
    return Pruned(smaller, left.decoder, evidence(dense, left, model, target, plan), dataset.remarks if dataset else ())


def within(checkpoint: Checkpoint, dtype: Dtype) -> Checkpoint:
    """Return `checkpoint`, which refuses to read tensors that do not fit `dtype`.

    Raises:
        UsageError: on reading, a tensor has numbers that float16 does not have.
    """
    if dtype != "float16":
        return checkpoint

    def load(name: str) -> Array:
        array = checkpoint.load(name)
        largest = float(np.abs(array).max(initial=0))
        if largest > float(np.finfo(np.float16).max):
            raise UsageError(
                f"tensor '{name}' holds {largest:g}, which is more than float16 takes",
                hint="write bfloat16 or float32",
            )
        return array

    return replace(checkpoint, load=load)
