"""What `edgec bench` prints."""

import sys
from itertools import groupby

from edgec.cli._console import print_table, say
from edgec.gate.quantity import quantity
from edgec.gate.side_by_side_result import Row, SideBySide, value_text
from edgec.measure.benchmark import Benchmark, NetworkBenchmark
from edgec.measure.percentiles import percentile_words


def show(result: SideBySide) -> None:
    many = len(result.bundles) > 1
    ratio = f"times as bad as {result.names[0]}\n(above 1 is worse; {result.confidence:.0%})"
    for number, rows in groupby(sorted(result.rows, key=_place), key=_place):
        lines = [line for row in rows for line in _lines(row, result.names)]
        title = result.title(number if number < len(result.workloads) else None)
        if many:
            print_table(("metric", "bundle", "typical", ratio), lines, title=title)
        else:
            print_table(("metric", "typical", "of single rounds"), lines, title=title)
    for remark in result.remarks:
        say(f"note: {remark}")
    machine = result.environment
    say(
        f"{result.rounds} rounds of fresh processes in {result.elapsed_s:.0f} s on {machine['cpu_model']}, "
        f"{machine['usable_cpus']} CPUs" + ("; each interval is for itself" if many else "")
    )


def _place(row: Row) -> int:
    """Return the number of the workload; what is of none comes last."""
    return sys.maxsize if row.workload is None else row.workload


def _lines(row: Row, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    if len(names) == 1:
        (cell,) = row.bundles
        least, most = (value_text(value, row.unit) for value in (cell.least, cell.most))
        return [(row.metric, value_text(cell.value, row.unit), f"{least} to {most}")]
    lines: list[tuple[str, ...]] = []
    for variant, (name, cell) in enumerate(zip(names, row.bundles, strict=True)):
        ratio = ""
        if cell.ratio is not None:
            low, high = ("?" if end is None else f"{end:.3f}" for end in (cell.low, cell.high))
            ratio = f"{cell.ratio:.3f} ({low} to {high})"
        lines.append(("" if variant else row.metric, name, value_text(cell.value, row.unit), ratio))
    return lines


def network_rows(result: NetworkBenchmark) -> list[tuple[str, str]]:
    """Return what there is to say of a network, for a table."""
    times = result.latency
    return [
        *((name, f"{list(shape)}") for name, shape in times.shapes.items()),
        ("one run", percentile_words(times.p50_ms, times.p90_ms, times.p99_ms)),
        ("runs", f"{times.runs_per_s:.1f} in a second"),
        ("load", f"{result.load_ms:.0f} ms"),
        ("peak memory", quantity(result.peak_rss_bytes, "bytes")),
        ("size on disk", quantity(result.size_bytes, "bytes")),
        ("machine", f"{result.environment['cpu_model']}, {result.environment['usable_cpus']} CPUs"),
    ]


def decoder_rows(result: Benchmark) -> list[tuple[str, str]]:
    """Return what there is to say of a decoder, for a table."""
    times = result.latency
    return [
        ("time to first token", f"{times.ttft_ms:.1f} ms ({times.prompt_tokens} prompt tokens)"),
        ("one token", percentile_words(times.p50_ms, times.p90_ms, times.p99_ms)),
        ("prefill", f"{times.prefill_tokens_per_s:.1f} tokens/s"),
        ("decode", f"{times.decode_tokens_per_s:.1f} tokens/s"),
        ("load", f"{result.load_ms:.0f} ms"),
        ("peak memory", quantity(result.peak_rss_bytes, "bytes")),
        ("size on disk", quantity(result.size_bytes, "bytes")),
        ("weights read per token", quantity(result.weight_bytes_per_token, "bytes")),
        (
            "memory bandwidth",
            f"{result.read_bandwidth_gb_per_s:.1f} GB/s, decoding uses {100 * result.bandwidth_share:.0f} %",
        ),
        ("machine", f"{result.environment['cpu_model']}, {result.environment['usable_cpus']} CPUs"),
    ]
