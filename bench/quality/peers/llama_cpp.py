"""llama.cpp's k-quants with an importance matrix, by its own ggml_quantize_chunk."""

import ctypes
from collections.abc import Callable
from importlib.metadata import version

import gguf
import job
import numpy as np
import torch
import xllamacpp.xllamacpp
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM

_KIND = {4: Kind.Q4_K, 3: Kind.Q3_K}
# What llama.cpp takes where the 256 of a k-quant do not divide the width.
_NARROW = {Kind.Q4_K: Kind.Q5_0, Kind.Q3_K: Kind.IQ4_NL}


def importance(task: job.Job, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the mean square of each input of each matrix over the calibration text."""
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] = sums.get(name, 0) + inputs[0].flatten(0, -2).square().mean(0)

        return add

    for name, module in model.named_modules():
        if job.MATRIX.fullmatch(f"{name}.weight"):
            module.register_forward_pre_hook(hook(f"{name}.weight"))
    with torch.inference_mode():
        for row in task.windows():
            model.model(row[None])
    return {name: (total / len(task.windows())).numpy() for name, total in sums.items()}


def quantize(task: job.Job) -> job.Answer:
    ggml = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    model = AutoModelForCausalLM.from_pretrained(task.source, dtype=torch.float32)
    inputs = importance(task, model)
    weights, bits, used = {}, 0, {}
    for name, weight in job.matrices(model.state_dict()).items():
        source = np.ascontiguousarray(weight.numpy())
        rows, columns = source.shape
        kind = _KIND[task.bits] if columns % 256 == 0 else _NARROW[_KIND[task.bits]]
        stored = np.zeros((rows, columns // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        # type, source, destination, first element, rows, width, importance
        written = ggml.ggml_quantize_chunk(
            ctypes.c_int(kind),
            source.ctypes,
            stored.ctypes,
            ctypes.c_int64(0),
            ctypes.c_int64(rows),
            ctypes.c_int64(columns),
            np.ascontiguousarray(inputs[name], np.float32).ctypes,
        )
        assert written == stored.nbytes, name
        weights[name] = torch.from_numpy(gguf.quants.dequantize(stored, kind).astype(np.float32))
        bits += 8 * stored.nbytes
        used[kind.name] = used.get(kind.name, 0) + weight.numel()
    return job.Answer(weights, bits, version("xllamacpp"), {"importance": True, "weights of each type": used})


if __name__ == "__main__":
    job.run(quantize)
