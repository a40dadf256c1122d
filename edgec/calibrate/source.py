"""Where samples come from, before it is known how many a network takes at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgec.calibrate.arrays import Batch, Labels
from edgec.calibrate.ports import Shape

Rows = Iterator[tuple[Batch, Labels | None]]


@dataclass(frozen=True, eq=False)
class Source:
    """Samples that were chosen.

    Args:
        where: the file or folder, for messages.
        sha256: in hex, of what decides the samples.
        shapes: what each sample has, by the name of the network's input.
        places: where each comes from, for people.
        rows: give the samples in order, so many at a time, and their labels; the last ones may be fewer.
        remarks: what the user should know.
    """

    where: str
    sha256: str
    shapes: Mapping[str, Shape]
    places: Sequence[str]
    rows: Callable[[int], Rows]
    remarks: tuple[str, ...] = ()


def in_slices(read: Callable[[range], Batch], count: int, labels: Labels | None) -> Callable[[int], Rows]:
    """Return `rows` of a source that can be read from anywhere: `read` gives the samples of a range."""

    def rows(batch: int) -> Rows:
        for first in range(0, count, batch):
            some = range(first, min(first + batch, count))
            yield read(some), None if labels is None else labels[some.start : some.stop]

    return rows
