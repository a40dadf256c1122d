"""Choose the precision, zeros and shapes of a model for a budget, and write them down as a profile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edgec.build_prune import Left
from edgec.calibrate.cache import cache_dir, code_key, key
from edgec.calibrate.dataset import load_dataset
from edgec.calibrate.overlap import check_overlap
from edgec.errors import require
from edgec.evaluate.divergence import Divergence
from edgec.evaluate.verify import broken_quality
from edgec.generate.tokenizer import Tokenizer
from edgec.spec.profile import Calibration, Profile, Verify
from edgec.tune.check import Reference
from edgec.tune.page import compared, reasons
from edgec.tune.pareto import Point, front, uniform
from edgec.tune.problem import Problem
from edgec.tune.profile_file import tuned_profile
from edgec.tune.run import Found, NoMixtureError, as_round
from edgec.tune.search import Setting, search
from edgec.tune.settings import Settings
from edgec.tune.shapes import Row, Shape, Solved, Texts, best, measure, rows, shapes_of, solve
from edgec.tune.solve import total
from edgec.tune.task import Say, Task
from edgec.tune.zeros import zeros_remarks

# Windows for checking a mixture, in tokens: of the calibration text too, but more of it.
_CHECK_TOKENS = 2048


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Args:
        profile: for `edgec build`.
        shapes: what became of each.
        mixtures: the best ones of all budgets, of the shape that was chosen.
        alike: all units stored alike.
        chosen: where the choice is among them.
        evaluation: of the choice, on text that nothing was chosen on.
        outside: the bounds of the profile that the last measurement breaks, in words.
        remarks: what else should be known.
    """

    profile: Profile
    problem: Problem
    found: Found
    shapes: Sequence[Row]
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
    shapes = shapes_of(task)
    texts, shared = _texts(task, text, Tokenizer.from_files(task.checkpoint.tokenizer_files()))
    with TemporaryDirectory(prefix="edgec-") as scratch:
        dense = Left(task.checkpoint, task.decoder, None)
        tried = _try(task, shapes, texts, Reference(dense, texts.checks, Path(scratch)), say)
        found = best([one for one in tried if isinstance(one, Solved)], task.budget)
        chosen, remarks = found, shared
        if task.search is not None:
            chosen, words = _search(task, found, say("search", task.trials))
            remarks = [*shared, words]
        outcomes = rows([chosen if one is found else one for one in tried], chosen, task.decoder, task.budget)
        corpus = task.evaluation
        other = None if corpus is None else Reference(dense, corpus.windows, Path(scratch))
        tuned = _write_up(task, name, chosen, outcomes, other)
    return replace(tuned, remarks=(*remarks, *tuned.remarks))


def _texts(task: Task, text: Calibration, tokenizer: Tokenizer) -> tuple[Texts, Sequence[str]]:
    """Return windows, and remarks on what evaluation shares with calibration."""
    window = min(text.window, task.plan.context_length)
    sizes = task.tokens, _CHECK_TOKENS, text.tokens  # the last for the build, which refuses what is shared
    sets = [load_dataset(text.texts, tokenizer, tokens=tokens, window=window, seed=text.seed) for tokens in sizes]
    corpus = task.evaluation
    shared = [] if corpus is None else [remark for each in sets for remark in check_overlap(each, corpus, tokenizer)]
    return Texts(*(each.windows for each in sets)), list(dict.fromkeys(shared))


def _try(
    task: Task, shapes: Sequence[Shape], texts: Texts, reference: Reference, say: Say
) -> list[Solved | tuple[Shape, NoMixtureError]]:
    """Return the best mixture of each shape, or why there is none.

    Raises:
        NoMixtureError: no shape has one.
    """
    alone = len(shapes) == 1
    tried: list[Solved | tuple[Shape, NoMixtureError]] = []
    refused = []
    for shape in shapes:
        try:
            tried.append(solve(task, shape, texts, reference, say, alone=alone))
        except NoMixtureError as error:
            if alone:
                raise
            tried.append((shape, error))
            refused.append(f"{shape.label}: {error.nearest}")
    if len(refused) == len(shapes):
        raise NoMixtureError(task.budget, "; ".join(refused))
    return tried


