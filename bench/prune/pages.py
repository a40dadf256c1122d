"""Turn what bench/prune measured into prune.json and prune.md."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cases
import smaller

from edgec.measure.fingerprint import fingerprint

SPEED = 1.2
SECONDS, BYTES = 600, 3e9
TITLES = {
    "float": "Zeros among float weights",
    "int4": "2:4 and int4 in groups of 128",
    "int8": "2:4 and int8 with one scale per output",
}
HEADS = ("pattern", "tool", "method", "zeros", "perplexity", "/ dense", "KL, nats", "top-1", "seconds", "peak MB")
SMALL = ("model", "parameters", "weights", "artifact MB", "perplexity", "/ dense float", "KL, nats", "top-1")

Results = dict[str, Any]


class Bound(NamedTuple):
    """What was to hold, what was found, and whether it holds."""

    what: str
    found: str
    holds: bool


def write_pages(results: Results, folder: Path) -> tuple[list[str], str]:
    """Write both files; return which bounds do not hold, and the Markdown."""
    bounds = list(_bounds(results))
    machine = fingerprint()
    packages = ("edgec", "onnxruntime", "openvino", "torch", "transformers", "numpy")
    versions = {name: version(name) for name in packages}
    lines = ["| bound | measured | |", "|---|---|---|"]
    lines += [
        f"| {bound.what} | {bound.found} | {'holds' if bound.holds else '**does not hold**'} |" for bound in bounds
    ]
    lines += ["", *_zeros(results), *_small(results), *_speeds(results), *_process(results)]
    lines += [f"{purpose.capitalize()}: {text}." for purpose, text in results["texts"].items()]
    about = f"{machine['cpu_model']}, {machine['usable_cpus']} CPUs"
    lines += ["", f"{about}. " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."]
    text = "\n".join(lines) + "\n"
    folder.mkdir(exist_ok=True)
    raw = {"machine": machine, "versions": versions, "bounds": [bound._asdict() for bound in bounds], **results}
    (folder / "prune.json").write_text(json.dumps(raw, indent=1) + "\n")
    (folder / "prune.md").write_text(text)
    return [bound.what for bound in bounds if not bound.holds], text


def _bounds(results: Results) -> Iterator[Bound]:
    found = {
        (row["pattern"], row["name"]): row["found"]["test_perplexity"]
        for row in results["zeros"]
        if (row["table"], row["tool"]) == ("float", "edgec")
    }
    for pattern in cases.PATTERNS:
        if all((pattern, method) in found for method in cases.METHODS):
            magnitude, wanda, sparsegpt = (found[pattern, method] for method in cases.METHODS)
            values = f"{sparsegpt:.2f}, {wanda:.2f}, {magnitude:.2f}"
            what = f"perplexity at {pattern}: SparseGPT <= Wanda <= magnitude"
            yield Bound(what, values, sparsegpt <= wanda <= magnitude)
    for where, speeds in results.get("speeds", {}).items():
        for name, speed in speeds.items():
            if name in smaller.SHIPPED:
                what = f"{name} decodes {SPEED:g} times as fast on {_place(where)}"
                yield Bound(what, _interval(speed["ratio"]), speed["ratio"][0] >= SPEED)
    if process := results.get("process"):
        seconds, size = process["seconds"], process["peak_bytes"]
        yield Bound("SparseGPT on SmolLM2 in 10 minutes", f"{seconds:.0f} s", seconds < SECONDS)
        yield Bound("SparseGPT on SmolLM2 in 3 GB", f"{size / 1e9:.2f} GB", size < BYTES)


def _zeros(results: Results) -> Iterator[str]:
    for table, title in TITLES.items():
        rows = [row for row in results["zeros"] if row["table"] == table]
        if not rows:
            continue
        dense = rows[0]["found"]["reference_perplexity"]
        yield from (f"{title} (dense float: perplexity {dense:.2f}):", "", *_head(HEADS))
        for row in rows:
            made, found = row["made"], row["found"]
            yield _line(
                row["pattern"],
                row["tool"],
                row["name"],
                f"{100 * made['settings']['zeros']:.1f} %",
                f"{found['test_perplexity']:.2f}",
                f"{found['perplexity_ratio']:.3f} ± {found['perplexity_ratio_clustered_se'] or 0:.3f}",
                f"{found['mean_kl']:.3f} ± {found['mean_kl_se']:.3f}",
                f"{100 * found['top1_agreement']:.1f} ± {100 * found['top1_agreement_se']:.1f} %",
                f"{made['seconds']:.0f}",
                f"{made['peak_bytes'] / 1e6:.0f}",
            )
        yield ""


def _small(results: Results) -> Iterator[str]:
    reports = {key.split(", ")[1]: value for key, value in results.get("reports", {}).items() if value["verification"]}
    if not reports:
        return
    text = next(iter(reports.values()))["text"]
    yield from ("Smaller shapes, as ONNX Runtime's int4 artifact:", "", *_head(SMALL))
    for name, report in reports.items():
        found, costs = report["verification"]["shipped"], (report["pruning"] or {}).get("predicted")
        cost = costs["pruned"] if costs else _dense_cost(reports)
        yield _line(
            name,
            f"{cost['parameters'] / 1e6:.1f} M",
            f"{cost['weight_bytes'] / 1e6:.1f} MB",
            f"{sum(report['size_bytes'].values()) / 1e6:.1f}",
            f"{found['test_perplexity']:.1f}",
            f"{found['perplexity_ratio']:.2f} ± {found['perplexity_ratio_clustered_se']:.2f}",
            f"{found['mean_kl']:.3f} ± {found['mean_kl_se']:.3f}",
            f"{100 * found['top1_agreement']:.1f} ± {100 * found['top1_agreement_se']:.1f} %",
        )
    yield from ("", f"Measured on {text['tokens']} tokens of {text['name']}.", "")


def _dense_cost(reports: Results) -> dict[str, Any]:
    """Return the cost of the dense model, which the report of every smaller one has."""
    return next(r["pruning"]["predicted"]["dense"] for r in reports.values() if r["pruning"])


def _speeds(results: Results) -> Iterator[str]:
    speeds = results.get("speeds", {})
    if not speeds:
        return
    yield from ("Decode speed over that of the dense model (95 %), and as the plan predicts it:", "")
    yield from _head(("runtime", *next(iter(speeds.values()))))
    for where, found in speeds.items():
        backend = where.split(", ")[0]
        cells = []
        for name, speed in found.items():
            pruning = results["reports"][f"{backend}, {name}"]["pruning"]
            predicted = f", predicted {pruning['predicted']['speed']:.2f}" if pruning else ""
            ratio = f"{speed['tokens_per_s']:.1f} tokens/s" if name == smaller.DENSE else _interval(speed["ratio"])
            cells.append(ratio + predicted)
        yield _line(_place(where), *cells)
    protocol = (
        f"Prompt {smaller.PROMPT}, {smaller.NEW} decoded tokens, {smaller.OPENINGS} openings of {smaller.ROUNDS} "
        "rounds each, A B B A; one thread in processor time, more in wall time."
    )
    yield from ("", protocol, "")


def _process(results: Results) -> Iterator[str]:
    if process := results.get("process"):
        taken = f"{process['seconds']:.0f} s and {process['peak_bytes'] / 1e6:.0f} MB"
        yield from (f"`edgec build` with SparseGPT at 50 %, all of it, on {results['threads']} threads: {taken}.", "")


def _place(where: str) -> str:
    backend, threads = where.split(", ")
    runtime = {"onnx_cpu": "ONNX Runtime", "openvino": "OpenVINO"}[backend]
    return f"{runtime}, {threads} thread{'s' * (threads != '1')}"


def _interval(ratio: list[float]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*ratio)


def _head(names: tuple[str, ...]) -> list[str]:
    return [_line(*names), "|---" * len(names) + "|"]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
