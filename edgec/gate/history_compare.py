"""Two labels of a history side by side."""

from collections.abc import Sequence
from statistics import median
from typing import NoReturn

import msgspec

from edgec.errors import UsageError
from edgec.gate.history import Record
from edgec.gate.history_series import change_words, grouped, select
from edgec.measure.fingerprint import speed_facts


class Pair(msgspec.Struct, frozen=True):
    """A metric of two labels: the median of the runs of each, and how the second is beside the first."""

    metric: str
    unit: str
    first: float
    second: float
    words: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two labels of one kind of bundle on one machine.

    Args:
        machine: its hash.
        bundle: model, target, profile and backend.
        runs: of each label.
        metrics: that both have.
    """

    machine: str
    bundle: str
    runs: tuple[int, int]
    metrics: tuple[Pair, ...]


def compare(records: Sequence[Record], first: str, second: str) -> tuple[Comparison, ...]:
    """Put two labels side by side, for each kind of bundle on each machine that both have.

    Args:
        records: of a history.
        first: a label.
        second: another.

    Raises:
        UsageError: there is no such label, or no machine and kind of bundle that both have.
    """
    sides = [select(records, "label", label, lambda record: {record.label}) for label in (first, second)]
    before, after = map(grouped, sides)
    both = [key for key in before if key in after]
    if not both:
        _refuse(sides[0], sides[1])
    return tuple(
        Comparison(
            machine=key[0],
            bundle=key[1],
            runs=(len(before[key]), len(after[key])),
            metrics=_pairs(before[key], after[key]),
        )
        for key in both
    )


def _pairs(before: Sequence[Record], after: Sequence[Record]) -> tuple[Pair, ...]:
    found = []
    for name, value in before[-1].values.items():
        if name in after[-1].values:
            first, second = _median(before, name), _median(after, name)
            found.append(Pair(name, value.unit, first, second, change_words(first, second, value)))
    return tuple(found)


def _median(records: Sequence[Record], name: str) -> float:
    return median(record.values[name].value for record in records if name in record.values)


def _refuse(before: Sequence[Record], after: Sequence[Record]) -> NoReturn:
    """Say what no two records of two labels have in common."""
    hint = "gate both in one run: `edgec gate CANDIDATE --baseline BUNDLE`"
    first, second = before[-1], after[-1]
    if {record.machine for record in before} & {record.machine for record in after}:
        raise UsageError(f"the bundles are of different kinds: '{first.bundle}' and '{second.bundle}'", hint=hint)
    facts = [speed_facts(each.environment) for each in (first, second)]
    names = sorted({name for name, _ in facts[0].items() ^ facts[1].items()})
    differ = "; ".join(f"{name} '{facts[0].get(name, 'none')}' and '{facts[1].get(name, 'none')}'" for name in names)
    raise UsageError(f"values of different machines do not compare: {differ}", hint=hint)
