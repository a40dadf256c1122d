"""Queries of a workload: what a model is asked, and what the times of its answers are called."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from edgec.backends.backend import backend_of
from edgec.backends.network import NetworkSession, read_network_settings
from edgec.backends.session import Session
from edgec.bundle.open import find_artifact, is_network_bundle
from edgec.errors import MissingRuntimeError, UsageError
from edgec.frontends.network import Port
from edgec.measure.energy import Meter
from edgec.measure.network import made_up
from edgec.measure.workload import Workload

# A process that waited finds cold caches, and a core that another one had.
_WARM_S = 0.0025

Query = Callable[[np.random.Generator, float], tuple[dict[str, list[float]], int]]
"""Takes what chooses its text, and when it arrived (`time.perf_counter`); gives times in ms, and tokens or rows."""


class Slice(msgspec.Struct, frozen=True):
    """Some queries, one after the other.

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
        load_ms: from files to a session that is ready.
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
        start = time.perf_counter()
        backend = backend_of(artifact)
        if note := backend.not_run(artifact):
            raise MissingRuntimeError(
                f"there is nothing to time here: {note}", where=str(bundle), hint="time it on the device"
            )
        session: Session | NetworkSession
        if is_network_bundle(artifact):
            session = backend.open_network(artifact, "shipped", threads=threads)
            ports = read_network_settings(artifact).inputs
            self._queries = [_network_query(session, ports, each) for each in workloads]
        else:
            length = max(each.prompt_tokens + each.new_tokens for each in workloads)
            session = backend.open_session(artifact, "generate", threads=threads, max_length=length)
            self._queries = [_decoder_query(session, each) for each in workloads]
        self.load_ms = 1e3 * (time.perf_counter() - start)
        self._workloads = workloads
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
        warm = time.perf_counter() + (_WARM_S if queries > 1 else 0)
        while time.perf_counter() < warm:
            ask(rng, time.perf_counter())
        waits = rng.exponential(1 / rate, queries) if rate else np.zeros(queries)
        samples: dict[str, list[float]] = {}
        work, energy = 0, self._meter.read_j()
        begin = time.perf_counter()
        arrivals = begin + np.cumsum(waits)
        for arrival in arrivals.tolist():
            if rate:
                _wait_until(arrival)
            times, made = ask(rng, arrival if rate else time.perf_counter())
            work += made
            for name, values in times.items():
                samples.setdefault(name, []).extend(values)
        busy = time.perf_counter() - begin
        return Slice(samples, busy, work, self._meter.since_j(energy))


def _decoder_query(session: Session, workload: Workload) -> Query:
    shape = (workload.batch, workload.prompt_tokens)

    def ask(rng: np.random.Generator, arrival: float) -> tuple[dict[str, list[float]], int]:
        ids = rng.integers(session.vocab_size, size=shape)
        session.reset(workload.batch)
        times = [arrival]
        for _ in range(1 + workload.new_tokens):
            ids = session.step(ids)[:, -1].argmax(axis=1)[:, None]
            times.append(time.perf_counter())
        first, *tokens = [1e3 * (end - begin) for begin, end in pairwise(times)]
        return {"ttft_ms": [first], "token_ms": tokens}, workload.batch * (1 + workload.new_tokens)

    return ask


def _network_query(session: NetworkSession, inputs: tuple[Port, ...], workload: Workload) -> Query:
    names = {size for port in inputs for size in port.shape if isinstance(size, str)}
    if unknown := sorted(workload.sizes.keys() - names):
        raise UsageError(f"no size is called '{unknown[0]}'", hint=f"open are: {', '.join(sorted(names)) or 'none'}")
    feed = made_up(inputs, workload.sizes, batch=workload.batch)

    def ask(rng: np.random.Generator, arrival: float) -> tuple[dict[str, list[float]], int]:
        del rng
        session.run(feed)
        return {"latency_ms": [1e3 * (time.perf_counter() - arrival)]}, workload.batch

    return ask


def _wait_until(moment: float) -> None:
    # A sleep ends some 0.1 ms late: the last part of it is spent looking at the clock.
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(left - 0.001) if left > 0.002 else None
