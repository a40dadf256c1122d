"""`edgec bench`: time a bundle on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edgec.cli._console import json_option, print_json, print_table
from edgec.errors import MissingRuntimeError, UsageError

if TYPE_CHECKING:
    from edgec.measure.latency import DecoderLatency
    from edgec.measure.network import NetworkLatency

_MIB = 2**20


class Benchmark(msgspec.Struct, frozen=True):
    """What `edgec bench` measures.

    Args:
        latency: times of the decoder.
        load_ms: from files to a session that is ready.
        peak_rss_bytes: of this process, Python included, while it loaded and ran the model.
        size_bytes: of all files of the artifact.
        weight_bytes_per_token: weights that the graph reads for each token.
        read_bandwidth_gb_per_s: what this machine's memory gives.
        bandwidth_share: of that bandwidth, what decoding uses for weights.
        environment: the machine and the versions.
    """

    latency: "DecoderLatency"
    load_ms: float
    peak_rss_bytes: int
    size_bytes: int
    weight_bytes_per_token: int
    read_bandwidth_gb_per_s: float
    bandwidth_share: float
    environment: dict[str, str]


class NetworkBenchmark(msgspec.Struct, frozen=True):
    """What `edgec bench` measures of a model that is no decoder language model; see `Benchmark`."""

    latency: "NetworkLatency"
    load_ms: float
    peak_rss_bytes: int
    size_bytes: int
    environment: dict[str, str]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="NAME=N",
    help="A size that a network leaves open; repeatable.  [default: 128]",
)
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Of a network.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="[default: the runtime's choice]")
@json_option
def command(
    *,
    bundle: Path,
    sizes: tuple[str, ...],
    runs: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure latency, memory and size of BUNDLE on this machine.

    BUNDLE is what `edgec build` made, or any decoder's directory for onnxruntime-genai or openvino_genai. The prompt
    is random tokens; decoding is greedy, one row. Other models run on made-up inputs, one sample.
    """
    from edgec.bundle.open import find_artifact, is_network_bundle

    artifact = find_artifact(bundle)
    result: Benchmark | NetworkBenchmark
    if is_network_bundle(artifact):
        result = _measure_network(artifact, _sizes(sizes), runs, threads)
        rows = _network_rows(result)
    else:
        result = _measure(artifact, prompt_tokens, new_tokens, repeats, threads)
        rows = _rows(result)
    if as_json:
        print_json(result)
    else:
        print_table(("", ""), rows)


def _sizes(settings: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        if not (number.isascii() and number.isdigit() and int(number)):
            raise UsageError(f"'{setting}' gives no size", hint="such as --size sequence=128")
        found[name] = int(number)
    return found


def _measure_network(artifact: Path, sizes: dict[str, int], runs: int, threads: int | None) -> NetworkBenchmark:
    import time

    from edgec.backends.backend import backend_of
    from edgec.backends.network import read_network_settings
    from edgec.measure.fingerprint import fingerprint
    from edgec.measure.memory import peak_rss_bytes, reset_peak_rss
    from edgec.measure.network import made_up, measure_network

    reset_peak_rss()
    start = time.perf_counter()
    backend = backend_of(artifact)
    _check_runs(backend.not_run(artifact), artifact)
    session = backend.open_network(artifact, "shipped", threads=threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    inputs = read_network_settings(artifact).inputs
    names = {size for port in inputs for size in port.shape if isinstance(size, str)}
    if unknown := sorted(sizes.keys() - names):
        raise UsageError(f"no size is called '{unknown[0]}'", hint=f"open are: {', '.join(sorted(names)) or 'none'}")
    return NetworkBenchmark(
        latency=measure_network(session, made_up(inputs, sizes), runs=runs),
        load_ms=load_ms,
        peak_rss_bytes=peak_rss_bytes(),
        size_bytes=sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file()),
        environment=fingerprint(),
    )


def _check_runs(note: str | None, artifact: Path) -> None:
    if note:
        raise MissingRuntimeError(
            f"there is nothing to time here: {note}",
            where=str(artifact),
            hint="time it on the device",
        )


def _network_rows(result: NetworkBenchmark) -> list[tuple[str, str]]:
    times = result.latency
    return [
        *((name, f"{list(shape)}") for name, shape in times.shapes.items()),
        ("one run, p50 / p90 / p99", f"{times.p50_ms:.2f} / {times.p90_ms:.2f} / {times.p99_ms:.2f} ms"),
        ("runs", f"{times.runs_per_s:.1f} in a second"),
        ("load", f"{result.load_ms:.0f} ms"),
        ("peak memory", f"{result.peak_rss_bytes / _MIB:.0f} MiB"),
        ("size on disk", f"{result.size_bytes / _MIB:.1f} MiB"),
        ("machine", f"{result.environment['cpu_model']}, {result.environment['usable_cpus']} CPUs"),
    ]


def _measure(artifact: Path, prompt_tokens: int, new_tokens: int, repeats: int, threads: int | None) -> Benchmark:
    import time

    from edgec.backends.backend import backend_of
    from edgec.measure.bandwidth import read_bandwidth_gb_per_s
    from edgec.measure.fingerprint import fingerprint
    from edgec.measure.latency import measure_decoder
    from edgec.measure.memory import peak_rss_bytes, reset_peak_rss

    reset_peak_rss()
    start = time.perf_counter()
    backend = backend_of(artifact)
    _check_runs(backend.not_run(artifact), artifact)
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
        size_bytes=sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file()),
        weight_bytes_per_token=weights,
        read_bandwidth_gb_per_s=bandwidth,
        bandwidth_share=weights * latency.decode_tokens_per_s / (bandwidth * 1e9),
        environment=fingerprint(),
    )


def _rows(result: Benchmark) -> list[tuple[str, str]]:
    times = result.latency
    return [
        ("time to first token", f"{times.ttft_ms:.1f} ms ({times.prompt_tokens} prompt tokens)"),
        ("one token, p50 / p90 / p99", f"{times.p50_ms:.2f} / {times.p90_ms:.2f} / {times.p99_ms:.2f} ms"),
        ("prefill", f"{times.prefill_tokens_per_s:.1f} tokens/s"),
        ("decode", f"{times.decode_tokens_per_s:.1f} tokens/s"),
        ("load", f"{result.load_ms:.0f} ms"),
        ("peak memory", f"{result.peak_rss_bytes / _MIB:.0f} MiB"),
        ("size on disk", f"{result.size_bytes / _MIB:.1f} MiB"),
        ("weights read per token", f"{result.weight_bytes_per_token / _MIB:.1f} MiB"),
        (
            "memory bandwidth",
            f"{result.read_bandwidth_gb_per_s:.1f} GB/s, decoding uses {100 * result.bandwidth_share:.0f} %",
        ),
        ("machine", f"{result.environment['cpu_model']}, {result.environment['usable_cpus']} CPUs"),
    ]
