"""Time bundles beside each other: rounds of fresh processes, which take turns in random order.

What differs from process to process (where memory lies, above all) differs from round to round; what else the machine
does in the meantime hits all of a round alike, because turns are short. Only one process computes at a time.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from edgec.bundle.open import find_artifact
from edgec.errors import BundleError, EdgecError, InconclusiveError
from edgec.measure.query import Slice
from edgec.measure.worker import Answer, Failed, Load, Loaded, Ran, Ready, Request, Run
from edgec.measure.workload import Workload

A = TypeVar("A", Ready, Loaded, Ran)

_WORKER = "edgec.measure.worker"
_FEWEST_TURNS = 3
# A bundle that loads within a few ms is loaded several times: a single time says little on a busy machine.
_MOST_LOADS = 5
_LOADING_S = 0.1


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How to race.

    Args:
        workloads: all are run in each process.
        threads: of the runtimes; None leaves that to them.
        slice_s: a turn is as many queries as the first variant answers in this time, at least one. The shorter turns
            are, the more alike is the machine for all who take one: turns of 4 ms gave a fifth of the variance of as
            much time in turns of 10 ms.
        slices: turns of each process for each workload, at most.
        round_s: time that a round should take; where models are slow there are fewer turns, but at least three.
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
    at_least: dict[str, int] = {}
    together: bool = True
    seed: int = 0


class Process(msgspec.Struct, frozen=True):
    """What one process measured.

    Args:
        load_ms: from files to a session that is ready, of each time that the process loaded the bundle.
        peak_rss_bytes: of the process, Python included.
        slices: by workload, in the order of turns.
        size_bytes: of the artifact's files.
    """

    load_ms: tuple[float, ...]
    peak_rss_bytes: int
    slices: tuple[tuple[Slice, ...], ...]
    size_bytes: int = 0


Round = tuple[Process, ...]
"""One process of each variant."""


def race(bundles: Sequence[Path], course: Course) -> Iterator[Round]:
    """Yield round after round, without end; a variant is a place in `bundles`, and may be there twice.

    Raises:
        EdgecError: what a process says, such as of a bundle that cannot be read.
        BundleError: a process crashed.
        InconclusiveError: a process was killed.
    """
    generator = np.random.default_rng(course.seed)
    sizes = [artifact_bytes(bundle) for bundle in bundles]
    turns: _Turns | None = None
    while True:
        found: dict[int, Process] = {}
        order = generator.permutation(len(bundles)).tolist()
        cpus = _some_cpus(course.threads, generator)
        seeds = generator.integers(2**31, size=(len(course.workloads), course.slices)).tolist()
        for group in [order] if course.together else [[variant] for variant in order]:
            with _processes(len(group)) as workers:
                processes = dict(zip(group, workers, strict=True))
                for variant, each in processes.items():
                    each.open(bundles[variant], course, cpus)
                turns = turns or _plan(processes, course, len(bundles))
                loads = _load(processes, turns.loads, generator)
                slices, peaks = _take(processes, turns, seeds, generator)
            for variant in group:
                found[variant] = Process(loads[variant], peaks[variant], slices[variant], sizes[variant])
        yield tuple(found[variant] for variant in range(len(bundles)))


def artifact_bytes(bundle: Path) -> int:
    """Return the size of an artifact's files."""
    return sum(path.stat().st_size for path in find_artifact(bundle).rglob("*") if path.is_file())


class _Turns(msgspec.Struct, frozen=True):
    """How often a process loads its bundle, how many turns it takes, and how many queries of each workload make one."""

    loads: int
    count: int
    queries: tuple[int, ...]


