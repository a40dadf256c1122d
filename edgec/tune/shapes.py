"""Shapes of a model that are tried, its own and slimmer ones: in each the best mixture inside the budget is found.

Units are measured beside the float model of their shape; mixtures, bounds and all that is told, beside the dense one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.backends.backend import get_backend
from edgec.build_calibration import check_device
from edgec.build_prune import Left, shrink
from edgec.errors import UsageError
from edgec.frontends.architecture import Decoder
from edgec.quantize.transforms.quarot import emit_turned
from edgec.spec.exploit import eligible
from edgec.spec.load import THIS_MACHINE
from edgec.spec.plan import Plan, resolve
from edgec.spec.profile import Profile
from edgec.spec.prune import Slim
from edgec.spec.prune_plan import parameters
from edgec.tune.budget import Budget, show
from edgec.tune.check import Checker, Measured, Reference
from edgec.tune.cost import uniform_plan
from edgec.tune.problem import Problem, cost_tables, measure_kl
from edgec.tune.profile_file import tuned_profile
from edgec.tune.run import Found, NoMixtureError, find, upper_growth
from edgec.tune.solve import cheapest, total
from edgec.tune.task import Say, Task
from edgec.tune.units import DEFAULT, candidate, candidates_of, units_of

Ids = NDArray[np.int64]
Choice = NDArray[np.int64]

_SLIM = "write --slim 25%:mlp,heads; parts are layers mlp heads hidden"


@dataclass(frozen=True)
class Shape:
    """The `[slim]` of a shape, None for the model's own, and the base profile and plan with it."""

    slim: Slim | None
    profile: Profile
    plan: Plan

    @property
    def label(self) -> str:
        """As the option has it."""
        return "dense" if self.slim is None else f"{100 * self.slim.parameters:.6g}%:{','.join(self.slim.parts)}"


@dataclass(frozen=True)
class Texts:
    """Windows (n, tokens) for the sensitivity of units, for checks, and for what goes of the shapes."""

    units: Ids
    checks: Ids
    shapes: Ids


@dataclass(frozen=True)
class Solved:
    """A shape with its tables, what measures its mixtures, and the best one inside the budget."""

    shape: Shape
    left: Left
    problem: Problem
    check: Checker
    found: Found


class Row(msgspec.Struct, frozen=True):
    """What became of a shape.

    Args:
        shape: as the option has it, or "dense".
        parameters: that it has.
        cost: of its best mixture: ms where the budget is a latency, else bytes; None where none is inside.
        kl: of that from the dense model, nats.
        perplexity_ratio: over that of the dense model.
        outcome: "chosen", or why not.
    """

    shape: str
    parameters: int
    cost: float | None
    kl: float | None
    perplexity_ratio: float | None
    outcome: str


