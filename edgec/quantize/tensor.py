"""A quantized weight matrix."""

from dataclasses import dataclass

import torch

from edgec.quantize.scheme import Scheme


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes with what is needed to read them: value = (code - zero_point) * scale.

    Args:
        codes: (rows = out, cols = in) int8 where the scheme is symmetric, uint8 otherwise.
        scales: (rows, groups) float32, positive.
        zero_points: (rows, groups) uint8, or None where the scheme is symmetric.
        scheme: the scheme; columns `g * group` up to `(g + 1) * group` share group g, the last group may be shorter.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    scheme: Scheme

    def dequantize(self) -> torch.Tensor:
        """Return the (rows, cols) float32 matrix that the codes stand for."""
        cols = self.codes.shape[1]
        width = self.scheme.group or cols
        scales = self.scales.repeat_interleave(width, dim=1)[:, :cols]
        codes = self.codes.to(torch.float32)
        if self.zero_points is not None:
            codes -= self.zero_points.to(torch.float32).repeat_interleave(width, dim=1)[:, :cols]
        return codes * scales
