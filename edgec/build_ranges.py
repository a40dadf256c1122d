"""Activations and caches that are rounded in ranges which calibration finds."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.backend import get_backend
from edgec.quantize.activations import multiplied, quantize_activations
from edgec.quantize.cache import cached, quantize_cache
from edgec.spec.plan import Plan

Measure = Callable[[Mapping[str, int], str], Mapping[str, NDArray[np.float64]]]
"""Takes values with their numbers of parts, and a calibrator; returns the size from which to clip each part."""


def has_ranges(plan: Plan) -> bool:
    """Say whether activations or the cache are rounded with scales that calibration finds."""
    return plan.static is not None or has_static_cache(plan)


def has_static_cache(plan: Plan) -> bool:
    """Say whether the cache is."""
    return plan.kv_cache == "int8" and get_backend(plan.backend).LIMITS.static_cache


def with_ranges(canonical: ir.Model, plan: Plan, measure: Measure) -> ir.Model:
    """Return a canonical graph with rounded activations and cache, as a plan wants them."""
    shipped = canonical
    if plan.static is not None:
        parts = dict.fromkeys(multiplied(canonical, plan.static.matrices), 1)
        clips = measure(parts, plan.static.range)
        ranges = {name: (-float(clip), float(clip)) for name, (clip,) in clips.items()}
        shipped = quantize_activations(shipped, plan.static.matrices, ranges)
    if has_static_cache(plan):
        shipped = quantize_cache(shipped, measure(cached(canonical), "minmax"))
    return shipped
