"""The optimization profile of a network: the smallest, usual and largest of each size that is open until it runs."""

import json
import re
from collections.abc import Mapping
from typing import Any

from edgec.backends.tensorrt.recipe import Profile, Shapes
from edgec.calibrate.ports import is_state
from edgec.frontends.network import Network, Port

Sizes = tuple[int, int, int]

_SOUND_AXES = 2
BATCH: Sizes = (1, 1, 8)
TOKENS: Sizes = (1, 128, 512)
SAMPLES: Sizes = (400, 16_000, 480_000)
"""Of sound at 16 kHz: a frame, a second, half a minute."""
_BY_WORD: tuple[tuple[str, Sizes], ...] = (
    (r"batch|^n$|^b$", BATCH),
    (r"height|width|^h$|^w$", (32, 224, 1024)),
    (r"frame|mel", (1, 500, 3000)),
    (r"sample|audio|wave", SAMPLES),
    (r"channel", (1, 3, 16)),
)


def network_profile(network: Network) -> Profile:
    """Return the shapes of each input that has an open size: sizes of one name are equal, and the name says what for.

    Text is as long as the tokenizer says, 512 tokens at most.
    """
    longest = min(TOKENS[2], _longest_text(network.tokenizer_files))
    tokens = (1, min(TOKENS[1], longest), longest)
    return Profile(
        "all",
        {
            port.name: Shapes(*zip(*(_sizes(port, axis, tokens) for axis in range(len(port.shape))), strict=True))
            for port in network.inputs
            if any(isinstance(size, str) for size in port.shape)
        },
    )


def _sizes(port: Port, axis: int, tokens: Sizes) -> Sizes:
    size = port.shape[axis]
    if isinstance(size, int):
        return size, size, size
    found = next((sizes for words, sizes in _BY_WORD if re.search(words, size.lower())), None)
    if found is not None:
        return found
    if is_state(port) or (axis == 0 and len(port.shape) > 1):
        return BATCH
    # Rows of floats that are nothing else are sound; integers are tokens.
    return SAMPLES if port.dtype == "float32" and len(port.shape) <= _SOUND_AXES else tokens


def _longest_text(tokenizer_files: Mapping[str, bytes]) -> int:
    """Return the most tokens that a tokenizer gives; what says nothing sensible gives any number."""
    try:
        config: Any = json.loads(tokenizer_files.get("tokenizer_config.json", b"{}"))
    except ValueError:
        config = {}
    length = config.get("model_max_length") if isinstance(config, dict) else None
    return length if isinstance(length, int) and length > 0 else TOKENS[2]
