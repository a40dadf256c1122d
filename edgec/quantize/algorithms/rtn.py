"""Round to nearest: the scale covers the largest weight of each group, nothing is clipped.

Source: Nagel et al. 2021, A White Paper on Neural Network Quantization (arXiv:2106.08295), section 2, for integers; see
`edgec.quantize.fp8` and `edgec.quantize.nvfp4` for floats.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgec.quantize import fp8, nvfp4
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor, as_float16

# Pieces that stay in a core's cache: three times as fast as whole matrices, and no temporaries of gigabytes.
_ELEMENTS_AT_ONCE = 1 << 17


def quantize(weight: torch.Tensor, stats: None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite.

    A group of zeros gets scale 1 and zero codes. Where `scheme.group` does not divide the columns, the last group is
    shorter. The result does not depend on the number of threads.
    """
    del stats  # rounding to nearest looks at weights alone
    rows, cols = weight.shape
    groups = scheme.groups(cols)
    signed = scheme.symmetric and not scheme.is_float
    codes = torch.empty((rows, cols), dtype=torch.int8 if signed else torch.uint8)
    scales, zero_points = torch.empty((rows, groups)), torch.empty((rows, groups), dtype=torch.uint8)
    global_scale = nvfp4.global_scale(weight) if scheme.dtype == "nvfp4" else 1.0
    step = max(1, _ELEMENTS_AT_ONCE // cols)
    with _one_thread():
        for start in range(0, rows, step):
            piece = slice(start, start + step)
            if scheme.dtype == "fp8":
                codes[piece], scales[piece] = fp8.quantize_rows(weight[piece])
            elif scheme.dtype == "nvfp4":
                codes[piece], scales[piece] = nvfp4.quantize_rows(weight[piece], global_scale)
            else:
                codes[piece], scales[piece], zero_points[piece] = _quantize_rows(weight[piece], scheme)
    return QuantizedTensor(codes, scales, None if scheme.symmetric else zero_points, scheme, global_scale)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from splitting small passes: on a busy machine waiting for each other costs ten times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quantize_rows(weight: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes, scales and zero points, all float32."""
    rows, cols = weight.shape
    groups, width = scheme.groups(cols), scheme.group or cols
    # Zeros never widen the range of a group, so padding leaves the ragged group's scale alone.
    padded = torch.nn.functional.pad(weight, (0, groups * width - cols)).view(rows, groups, width)
    top = padded.amax(-1, keepdim=True).clamp(min=0)
    bottom = padded.amin(-1, keepdim=True).clamp(max=0)
    wide = torch.maximum(top / scheme.high, bottom / scheme.low) if scheme.symmetric else (top - bottom) / scheme.high
    empty = (top == 0) & (bottom == 0)
    scale = as_float16(torch.where(empty, torch.ones_like(wide), wide))
    zero = torch.zeros_like(scale) if scheme.symmetric else torch.round(-bottom / scale).clamp(0, scheme.high)
    codes = torch.round(padded / scale).add_(zero).clamp_(scheme.low, scheme.high)
    return codes.view(rows, groups * width)[:, :cols], scale.squeeze(-1), zero.squeeze(-1)
