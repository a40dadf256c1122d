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
_EXAMPLES: dict[Kind, str] = {"size": "90MB or 85MiB", "latency": "12ms", "perplexity": "2%"}


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
            return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} KB"
        case "latency":
            return f"{value:.2f} ms"
        case _:
            return f"{100 * value:.2f} %"


def parse(kind: Kind, text: str) -> Budget:
    """Read a budget such as "90MB", "12ms" or "2%".

    Raises:
        UsageError: it is none, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)\s*", text, re.IGNORECASE)
    unit = _UNITS[kind].get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) == 0:
        raise UsageError(f"'{text}' is no budget", hint=f"write {_EXAMPLES[kind]}")
    return Budget(kind, float(found[1]) * unit)
