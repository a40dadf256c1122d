"""Time bundles beside each other: rounds of fresh processes, which take turns in random order.

What differs from process to process (where memory lies, above all) differs from round to round; what else the machine
does in the meantime hits all of a round alike, because turns are short. Only one process computes at a time.
"""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import msgspec
import numpy as np

from edgec.bundle.open import find_artifact
from edgec.errors import InconclusiveError
from edgec.measure.memory import available_bytes
from edgec.measure.parent import Worker, workers
from edgec.measure.query import Slice
from edgec.measure.worker import Begin, GoOn, Run
from edgec.measure.workload import Workload

_FEWEST_TURNS = 3
# A query that takes so many times as long as a turn is divided into several, and fewer of them are enough.
_LONG = 10
_FEWEST_LONG = 2
_WARM_STEPS = 4
# A bundle that loads within a few ms is loaded several times: a single time says little on a busy machine.
_MOST_LOADS = 5
_LOADING_S = 0.1
# Turns with queries that arrive at random begin with nobody waiting: so many have to come for a queue to build up. They
# take their time, and one is enough.
_ARRIVALS = 8
# What a process takes at most while it loads, as a multiple of its artifact.
_COPIES = 2.5
# How long a query takes is seen from the quickest of a few, as long as those take no longer than that. The first one
# finds nothing prepared, and is as good as another only if it takes seconds.
_PROBES, _PROBING_S, _SECONDS = 3, 0.5, 2.0


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How to race.

    Args:
        workloads: all are run in each process.
        threads: of the runtimes; None leaves that to them.
        slice_s: a turn is as many queries as the slowest variant answers in this time, at least one. The shorter
            turns are, the more alike is the machine for all who take one: turns of 4 ms gave a fifth of the variance of
            as much time in turns of 10 ms. In the scenario "server" it is at least 8 queries, which may wait for each
            other.
        slices: turns of each process for each workload, at most.
        round_s: time that a round should take; where models are slow there are fewer turns, but a few as far as
            `longest_s` lets them.
        longest_s: time that a round may take.
        at_least: name of a time -> how often a process takes it at least; turns become longer for that.
        together: all processes of a round are there at once and take turns; else one after the other, which takes the
            memory of one model at a time.
        seed: of the order of turns, of the texts, and of arrivals.
    """

    workloads: tuple[Workload, ...]
    threads: int | None = None
    slice_s: float = 0.005
    slices: int = 24
    round_s: float = 6.0
    longest_s: float = float("inf")
    at_least: dict[str, int] = {}
    together: bool = True
    seed: int = 0


class TooLongError(InconclusiveError):
    """A round would take longer than it may."""

    def __init__(self, round_s: float) -> None:
        """Say how long it would take, at least."""
        super().__init__(f"a round takes {round_s:.0f} s")
        self.round_s = round_s


class Process(msgspec.Struct, frozen=True):
    """What one process measured.

    Args:
        load_ms: from files to a session that is ready, of each time that the process loaded the bundle.
        peak_rss_bytes: of the process, Python included.
        slices: by workload, in the order of turns.
        size_bytes: of the artifact's files.
        pieces: by workload, of how many slices a query is made; 1 for slices of whole queries.
    """

    load_ms: tuple[float, ...]
    peak_rss_bytes: int
    slices: tuple[tuple[Slice, ...], ...]
    size_bytes: int
    pieces: tuple[int, ...]


Round = tuple[Process, ...]
"""One process of each variant."""


def race(bundles: Sequence[Path], course: Course) -> Iterator[Round]:
    """Yield round after round, without end; a variant is a place in `bundles`, and may be there twice.

    Raises:
        EdgecError: what a process says, such as of a bundle that cannot be read.
        BundleError: a process crashed.
        InconclusiveError: a process was killed, or (TooLongError) a round would take too long.
    """
    arriving_s = sum(map(partial(_arriving_s, course.at_least), course.workloads))
    if (least_s := len(bundles) * arriving_s) > course.longest_s:
        raise TooLongError(least_s)
    generator = np.random.default_rng(course.seed)
    sizes = [artifact_bytes(bundle) for bundle in bundles]
    cpus = _some_cpus(course.threads, generator)
    scouts = {bundle: _scout(bundle, course, cpus) for bundle in dict.fromkeys(bundles)}
    turns = _plan([scouts[bundle] for bundle in bundles], course)
    while True:
        found: dict[int, Process] = {}
        order = generator.permutation(len(bundles)).tolist()
        cpus = _some_cpus(course.threads, generator)
        seeds = generator.integers(2**31, size=(len(course.workloads), course.slices)).tolist()
        for group in [order] if course.together else [[variant] for variant in order]:
            with workers(len(group)) as started:
                processes = dict(zip(group, started, strict=True))
                for variant, each in processes.items():
                    each.open(bundles[variant], course.workloads, course.threads, cpus)
                loads = _load(processes, turns.loads, generator)
                slices, peaks = _take(processes, turns, seeds, generator)
            for variant in group:
                found[variant] = Process(loads[variant], peaks[variant], slices[variant], sizes[variant], turns.pieces)
        yield tuple(found[variant] for variant in range(len(bundles)))


def artifact_bytes(bundle: Path) -> int:
    """Return the size of an artifact's files."""
    return sum(path.stat().st_size for path in find_artifact(bundle).rglob("*") if path.is_file())


