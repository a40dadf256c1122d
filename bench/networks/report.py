"""Turn what compare.py measured into bench/results/networks.json and networks.md."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contestants import NETWORKS

from edgec.measure.fingerprint import fingerprint

RESULTS = Path(__file__).parent.parent / "results"
_HEADS = ("contestant", "right", "lost to float", "agrees", "distance", "MB", "made in, s", "peak, MB")


def write_report(speeds: list[Any], scores: list[Any], made: dict[str, Any], data: dict[str, Any]) -> str:
    """Write both files; return the Markdown. A network that was not measured now keeps what it had."""
    path = RESULTS / "networks.json"
    old = json.loads(path.read_text()) if path.exists() else {"speeds": [], "scores": [], "made": {}}
    now = set(made)
    raw = {
        "machine": fingerprint(),
        "versions": {name: version(name) for name in ("onnxruntime", "openvino")},
        "data": data,
        "made": old["made"] | made,
        "scores": [row for row in old["scores"] if row["network"] not in now] + scores,
        "speeds": [row for row in old["speeds"] if row["network"] not in now] + speeds,
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(raw, indent=1) + "\n")
    lines = [line for network in NETWORKS if network in raw["made"] for line in table(network, raw)]
    machine = raw["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in raw["versions"].items())
    lines += [f"{machine['cpu_model']}, {machine['usable_cpus']} CPUs ({machine['cpu_flags']}), {versions}.", ""]
    (RESULTS / "networks.md").write_text("\n".join(lines))
    return "\n".join(lines)


def table(network: str, raw: dict[str, Any]) -> list[str]:
    """Return the lines about one network."""
    lines = []
    for runtime in ("onnxruntime", "openvino"):
        scores = [row for row in raw["scores"] if (row["network"], row["runtime"]) == (network, runtime)]
        speeds = [row for row in raw["speeds"] if (row["network"], row["runtime"]) == (network, runtime)]
        columns = sorted({(row["work"], row["threads"]) for row in speeds}, key=lambda key: (len(key[0]), *key))
        heads = [*_HEADS, *(f"{work}, {n} thread{'s' * (n > 1)}" for work, n in columns)]
        lines += [f"{network} on {runtime}:", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for score in scores:
            mine = {(s["work"], s["threads"]): s for s in speeds if s["contestant"] == score["contestant"]}
            cells = _cells(score, raw["made"][network][score["contestant"]])
            lines.append("| " + " | ".join([*cells, *(_speed(mine[key]) for key in columns)]) + " |")
        lines.append("")
    return lines


def _cells(score: dict[str, Any], made: dict[str, Any]) -> list[str]:
    low, high = score["lost_interval"]
    return [
        score["contestant"],
        f"{100 * score['right']:.1f} %",
        f"{100 * score['lost']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        f"{100 * score['agrees']:.1f} %",
        "{:.4f} ({:.4f} to {:.4f})".format(score["distance"], *score["distance_interval"]),
        f"{made['size_bytes'] / 1e6:.1f}",
        f"{made['process_s']:.0f}" if "process_s" in made else "",
        f"{made['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in made else "",
    ]


def _speed(speed: dict[str, Any]) -> str:
    middle, low, high = speed["speedup"]
    return f"{speed['latency_ms']:.3g} ms, {middle:.2f}x ({low:.2f} to {high:.2f})"
