"""How much pruning one block alone changes what a model predicts: measured on text, block by block."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate import cache
from edgec.prune.pattern import Pattern
from edgec.quantize.matrix import Matrix
from edgec.quantize.sequential import text_key
from edgec.quantize.threads import one_thread
from edgec.spec.profile import Weights
from edgec.spec.prune import Method
from edgec.tune.sensitivity import Sensitivity, Variant
from edgec.tune.units import Candidate, Unit

Ids = NDArray[np.int64]
Losses = tuple[float, ...]
"""In nats, for each share, at least 0; infinite where the model computes something that is not finite."""

# Each token goes through half of the model for each block and share.
_TOKENS = 512


@one_thread()
def measure_losses(
    model: ir.Model,
    members: Mapping[str, Sequence[Matrix]],
    shares: Sequence[float],
    windows: Ids,
    *,
    method: Method,
    source: str,
    folder: Path | None,
    tick: Callable[[str], object],
) -> dict[str, Losses]:
    """Return what pruning a block alone to each share loses, by the block's name: the mean KL divergence, in nats.

    A block whose result is in `folder`, made from the same model, text and shares, is not measured again.

    Args:
        model: a canonical graph with lazy float weights; not changed.
        members: block -> its matrices that are pruned.
        shares: of zeros.
        windows: token ids (n, tokens) of a calibration text, of which the first 512 tokens are taken.
        method: a file in edgec/prune/methods that needs no Hessian.
        source: says which float graph it is: hashes of its files, and what was done to the graph.
        folder: for results, a file for each block; None keeps nothing.
        tick: called with the name of each block that was measured.

    Raises:
        CheckpointError: the float model computes something that is not finite.
        OutputError: a result cannot be written.
    """
    text = windows[: max(1, _TOKENS // windows.shape[1]), :_TOKENS]
    chain = cache.key(cache.code_key("tune"), torch.__version__, source, text_key(text), method, repr(list(shares)))
    units = {name: Unit(name, tuple(m.node for m in found)) for name, found in members.items()}
    paths = {name: folder / f"{cache.key(chain, *unit.matrices)}.npz" for name, unit in units.items()} if folder else {}
    losses = {name: tuple(map(float, kept["losses"])) for name, path in paths.items() if (kept := cache.load(path))}
    patterns = [str(Pattern(share)) for share in shares]
    candidates = [Candidate(pattern, Weights(dtype="fp32"), pattern, method) for pattern in patterns]
    todo = [Variant(unit, candidate) for name, unit in units.items() if name not in losses for candidate in candidates]
    measured: dict[str, dict[str, float]] = {}

    def found(variant: Variant, loss: float) -> None:
        name = variant.unit.name
        block = measured.setdefault(name, {})
        block[variant.candidate.label] = loss
        if len(block) == len(patterns):
            losses[name] = tuple(block[pattern] for pattern in patterns)
            if name in paths:
                cache.save(paths[name], {"losses": np.array(losses[name])})
            tick(name)

    if todo:
        Sensitivity(model, text).measure(todo, found, lambda _: None)
    return losses
