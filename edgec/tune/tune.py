"""Choose the precision of each layer for a budget, and write it down as a profile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.backends.backend import get_backend
from edgec.calibrate.cache import cache_dir, code_key, key
from edgec.calibrate.dataset import load_dataset
from edgec.calibrate.overlap import check_overlap
from edgec.checkpoint.model import Checkpoint
from edgec.errors import require
from edgec.evaluate.corpus import Corpus
from edgec.evaluate.divergence import Divergence
from edgec.evaluate.verify import broken_quality
from edgec.frontends.architecture import Decoder
from edgec.generate.tokenizer import Tokenizer
from edgec.quantize.transforms import ROTATION
from edgec.quantize.transforms.quarot import emit_turned
from edgec.spec.load import THIS_MACHINE
from edgec.spec.plan import Plan
from edgec.spec.profile import Calibration, Profile, Verify
from edgec.spec.target import Target
from edgec.tune.budget import Budget
from edgec.tune.check import Checker, Measured
from edgec.tune.page import compared, reasons
from edgec.tune.pareto import Point, front, uniform
from edgec.tune.problem import Problem, cost_tables, measure_kl
from edgec.tune.profile_file import tuned_profile
from edgec.tune.run import Found, as_round, find
from edgec.tune.search import Method, Setting, search
from edgec.tune.settings import Settings
from edgec.tune.solve import total
from edgec.tune.units import candidates_of, units_of

Say = Callable[[str, int], Callable[[str], object]]

# Windows for checking a mixture, in tokens: of the calibration text too, but more of it.
_CHECK_TOKENS = 2048


@dataclass(frozen=True)
class Task:
    """What to tune, for what.

    Args:
        profile: the base: its text, context, runtime, bounds, and algorithm of integers below 8 bits.
        plan: of the base.
        tokens: for the sensitivity of each unit.
        labels: of candidates; empty for the usual ones.
        no_fallback: leave out what falls back on the target.
        evaluation: text that nothing is chosen on; None leaves the last measurement out.
    """

    checkpoint: Checkpoint
    decoder: Decoder
    target: Target
    profile: Profile
    plan: Plan
    budget: Budget
    tokens: int
    labels: Sequence[str] = ()
    no_fallback: bool = False
    search: Method | None = None
    trials: int = 16
    evaluation: Corpus | None = None


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Args:
        profile: for `edgec build`.
        mixtures: the best ones of all budgets.
        alike: all units stored alike.
        chosen: where the choice is among them.
        evaluation: of the choice, on text that nothing was chosen on.
        outside: the bounds of the profile that the last measurement breaks, in words.
        remarks: what else should be known.
    """

    profile: Profile
    problem: Problem
    found: Found
    mixtures: Sequence[Point]
    alike: Sequence[Point]
    chosen: Point
    evaluation: Divergence | None
    outside: tuple[str, ...]
    remarks: tuple[str, ...]


def tune(task: Task, name: str, say: Say) -> Tuned:
    """Tune; `name` is the new profile's, `say` is told of each stage.

    Raises:
        PlanError: no mixture is inside the budget; it says the nearest one.
        UsageError: the text of calibration is that of evaluation.
        MissingRuntimeError: a package of the `tune` extra is not installed.
    """
    for package in ("scipy", "matplotlib", *(["optuna"] if task.search else [])):
        require(package, "tune", load=False)
    # What statistics are taken of, the build needs too.
    text = task.profile.calibration or Calibration(tokens=task.tokens)
    task = replace(task, profile=msgspec.structs.replace(task.profile, calibration=text))
    files = task.checkpoint.tokenizer_files()
    windows, more, shared = _texts(task, text, Tokenizer.from_files(files))
    problem = cost_tables(
        task.decoder,
        task.plan,
        task.target,
        units_of(task.decoder),
        candidates_of(task.labels, task.profile, task.target, get_backend(task.plan.backend).LIMITS),
        files,
        latency=task.budget.kind == "latency",
        no_fallback=task.no_fallback,
    )
    transforms = task.profile.transforms
    model = emit_turned(task.decoder, task.checkpoint, windows.shape[1], transforms)
    tick = say("sensitivity", len(task.decoder.layers) + 2)
    problem, stats = measure_kl(model, task.checkpoint, windows, problem, tick, rotated=ROTATION in transforms)
    with TemporaryDirectory(prefix="edgec-") as scratch:

        def checker(text: NDArray[np.int64]) -> Checker:
            parts = task.checkpoint, task.decoder, task.target, task.plan.backend
            return Checker(*parts, stats, text, Path(scratch))

        tuned = _choose(task, name, problem, checker, more, say)
    return replace(tuned, remarks=(*shared, *tuned.remarks))


def _texts(
    task: Task, text: Calibration, tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], NDArray[np.int64], Sequence[str]]:
    """Return windows for sensitivity, windows for checks, and remarks on what evaluation shares with calibration."""
    window = min(text.window, task.plan.context_length)
    sizes = task.tokens, _CHECK_TOKENS, text.tokens  # the last for the build, which refuses what is shared
    sets = [load_dataset(text.texts, tokenizer, tokens=tokens, window=window, seed=text.seed) for tokens in sizes]
    corpus = task.evaluation
    shared = [] if corpus is None else [remark for each in sets for remark in check_overlap(each, corpus, tokenizer)]
    return sets[0].windows, sets[1].windows, list(dict.fromkeys(shared))


