"""Round to nearest: the scale covers the largest weight of each group, nothing is clipped.

Source: Nagel et al. 2021, A White Paper on Neural Network Quantization (arXiv:2106.08295), section 2.
"""

import torch

from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor

# Rows are taken in pieces, so that temporaries stay small beside an embedding of gigabytes.
_ELEMENTS_AT_ONCE = 1 << 22
_TINY = torch.finfo(torch.float32).tiny


def quantize(weight: torch.Tensor, stats: None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite.

    A group of zeros gets scale 1 and zero codes. Where `scheme.group` does not divide the columns, the last group is
    shorter. The result does not depend on the number of threads.
    """
    del stats  # rounding to nearest looks at weights alone
    rows, cols = weight.shape
    step = max(1, _ELEMENTS_AT_ONCE // cols)
    parts = [_quantize_rows(weight[start : start + step], scheme) for start in range(0, rows, step)]
    codes, scales, zero_points = (torch.cat(column) for column in zip(*parts, strict=True))
    return QuantizedTensor(codes, scales, None if scheme.symmetric else zero_points, scheme)


def _quantize_rows(weight: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, cols = weight.shape
    groups, width = scheme.groups(cols), scheme.group or cols
    # Zeros never widen the range of a group, so padding leaves the ragged group's scale alone.
    padded = torch.nn.functional.pad(weight, (0, groups * width - cols)).view(rows, groups, width)
    top = padded.amax(-1, keepdim=True).clamp(min=0)
    bottom = padded.amin(-1, keepdim=True).clamp(max=0)
    if scheme.symmetric:
        scale = torch.maximum(top / scheme.high, bottom / scheme.low)
    else:
        scale = (top - bottom) / scheme.high
    empty = (top == 0) & (bottom == 0)
    scale = torch.where(empty, torch.ones_like(scale), scale.clamp(min=_TINY))
    zero = torch.zeros_like(scale) if scheme.symmetric else torch.round(-bottom / scale).clamp(0, scheme.high)
    codes = torch.round(padded / scale).add_(zero).clamp_(scheme.low, scheme.high)
    kind = torch.int8 if scheme.symmetric else torch.uint8
    codes = codes.to(kind).view(rows, groups * width)[:, :cols].contiguous()
    return codes, scale.squeeze(-1), zero.squeeze(-1).to(torch.uint8)