APART = "memory is short: each process ran alone, not in turn with the others"
"""What is to be said of a race whose processes were not there together."""


def have_room(bundles: Sequence[Path]) -> bool:
    """Say whether there is memory for a process of each at once; yes where the machine does not tell."""
    free = available_bytes()
    return free is None or _COPIES * sum(map(artifact_bytes, bundles)) < free


class _Scout(msgspec.Struct, frozen=True):
    """What a process that counts for nothing says of a bundle: how long it takes to load, and a query of each workload.

    Args:
        start_s: until the process could begin to load.
        load_s: from files to a session that is ready.
        probes: of each workload a whole query.
    """

    start_s: float
    load_s: float
    probes: tuple[Slice, ...]


class _Turns(msgspec.Struct, frozen=True):
    """What processes do in a round.

    Args:
        loads: how often each loads its bundle.
        counts: of each workload, how often each takes its turns.
        queries: of each workload, whole ones in a turn.
        steps: of each workload, of the turns that a query is divided into; empty where it is not.
    """

    loads: int
    counts: tuple[int, ...]
    queries: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]

    @property
    def pieces(self) -> tuple[int, ...]:
        """Of how many slices a query is made."""
        return tuple(len(steps) or 1 for steps in self.steps)


def _arriving_s(at_least: dict[str, int], workload: Workload) -> float:
    """Return how long it takes at least until all queries of a process have come; 0 where none are waited for."""
    if workload.rate_per_s is None:
        return 0.0
    times = {name: workload.new_tokens if name == "token_ms" else 1 for name in at_least}
    return max(_ARRIVALS, *(-(-count // times[name]) for name, count in at_least.items()), 0) / workload.rate_per_s


def _some_cpus(threads: int | None, generator: np.random.Generator) -> tuple[int, ...] | None:
    """Return the CPUs for all processes of a round, as many as threads; None where that is all, or not known.

    CPUs that look alike are not: what else runs on them, and beside them on their core, makes one slower than another.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if threads is None or threads >= len(usable):
        return None
    return tuple(sorted(generator.permutation(usable)[:threads].tolist()))


def _scout(bundle: Path, course: Course, cpus: tuple[int, ...] | None) -> _Scout:
    begin = time.perf_counter()
    with workers(1) as (process,):
        process.open(bundle, course.workloads, course.threads, cpus)
        load_s = process.load() / 1e3
        start_s = time.perf_counter() - begin - load_s
        probes = tuple(_probe(process, number, each) for number, each in enumerate(course.workloads))
    return _Scout(start_s, load_s, probes)


def _probe(process: Worker, number: int, workload: Workload) -> Slice:
    """Return a query of a workload, the quickest of a few."""
    first = process.run(number, 1, 0).slice
    if first.busy_s >= _SECONDS:
        return first
    found: list[Slice] = []
    while not found or (len(found) < _PROBES and sum(probe.busy_s for probe in found) < _PROBING_S):
        found.append(process.run(number, 1, 1 + len(found)).slice)
    return min(found, key=lambda probe: _answer_s(workload, probe))


def _answer_s(workload: Workload, probe: Slice) -> float:
    """Return how long a query took, without the time until it arrived."""
    return probe.busy_s if workload.rate_per_s is None else sum(map(sum, probe.samples.values())) / 1e3


def _plan(scouts: Sequence[_Scout], course: Course) -> _Turns:
    """Plan turns that fit into a round of all variants, of each of which a scout tells."""
    queries, steps, turns_s, warm_s, needed, liked = [], [], [], [], [], []
    for number, workload in enumerate(course.workloads):
        probes = sorted((scout.probes[number] for scout in scouts), key=partial(_answer_s, workload))
        answers_s = [_answer_s(workload, probe) for probe in probes]
        if workload.rate_per_s is not None:
            answers_s = [max(1 / workload.rate_per_s, answer_s) for answer_s in answers_s]
        slowest, fewest = probes[-1], 1 if workload.rate_per_s is None else _ARRIVALS
        # How many queries take a time as often as it is wanted.
        wanted = max((-(-n // len(slowest.samples.get(name, "_"))) for name, n in course.at_least.items()), default=0)
        queries.append(max(-(-wanted // course.slices), round(course.slice_s / answers_s[-1]), fewest))
        steps.append(_divide(workload, slowest, course.slice_s) if queries[-1] == 1 else ())
        turns_s.append(queries[-1] * sum(answers_s))
        warm_s.append(sum(map(_warm_s, probes)) if steps[-1] else sum(answers_s))
        needed.append(max(-(-wanted // queries[-1]), 1))
        fewest = 1 if workload.rate_per_s else _FEWEST_LONG if steps[-1] else _FEWEST_TURNS
        liked.append(min(course.slices, fewest))
    besides_s = sum(warm_s) + sum(scout.start_s + scout.load_s for scout in scouts)

    def round_s(counts: Sequence[int]) -> float:
        return besides_s + sum(count * turn_s for count, turn_s in zip(counts, turns_s, strict=True))

    # As many turns as fit for all alike, but for what needs more; and those of few, as far as a round may take longer.
    alike = ([max(least, count) for least in needed] for count in range(course.slices, 0, -1))
    counts = next((each for each in alike if round_s(each) <= course.round_s), needed)
    for number, few in enumerate(liked):
        while counts[number] < few and round_s(counts) + turns_s[number] <= course.longest_s:
            counts[number] += 1
    if round_s(counts) > course.longest_s:
        raise TooLongError(round_s(counts))
    loads = min(_MOST_LOADS, max(1, int(_LOADING_S / max(scout.load_s for scout in scouts))))
    return _Turns(loads, tuple(counts), tuple(queries), tuple(steps))


def _warm_s(probe: Slice) -> float:
    """Return how long the steps take that a query which is divided begins with, so that what it needs is there."""
    return sum(islice(chain(probe.samples["ttft_ms"], probe.samples["token_ms"]), _WARM_STEPS)) / 1e3


def _divide(workload: Workload, probe: Slice, slice_s: float) -> tuple[int, ...]:
    """Return the steps of each turn that a long query is divided into: its prompt, then some tokens at a time."""
    tokens = probe.samples.get("token_ms", ())
    if workload.scenario != "single-stream" or not tokens or probe.busy_s < _LONG * slice_s:
        return ()
    at_once = max(1, round(1e3 * slice_s / float(np.median(tokens))))
    whole, rest = divmod(workload.new_tokens, at_once)
    return (1, *[at_once] * whole, *([rest] if rest else []))


def _load(processes: dict[int, Worker], count: int, generator: np.random.Generator) -> dict[int, tuple[float, ...]]:
    """Let all processes load their bundles in turn, a few times; return the times in ms."""
    times: dict[int, list[float]] = {variant: [] for variant in processes}
    for _ in range(count):
        for variant in generator.permutation(list(processes)).tolist():
            times[variant].append(processes[variant].load())
    return {variant: tuple(each) for variant, each in times.items()}


def _take(
    processes: dict[int, Worker], turns: _Turns, seeds: list[list[int]], generator: np.random.Generator
) -> tuple[dict[int, tuple[tuple[Slice, ...], ...]], dict[int, int]]:
    """Let all processes take their turns; return the slices of each, by workload, and its peak of memory."""
    slices: dict[int, list[tuple[Slice, ...]]] = {variant: [] for variant in processes}
    peaks: dict[int, int] = {}
    for workload, count in enumerate(turns.queries):
        taken: dict[int, list[Slice]] = {variant: [] for variant in processes}
        for process in processes.values():
            # The first query allocates what the others use again; of a long one, a few tokens are enough.
            process.take(Begin(workload, _WARM_STEPS, 0) if turns.steps[workload] else Run(workload, 1, 0))
        for seed in seeds[workload][: turns.counts[workload]]:
            for request in _requests(workload, count, turns.steps[workload], seed):
                for variant in generator.permutation(list(processes)).tolist():
                    ran = processes[variant].take(request)
                    taken[variant].append(ran.slice)
                    peaks[variant] = ran.peak_rss_bytes
        for variant, each in taken.items():
            slices[variant].append(tuple(each))
    return {variant: tuple(each) for variant, each in slices.items()}, peaks


def _requests(workload: int, queries: int, steps: tuple[int, ...], seed: int) -> list[Run | Begin | GoOn]:
    """Return the turns for whole queries, or for a query that is divided."""
    if not steps:
        return [Run(workload, queries, seed)]
    first, *others = steps
    return [Begin(workload, first, seed), *map(GoOn, others)]
