"""Find and read targets and profiles: shipped ones by name, the user's own by path."""

import difflib
import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgec.errors import UsageError
from edgec.spec.detect import this_machine
from edgec.spec.network_profile import NetworkProfile, NetworkWishes
from edgec.spec.profile import Profile
from edgec.spec.target import Target

Spec = TypeVar("Spec", Target, Profile)
T = TypeVar("T")

THIS_MACHINE = "cpu"
_ALGORITHMS = Path(__file__).parent.parent / "quantize" / "algorithms"


def data_dir(kind: str) -> Path:
    """Return the folder of shipped `targets` or `profiles`: in the wheel, or in the repository."""
    package = Path(__file__).parent.parent
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / kind


def list_targets() -> list[Target]:
    """Return every shipped target, this machine first."""
    files = sorted(data_dir("targets").glob("*.toml"))
    return [this_machine(), *(read_spec(path, Target) for path in files)]


def list_profiles() -> list[Profile]:
    """Return every shipped profile, by name."""
    return [load_profile(str(path)) for path in sorted(data_dir("profiles").glob("*.toml"))]


def load_target(name: str) -> Target:
    """Return a shipped target by name or alias, or the target in a `.toml` file.

    Raises:
        UsageError: there is none, or the file is wrong.
    """
    if name.endswith(".toml"):
        return read_spec(Path(name), Target)
    targets = list_targets()
    for target in targets:
        if name == target.name or name in target.aliases:
            return target
    raise _unknown("target", name, [n for t in targets for n in (t.name, *t.aliases)])


def load_profile(name: str) -> Profile:
    """Return a shipped profile by name, or the profile in a `.toml` file.

    Raises:
        UsageError: there is none, or the file is wrong.
    """
    path = _profile_path(name)
    profile = read_spec(path, Profile)
    known = algorithm_names()
    layers = ((f"layers[{number}]", weights) for number, weights in enumerate(profile.layers))
    for key, weights in (("weights", profile.weights), ("embedding", profile.embedding), *layers):
        if weights is not None and weights.algorithm not in known:
            raise UsageError(
                f"there is no algorithm '{weights.algorithm}'",
                where=f"{path}: {key}.algorithm",
                hint=_suggest(weights.algorithm, known),
            )
    return profile


def load_network_profile(name: str) -> NetworkProfile:
    """Return what a shipped profile, or the profile in a `.toml` file, says of networks.

    Raises:
        UsageError: there is none, it says nothing of networks, or the file is wrong.
    """
    path = _profile_path(name)
    values = _read(path)
    if not isinstance(values.get("network"), dict):
        having = [p.stem for p in sorted(data_dir("profiles").glob("*.toml")) if "network" in _read(p)]
        raise UsageError(
            f"profile '{path.stem}' is for decoder language models only: it has no [network]",
            where=str(path),
            hint=f"choose one of {', '.join(having)}, or write a profile with a [network]",
        )
    _refuse_unknown_keys(values, Profile, path, "")
    wishes = _convert(values["network"], NetworkWishes, path, "network")
    if wishes.algorithm not in (known := algorithm_names()):
        raise UsageError(
            f"there is no algorithm '{wishes.algorithm}'",
            where=f"{path}: network.algorithm",
            hint=_suggest(wishes.algorithm, known),
        )
    return NetworkProfile(path.stem, str(values.get("title", path.stem)), wishes)


def _profile_path(name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    path = data_dir("profiles") / f"{name}.toml"
    if not (re.fullmatch(r"[\w.-]+", name) and path.is_file()):
        raise _unknown("profile", name, [p.stem for p in data_dir("profiles").glob("*.toml")])
    return path


def algorithm_names() -> list[str]:
    """Return the names of all algorithms that quantize weights; none of them is imported."""
    return sorted(p.stem for p in _ALGORITHMS.glob("*.py") if p.stem != "__init__")


def read_spec(path: Path, kind: type[Spec]) -> Spec:
    """Read one TOML file.

    Raises:
        UsageError: it cannot be read, is not TOML, or does not fit; the message names the key.
    """
    values = _read(path)
    _refuse_unknown_keys(values, kind, path, "")
    return _convert({**values, "name": path.stem}, kind, path, "")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"'{path}' is not TOML: {error}", where=str(path)) from error


def _convert(values: dict[str, Any], kind: type[T], path: Path, prefix: str) -> T:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        text, _, key = str(error).partition(" - at `$")
        key = key.rstrip("`").lstrip(".")
        place = ".".join(part for part in (prefix, key) if part)
        raise UsageError(text, where=f"{path}: {place or 'top level'}", hint=_advice(text, kind, key)) from error


def _advice(text: str, kind: type, key: str) -> str:
    """Return what to do about a value that does not fit: what it may be, where there is a list of that."""
    if values := _choices(kind, key.split(".")):
        return f"one of {', '.join(map(str, values))}"
    examples = data_dir("targets" if kind is Target else "profiles")
    missing = re.search(r"missing required field `(\w+)`", text)
    return f"{f'add `{missing[1]}`: ' if missing else ''}the files in {examples} show how"


def _choices(kind: Any, keys: list[str]) -> tuple[Any, ...]:
    """Return the values that a key of a struct may have, where they are listed."""
    if not keys or not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return ()
    found = {field.name: field.type for field in msgspec.structs.fields(kind)}.get(re.sub(r"\[.*", "", keys[0]))
    if len(keys) > 1:
        return _choices(_struct_of(found), keys[1:])
    return next((typing.get_args(o) for o in _inside(found) if typing.get_origin(o) is typing.Literal), ())


def _inside(kind: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of: the key may be optional, a list, or have limits."""
    yield kind
    for inner in typing.get_args(kind):
        yield from _inside(inner)


def _refuse_unknown_keys(values: dict[str, Any], kind: type, path: Path, prefix: str) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in values.items():
        if key not in fields or (not prefix and key == "name"):
            known = [name for name in fields if name != "name"]
            raise UsageError(f"unknown key '{prefix}{key}'", where=str(path), hint=_suggest(key, known))
        inner = _struct_of(fields[key])
        for table in value if isinstance(value, list) else [value]:
            if inner is not None and isinstance(table, dict):
                _refuse_unknown_keys(table, inner, path, f"{prefix}{key}.")


def _struct_of(kind: Any) -> type | None:
    """Return the struct in a field's type, also where it is optional or there are several."""
    options = typing.get_args(kind) or (kind,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)), None)


def _unknown(kind: str, name: str, known: list[str]) -> UsageError:
    return UsageError(f"there is no {kind} '{name}'", hint=f"{_suggest(name, known)}; `edgec {kind}s` lists all")


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
