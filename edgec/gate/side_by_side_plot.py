"""Bundles side by side, as a picture."""

import io
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgec.errors import OutputError, UsageError, require
from edgec.gate.limits import USUAL
from edgec.gate.side_by_side_result import Cell, Row, SideBySide, value_text

SUFFIXES = (".png", ".svg")

# Okabe and Ito's colours, which people who see few colours can tell apart, without their yellow: it is too pale.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKS = "osD^vPX"
# Inches: of a panel, of a row of one bundle, and around rows.
_WIDTH, _LINE, _AROUND = 7.0, 0.17, 0.95
_MOST_PANELS_IN_A_COLUMN = 2
# The axis shows at least 2 % to both sides of 1, so that next to nothing does not look like much.
_NARROW = 0.02
# Intervals may have no end: the axis does not follow them further than so many times a ratio.
_FAR = 10.0
# Where the axis spans more, its ticks are these in each decade.
_WIDE, _TICKS = 2.2, (1, 1.5, 2, 3, 5, 7)


def check_plot(path: Path) -> None:
    """Make sure, before any work, that a picture can be drawn there.

    Raises:
        UsageError: the file's name does not say which kind of picture.
        OutputError: there is something that is no file.
        MissingRuntimeError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"a plot is a file that ends with {' or '.join(SUFFIXES)}", where=str(path), hint="such as plot.svg"
        )
    if path.exists() and not path.is_file():
        raise OutputError("the plot cannot be written: there is something else", where=str(path))
    # Where it cannot write below the home folder, it takes a temporary one, and warns of what is no harm here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    require("matplotlib", "bench")


def draw(result: SideBySide, kind: str) -> bytes:
    """Return a picture: how many times as bad as the first each bundle is, a panel for each workload.

    Args:
        result: of at least two bundles.
        kind: ".png" or ".svg".
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(result)
    columns = 1 if len(panels) <= _MOST_PANELS_IN_A_COLUMN else 2
    lines = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    others = len(result.bundles) - 1
    heights = [max(len(rows) for _, rows in line) * _LINE * (others + 1.6) + _AROUND for line in lines]
    figure = Figure(figsize=(_WIDTH * columns, sum(heights) + 0.8 + 0.2 * -(-others // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (title, rows) in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, title, rows, result.names)
    legend = figure.legend(
        *grid.flat[0].get_legend_handles_labels(),
        title=f"How many times as bad as {result.names[0]}",
        title_fontsize=12,
        fontsize=9,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
    )
    legend.get_title().set_multialignment("center")
    figure.supxlabel("\n".join(textwrap.wrap(_footer(result), 95 * columns)), fontsize=8, color="#555555")
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "edgec"}):  # the same result gives the same bytes
        metadata = {"Software": None} if kind == ".png" else {"Date": None}
        figure.savefig(out, format=kind.removeprefix("."), dpi=130, metadata=metadata)
    return out.getvalue()


def _panels(result: SideBySide) -> list[tuple[str, list[Row]]]:
    """Return title and rows of each panel: what a gate would look at, and energy; percentiles are in the table."""
    shown = [row for row in result.rows if row.metric in USUAL or row.metric == "energy_mj"]
    numbers = [*range(len(result.workloads)), None]
    panels = [(result.title(number), [row for row in shown if row.workload == number]) for number in numbers]
    return [(title, rows) for title, rows in panels if rows]


def _draw_panel(axes: Any, title: str, rows: Sequence[Row], names: Sequence[str]) -> None:
    others = len(names) - 1
    axes.axvline(1, color="#444444", linewidth=1)
    cells = [list(enumerate(row.bundles[variant] for row in rows)) for variant in range(others + 1)]
    for variant in range(1, others + 1):
        offset = (variant - (others + 1) / 2) / (others + 1.6)
        shown = [(cell.ratio, _interval(cell), n + offset) for n, cell in cells[variant] if cell.ratio is not None]
        axes.errorbar(
            [ratio for ratio, _, _ in shown],
            [place for _, _, place in shown],
            xerr=[[ratio - low for ratio, (low, _), _ in shown], [high - ratio for ratio, (_, high), _ in shown]],
            fmt=_MARKS[(variant - 1) % len(_MARKS)],
            color=_COLOURS[(variant - 1) % len(_COLOURS)],
            markersize=4.5,
            capsize=3,
            linewidth=1.4,
            label=names[variant],
        )
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_yticks(range(len(rows)), [f"{row.metric}\n{value_text(row.bundles[0].value, row.unit)}" for row in rows])
    axes.tick_params(labelsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color="#dddddd", linewidth=0.8)
    _scale(axes, [cell for row in rows for cell in row.bundles[1:]])


def _scale(axes: Any, cells: Sequence[Cell]) -> None:
    """Give an axis of ratios room for all intervals, and ticks that people count in."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    ends = [end for cell in cells if cell.ratio is not None for end in _interval(cell)]
    low, high = min((*ends, 1 - _NARROW)), max((*ends, 1 + _NARROW))
    room = (high / low) ** 0.05
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    wide = high / low > _WIDE
    axes.xaxis.set_major_locator(
        LogLocator(subs=_TICKS, numticks=99) if wide else MaxNLocator(7, steps=[1, 2, 2.5, 5, 10])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.grid(visible=True, axis="x", alpha=0.3)


def _interval(cell: Cell) -> tuple[float, float]:
    """Return an interval; one without an end reaches as far as the axis goes."""
    ratio = cell.ratio or 0.0
    return max(cell.low or 0.0, ratio / _FAR), min(cell.high or float("inf"), ratio * _FAR)


def _footer(result: SideBySide) -> str:
    machine = result.environment
    threads = "" if result.threads is None else f", {result.threads} {'thread' if result.threads == 1 else 'threads'}"
    return (
        f"right of 1 is worse; {result.confidence:.0%} intervals, {result.rounds} rounds of fresh processes{threads}; "
        f"below each metric, what {result.names[0]} has. "
        f"{machine.get('cpu_model', 'unknown')}, {machine.get('usable_cpus', '?')} CPUs, "
        f"{machine.get('kernel', 'unknown')}; onnxruntime {machine.get('onnxruntime', 'unknown')}, "
        f"edgec {result.edgec}; {result.started}"
    )
