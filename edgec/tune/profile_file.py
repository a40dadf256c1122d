"""A choice as a profile that `edgec build` takes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgec.quantize.scheme import Scheme
from edgec.spec.layers import matching
from edgec.spec.profile import Activations, LayerWeights, Profile
from edgec.spec.prune import Sparse
from edgec.tune.problem import base_candidate
from edgec.tune.units import EMBEDDING, Candidate, Unit


def tuned_profile(
    base: Profile,
    name: str,
    title: str,
    choice: Mapping[Unit, Candidate],
    reasons: Mapping[Unit, str] | None = None,
) -> Profile:
    """Return `base` with the chosen storage: the most frequent one as `weights`, the others as `layers`.

    Static activations stay only where some matrix takes them. Where units are sparse, `sparse` skips all others; how
    much of each matrix goes was chosen by unit, so shares are not spread again: its allocation is uniform.

    Args:
        base: gives everything else.
        name: of the new profile.
        title: of the new profile.
        choice: of every unit.
        reasons: for people.
    """
    embedding = next(candidate for unit, candidate in choice.items() if unit.name == EMBEDDING)
    layers = {unit: candidate for unit, candidate in choice.items() if unit.name != EMBEDDING}
    most = base_candidate(choice)
    overrides = tuple(
        LayerWeights(
            match=unit.matrices[0] if len(unit.matrices) == 1 else unit.matrices,
            reason=(reasons or {}).get(unit, ""),
            **msgspec.structs.asdict(candidate.weights),
        )
        for unit, candidate in layers.items()
        if candidate.weights != most.weights
    )
    return msgspec.structs.replace(
        base,
        name=name,
        title=title,
        weights=most.weights,
        embedding=embedding.weights,
        layers=overrides,
        sparse=_sparse(layers),
        activations=_activations(base, layers),
    )


def _sparse(layers: Mapping[Unit, Candidate]) -> Sparse | None:
    sparse = [candidate for candidate in layers.values() if candidate.pattern is not None]
    if not sparse or sparse[0].pattern is None:
        return None
    dense = tuple(matrix for unit, c in layers.items() if c.pattern is None for matrix in unit.matrices)
    return Sparse(pattern=sparse[0].pattern, method=sparse[0].method, skip=dense)


def _activations(base: Profile, layers: Mapping[Unit, Candidate]) -> Activations | None:
    wanted = base.activations
    if wanted is None or wanted.mode != "static":
        return wanted
    names = [matrix for unit in layers for matrix in unit.matrices]
    where = f"profile '{base.name}': activations.skip"
    skipped = {name for pattern in wanted.skip for name in matching(pattern, names, where)}
    # What reads the same input is one unit, and is skipped together.
    storages = [c.storage for unit, c in layers.items() if skipped.isdisjoint(unit.matrices)]
    taken = any(isinstance(storage, Scheme) and storage.multiplies_int8 for storage in storages)
    return wanted if taken else None


def to_toml(profile: Profile, comments: Sequence[str] = ()) -> str:
    """Return a profile as TOML; `comments` stand at its head."""
    values = {key: value for key, value in msgspec.to_builtins(profile).items() if key != "name"}
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) and key != "layers"}
    lines = [*(f"# {line}".rstrip() for line in comments), *_pairs(plain)]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _table(key, value)
    for override in values["layers"]:
        lines += ["", "[[layers]]", f"match = {_value(override.pop('match'))}", *_pairs(override)]
    return "\n".join(lines) + "\n"


def _table(name: str, values: dict[str, Any]) -> list[str]:
    """Return the lines of a table, and of those inside it."""
    lines = ["", f"[{name}]", *_pairs({key: value for key, value in values.items() if not isinstance(value, dict)})]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _table(f"{name}.{key}", value)
    return lines


def _pairs(values: dict[str, Any]) -> list[str]:
    """Return a line for each value; floats have no groups to speak of, and what is not there is left out."""
    short = values.get("dtype") in ("fp32", "fp16")
    return [
        f"{key} = {_value(value)}"
        for key, value in values.items()
        if value not in (None, "") and not (short and key in ("group_size", "symmetric", "algorithm"))
    ]


def _value(value: object) -> str:
    """Return a TOML value; its strings, numbers and lists are those of JSON."""
    return json.dumps(value, ensure_ascii=False)
