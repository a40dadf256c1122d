"""Numbers and their units in words, for people."""

from collections.abc import Sequence

_KIB, _MIB = 2**10, 2**20
# Above this, four digits would cut the number short; far above, it is written with an exponent.
_LONG, _ENDLESS = 9999.5, 1e15


def number(value: float | None) -> str:
    """Return a number with four digits, more if it is a long one; `?` for None."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if _LONG <= abs(value) < _ENDLESS else f"{value:.4g}"


def quantity(value: float | None, unit: str) -> str:
    """Return a value with its unit; bytes are told in KiB or MiB."""
    return "".join(_parts(value, unit))


def quantities(values: Sequence[float], unit: str) -> str:
    """Return values with an arrow between them, and the unit once if all have the same."""
    parts = [_parts(value, unit) for value in values]
    if len({of for _, of in parts}) > 1:
        return " -> ".join(text + of for text, of in parts)
    return " -> ".join(text for text, _ in parts) + "".join(of for _, of in parts[:1])


def _parts(value: float | None, unit: str) -> tuple[str, str]:
    """Return the number, and the unit with what is between them."""
    if value is None or not unit:
        return number(value), ""
    if unit == "bytes" and abs(value) >= _KIB:
        scale, unit = (_MIB, "MiB") if abs(value) >= _MIB else (_KIB, "KiB")
        value /= scale
    return number(value), unit if unit.startswith("/") else f" {unit}"
