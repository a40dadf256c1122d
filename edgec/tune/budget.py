"""What the user allows: a size, a time, or a loss."""

import re
from dataclasses import dataclass
from typing import Literal

from edgec.errors import UsageError

Kind = Literal["size", "latency", "perplexity"]

_UNITS: dict[Kind, dict[str, float]] = {
    "size": {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30},
    "latency": {"MS": 1, "S": 1e3, "US": 1e-3},
    "perplexity": {"%": 0.01, "": 1},
}
_EXAMPLES: dict[Kind, str] = {"size": "90MB or 85MiB", "latency": "12ms", "perplexity": "2% or 0.02"}


@dataclass(frozen=True)
class Budget:
    """A bound: bytes of the artifact, ms for a token, or the share by which perplexity may grow."""

    kind: Kind
    limit: float

    def __str__(self) -> str:
        return show(self.kind, self.limit)


def show(kind: Kind, value: float) -> str:
    """Return a value in the units of its kind."""
    match kind:
        case "size":
            if value < 1e3:
                return f"{value:.0f} B"
            return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} KB"
        case "latency":
            return f"{digits(value)} ms"
        case _:
            return f"{digits(100 * value)} %"


def digits(value: float) -> str:
    """Return a number with two decimals, or with three significant digits where those would be nearly nothing."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def parse(kind: Kind, text: str) -> Budget:
    """Read a budget such as "90MB", "12ms", "2%" or, the same, "0.02".

    Raises:
        UsageError: it is none, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)\s*", text, re.IGNORECASE)
    unit = _UNITS[kind].get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) == 0:
        raise UsageError(f"'{text}' is no budget", hint=f"write {_EXAMPLES[kind]}")
    if not found[2] and float(found[1]) >= 1:
        raise UsageError(f"'{text}' is no budget: per cent, or a share below 1?", hint=f"write {_EXAMPLES[kind]}")
    return Budget(kind, float(found[1]) * unit)