def _choose(
    task: Task,
    name: str,
    problem: Problem,
    checker: Callable[[NDArray[np.int64]], Checker],
    windows: NDArray[np.int64],
    say: Say,
) -> Tuned:
    check, budget = checker(windows), task.budget
    tick = say("check", 0)
    latency = budget.kind == "latency" and task.target.name == THIS_MACHINE

    def measure(base: Profile, tables: Problem, choice: NDArray[np.int64]) -> Measured:
        profile = tuned_profile(base, base.name, "", tables.choose(choice))
        measured = check.measure(profile, artifact=budget.kind != "latency" or latency, latency=latency)
        tick("round")
        return measured

    base, found = task.profile, find(problem, budget, partial(measure, task.profile, problem))
    remarks = [f"latency from {problem.latency_source}"] if problem.latency_source else []
    if task.search is not None:
        base, problem, found, words = _search(task, problem, found, check, measure, say("search", task.trials))
        remarks.append(words)

    def moved(points: Sequence[Point]) -> list[Point]:
        return [replace(point, cost=point.cost + found.fixed) for point in points]

    mixtures = moved(front(problem.kl, problem.costs))
    alike = moved(uniform(problem.kl, problem.costs, [candidate.label for candidate in problem.candidates]))
    choice = problem.choose(found.choice)
    profile = tuned_profile(base, name, f"tuned for {budget} on {task.target.name}", choice, reasons(problem, choice))
    profile = msgspec.structs.replace(profile, verify=_bounds(task))
    simple = compared(problem, found, alike)
    if simple is not None:
        other = check.measure(tuned_profile(base, base.name, "", problem.choose(simple.choice))).divergence
        mine = found.round.divergence
        remarks.append(
            f"{simple.label} for all, the best single one that costs no more, has KL {other.mean_kl:.5f} nats and "
            f"{other.perplexity_ratio:.4f} times the perplexity; the choice {mine.mean_kl:.5f} and "
            f"{mine.perplexity_ratio:.4f}"
        )
    if profile.activations != base.activations:
        remarks.append("no matrix of the choice takes static activations: all stay dynamic")
    text = task.evaluation
    evaluation = None if text is None else checker(text.windows).measure(profile).divergence
    outside = broken_quality(evaluation or found.round.divergence, profile.verify)
    if outside:
        where = "the text for checking" if text is None else text.name
        remarks.append(f"outside the bounds in [verify], on {where}, where a build exits with 1: {'; '.join(outside)}")
    chosen = Point(total(problem.costs, found.choice) + found.fixed, found.round.predicted_kl, found.choice)
    return Tuned(profile, problem, found, mixtures, alike, chosen, evaluation, outside, tuple(remarks))


def _search(
    task: Task,
    problem: Problem,
    found: Found,
    check: Checker,
    measure: Callable[[Profile, Problem, NDArray[np.int64]], Measured],
    tick: Callable[[str], object],
) -> tuple[Profile, Problem, Found, str]:
    """Return the best setting that a search found, or what was there before."""
    assert task.search is not None
    settings = Settings(task.profile, problem, check, total(problem.costs, found.choice))

    def evaluate(setting: Setting) -> float:
        value = settings.evaluate(setting)
        tick("trial")
        return value

    space = settings.space()
    same = key(code_key("tune"), _identity(task, problem), repr(space))
    trials = search(task.search, space, evaluate, cache_dir() / "search" / f"{same}.journal", trials=task.trials)
    value, setting = trials[0]
    words = ", ".join(f"{name} {value}" for name, value in setting.items())
    told = f"{len(trials)} trials: the best one ({words}) has KL {value:.5f} nats"
    if settings.kept_algorithm:
        told = f"the algorithm stays {settings.kept_algorithm}, for which mse stands in here; {told}"
    solved = settings.solve(setting) if value < found.round.divergence.mean_kl else None
    if solved is None:
        return task.profile, problem, found, f"{told}; that is no better than without"
    profile, better, choice = solved
    done = as_round(better, task.budget, choice, measure(profile, better, choice), found)
    if not done.fits:
        return task.profile, problem, found, f"{told}, but its artifact is outside the budget"
    if not done.divergence.mean_kl < found.round.divergence.mean_kl:  # a latency that was timed again chose otherwise
        return task.profile, problem, found, f"{told}, but measured again it is no better than without"
    return profile, better, replace(found, choice=choice, round=done, rounds=(*found.rounds, done)), told


def _bounds(task: Task) -> Verify:
    """Return the base's bounds; a budget of perplexity is one of them."""
    if task.budget.kind != "perplexity":
        return task.profile.verify
    return msgspec.structs.replace(task.profile.verify, max_perplexity_ratio=1 + task.budget.limit)


def _identity(task: Task, problem: Problem) -> str:
    labels = [candidate.label for candidate in problem.candidates]
    return repr((task.checkpoint.fingerprint(), task.target.name, task.plan.sha256(), task.budget, labels, task.tokens))
