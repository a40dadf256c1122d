"""Queries of a workload: what a model is asked, and what the times of its answers are called."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from edgec.backends.backend import Backend, backend_of, import_runtime
from edgec.backends.network import NetworkSession, read_network_settings
from edgec.backends.session import Session, check_length
from edgec.bundle.open import find_artifact, is_network_bundle
from edgec.errors import MissingRuntimeError, UsageError
from edgec.frontends.network import Port
from edgec.measure.energy import Meter
from edgec.measure.network import made_up
from edgec.measure.workload import Workload

# A process that waited finds cold caches, and a core that another one had.
_WARM_S = 0.0025

Step = tuple[str, float, int]
"""What a time is called, the time in ms, and the tokens or rows that came out."""

Query = Callable[[np.random.Generator, float], Iterator[Step]]
"""Takes what chooses its text, and when it arrived (`time.perf_counter`); runs step by step."""


class Slice(msgspec.Struct, frozen=True):
    """Some queries, one after the other, or a piece of one.

    Args:
        samples: name -> times in ms, in the order in which they were taken.
        busy_s: that all took; in the scenario "server" with the time in which there was nothing to do.
        work: tokens or rows that came out.
        energy_j: that the machine's processors took meanwhile, where they tell.
    """

    samples: Mapping[str, Sequence[float]]
    busy_s: float
    work: int
    energy_j: float | None = None


class Model:
    """A bundle that is loaded and can be asked.

    Attributes:
        load_ms: from files to a session that is ready, in a process that has imported the runtime.
    """

    def __init__(self, bundle: Path, workloads: Sequence[Workload], threads: int | None) -> None:
        """Load a bundle for some workloads.

        Args:
            bundle: or artifact.
            workloads: what it will be asked.
            threads: of the runtime; None leaves that to it.

        Raises:
            BundleError: it cannot be read.
            UsageError: the model does not take such queries.
            MissingRuntimeError: what would run it is not here.
        """
        artifact = find_artifact(bundle)
        is_network = is_network_bundle(artifact)
        if not is_network:  # whose queries check themselves
            check_workloads(artifact, workloads)
        backend = backend_of(artifact)
        import_runtime(backend)
        start = time.perf_counter()
        check_runs(backend, artifact, bundle)
        if is_network:
            network = backend.open_network(artifact, "shipped", threads=threads)
            self.load_ms = 1e3 * (time.perf_counter() - start)
            ports = read_network_settings(artifact).inputs
            self._queries = [_network_query(network, ports, each) for each in workloads]
        else:
            length = max(each.prompt_tokens + each.new_tokens for each in workloads)
            decoder = backend.open_session(artifact, "generate", threads=threads, max_length=length)
            self.load_ms = 1e3 * (time.perf_counter() - start)
            self._queries = [_decoder_query(decoder, each) for each in workloads]
        self._workloads = workloads
        self._begun: Iterator[Step] = iter(())
        self._meter = Meter()

    def run(self, workload: int, queries: int, seed: int) -> Slice:
        """Ask a few times, after what warms up caches and cores that others used in between.

        Args:
            workload: number of the workload.
            queries: how many that count.
            seed: of the texts, and of the times at which queries arrive.
        """
        rng = np.random.default_rng(seed)
        ask, rate = self._queries[workload], self._workloads[workload].rate_per_s
        waits = rng.exponential(1 / rate, queries) if rate else np.zeros(queries)
        # How often this is asked depends on how fast the model is, which texts and arrivals must not.
        others = np.random.default_rng((seed, 1))
        warm = time.perf_counter() + (_WARM_S if queries > 1 else 0)
        while time.perf_counter() < warm:
            deque(ask(others, time.perf_counter()), 0)

        def steps(begin: float) -> Iterator[Step]:
            for arrival in (begin + np.cumsum(waits)).tolist():
                if rate:
                    _wait_until(arrival)
                yield from ask(rng, arrival if rate else time.perf_counter())

        return self._time(steps)

    def begin(self, workload: int, steps: int, seed: int) -> Slice:
        """Begin a query, and stop after some steps of it: the prompt, then tokens.

        Args:
            workload: number of the workload.
            steps: at most those of the query.
            seed: of the text.
        """

        def first(arrival: float) -> Iterator[Step]:
            self._begun = self._queries[workload](np.random.default_rng(seed), arrival)
            return islice(self._begun, steps)

        return self._time(first)

    def go_on(self, steps: int) -> Slice:
        """Go on with the query that was begun last, and stop after some more steps."""
        return self._time(lambda _: islice(self._begun, steps))

    def _time(self, steps: Callable[[float], Iterable[Step]]) -> Slice:
        """Run what is left of an iterator of steps, which is given the time at which it begins."""
        samples: dict[str, list[float]] = {}
        work, energy = 0, self._meter.read_j()
        begin = time.perf_counter()
        for name, time_ms, made in steps(begin):
            samples.setdefault(name, []).append(time_ms)
            work += made
        busy = time.perf_counter() - begin
        return Slice(samples, busy, work, self._meter.since_j(energy))


def _decoder_query(session: Session, workload: Workload) -> Query:
    shape = (workload.batch, workload.prompt_tokens)

    def ask(rng: np.random.Generator, arrival: float) -> Iterator[Step]:
        ids = rng.integers(session.vocab_size, size=shape)
        session.reset(workload.batch)
        begin, name = arrival, "ttft_ms"
        for _ in range(1 + workload.new_tokens):
            ids = session.step(ids)[:, -1].argmax(axis=1)[:, None]
            yield name, 1e3 * (time.perf_counter() - begin), workload.batch
            # Others may have had a turn.
            begin, name = time.perf_counter(), "token_ms"

    return ask


def check_workloads(artifact: Path, workloads: Iterable[Workload]) -> None:
    """Make sure that a model takes workloads.

    Raises:
        UsageError: it does not.
        BundleError: the artifact cannot be read.
    """
    if is_network_bundle(artifact):
        inputs = read_network_settings(artifact).inputs
        for workload in workloads:
            rows_of(inputs, workload)
        return
    context = backend_of(artifact).read_settings(artifact).context_length
    for workload in workloads:
        if workload.sizes:
            raise UsageError(
                "a decoder language model leaves no sizes open",
                hint="its lengths are those of the prompt and of the new tokens",
            )
        check_length(workload.prompt_tokens + workload.new_tokens, context, artifact)


def rows_of(inputs: tuple[Port, ...], workload: Workload) -> int:
    """Return how many rows a network takes in a query.

    Raises:
        UsageError: it has no such sizes, or takes no such batch.
    """
    check_sizes(inputs, workload.sizes)
    # Of open sizes those are batches that follow `batch`; all others are 1 here.
    feed = made_up(inputs, {}, default=1, batch=2)
    shapes = [zip(port.shape, feed[port.name].shape, strict=True) for port in inputs]
    batches = {size for shape in shapes for size, found in shape if isinstance(size, str) and found == 2}
    given = {name: size for name, size in workload.sizes.items() if name in batches}
    if given and workload.batch != 1:
        raise UsageError(f"'{next(iter(given))}' is the batch, which is given twice", hint="leave one of them out")
    if workload.batch != 1 and not batches:
        raise UsageError(f"the model takes no batch of {workload.batch}: it leaves no size of a batch open")
    return next(iter(given.values()), workload.batch)


def check_runs(backend: Backend, artifact: Path, named: Path) -> None:
    """Make sure that this machine runs an artifact, which the user named so.

    Raises:
        MissingRuntimeError: it does not.
    """
    if note := backend.not_run(artifact):
        raise MissingRuntimeError(
            f"there is nothing to time here: {note}", where=str(named), hint="time it on the device"
        )


def check_sizes(inputs: tuple[Port, ...], sizes: Mapping[str, int]) -> None:
    """Make sure that a network leaves sizes of these names open.

    Raises:
        UsageError: it does not.
    """
    names = {size for port in inputs for size in port.shape if isinstance(size, str)}
    if unknown := sorted(sizes.keys() - names):
        raise UsageError(f"no size is called '{unknown[0]}'", hint=f"open are: {', '.join(sorted(names)) or 'none'}")


def _network_query(session: NetworkSession, inputs: tuple[Port, ...], workload: Workload) -> Query:
    rows = rows_of(inputs, workload)
    feed = made_up(inputs, workload.sizes, batch=workload.batch)

    def ask(rng: np.random.Generator, arrival: float) -> Iterator[Step]:
        del rng
        session.run(feed)
        yield "latency_ms", 1e3 * (time.perf_counter() - arrival), rows

    return ask


def _wait_until(moment: float) -> None:
    # A sleep ends some 0.1 ms late: the last part of it is spent looking at the clock.
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(left - 0.001) if left > 0.002 else None
