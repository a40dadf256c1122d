"""A quantized weight matrix."""

from dataclasses import dataclass

import torch

from edgec.quantize.floats import decode_e2m1, decode_e4m3
from edgec.quantize.scheme import Scheme


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes with what is needed to read them: value = (code - zero_point) * (scale * global_scale).

    Args:
        codes: (rows = out, cols = in) int8 for symmetric integers, uint8 for others, and for the bit patterns of floats
            (see `edgec.quantize.floats`).
        scales: (rows, groups) float32, positive, each of them a float16 number (see `as_float16`), for nvfp4 an E4M3
            number.
        zero_points: (rows, groups) uint8, or None where the scheme is symmetric.
        scheme: the scheme; columns `g * group` up to `(g + 1) * group` share group g, the last group may be shorter.
        global_scale: of the whole matrix, a float32 number; 1 for all but nvfp4.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    scheme: Scheme
    global_scale: float = 1.0

    def dequantize(self) -> torch.Tensor:
        """Return the (rows, cols) float32 matrix that the codes stand for."""
        rows, cols = self.codes.shape
        groups = self.scales.shape[1]
        width = self.scheme.group or cols
        values = _DECODE.get(self.scheme.dtype, torch.Tensor.float)(self.codes)
        if groups * width > cols:
            values = torch.nn.functional.pad(values, (0, groups * width - cols))
        values = values.view(rows, groups, width)
        if self.zero_points is not None:
            values -= self.zero_points[:, :, None]
        return values.mul_((self.scales * self.global_scale)[:, :, None]).flatten(1)[:, :cols].contiguous()


_DECODE = {"fp8": decode_e4m3, "nvfp4": decode_e2m1}


def as_float16(scale: torch.Tensor) -> torch.Tensor:
    """Return positive float32 scales rounded to float16 numbers, as float32.

    Runtimes differ in how they store scales: ONNX Runtime's CPU kernels take float32, OpenVINO and TensorRT float16.
    A scale that is a float16 number to begin with means the same weight in all of them. Scales below float16's
    smallest number become that number, so that none is zero.
    """
    limits = torch.finfo(torch.float16)
    return scale.clamp(limits.smallest_normal * limits.eps, limits.max).to(torch.float16).to(torch.float32)
