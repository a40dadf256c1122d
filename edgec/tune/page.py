"""What was found, for people: why each layer is stored as it is, and the table of all budgets."""

from collections.abc import Mapping, Sequence

from edgec.tune.budget import Budget, digits, show
from edgec.tune.pareto import Point
from edgec.tune.problem import Problem, base_candidate
from edgec.tune.run import Found, Round
from edgec.tune.solve import total
from edgec.tune.units import EMBEDDING, Candidate, Unit

_MIB = 2**20


def reasons(problem: Problem, choice: Mapping[Unit, Candidate]) -> dict[Unit, str]:
    """Return why units are stored in another way than most: the KL that this saves or costs, and the bytes."""
    base = base_candidate(choice)
    columns = {candidate: column for column, candidate in enumerate(problem.candidates)}
    found = {}
    for row, (unit, candidate) in enumerate(choice.items()):
        if candidate == base:
            continue
        before, after = problem.kl[row, columns[base]], problem.kl[row, columns[candidate]]
        more = problem.size[row, columns[candidate]] - problem.size[row, columns[base]]
        words = f"KL alone {after:.2g} nats, with {base.label} {before:.2g}, for {_size(abs(more))} "
        words += "more" if more >= 0 else "less"
        if more:
            words += f": {abs(before - after) / abs(more) * _MIB:.2g} nats/MiB"
        found[unit] = words
    return found


def _size(size_bytes: float) -> str:
    return f"{size_bytes / _MIB:.2f} MiB" if size_bytes >= _MIB / 10 else f"{size_bytes / 2**10:.1f} KiB"


def summary(found: Found, budget: Budget) -> list[tuple[str, str]]:
    """Return what was measured of the chosen mixture."""
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


def markdown(
    title: str,
    problem: Problem,
    found: Found,
    budget: Budget,
    points: tuple[Sequence[Point], Sequence[Point]],
    remarks: Sequence[str],
    picture: str,
) -> str:
    """Return the page; `points` are the best mixtures, and all units stored alike."""
    mixtures, alike = points
    choice = problem.choose(found.choice)
    why = reasons(problem, choice)
    unit = "ms" if budget.kind == "latency" else "MB"
    scale = 1.0 if budget.kind == "latency" else 1e6
    front = [
        (digits(p.cost / scale), f"{p.kl:.5f}", p.label) for p in sorted((*mixtures, *alike), key=lambda p: p.cost)
    ]
    columns = {candidate: column for column, candidate in enumerate(problem.candidates)}
    layers = [
        (
            u.name if u.name != EMBEDDING else "embedding, output matrix",
            c.label,
            f"{problem.size[row, columns[c]] / _MIB:.3f}",
            f"{problem.kl[row, columns[c]]:.6f}",
            why.get(u, "as most"),
        )
        for row, (u, c) in enumerate(choice.items())
    ]
    parts = [
        f"# {title}",
        table(("", ""), summary(found, budget)),
        *(f"- {remark}" for remark in remarks),
        "## Rounds\n\nEach choice was measured as a whole; what the sums got wrong was corrected before the next.",
        table(ROUNDS_HEAD, rounds_rows(found.rounds, budget)),
        f"## All budgets\n\n![best mixtures]({picture})\n\nSums of the units' own KL divergences.",
        table((unit, "KL, nats", "all alike"), front),
        "## Choice\n\nThe KL of each unit is that of quantizing it alone.",
        table(("unit", "storage", "MiB", "KL, nats", "why"), layers),
    ]
    return "\n\n".join(parts) + "\n"


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
