"""A picture of a history: a panel for each series."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import UsageError
from edgec.gate.history_series import Series
from edgec.gate.side_by_side_plot import check_plot
from edgec.whole_file import write_whole

MOST = 40
"""Panels of a picture."""

_DATES = 6
_ROWS = 3
_LETTERS = 12
_BLUE, _RED, _GREY = "#1f6fb2", "#d1495b", "#888888"


def write_plot(series: Sequence[Series], path: Path) -> None:
    """Draw series, one above the other: runs, levels or drifts, and steps.

    Args:
        series: at most `MOST`.
        path: of an SVG or PNG file, by its name; replaced if it is there.

    Raises:
        UsageError: the name is of neither, or there is nothing, or too much, to draw.
        OutputError: it cannot be written.
        MissingRuntimeError: matplotlib is not installed.
    """
    check_plot(path)
    if not 0 < len(series) <= MOST:
        raise UsageError(
            f"a picture has 1 to {MOST} panels, and here are {len(series)} series",
            hint="draw one metric (--metric NAME) of one machine (--machine HASH)",
        )
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6 * len(series)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, each in zip(figure.subplots(len(series), squeeze=False)[:, 0], series, strict=True):
        _draw(axes, each)
    kind = path.suffix.lower().removeprefix(".")
    # Nothing of the time or of chance is in the file: equal histories give equal pictures.
    still = {"svg.hashsalt": "edgec", "svg.fonttype": "none"}
    drawn = io.BytesIO()
    with mpl.rc_context(still), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # labels may be in any script
        figure.savefig(drawn, format=kind, dpi=120, metadata={"Date" if kind == "svg" else "Software": None})
    write_whole(path, drawn.getvalue(), "the plot")


def _draw(axes: Any, series: Series) -> None:
    values = np.array([point.value for point in series.points]) / _divisor(series)
    runs = np.arange(1, len(values) + 1)
    axes.plot(runs, values, "o", color=_BLUE, markersize=3.5)
    first = series.searched + 1
    for level in series.trend.levels:
        axes.hlines(level.value / _divisor(series), first + level.start, first + level.stop - 1, color=_RED, lw=2)
    if series.trend.drift is not None:
        between = np.geomspace if (values > 0).all() else np.linspace  # as it was found: of logarithms, if there are
        line = between(*series.trend.drift, series.trend.runs) / _divisor(series)
        axes.plot(runs[series.searched :], line, color=_RED, lw=2)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * min(_ROWS, len(series.changes)) * (high - low))  # room for words
    for number, change in enumerate(series.changes):
        axes.axvline(change.run + 0.5, color=_GREY, lw=1, ls="--")
        told = f"{_short(change.label)}\n{change.words}"
        late = change.run > 0.8 * len(runs)
        axes.annotate(
            told, (change.run + 0.5, 1), (-4 if late else 4, -4 - 24 * (number % _ROWS)),
            xycoords=("data", "axes fraction"), textcoords="offset points",
            va="top", ha="right" if late else "left", fontsize=8, parse_math=False,
        )  # fmt: skip
    title = f"{series.metric}: {series.summary}\n{series.bundle} on machine {series.machine}"
    axes.set_title(title, loc="left", fontsize=9, parse_math=False)
    axes.set_ylabel("MiB" if series.unit == "bytes" else series.unit, parse_math=False)
    places = sorted({int(place) for place in np.linspace(1, len(runs), min(_DATES, len(runs)))})
    axes.set_xticks(places, [f"{series.points[place - 1].when:%Y-%m-%d}\nrun {place}" for place in places], fontsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(visible=True, alpha=0.25)


def _divisor(series: Series) -> float:
    return 2**20 if series.unit == "bytes" else 1.0


def _short(label: str) -> str:
    return label if len(label) <= _LETTERS else f"{label[: _LETTERS - 1]}…"
