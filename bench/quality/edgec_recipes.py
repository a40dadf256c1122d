"""edgec's recipes: an algorithm, with the transforms in front of it, such as "quarot+awq+gptq"."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import job
import numpy as np
import torch

from edgec import __version__
from edgec.checkpoint.open import open_checkpoint
from edgec.frontends.architecture import Decoder
from edgec.frontends.families import describe
from edgec.graph.blocks import cut
from edgec.quantize.block import Recipe
from edgec.quantize.hadamard import random_rotation
from edgec.quantize.matrix import matrices
from edgec.quantize.results import Results
from edgec.quantize.scheme import Scheme
from edgec.quantize.sequential import quantize_model
from edgec.quantize.transforms.quarot import emit_turned

HEAD_BITS = 16  # of the matrix that a rotation adds in front of a tied output matrix


def quantize(task: job.Job) -> job.Answer:
    *transforms, algorithm = task.options["recipe"].split("+")
    scheme = Scheme(f"int{task.bits}", task.group * task.options.get("wider", 1), task.symmetric, algorithm)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(task.source)
    decoder = describe(checkpoint)
    windows = task.windows().numpy()
    model = emit_turned(decoder, checkpoint, windows.shape[1], transforms)
    rotated = "quarot" in transforms
    scalings = tuple(name for name in transforms if name != "quarot")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            "bench",
            lambda name: scheme if name.startswith("layers.") else "fp32",
            scalings,
            steps=task.options.get("steps", 200),
        )
        results = quantize_model(model, windows, recipe, Path(folder))
        results.put_floats(model)
        weights, bits = dequantized(results, [m.weight for block in cut(model) for m in matrices(block)])
        norms = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if "norm" in name}
    source = job.read_weights(task.source)
    if rotated:
        weights = turn_back(weights, norms, source, decoder)
        bits += HEAD_BITS * decoder.hidden_size**2 if decoder.tied else 0
        norms = {}
    state = source | weights | {name: torch.from_numpy(np.array(w)) for name, w in norms.items() if name in source}
    return job.Answer(job.unfold_norms(source, state), bits, __version__, {"recipe": task.options["recipe"]})


def dequantized(results: Results, names: list[str]) -> tuple[job.Weights, int]:
    """Return the matrices that were quantized as (out, in), and what they take in bits."""
    weights, bits = {}, 0
    for name in names:
        if codes := results.codes(name):
            width = codes.scheme.group or codes.codes.shape[1]
            scales = np.repeat(codes.scales, width, axis=1)[:, : codes.codes.shape[1]]
            weights[name] = torch.from_numpy(codes.codes * scales)
            bits += codes.codes.size * codes.scheme.bits + codes.scales.size * job.SCALE_BITS
    return weights, bits


def turn_back(
    weights: job.Weights, norms: Mapping[str, np.ndarray], source: job.Weights, decoder: Decoder
) -> job.Weights:
    """Return rotated matrices in the source's own coordinates: the same function, and only matrices differ.

    Args:
        weights: (out, in) by name.
        norms: what the rotated model's normalizations multiply with, where scales are folded into them.
        source: the source's weights.
        decoder: the source's description.
    """
    generator = np.random.default_rng(0)
    stream = _matrix(random_rotation(decoder.hidden_size, generator))
    turned = {}
    for layer in decoder.layers:
        a, m = layer.attention, layer.mlp
        head = _matrix(random_rotation(a.head_dim, generator))
        parts = ((layer.attention_norm, (a.q, a.k, a.v), a.o), (layer.mlp_norm, (m.gate, m.up), m.down))
        for norm, readers, writer in parts:
            assert norm is not None
            for reader in readers:
                assert reader is not None
                scaled = weights[reader.weight] * torch.from_numpy(norms[norm.weight])
                turned[reader.weight] = scaled @ stream.T / source[norm.weight]
            turned[writer.weight] = stream @ weights[writer.weight]
        v, o = turned[a.v.weight], turned[a.o.weight]
        turned[a.v.weight] = (head @ v.unflatten(0, (-1, a.head_dim))).flatten(0, 1)
        turned[a.o.weight] = (o.unflatten(1, (-1, a.head_dim)) @ head.T).flatten(1)
    return turned


def _matrix(rotation: object) -> torch.Tensor:
    return torch.from_numpy(rotation.turn(np.eye(len(rotation.signs), dtype=np.float32)))  # type: ignore[attr-defined]


if __name__ == "__main__":
    job.run(quantize)
