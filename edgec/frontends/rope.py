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

WHERE = "config.json: rope_parameters"


def rope_parameters(config: Config, theta: float = 10000.0, fraction: float = 1.0) -> dict[str, Any]:
    """Return one flat mapping (rope_type, rope_theta, ...) from either spelling that checkpoints use.

    transformers 4 wrote `rope_theta` and `rope_scaling`, transformers 5 writes `rope_parameters`.

    Args:
        config: the config.
        theta: the family's default for `rope_theta`.
        fraction: its default for `partial_rotary_factor`.
    """
    outside = {
        "rope_theta": config.number("rope_theta", theta),
        "partial_rotary_factor": config.number("partial_rotary_factor", fraction),
    }
    old, new = config.mapping("rope_scaling"), config.mapping("rope_parameters")
    return outside | (old or new)


def rope(parameters: Mapping[str, Any], head_dim: int, length: int, *, partial: bool = False) -> Rope:
    """Return the frequencies that `parameters` ask for.

    Args:
        parameters: flat mapping as `rope_parameters` returns it.
        head_dim: the dimensions of a head.
        length: the config's max_position_embeddings.
        partial: whether the family can rotate a part of each head.

    Raises:
        CheckpointError: the scaling is unknown, incomplete, or has a key or value that is not understood.
    """
    p = Config(parameters, where=WHERE)
    kind = p.only("rope_type", p.only("type", "default", *_SCALINGS), *_SCALINGS)
    theta = p.number("rope_theta", above=1)
    fraction = p.number("partial_rotary_factor", 1.0, above=0)
    rotary_dim = int(head_dim * fraction)
    if not partial:
        p.only("partial_rotary_factor", 1.0)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise CheckpointError(f"{WHERE}: {rotary_dim} of {head_dim} dimensions of a head cannot rotate", where=WHERE)
    plain = 1.0 / theta ** (np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    found = _SCALINGS[kind](plain, p, length)
    p.finish()
    return found


def cos_sin(rope: Rope, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the cos and sin tables, each (length, rotary_dim / 2) float32."""
    # float32 angles, as transformers computes them: at position 8000 the difference to float64 is visible.
    frequencies = np.asarray(rope.inverse_frequencies, dtype=np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None, :]
    magnitude = np.float32(rope.magnitude)
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


def _rope(frequencies: Floats, length: int, magnitude: float = 1.0) -> Rope:
    return Rope(tuple(float(f) for f in frequencies), length, magnitude)


def _default(plain: Floats, _: Config, length: int) -> Rope:
    return _rope(plain, length)


def _linear(plain: Floats, p: Config, length: int) -> Rope:
    return _rope(plain / p.number("factor", above=0), length)


def _dynamic(plain: Floats, p: Config, length: int) -> Rope:
    # The base grows with texts longer than `length`, which are no longer than that here.
    p.number("factor", above=0)
    return _rope(plain, length)


def _llama3(plain: Floats, p: Config, length: int) -> Rope:
    factor, low = p.number("factor", above=0), p.number("low_freq_factor", above=0)
    high = p.number("high_freq_factor", above=low)
    turns = p.size("original_max_position_embeddings", length) * plain / (2 * math.pi)
    # Above `high` turns in the original context nothing changes, below `low` all is scaled, between it is blended.
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return _rope((1 - blend) * plain / factor + blend * plain, length)


def _yarn(plain: Floats, p: Config, length: int) -> Rope:
    original = p.size("original_max_position_embeddings", length)
    factor = p.number("factor", length / original, above=0)
    dim, theta = 2 * len(plain), p.number("rope_theta")

    def dimension_of(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(p.number("beta_fast", 32, above=0)), dimension_of(p.number("beta_slow", 1, above=0))
    if p.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    ramp = np.clip((np.arange(len(plain)) - low) / width, 0.0, 1.0)
    return _rope(plain / factor * ramp + plain * (1 - ramp), length, _yarn_magnitude(p, factor))


def _yarn_magnitude(p: Config, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    over, under = p.number("mscale", 0), p.number("mscale_all_dim", 0)
    inferred = mscale(over) / mscale(under) if over and under else mscale(1.0)
    return p.number("attention_factor", inferred)


def _longrope(plain: Floats, p: Config, length: int) -> Rope:
    # The model has other factors for texts beyond its original length; one graph has room for one set.
    original = p.size("original_max_position_embeddings", length)
    factor = p.number("factor", length / original, above=0)
    short = np.array(p.numbers("short_factor", len(plain)))
    p.numbers("long_factor", len(plain))
    inferred = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    return _rope(plain / short, min(length, original), p.number("attention_factor", inferred))


_SCALINGS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
