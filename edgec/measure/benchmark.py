"""Time one bundle in this process."""

import time
from pathlib import Path

import msgspec

from edgec.backends.backend import backend_of, import_runtime
from edgec.backends.network import read_network_settings
from edgec.measure.bandwidth import read_bandwidth_gb_per_s
from edgec.measure.fingerprint import fingerprint
from edgec.measure.latency import DecoderLatency, measure_decoder
from edgec.measure.memory import peak_rss_bytes, reset_peak_rss
from edgec.measure.network import NetworkLatency, made_up, measure_network
from edgec.measure.query import check_runs, check_sizes
from edgec.measure.race import artifact_bytes


class Benchmark(msgspec.Struct, frozen=True):
    """What `edgec bench` measures.

    Args:
        latency: times of the decoder.
        load_ms: from files to a session that is ready, in a process that has imported the runtime.
        peak_rss_bytes: of this process, Python included, while it loaded and ran the model.
        size_bytes: of all files of the artifact.
        weight_bytes_per_token: weights that the graph reads for each token.
        read_bandwidth_gb_per_s: what this machine's memory gives.
        bandwidth_share: of that bandwidth, what decoding uses for weights.
        environment: the machine and the versions.
    """

    latency: DecoderLatency
    load_ms: float
    peak_rss_bytes: int
    size_bytes: int
    weight_bytes_per_token: int
    read_bandwidth_gb_per_s: float
    bandwidth_share: float
    environment: dict[str, str]


class NetworkBenchmark(msgspec.Struct, frozen=True):
    """What `edgec bench` measures of a model that is no decoder language model; see `Benchmark`."""

    latency: NetworkLatency
    load_ms: float
    peak_rss_bytes: int
    size_bytes: int
    environment: dict[str, str]


def bench_decoder(
    artifact: Path, *, prompt_tokens: int, new_tokens: int, repeats: int, threads: int | None
) -> Benchmark:
    """Time a decoder; see `measure_decoder`.

    Raises:
        BundleError: it cannot be read.
        UsageError: the tokens do not fit it.
        MissingRuntimeError: what would run it is not here.
    """
    backend = backend_of(artifact)
    import_runtime(backend)
    reset_peak_rss()
    start = time.perf_counter()
    check_runs(backend, artifact, artifact)
    session = backend.open_session(artifact, "generate", threads=threads, max_length=prompt_tokens + new_tokens)
    load_ms = 1e3 * (time.perf_counter() - start)
    latency = measure_decoder(session, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats)
    peak = peak_rss_bytes()
    weights = backend.weight_bytes_per_token(artifact)
    bandwidth = read_bandwidth_gb_per_s(threads)
    return Benchmark(
        latency=latency,
        load_ms=load_ms,
        peak_rss_bytes=peak,
        size_bytes=artifact_bytes(artifact),
        weight_bytes_per_token=weights,
        read_bandwidth_gb_per_s=bandwidth,
        bandwidth_share=weights * latency.decode_tokens_per_s / (bandwidth * 1e9),
        environment=fingerprint(),
    )


def bench_network(artifact: Path, *, sizes: dict[str, int], runs: int, threads: int | None) -> NetworkBenchmark:
    """Time a network on made-up inputs, one sample.

    Raises:
        BundleError: it cannot be read.
        UsageError: it leaves no such sizes open.
        MissingRuntimeError: what would run it is not here.
    """
    backend = backend_of(artifact)
    import_runtime(backend)
    reset_peak_rss()
    start = time.perf_counter()
    check_runs(backend, artifact, artifact)
    session = backend.open_network(artifact, "shipped", threads=threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    inputs = read_network_settings(artifact).inputs
    check_sizes(inputs, sizes)
    return NetworkBenchmark(
        latency=measure_network(session, made_up(inputs, sizes), runs=runs),
        load_ms=load_ms,
        peak_rss_bytes=peak_rss_bytes(),
        size_bytes=artifact_bytes(artifact),
        environment=fingerprint(),
    )
