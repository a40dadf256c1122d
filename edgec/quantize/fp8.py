"""Round rows to fp8: the largest weight of each becomes the largest E4M3 number.

Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv:2209.05433), section 3.1.
"""

import torch

from edgec.quantize.floats import E4M3_MAX, encode_e4m3
from edgec.quantize.tensor import as_float16


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (rows, cols) and scales (rows, 1); a row of zeros gets scale 1."""
    largest = weight.abs().amax(-1, keepdim=True)
    scales = as_float16(torch.where(largest == 0, 1.0, largest / E4M3_MAX))
    return encode_e4m3(weight / scales), scales
