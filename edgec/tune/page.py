"""What was found, for people: why each layer is stored as it is, and the table of all budgets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.divergence import Divergence
from edgec.tune.budget import Budget, Kind, digits, show
from edgec.tune.pareto import Point
from edgec.tune.problem import Problem, base_candidate
from edgec.tune.run import Found, Round
from edgec.tune.shapes import Row
from edgec.tune.solve import total
from edgec.tune.units import EMBEDDING, Unit

_MIB = 2**20


def reasons(problem: Problem, choice: NDArray[np.int64]) -> dict[Unit, str]:
    """Return why units are stored in another way than most: the KL that this saves or costs, and the bytes or ms."""
    chosen = problem.choose(choice)
    base = base_candidate(chosen)
    found = {}
    for row, (unit, candidate) in enumerate(chosen.items()):
        most = base.of(unit)
        if candidate == most:
            continue
        after = problem.kl[row, choice[row]]
        column = next((column for column, other in enumerate(problem.candidates) if other.of(unit) == most), None)
        if column is None or not np.isfinite(problem.kl[row, column]):
            found[unit] = f"KL alone {after:.2g} nats; {most.label} is no candidate here"
            continue
        before, more = problem.kl[row, column], problem.costs[row, choice[row]] - problem.costs[row, column]
        amount, scale, name = _amount(problem, abs(more))
        words = f"KL alone {after:.2g} nats, with {most.label} {before:.2g}, for {amount} "
        words += "more" if more >= 0 else "less"
        if more:
            words += f": {abs(before - after) / abs(more) * scale:.2g} nats/{name}"
        found[unit] = words
    return found


def _amount(problem: Problem, cost: float) -> tuple[str, float, str]:
    """Return a difference in costs in words, and how many make up the unit that it is told in."""
    return (_size(cost), _MIB, "MiB") if problem.latency is None else (f"{digits(cost)} ms", 1.0, "ms")


def _size(size_bytes: float) -> str:
    return f"{size_bytes / _MIB:.2f} MiB" if size_bytes >= _MIB / 10 else f"{size_bytes / 2**10:.1f} KiB"


def summary(found: Found, budget: Budget, floats: Divergence | None = None) -> list[tuple[str, str]]:
    """Return what was measured of the chosen mixture; `floats` is what its shape lost before."""
    best = found.round
    divergence = best.divergence
    sums = f"{best.predicted_kl:.5f} nats"
    if best.predicted_kl > 0:
        sums += f"; the whole has {divergence.mean_kl / best.predicted_kl:.2f} times that"
    rounds = f"{len(found.rounds)} round{'s' if len(found.rounds) > 1 else ''}"
    measured = "measured, upper end (95 %)" if budget.kind == "perplexity" else "measured"
    rows = [
        ("budget", f"{budget.kind} {budget}"),
        (measured, f"{show(budget.kind, best.measured)} (predicted {show(budget.kind, best.predicted)})"),
        ("KL divergence", f"{divergence.mean_kl:.5f} +- {divergence.mean_kl_se:.5f} nats"),
        ("sum of single KLs", sums),
        ("perplexity", f"{divergence.perplexity_ratio:.4f} +- {divergence.perplexity_ratio_se:.4f} times the source's"),
        ("top-1 agreement", f"{100 * divergence.top1_agreement:.2f} %"),
        ("solver", f"within {100 * best.gap:.4f} % of the best choice, {rounds}"),
    ]
    if floats is not None:
        rows.append(
            (
                "before rounding",
                f"KL {floats.mean_kl:.5f} nats, perplexity {floats.perplexity_ratio:.4f} times the source's",
            )
        )
    if best.size_bytes is not None and budget.kind != "size":
        rows.append(("size", show("size", best.size_bytes)))
    if best.latency_ms is not None and budget.kind != "latency":
        rows.append(("latency here", show("latency", best.latency_ms)))
    return rows


def rounds_rows(rounds: Sequence[Round], budget: Budget) -> list[tuple[str, ...]]:
    """Return a line for each round."""
    return [
        (
            str(number),
            show(budget.kind, r.predicted),
            show(budget.kind, r.measured),
            f"{r.predicted_kl:.5f}",
            f"{r.divergence.mean_kl:.5f}",
            "yes" if r.fits else "no",
        )
        for number, r in enumerate(rounds, start=1)
    ]


ROUNDS_HEAD = ("round", "predicted", "measured", "sum of KLs", "KL measured", "inside")


SHAPES_HEAD = ("shape", "parameters", "cost", "KL, nats", "perplexity", "outcome")


def shapes_rows(shapes: Sequence[Row], budget: Budget) -> list[tuple[str, ...]]:
    """Return a line for each shape that was tried."""
    kind: Kind = "latency" if budget.kind == "latency" else "size"
    return [
        (
            row.shape,
            f"{row.parameters / 1e6:.1f} M" if row.parameters >= 1e6 else f"{row.parameters / 1e3:.1f} k",
            "" if row.cost is None else show(kind, row.cost),
            "" if row.kl is None else f"{row.kl:.5f}",
            "" if row.perplexity_ratio is None else f"{row.perplexity_ratio:.4f}",
            row.outcome,
        )
        for row in shapes
    ]


def markdown(
    title: str,
    problem: Problem,
    found: Found,
    budget: Budget,
    points: tuple[Sequence[Point], Sequence[Point]],
    shapes: Sequence[Row],
    remarks: Sequence[str],
    picture: str,
) -> str:
    """Return the page; `points` are the best mixtures, and all units stored alike."""
    mixtures, alike = points
    choice = problem.choose(found.choice)
    why = reasons(problem, found.choice)
    unit = "ms" if budget.kind == "latency" else "MB"
    scale = 1.0 if budget.kind == "latency" else 1e6
    front = [
        (digits(p.cost / scale), f"{p.kl:.5f}", p.label) for p in sorted((*mixtures, *alike), key=lambda p: p.cost)
    ]
    layers = [
        (
            u.name if u.name != EMBEDDING else "embedding, output matrix",
            c.label,
            f"{problem.size[row, found.choice[row]] / _MIB:.3f}",
            f"{problem.kl[row, found.choice[row]]:.6f}",
            why.get(u, "as most"),
        )
        for row, (u, c) in enumerate(choice.items())
    ]
    parts = [
        f"# {title}",
        table(("", ""), summary(found, budget, problem.floats)),
        *(f"- {remark}" for remark in remarks),
        *([_SHAPES, table(SHAPES_HEAD, shapes_rows(shapes, budget))] if len(shapes) > 1 else []),
        "## Rounds\n\nEach choice was measured as a whole; what the sums got wrong was corrected before the next.",
        table(ROUNDS_HEAD, rounds_rows(found.rounds, budget)),
        f"## All budgets\n\n![best mixtures]({picture})\n\nSums of KL divergences: of the units, and of the shape.",
        table((unit, "KL, nats", "all alike"), front),
        "## Choice\n\nThe KL of each unit is that of pruning and quantizing it alone, beside the floats of its shape.",
        table(("unit", "storage", "MiB", "KL, nats", "why"), layers),
    ]
    return "\n\n".join(parts) + "\n"


_SHAPES = (
    "## Shapes\n\nThe best mixture of each shape inside the budget. KL and perplexity are beside the dense float model."
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def compared(problem: Problem, found: Found, alike: Sequence[Point]) -> Point | None:
    """Return the best way to store all units alike that costs no more than what was chosen, if that is another one."""
    if len(set(found.choice.tolist())) == 1:
        return None
    most = total(problem.costs, found.choice) + found.fixed
    fitting = [point for point in alike if point.cost <= most]
    return min(fitting, key=lambda point: point.kl, default=None)
