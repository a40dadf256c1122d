"""The small floats that weights are stored as, as bit patterns in uint8.

E4M3 has 256 patterns and goes to 448, E2M1 has 16 and goes to 6; neither has infinities. Encoding takes the nearest
number, at a tie the one with the even pattern, and the largest number for all that is larger.

Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv:2209.05433), section 3; Open Compute Project, OCP
Microscaling Formats (MX) Specification 1.0, FP4.
"""

import torch

E4M3_MAX, E4M3_MIN = 448.0, 2.0**-9
"""The largest and the smallest positive number of E4M3."""
E2M1_MAX = 6.0

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_SIGN = 8


def encode_e4m3(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def decode_e4m3(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.float8_e4m3fn).to(torch.float32)


def encode_e2m1(values: torch.Tensor) -> torch.Tensor:
    size = values.abs()
    # Patterns count up evenly from 0 to 2, to 4 and to 6, in steps of 0.5, 1 and 2; evenness is that of the count.
    pattern = torch.round(size.clamp(max=2) * 2) + torch.round(size.clamp(2, 4)) + torch.round(size.clamp(4, 6) / 2) - 4
    return pattern.to(torch.uint8) + _SIGN * torch.signbit(values).to(torch.uint8)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    return torch.cat((_E2M1, -_E2M1))[codes.long()]
