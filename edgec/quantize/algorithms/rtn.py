"""Round to nearest: the scale covers the largest weight of each group, so nothing is clipped.

But for weights out of the reach of float16's largest scale, 65504: in symmetric int4 those above 7 and below -8 times
that; with zero points, in groups that reach further than 15 times that, the upper ones.

Source: Nagel et al. 2021, A White Paper on Neural Network Quantization (arXiv:2106.08295), section 2, for integers; see
`edgec.quantize.fp8` and `edgec.quantize.nvfp4` for floats.
"""

from functools import partial

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize import fp8, nvfp4
from edgec.quantize.pieces import Rows, by_pieces
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor, as_float16

NEEDS: Needs = "nothing"


def quantize(weight: torch.Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite.

    A group of zeros gets scale 1 and zero codes. Where `scheme.group` does not divide the columns, the last group is
    shorter. The result does not depend on the number of threads.

    Raises:
        ValueError: a weight is not finite, or there are no columns.
    """
    del stats  # rounding to nearest looks at weights alone
    match scheme.dtype:
        case "fp8":
            return by_pieces(weight, scheme, lambda rows: (*fp8.quantize_rows(rows), None))
        case "nvfp4":
            scale_of_all = nvfp4.global_scale(weight) if weight.numel() else 1.0
            return by_pieces(
                weight, scheme, lambda rows: (*nvfp4.quantize_rows(rows, scale_of_all), None), scale_of_all
            )
        case _:
            return by_pieces(weight, scheme, partial(_quantize_rows, scheme=scheme))


def _quantize_rows(weight: torch.Tensor, scheme: Scheme) -> Rows:
    rows, cols = weight.shape
    groups, width = scheme.groups(cols), scheme.group or cols
    # Zeros never widen the range of a group, so padding leaves the ragged group's scale alone.
    padded = torch.nn.functional.pad(weight, (0, groups * width - cols)).view(rows, groups, width)
    top = padded.amax(-1, keepdim=True).clamp(min=0)
    bottom = padded.amin(-1, keepdim=True).clamp(max=0)
    scale, zero = covering(top, bottom, scheme)
    codes = torch.round(padded / scale).add_(zero).clamp_(scheme.low, scheme.high)
    return codes.view(rows, groups * width)[:, :cols], scale.squeeze(-1), zero.squeeze(-1)


def covering(top: torch.Tensor, bottom: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the zero point of groups that reach from `bottom` <= 0 to `top` >= 0, so that none clips.

    Scales end at float16's largest number: what they do not reach clips.
    """
    wide = torch.maximum(top / scheme.high, bottom / scheme.low) if scheme.symmetric else (top - bottom) / scheme.high
    empty = (top == 0) & (bottom == 0)
    scale = as_float16(torch.where(empty, torch.ones_like(wide), wide))
    zero = torch.zeros_like(scale) if scheme.symmetric else torch.round(-bottom / scale).clamp(0, scheme.high)
    return scale, zero