def parse_slim(text: str, base: Slim | None = None) -> Slim:
    """Read a shape such as "25%" or "25%:mlp,heads"; all else is as in the base profile's `[slim]`.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*(\d{1,2}(?:\.\d+)?)%\s*(?::(.*))?", text, re.ASCII)
    if found is None:
        raise UsageError(f"'{text}' is no shape: a share of the parameters comes first, in per cent", hint=_SLIM)
    try:
        usual = {} if base is None else msgspec.structs.asdict(base)
        parts = {"parts": [part.strip() for part in found[2].split(",")]} if found[2] is not None else {}
        return msgspec.convert(usual | {"parameters": float(found[1]) / 100} | parts, Slim)
    except ValueError as error:  # msgspec's is one, too, and says where in the struct
        why = str(error).partition(" - at `$")[0]
        raise UsageError(f"'{text}' is no shape: {why}", hint=_SLIM) from error


def shapes_of(task: Task) -> list[Shape]:
    """Return the shapes of a task, the base profile's first; equal ones count once.

    Raises:
        PlanError: so much cannot go from these parts, or the model's config cannot say what would be left; or the
            profile calibrates on a GPU, and there is none.
    """
    found = [Shape(task.profile.slim, task.profile, task.plan)]
    for slim in dict.fromkeys(task.slims):
        if slim != task.profile.slim:
            # Names of layers may not be there; what is chosen takes the place of their storage in any case.
            profile = msgspec.structs.replace(task.profile, slim=slim, layers=())
            parts = task.checkpoint, task.decoder, task.target, profile, task.plan.backend, task.ignored
            found.append(Shape(slim, profile, resolve(*parts)))
    for shape in found:
        if shape.slim is not None:
            check_device(shape.plan)
    return found


def solve(task: Task, shape: Shape, texts: Texts, reference: Reference, say: Say, *, alone: bool) -> Solved:
    """Return the best mixture of one shape inside the budget.

    Args:
        task: what to tune.
        shape: to take.
        texts: windows.
        reference: the dense model.
        say: told of each stage.
        alone: there is no other shape: work is not saved where the nearest mixture is worth knowing.

    Raises:
        NoMixtureError: none is inside.
    """
    left, where = Left(task.checkpoint, task.decoder, None), "" if alone else f", {shape.label}"
    if shape.slim is not None:
        left = shrink(left, shape.plan, texts.shapes, task.ignored, say(f"slim{where}", 0))
    problem = _tables(task, shape, left.decoder)
    if shape.slim is not None:
        floats = emit_turned(left.decoder, left.checkpoint, texts.checks.shape[1], ())
        problem = replace(problem, floats=reference.divergence(floats))
    _refuse_early(problem, task.budget, alone=alone)
    plan = shape.plan
    model = emit_turned(left.decoder, left.checkpoint, texts.units.shape[1], plan.transforms)
    tick = say(f"sensitivity{where}", len(left.decoder.layers) + 2)
    problem, stats = measure_kl(model, left.key(plan), texts.units, problem, tick)
    check, tick = Checker(left, task.target, plan.backend, stats, reference), say(f"check{where}", 0)

    def measured(choice: Choice) -> Measured:
        tick("round")
        return measure(task, check, shape.profile, problem, choice)

    return Solved(shape, left, problem, check, find(problem, task.budget, measured))


def _tables(task: Task, shape: Shape, decoder: Decoder) -> Problem:
    """Return a shape's problem without KL; sparse candidates are usual where a latency gains from them."""
    plan, latency = shape.plan, task.budget.kind == "latency"
    units = units_of(decoder, shape.profile.sparse)
    more = [
        f"{label}+2:4"
        for label in DEFAULT
        if latency
        and eligible(decoder, uniform_plan(plan, units, candidate(f"{label}+2:4", shape.profile.weights)), task.target)
    ]
    limits = get_backend(plan.backend).LIMITS
    return cost_tables(
        decoder,
        plan,
        task.target,
        units,
        candidates_of(task.labels, shape.profile, task.target, limits, more),
        task.checkpoint.tokenizer_files(),
        latency=latency,
        no_fallback=task.no_fallback,
    )


def _refuse_early(problem: Problem, budget: Budget, *, alone: bool) -> None:
    """Refuse what no mixture can mend, before anything is measured unit by unit.

    Raises:
        NoMixtureError: the shape itself loses too much; or, where there are others, its matrices are too large.
    """
    lost = problem.floats
    if budget.kind == "perplexity" and lost is not None and not upper_growth(lost) <= budget.limit:
        growth = show("perplexity", upper_growth(lost))
        raise NoMixtureError(budget, f"before any weight is rounded perplexity may grow by {growth} (95 %)")
    least = total(problem.size, cheapest(problem.kl, problem.size).choice)
    if budget.kind == "size" and least > budget.limit and not alone:
        raise NoMixtureError(budget, f"its matrices alone take {show('size', least)}")


def measure(task: Task, check: Checker, base: Profile, tables: Problem, choice: Choice) -> Measured:
    """Measure a choice whole, with what the budget bounds."""
    latency = task.budget.kind == "latency" and task.target.name == THIS_MACHINE
    profile = tuned_profile(base, base.name, "", tables.choose(choice))
    return check.measure(profile, artifact=task.budget.kind != "latency" or latency, latency=latency)


def best(solved: Sequence[Solved], budget: Budget) -> Solved:
    """Return what loses least, or for a bound on perplexity is smallest; of equal ones the first."""
    return min(solved, key=lambda one: _cost(one, budget) if budget.kind == "perplexity" else _kl(one))


def rows(
    tried: Sequence[Solved | tuple[Shape, NoMixtureError]], chosen: Solved, dense: Decoder, budget: Budget
) -> list[Row]:
    """Return what became of each shape."""
    found = []
    for one in tried:
        if isinstance(one, Solved):
            outcome = "chosen" if one is chosen else "larger" if budget.kind == "perplexity" else "loses more"
            numbers = _cost(one, budget), _kl(one), one.found.round.divergence.perplexity_ratio
            found.append(Row(one.shape.label, parameters(one.left.decoder), *numbers, outcome))
        else:
            shape, error = one
            count = shape.plan.slim.parameters if shape.plan.slim else parameters(dense)
            found.append(Row(shape.label, count, None, None, None, error.nearest))
    return found


def _cost(one: Solved, budget: Budget) -> float:
    if budget.kind == "perplexity":
        return total(one.problem.size, one.found.choice) + one.found.fixed
    return one.found.round.measured


def _kl(one: Solved) -> float:
    return one.found.round.divergence.mean_kl
