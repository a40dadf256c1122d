"""The best mixtures of all budgets, as a table and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import require
from edgec.tune.solve import Table, minimise, total

_POINTS = 20
# Half of a mark, in pixels.
_MARK = 4
# Where a label may be, in points from its mark, the best place first.
_OFFSETS = [(side * right, up) for right in (7, 14, 21) for up in (0, 9, -9, 18, -18) for side in (1, -1)]


@dataclass(frozen=True)
class Point:
    """A mixture, or one storage for all.

    Args:
        cost: bytes, or ms for a token.
        kl: the sum over units, in nats.
        choice: candidate of each unit, (units,).
        label: for the picture.
    """

    cost: float
    kl: float
    choice: NDArray[np.int64]
    label: str = ""


def front(kl: Table, cost: Table, points: int = _POINTS) -> list[Point]:
    """Return mixtures that no other beats in both, from the cheapest to the best; each is solved exactly."""
    allowed = np.isfinite(kl) & np.isfinite(cost)
    low = np.where(allowed, cost, np.inf).min(axis=1).sum()
    best = minimise(kl, cost, float(np.where(allowed, cost, 0).max(axis=1).sum()))
    assert best is not None
    found: list[Point] = []
    # Where all bits are wide nothing changes any more: limits lie denser where mixtures are small.
    for limit in low + (total(cost, best.choice) - low) * np.linspace(0, 1, points) ** 2:
        solution = minimise(kl, cost, float(limit) * (1 + 1e-9))
        if solution is None:
            continue
        point = Point(total(cost, solution.choice), total(kl, solution.choice), solution.choice)
        if not found or point.kl < found[-1].kl:
            found.append(point)
    return found


def uniform(kl: Table, cost: Table, labels: Sequence[str]) -> list[Point]:
    """Return what storing all units alike gives, for each candidate that all of them take."""
    units = len(kl)
    choices = [np.full(units, column) for column in range(len(labels))]
    points = [Point(total(cost, c), total(kl, c), c, label) for c, label in zip(choices, labels, strict=True)]
    return [point for point in points if np.isfinite(point.cost + point.kl)]


def draw(path: Path, mixtures: Sequence[Point], alike: Sequence[Point], chosen: Point, axis: tuple[str, float]) -> None:
    """Write the picture; `axis` is the name of the cost, and what one of its units is.

    Raises:
        MissingRuntimeError: matplotlib is not installed.
    """
    require("matplotlib", "tune")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name, unit = axis
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    floor = min((p.kl for p in (*mixtures, *alike) if p.kl > 0), default=1e-6) / 2

    def places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [p.cost / unit for p in points], [max(p.kl, floor) for p in points]

    axes.plot(*places(mixtures), "o-", color="#1f6fb2", markersize=4, label="best mixtures")
    axes.plot(*places(alike), "s", color="#888888", label="all units alike")
    axes.plot(*places([chosen]), "*", color="#d1495b", markersize=16, label="chosen")
    axes.set_yscale("log")
    axes.margins(x=0.08)
    axes.set_xlabel(name)
    axes.set_ylabel("sum of KL divergences, nats")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(loc="upper right")
    figure.draw_without_rendering()  # lays the axes out
    labels = [(point.label, x, y) for point, x, y in zip(alike, *places(alike), strict=True)]
    _label(axes, labels, list(zip(*places([*mixtures, chosen]), strict=True)))
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _label(axes: Any, labels: Sequence[tuple[str, float, float]], others: Sequence[tuple[float, float]]) -> None:
    """Write labels beside their points, where they lie on no other label and on no point."""
    from matplotlib.transforms import Bbox

    points = axes.transData.transform([*((x, y) for _, x, y in labels), *others])
    taken = [Bbox.from_bounds(x - _MARK, y - _MARK, 2 * _MARK, 2 * _MARK) for x, y in points]
    for label, x, y in labels:
        text = axes.annotate(
            label, (x, y), (0, 0), textcoords="offset points", va="center", fontsize=8, color="#555555"
        )
        for right, up in _OFFSETS:
            text.set(position=(right, up), horizontalalignment="left" if right > 0 else "right")
            box = text.get_window_extent()
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
