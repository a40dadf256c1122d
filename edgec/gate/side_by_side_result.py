"""What is known of bundles that were measured side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgec import __version__
from edgec.gate.quantity import quantity
from edgec.gate.result import Subject
from edgec.measure.workload import Workload


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one bundle; for `ratio`, `low` and `high` more is always worse.

    Args:
        value: typical for the run: of the first the geometric mean over rounds of the median over turns, of the others
            that times what the ratio says.
        least: of what single rounds say of it.
        most: of what single rounds say of it.
        ratio: how many times as bad as that of the first bundle; None for the first.
        low: where the interval around it begins, at the result's confidence.
        high: where it ends.
    """

    value: float | None
    least: float | None
    most: float | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of all bundles.

    Args:
        metric: such as `token_ms`; `energy_mj` is for each token or row, and only there where the machine tells.
        workload: its number; None for what has nothing to do with workloads.
        unit: of the values.
        higher_is_better: of the values.
        bundles: what each has, in their order.
    """

    metric: str
    workload: int | None
    unit: str
    higher_is_better: bool
    bundles: tuple[Cell, ...]


class SideBySide(msgspec.Struct, frozen=True, kw_only=True):
    """Bundles side by side; the others are compared with the first.

    Args:
        kind: of the models; decoder language models, or others.
        bundles: as they were given.
        names: short, and different from each other.
        workloads: that all ran.
        rows: all that was measured.
        rounds: of fresh processes.
        confidence: of the intervals, each for itself.
        threads: of the runtimes; None left that to them.
        elapsed_s: of the race.
        started: UTC, as in ISO 8601.
        environment: the machine and the versions.
        remarks: what the user should know.
        edgec: version.
    """

    kind: Literal["decoder", "network"]
    bundles: tuple[Subject, ...]
    names: tuple[str, ...]
    workloads: tuple[Workload, ...]
    rows: tuple[Row, ...]
    rounds: int
    confidence: float
    threads: int | None
    elapsed_s: float
    started: str
    environment: dict[str, str]
    remarks: tuple[str, ...]
    edgec: str = __version__

    def title(self, workload: int | None) -> str:
        """Return in words what a row was measured on."""
        if workload is None:
            return "loading, memory and size"
        return self.workloads[workload].title(lengths=self.kind == "decoder")


def value_text(value: float | None, unit: str) -> str:
    """Return a value with its unit, for people."""
    return "" if value is None else quantity(value, unit)


def names_of(paths: Sequence[str]) -> tuple[str, ...]:
    """Return short names for paths: as many of their last parts as it takes to tell them apart.

    A path that is there twice, which is how a machine is compared with itself, gets a number.
    """
    parts = [Path(path).absolute().parts for path in paths]
    names = []
    for number, path in enumerate(parts):
        others = {other for other in parts if other != path}
        length = next(
            (count for count in range(1, len(path)) if all(other[-count:] != path[-count:] for other in others)),
            len(path),
        )
        again = parts[:number].count(path)
        names.append("/".join(path[-length:]) + (f" ({again + 1})" if again else ""))
    return tuple(names)
