"""Quantize a matrix some rows at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor

# Pieces that stay in a core's cache: three times as fast as whole matrices, and no temporaries of gigabytes.
_ELEMENTS_AT_ONCE = 1 << 17

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Codes (rows, cols), scales (rows, groups) and zero points (rows, groups), of any number type."""


def by_pieces(
    weight: torch.Tensor, scheme: Scheme, quantize_rows: Callable[[torch.Tensor], Rows], global_scale: float = 1.0
) -> QuantizedTensor:
    """Quantize `weight` (rows, cols) with a function that takes some of its rows and looks at each row alone.

    The result does not depend on the number of threads.
    """
    rows, cols = weight.shape
    groups = scheme.groups(cols)
    signed = scheme.symmetric and not scheme.is_float
    codes = torch.empty((rows, cols), dtype=torch.int8 if signed else torch.uint8)
    scales = torch.empty((rows, groups))
    zero_points = None if scheme.symmetric else torch.empty((rows, groups), dtype=torch.uint8)
    step = max(1, _ELEMENTS_AT_ONCE // cols)
    with _one_thread():
        for start in range(0, rows, step):
            piece = slice(start, start + step)
            codes[piece], scales[piece], zeros = quantize_rows(weight[piece])
            if zero_points is not None and zeros is not None:
                zero_points[piece] = zeros
    return QuantizedTensor(codes, scales, zero_points, scheme, global_scale)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from splitting small passes: on a busy machine waiting for each other costs ten times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
