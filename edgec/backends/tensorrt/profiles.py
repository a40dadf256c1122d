"""Optimization profiles of a decoder: one for prompts, one for decoding."""

import onnx_ir as ir

from edgec.backends.session import PROMPT
from edgec.backends.tensorrt.recipe import Profile, Shapes

_USUAL_PROMPT = 128


def profiles(model: ir.Model, context_length: int) -> tuple[Profile, ...]:
    """Return the profiles "prefill" and "decode" for one row and at most `context_length` tokens."""
    # The activations of the largest piece of a prompt are memory that the engine sets aside.
    prompt, usual = min(PROMPT, context_length), min(_USUAL_PROMPT, context_length)
    past = context_length - 1
    prefill = _profile(model, "prefill", new=(1, usual, prompt), past=(0, 0, past), total=(1, usual, context_length))
    half = context_length // 2
    # Room for two tokens: for one alone TensorRT-RTX widens each INT8 or FP8 weight in front of its matmul.
    decode = _profile(model, "decode", new=(1, 1, 2), past=(0, half, past), total=(1, half + 1, context_length))
    return prefill, decode


def _profile(
    model: ir.Model, name: str, *, new: tuple[int, ...], past: tuple[int, ...], total: tuple[int, ...]
) -> Profile:
    sizes = {"batch": (1, 1, 1), "sequence": new, "past": past, "total": total}

    def shapes(value: ir.Value) -> Shapes:
        assert value.shape is not None
        dims = [(d, d, d) if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
        return Shapes(*zip(*dims, strict=True))

    return Profile(name, {str(value.name): shapes(value) for value in model.graph.inputs})
