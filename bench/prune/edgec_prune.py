"""edgec's side: prune the matrices of the layers, and round them where that is asked for.

The option `steps` is a list of (method, algorithm): one step with both prunes and rounds matrix by matrix; an algorithm
of null leaves floats.
"""

import tempfile
from collections.abc import Collection
from functools import partial
from pathlib import Path

import job
import torch
from edgec_recipes import dequantized

from edgec import __version__
from edgec.checkpoint.open import open_checkpoint
from edgec.frontends.families import describe
from edgec.graph.blocks import cut
from edgec.graph.rewrite import array_of
from edgec.prune.allocate import allocate
from edgec.prune.pattern import Pattern
from edgec.quantize.block import Pruning, Recipe, Storage
from edgec.quantize.matrix import matrices
from edgec.quantize.scheme import Scheme
from edgec.quantize.sequential import quantize_model
from edgec.quantize.transforms.quarot import emit_turned

FLOAT_BITS = 16


def prune(task: job.Job) -> job.Answer:
    checkpoint = open_checkpoint(task.source)
    windows = task.windows().numpy()
    model = emit_turned(describe(checkpoint), checkpoint, windows.shape[1], ())
    layers = {m.node: m for block in cut(model) for m in matrices(block) if m.node.startswith("layers.")}
    wanted = Pattern.parse(task.options["pattern"])
    patterns = allocate(model, layers, wanted, task.options["allocation"], windows)
    with tempfile.TemporaryDirectory() as folder:
        for number, (method, algorithm) in enumerate(task.options["steps"]):
            storage_of = partial(_storage, layers, _scheme(task, algorithm))
            recipe = Recipe("bench", storage_of, pruning=Pruning(method, patterns))
            results = quantize_model(model, windows, recipe, Path(folder) / str(number))
            results.put_floats(model)
        weights, bits = dequantized(results, [m.weight for m in layers.values()])
        for m in layers.values():
            if m.weight not in weights:
                weights[m.weight] = m.turn(torch.from_numpy(array_of(model.graph.initializers[m.weight])))
                bits += FLOAT_BITS * weights[m.weight].numel()
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    share = zeros / sum(weight.numel() for weight in weights.values())
    return job.Answer(weights, bits, __version__, task.options | {"zeros": share})


def _scheme(task: job.Job, algorithm: str | None) -> Storage:
    return "fp32" if algorithm is None else Scheme(f"int{task.bits}", task.group or None, algorithm=algorithm)  # type: ignore[arg-type]


def _storage(layers: Collection[str], storage: Storage, name: str) -> Storage:
    """Return how a matrix is stored by the name of its node: the tables stay floats."""
    return storage if name in layers else "fp32"


if __name__ == "__main__":
    job.run(prune)
