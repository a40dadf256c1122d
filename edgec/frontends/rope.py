"""Frequencies of rotary embeddings, with the scalings that checkpoints use.

Source: Su et al. 2021 (arXiv:2104.09864); linear scaling: Chen et al. 2023 (arXiv:2306.15595); YaRN: Peng et al. 2023
(arXiv:2309.00071); llama3: the Llama 3.1 model card's frequency bands; longrope: Ding et al. 2024 (arXiv:2402.13753).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import CheckpointError
from edgec.frontends.architecture import Rope
from edgec.frontends.config import Config

Floats = NDArray[np.float64]


def rope_parameters(config: Config, default_theta: float = 10000.0) -> dict[str, Any]:
    """Return one flat mapping (rope_type, rope_theta, ...) from either spelling that checkpoints use.

    transformers 4 wrote `rope_theta` and `rope_scaling`, transformers 5 writes `rope_parameters`.
    """
    parameters = dict(config.get("rope_parameters", {}))
    scaling = dict(config.get("rope_scaling", {}))
    theta = config.get("rope_theta", default_theta)
    merged = {"rope_theta": theta, "rope_type": "default", **scaling, **parameters}
    if "type" in merged:
        merged["rope_type"] = merged.pop("type") if merged["rope_type"] == "default" else merged["rope_type"]
        merged.pop("type", None)
    return merged


def rope(parameters: Mapping[str, Any], rotary_dim: int, length: int) -> Rope:
    """Return the frequencies of `rotary_dim` dimensions.

    Args:
        parameters: flat mapping as `rope_parameters` returns it.
        rotary_dim: how many dimensions of a head rotate.
        length: the config's max_position_embeddings.

    Raises:
        CheckpointError: the scaling is unknown, incomplete, or depends on the length of the prompt.
    """
    kind = parameters.get("rope_type", "default")
    if kind not in _SCALINGS:
        raise CheckpointError(
            f"config.json: rope scaling '{kind}' is not implemented",
            where="config.json: rope_parameters.rope_type",
            hint=f"supported: {', '.join(_SCALINGS)}",
        )
    known, scale = _SCALINGS[kind]
    unknown = set(parameters) - known - _COMMON
    if unknown:
        raise CheckpointError(
            f"config.json: rope scaling '{kind}' has the unknown key '{min(unknown)}'",
            where=f"config.json: rope_parameters.{min(unknown)}",
        )
    theta = float(parameters["rope_theta"])
    plain = 1.0 / theta ** (np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    try:
        frequencies, magnitude = scale(plain, dict(parameters), theta, length)
    except KeyError as missing:
        raise CheckpointError(
            f"config.json: rope scaling '{kind}' has no {missing}", where="config.json: rope_parameters"
        ) from None
    return Rope(tuple(float(f) for f in frequencies), magnitude)


def cos_sin(rope: Rope, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the cos and sin tables, each (length, rotary_dim / 2) float32."""
    # float32 angles, as transformers computes them: at position 8000 the difference to float64 is visible.
    frequencies = np.asarray(rope.inverse_frequencies, dtype=np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None, :]
    magnitude = np.float32(rope.magnitude)
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


def _default(plain: Floats, _p: dict[str, Any], _theta: float, _length: int) -> tuple[Floats, float]:
    return plain, 1.0


def _linear(plain: Floats, p: dict[str, Any], _theta: float, _length: int) -> tuple[Floats, float]:
    return plain / float(p["factor"]), 1.0


def _llama3(plain: Floats, p: dict[str, Any], _theta: float, _length: int) -> tuple[Floats, float]:
    factor, low, high = float(p["factor"]), float(p["low_freq_factor"]), float(p["high_freq_factor"])
    turns = float(p["original_max_position_embeddings"]) * plain / (2 * math.pi)
    # Above `high` turns in the original context nothing changes, below `low` all is scaled, between it is blended.
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - blend) * plain / factor + blend * plain, 1.0


def _yarn(plain: Floats, p: dict[str, Any], theta: float, length: int) -> tuple[Floats, float]:
    original = float(p.get("original_max_position_embeddings") or length)
    factor = float(p["factor"])
    dim = 2 * len(plain)

    def dimension_of(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(float(p.get("beta_fast") or 32)), dimension_of(float(p.get("beta_slow") or 1))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / max(high - low, 0.001), 0.0, 1.0)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    return frequencies, _yarn_magnitude(p, factor)


def _yarn_magnitude(p: dict[str, Any], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])
    if p.get("mscale") and p.get("mscale_all_dim"):
        return mscale(float(p["mscale"])) / mscale(float(p["mscale_all_dim"]))
    return mscale(1.0)


def _longrope(plain: Floats, p: dict[str, Any], _theta: float, length: int) -> tuple[Floats, float]:
    # The factors for short texts; texts beyond the original length are kept out by `trained_length` below.
    original = float(p["original_max_position_embeddings"])
    factor = float(p.get("factor") or length / original)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    if p.get("attention_factor") is not None:
        magnitude = float(p["attention_factor"])
    short = np.asarray(p["short_factor"], np.float64)
    if short.shape != plain.shape:
        raise CheckpointError(
            f"config.json: short_factor has {short.size} values, the rotary dimensions need {plain.size}",
            where="config.json: rope_parameters.short_factor",
        )
    return plain / short, magnitude


def trained_length(parameters: Mapping[str, Any], length: int) -> int:
    """Return how many positions one set of frequencies is right for: LongRoPE has another set beyond its first length."""
    if parameters.get("rope_type") == "longrope":
        return min(length, int(parameters.get("original_max_position_embeddings", length)))
    return length


_COMMON = {"rope_theta", "rope_type", "partial_rotary_factor"}
_SCALINGS = {
    "default": (set[str](), _default),
    "linear": ({"factor"}, _linear),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, _llama3),
    "yarn": (
        {
            "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
            "mscale", "mscale_all_dim", "truncate",
        },
        _yarn,
    ),
    "longrope": (
        {"short_factor", "long_factor", "factor", "original_max_position_embeddings", "attention_factor"},
        _longrope,
    ),
}  # fmt: skip