def _some_cpus(threads: int | None, generator: np.random.Generator) -> tuple[int, ...] | None:
    """Return the CPUs for all processes of a round, as many as threads; None where that is all, or not known.

    CPUs that look alike are not: what else runs on them, and beside them on their core, makes one slower than another.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if threads is None or threads >= len(usable):
        return None
    return tuple(sorted(generator.permutation(usable)[:threads].tolist()))


def _plan(processes: "dict[int, _Worker]", course: Course, variants: int) -> _Turns:
    """Let each process load its bundle and ask it once, and the first again, to see how long that takes."""
    load_s = max(process.load() for process in processes.values()) / 1e3
    queries, turn_s = [], 0.0
    for number, workload in enumerate(course.workloads):
        for process in processes.values():
            process.run(number, 1, 0)
        probe = next(iter(processes.values())).run(number, 1, 1).slice
        query_s = probe.busy_s if workload.rate_per_s is None else 1 / workload.rate_per_s
        wanted = max(
            (
                -(-count // (course.slices * len(probe.samples.get(name, "_"))))
                for name, count in course.at_least.items()
            ),
            default=1,
        )
        queries.append(max(wanted, round(course.slice_s / query_s), 1))
        turn_s += queries[-1] * query_s
    fits = course.slices if course.at_least else int(course.round_s / (variants * turn_s))
    loads = min(_MOST_LOADS, max(1, int(_LOADING_S / load_s)))
    return _Turns(loads, min(course.slices, max(_FEWEST_TURNS, fits)), tuple(queries))


def _load(processes: "dict[int, _Worker]", count: int, generator: np.random.Generator) -> dict[int, tuple[float, ...]]:
    """Let all processes load their bundles in turn, a few times; return the times in ms."""
    times: dict[int, list[float]] = {variant: [] for variant in processes}
    for _ in range(count):
        for variant in generator.permutation(list(processes)).tolist():
            times[variant].append(processes[variant].load())
    return {variant: tuple(each) for variant, each in times.items()}


def _take(
    processes: "dict[int, _Worker]", turns: _Turns, seeds: list[list[int]], generator: np.random.Generator
) -> tuple[dict[int, tuple[tuple[Slice, ...], ...]], dict[int, int]]:
    """Let all processes take their turns; return the slices of each, by workload, and its peak of memory."""
    slices: dict[int, list[tuple[Slice, ...]]] = {variant: [] for variant in processes}
    peaks: dict[int, int] = {}
    for workload, count in enumerate(turns.queries):
        taken: dict[int, list[Slice]] = {variant: [] for variant in processes}
        for process in processes.values():
            process.run(workload, 1, 0)  # the first query allocates what the others use again
        for seed in seeds[workload][: turns.count]:
            for variant in generator.permutation(list(processes)).tolist():
                ran = processes[variant].run(workload, count, seed)
                taken[variant].append(ran.slice)
                peaks[variant] = ran.peak_rss_bytes
        for variant, each in taken.items():
            slices[variant].append(tuple(each))
    return {variant: tuple(each) for variant, each in slices.items()}, peaks


class _Worker:
    """The parent's end of a process; what the process says in place of an answer is raised."""

    def __init__(self) -> None:
        self._bundle = Load("", (), None, None)
        command = [sys.executable, "-m", _WORKER]
        # A session of its own: Ctrl-C is for the parent, which ends its processes.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def ready(self) -> None:
        self._expect(Ready)

    def open(self, bundle: Path, course: Course, cpus: tuple[int, ...] | None) -> None:
        """Say what it is about."""
        self._bundle = Load(str(bundle), course.workloads, course.threads, cpus)

    def load(self) -> float:
        self._send(self._bundle)
        return self._expect(Loaded).load_ms

    def run(self, workload: int, queries: int, seed: int) -> Ran:
        self._send(Run(workload, queries, seed))
        return self._expect(Ran)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _send(self, request: Request) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # what it says, or how it died, is read next
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()

    def _expect(self, kind: type[A]) -> A:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if code == -signal.SIGKILL:
                raise InconclusiveError(
                    "the process that timed a bundle was killed",
                    where=self._bundle.bundle,
                    hint="it may have taken more memory than there is",
                )
            how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise BundleError(f"the process that ran the bundle {how}", where=self._bundle.bundle)
        answer = msgspec.json.decode(line, type=Answer)
        if isinstance(answer, Failed):
            raise _error(answer)
        assert isinstance(answer, kind)
        return answer


@contextmanager
def _processes(count: int) -> Iterator[list[_Worker]]:
    """Start processes, wait until all are there, and end them."""
    with ExitStack() as stack:
        workers = []
        for _ in range(count):
            worker = _Worker()
            stack.callback(worker.close)
            workers.append(worker)
        for worker in workers:
            worker.ready()
        yield workers


def _error(failed: Failed) -> EdgecError:
    error = EdgecError(failed.what, where=failed.where, hint=failed.hint)
    error.exit_code = failed.exit_code
    return error
