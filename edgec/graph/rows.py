"""Several weights in the rows of one: what backends write that compute matmuls of the same input at once."""

from collections.abc import Iterable, Iterator

from edgec.graph.weights import Codes


def rows_note(parts: Iterable[tuple[str, int]]) -> str:
    """Return `name:rows` of each weight, joined by spaces."""
    return " ".join(f"{name}:{rows}" for name, rows in parts)


def split_rows(note: str, joined: Codes) -> Iterator[tuple[str, Codes]]:
    """Yield (name, integers) of each weight that `note` names."""
    start = 0
    for part in note.split():
        name, _, count = part.rpartition(":")
        rows = slice(start, start + int(count))
        zeros = None if joined.zero_points is None else joined.zero_points[rows]
        codes = joined.codes[rows]
        yield name, Codes(codes, joined.scales[rows], zeros, joined.scheme, joined.global_scale)
        start = rows.stop