def _write_up(task: Task, name: str, solved: Solved, outcomes: Sequence[Row], other: Reference | None) -> Tuned:
    """Return the profile of what was chosen, and what should be known of it; `other` has the text of evaluation."""
    problem, found, check, base = solved.problem, solved.found, solved.check, solved.shape.profile

    def moved(points: Sequence[Point]) -> list[Point]:
        lost = problem.floats.mean_kl if problem.floats else 0.0
        return [replace(point, cost=point.cost + found.fixed, kl=point.kl + lost) for point in points]

    mixtures = moved(front(problem.kl, problem.costs))
    alike = moved(uniform(problem.kl, problem.costs, [candidate.label for candidate in problem.candidates]))
    choice = problem.choose(found.choice)
    title = f"tuned for {task.budget} on {task.target.name}"
    profile = tuned_profile(base, name, title, choice, reasons(problem, found.choice))
    profile = msgspec.structs.replace(profile, verify=_bounds(task))
    remarks = [f"latency from {problem.latency_source}"] if problem.latency_source else []
    remarks += zeros_remarks(task, solved, profile)
    simple = compared(problem, found, alike)
    if simple is not None:
        same = check.measure(tuned_profile(base, base.name, "", problem.choose(simple.choice))).divergence
        mine = found.round.divergence
        remarks.append(
            f"{simple.label} for all, the best single one that costs no more, has KL {same.mean_kl:.5f} nats and "
            f"{same.perplexity_ratio:.4f} times the perplexity; the choice {mine.mean_kl:.5f} and "
            f"{mine.perplexity_ratio:.4f}"
        )
    if profile.activations != base.activations:
        remarks.append("no matrix of the choice takes static activations: all stay dynamic")
    evaluation = None if other is None else replace(check, reference=other).measure(profile).divergence
    outside = broken_quality(evaluation or found.round.divergence, profile.verify)
    if outside:
        where = "the text for checking" if task.evaluation is None else task.evaluation.name
        remarks.append(f"outside the bounds in [verify], on {where}, where a build exits with 1: {'; '.join(outside)}")
    chosen = Point(total(problem.costs, found.choice) + found.fixed, found.round.predicted_kl, found.choice)
    return Tuned(profile, problem, found, outcomes, mixtures, alike, chosen, evaluation, outside, tuple(remarks))


def _search(task: Task, before: Solved, tick: Callable[[str], object]) -> tuple[Solved, str]:
    """Return the best setting that a search found, or what was there before, and words on it."""
    assert task.search is not None
    found, problem, check = before.found, before.problem, before.check
    settings = Settings(before.shape.profile, problem, check, total(problem.costs, found.choice))

    def evaluate(setting: Setting) -> float:
        value = settings.evaluate(setting)
        tick("trial")
        return value

    space = settings.space()
    same = key(code_key("tune"), _identity(task, before), repr(space))
    trials = search(task.search, space, evaluate, cache_dir() / "search" / f"{same}.journal", trials=task.trials)
    value, setting = trials[0]
    words = ", ".join(f"{name} {value}" for name, value in setting.items())
    told = f"{len(trials)} trials: the best one ({words}) has KL {value:.5f} nats"
    if settings.kept_algorithm:
        told = f"the algorithm stays {settings.kept_algorithm}, for which mse stands in here; {told}"
    solved = settings.solve(setting) if value < found.round.divergence.mean_kl else None
    if solved is None:
        return before, f"{told}; that is no better than without"
    profile, better, choice = solved
    done = as_round(better, task.budget, choice, measure(task, check, profile, better, choice), found)
    if not done.fits:
        return before, f"{told}, but its artifact is outside the budget"
    if not done.divergence.mean_kl < found.round.divergence.mean_kl:  # a latency that was timed again chose otherwise
        return before, f"{told}, but measured again it is no better than without"
    after = replace(found, choice=choice, round=done, rounds=(*found.rounds, done))
    return replace(before, shape=replace(before.shape, profile=profile), problem=better, found=after), told


def _bounds(task: Task) -> Verify:
    """Return the base's bounds; a budget of perplexity is one of them."""
    if task.budget.kind != "perplexity":
        return task.profile.verify
    return msgspec.structs.replace(task.profile.verify, max_perplexity_ratio=1 + task.budget.limit)


def _identity(task: Task, solved: Solved) -> str:
    labels = [candidate.label for candidate in solved.problem.candidates]
    plan = solved.shape.plan
    return repr((solved.left.key(plan), task.target.name, plan.sha256(), task.budget, labels, task.tokens))
