"""Time a running network."""

import time
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.backends.network import Feed, NetworkSession
from edgec.errors import UsageError
from edgec.frontends.network import Port
from edgec.measure.percentiles import percentiles

_BATCH = "batch"


class NetworkLatency(msgspec.Struct, frozen=True):
    """Times of a network on one set of inputs.

    Args:
        shapes: of the inputs.
        runs: that count.
        p50_ms: of one run.
        p90_ms: of one run; None of fewer than 64.
        p99_ms: of one run; None of fewer than 662.
        runs_per_s: runs over their time.
        samples_ms: of each run.
    """

    shapes: Mapping[str, tuple[int, ...]]
    runs: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    runs_per_s: float
    samples_ms: tuple[float, ...]


def measure_network(session: NetworkSession, feed: Feed, *, runs: int = 50, warmup: int = 5) -> NetworkLatency:
    """Run a network on the same inputs again and again.

    Raises:
        UsageError: there is nothing to run.
    """
    if runs < 1 or warmup < 0:
        raise UsageError("measuring takes at least one run")
    times = []
    for _ in range(warmup + runs):
        start = time.perf_counter()
        session.run(feed)
        times.append(1e3 * (time.perf_counter() - start))
    samples = np.array(times[warmup:])
    p50, p90, p99 = percentiles(samples)
    shapes = {name: array.shape for name, array in feed.items()}
    return NetworkLatency(shapes, runs, p50, p90, p99, 1e3 * runs / float(samples.sum()), tuple(samples.tolist()))


def made_up(
    inputs: tuple[Port, ...], sizes: Mapping[str, int], default: int = 128, batch: int = 1
) -> dict[str, NDArray[np.generic]]:
    """Return inputs that fit: normal floats, zeros for integers and true for what a mask lets through.

    Args:
        inputs: what the network takes.
        sizes: name of an open size -> what it is.
        default: of open sizes that have no entry.
        batch: samples in a batch, which is an open size that is called so, or else the first, and has no entry.
    """
    rng = np.random.default_rng(0)
    is_named = any(_BATCH in size for port in inputs for size in port.shape if isinstance(size, str))
    first = {port.shape[0] for port in inputs if port.shape}

    def size(wanted: int | str) -> int:
        if isinstance(wanted, int):
            return wanted
        is_batch = _BATCH in wanted if is_named else wanted in first
        return sizes.get(wanted, batch if is_batch else default)

    feed = {}
    for port in inputs:
        shape = tuple(size(wanted) for wanted in port.shape)
        if np.dtype(port.dtype).kind == "f":
            array = rng.standard_normal(shape).astype(port.dtype)
        else:
            array = np.full(shape, "mask" in port.name, port.dtype)
        feed[port.name] = array
    return feed
