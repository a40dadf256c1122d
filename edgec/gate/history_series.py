"""What a history says: a series for each metric of each kind of bundle on each machine."""

import difflib
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from itertools import pairwise

import msgspec

from edgec.errors import UsageError
from edgec.gate.changes import Trend, find_trend
from edgec.gate.history import Record, Value

LONGEST = 200
"""Runs, the last ones, that are searched for changes: what that takes grows with their square."""

# Labels, the last ones, that an error names: a history has one for each commit.
_LABELS = 8
_WORDS = {"ms": ("slower", "faster"), "/s": ("slower", "faster"), "bytes": ("larger", "smaller")}
_OTHERS = ("worse", "better")


class Point(msgspec.Struct, frozen=True):
    """One run."""

    when: datetime
    label: str
    value: float


class Change(msgspec.Struct, frozen=True):
    """A step.

    Args:
        run: the number of the first run after it, in its series, from 0.
        when: that run began.
        label: of that run.
        before: the median of the runs before it, back to the step before.
        after: the median of the runs after it, up to the next step.
        words: such as "5.1 % slower".
    """

    run: int
    when: datetime
    label: str
    before: float
    after: float
    words: str


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one kind of bundle on one machine.

    Args:
        machine: its hash.
        bundle: model, target, profile and backend.
        metric: with where it was measured.
        unit: of values.
        higher_is_better: of values.
        points: in the order of time.
        trend: of the last `LONGEST` of them.
        changes: its steps, the newest first.
        summary: the trend in words.
    """

    machine: str
    bundle: str
    metric: str
    unit: str
    higher_is_better: bool
    points: tuple[Point, ...]
    trend: Trend
    changes: tuple[Change, ...]
    summary: str

    @property
    def searched(self) -> int:
        """The number of the first run that the trend is of, from 0."""
        return len(self.points) - self.trend.runs


def series_of(records: Sequence[Record], metric: str | None = None, machine: str | None = None) -> tuple[Series, ...]:
    """Return all series; machines and bundles that ran last come first.

    Args:
        records: in the order of time.
        metric: its name, with or without where it was measured; None for all.
        machine: how its hash begins; None for all.

    Raises:
        UsageError: there is no such metric or machine.
    """
    if machine is not None:
        records = select(records, "machine", machine, lambda record: {record.machine}, str.startswith)
    if metric is not None:
        records = select(records, "metric", metric, lambda record: record.values.keys(), _is_metric)
    return tuple(
        _series(key, name, group)
        for key, group in sorted(grouped(records).items(), key=lambda each: each[1][-1].when, reverse=True)
        for name in dict.fromkeys(name for record in group for name in record.values)
        if metric is None or _is_metric(name, metric)
    )


def grouped(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return records by machine and kind of bundle."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.machine, record.bundle), []).append(record)
    return groups


def select(
    records: Sequence[Record],
    what: str,
    wanted: str,
    of: Callable[[Record], Collection[str]],
    fits: Callable[[str, str], bool] = str.__eq__,
) -> list[Record]:
    """Return the records that have what is wanted.

    Raises:
        UsageError: there is none.
    """
    found = [record for record in records if any(fits(each, wanted) for each in of(record))]
    if not found:
        known = list(dict.fromkeys(each for record in reversed(records) for each in of(record)))
        near = difflib.get_close_matches(wanted, known, n=1)
        named = known[:_LABELS] if what == "label" else known
        told = "there are" if len(named) == len(known) else "the last ones are"
        hint = f"did you mean '{near[0]}'?" if near else f"{told}: {', '.join(named) or 'none'}"
        raise UsageError(f"the history has no {what} '{wanted}'", hint=hint)
    return found


def change_words(before: float, after: float, value: Value) -> str:
    """Return how much better or worse a value became; `value` says what it is a value of."""
    if before == after:
        return "the same"
    word = _WORDS.get(value.unit, _OTHERS)[(after > before) == value.higher_is_better]
    if before <= 0 or after <= 0:
        return f"{abs(after - before):.3g} {word}"
    percent = 100 * abs(after / before - 1)
    return f"{percent:.1f} % {word}" if percent >= 1 else f"{percent:.2g} % {word}"


def _is_metric(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted} (")


def _series(key: tuple[str, str], name: str, records: Sequence[Record]) -> Series:
    having = [record for record in records if name in record.values]
    points = tuple(Point(record.when, record.label, record.values[name].value) for record in having)
    last = having[-1].values[name]
    trend = find_trend([point.value for point in points[-LONGEST:]])
    changes = []
    for before, after in pairwise(trend.levels):
        run = len(points) - trend.runs + after.start
        told = change_words(before.value, after.value, last)
        changes.append(Change(run, points[run].when, points[run].label, before.value, after.value, told))
    return Series(
        machine=key[0],
        bundle=key[1],
        metric=name,
        unit=last.unit,
        higher_is_better=last.higher_is_better,
        points=points,
        trend=trend,
        changes=tuple(reversed(changes)),
        summary=_summary(trend, last),
    )


def _summary(trend: Trend, value: Value) -> str:
    if trend.ends is None:
        return "too few runs"
    if len(trend.levels) == 1:
        return "steady"
    return f"{'drift, ' * (trend.drift is not None)}{change_words(*trend.ends, value)}"
