"""What to do about a gate file that does not fit: in which place, and what could stand there."""

import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

# Steps of a place: a field, a number in an array, or some key of a table, which msgspec does not name.
_STEP = re.compile(r"\w+|\[\d+\]|\[\.\.\.\]")
_SOME_KEY = "[...]"


def advise(error: msgspec.ValidationError, values: Mapping[str, Any], kind: type) -> tuple[str, str, str | None]:
    """Return what is wrong, in which place ("" for the top level), and what to do, where that is known.

    Args:
        error: of converting the values.
        values: that do not fit.
        kind: what they should fit.
    """
    text, _, steps = str(error).partition(" - at `$")
    place, found = _find(_STEP.findall(steps), values, kind)
    return text, place, _hint(text, place, found)


def _find(steps: list[str], values: Any, kind: Any) -> tuple[str, Any]:
    """Return a place by its keys, and the type of what belongs there."""
    place = ""
    for step in steps:
        if step == _SOME_KEY:
            kind = _inner(kind, dict)
            key = next(key for key, value in values.items() if not _fits(value, kind))
        elif step.startswith("["):
            kind, key = _inner(kind, tuple), int(step[1:-1])
        else:
            kind, key = _fields(kind).get(step), step
        values = values[key]
        place += f"[{key}]" if isinstance(key, int) else f".{key}"
    return place.removeprefix("."), kind


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _hint(text: str, place: str, kind: Any) -> str | None:
    fields = list(_fields(kind))
    if unknown := re.search(r"unknown field `(.*)`", text):
        close = difflib.get_close_matches(unknown[1], fields, 1)
        return f"did you mean `{close[0]}`?" if close else f"there are {', '.join(fields)}"
    if text.startswith("Invalid enum value"):
        return f"write one of {', '.join(next(filter(None, map(_choices, _inside(kind))), ()))}"
    if text.startswith("Expected `array`, got `object`") and fields:
        return f"write `[[{place}]]`"
    return None


def _choices(kind: Any) -> tuple[str, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def _fields(kind: Any) -> dict[str, Any]:
    """Return the fields of the struct in a type."""
    structs = (each for each in _inside(kind) if isinstance(each, type) and issubclass(each, msgspec.Struct))
    struct = next(structs, None)
    return {} if struct is None else {field.name: field.type for field in msgspec.structs.fields(struct)}


def _inner(kind: Any, container: type) -> Any:
    """Return the type of what a tuple or a dict in a type holds."""
    found = next(each for each in _inside(kind) if typing.get_origin(each) is container)
    return typing.get_args(found)[1 if container is dict else 0]


def _inside(kind: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of: what is looked for may be optional, or have limits."""
    yield kind
    for inner in typing.get_args(kind):
        yield from _inside(inner)
