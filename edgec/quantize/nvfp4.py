"""Round rows to nvfp4: E2M1 in groups of 16, E4M3 scales of groups, a float32 scale of the whole matrix.

The matrix's scale makes the scale of the group with the largest weight the largest E4M3 number, and each group's scale
makes its largest weight about the largest E2M1 number: about, because the scale is rounded itself.

Source: NVIDIA 2025, Pretraining Large Language Models with NVFP4 (arXiv:2509.25149), appendix on quantization.
"""

import torch

from edgec.quantize.floats import E2M1_MAX, E4M3_MAX, E4M3_MIN, decode_e4m3, encode_e2m1, encode_e4m3
from edgec.quantize.scheme import NVFP4_GROUP


def global_scale(weight: torch.Tensor) -> float:
    """Return the scale of a matrix, a float32 number; 1 for a matrix of zeros."""
    low, high = torch.aminmax(weight)
    largest = torch.maximum(-low, high)
    tiny = torch.finfo(torch.float32).tiny
    return float((largest / (E4M3_MAX * E2M1_MAX)).clamp(min=tiny)) if largest > 0 else 1.0


def quantize_rows(weight: torch.Tensor, scale_of_all: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (rows, cols) and scales (rows, groups), E4M3 numbers as float32.

    The scale of a group of zeros, or of weights near zero, is the smallest E4M3 number.
    """
    rows, cols = weight.shape
    groups = -(-cols // NVFP4_GROUP)
    padded = torch.nn.functional.pad(weight, (0, groups * NVFP4_GROUP - cols)).view(rows, groups, NVFP4_GROUP)
    largest = padded.abs().amax(-1, keepdim=True)
    scales = decode_e4m3(encode_e4m3((largest / E2M1_MAX / scale_of_all).clamp(min=E4M3_MIN)))
    codes = encode_e2m1(padded / (scales * scale_of_all))
    return codes.view(rows, groups * NVFP4_GROUP)[:, :cols], scales.squeeze(-1)
