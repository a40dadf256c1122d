"""What a network gains and loses with its channels or weights: EfficientNet-Lite0 in int8, dense and pruned.

Every artifact is built by `edgec build`; with `fast = false`, so that nothing but channels differs. All artifacts of a
runtime are then open in one process and run in turn, and judged on the same pictures.
Writes bench/results/channels.json and .md. bench/networks has made the network and its pictures before.

Run in edgec's environment, with bench and bench/networks on PYTHONPATH: python benchmark.py [--rounds N] [--keep]
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import paired
from compare import timed
from judge import answers, judge
from runners import open_artifact
from sources import WORK

from edgec.measure.fingerprint import fingerprint

NETWORK = "efficientnet_lite0"
BUNDLES = WORK.parent / "channels"
RESULTS = Path(__file__).parent.parent / "results"
BACKENDS = {"onnxruntime": ("onnx_cpu", "model.onnx"), "openvino": ("openvino", "openvino_model.xml")}
# Not this machine: there, builds leave in float what is slower in int8, which would differ from build to build.
TARGET = "x86-avx512-vnni"
PROFILE = """title = "int8, {name}"
[network]
weights = "int8"
smooth = true
correct_bias = true
keep_float = 0.0
{pruning}
[network.calibration]
samples = 64
[network.verify]
min_cosine = 0.0
min_snr_db = -300
"""


@dataclass(frozen=True)
class Case:
    """One way to prune: a share of channels, or zeros in a pattern; without both it is the dense network."""

    share: float = 0.0
    of: str = "multiply_adds"
    importance: str = "wanda"
    refit: bool = True
    uniform: bool = False
    multiple: int = 32
    pattern: str = ""
    method: str = "sparsegpt"

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Return where it is measured: what decides which parts go changes answers, and hardly times."""
        usual = Case(self.share, self.of, uniform=self.uniform, multiple=self.multiple, pattern=self.pattern)
        return tuple(BACKENDS) if self == usual else ("onnxruntime",)

    @property
    def name(self) -> str:
        if self.pattern:
            return f"{self.pattern} of the weights stay, {self.method}"
        if not self.share:
            return "dense"
        parts = [f"{100 * self.share:g} % of the {self.of.replace('_', '-')}", self.importance]
        parts += [] if self.refit else ["not refitted"]
        parts += ["all layers alike"] if self.uniform else []
        return ", ".join([*parts, f"multiples of {self.multiple}"])

    @property
    def table(self) -> str:
        name, keys = "channels", ("share", "of", "importance", "refit", "uniform", "multiple")
        if self.pattern:
            name, keys = "sparse", ("pattern", "method")
        lines = (f"{key} = {json.dumps(getattr(self, key))}" for key in keys)
        return "\n".join([f"[network.{name}]", *lines]) if self.pattern or self.share else ""


CASES = (
    Case(),
    Case(0.125),
    Case(0.25),
    Case(0.25, refit=False),
    Case(0.25, importance="activation"),
    Case(0.25, importance="magnitude"),
    Case(0.25, uniform=True),
    Case(0.25, multiple=8),
    Case(0.125, of="parameters"),
    Case(0.25, of="parameters"),
    Case(pattern="2:4"),
    Case(pattern="2:4", method="wanda"),
    Case(pattern="2:4", method="magnitude"),
)


def build(number: int, case: Case, runtime: str, *, keep: bool) -> Path:
    """Build the bundle of a case, unless it is to be kept; return its folder."""
    out = BUNDLES / f"{number}-{runtime}"
    if keep and out.exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    BUNDLES.mkdir(parents=True, exist_ok=True)
    profile = BUNDLES / f"{number}.toml"
    profile.write_text(PROFILE.format(name=case.name, pruning=case.table))
    data = ["--calibration-data", str(WORK / "data" / f"{NETWORK}.calibration.npz")]
    where = ["--target", TARGET, "--backend", BACKENDS[runtime][0], "--profile", str(profile), "--out", str(out)]
    source = str(WORK / "float" / f"{NETWORK}.onnx")
    command = [sys.executable, "-m", "edgec", "build", source, *where, *data, "--no-verify"]
    process = paired.run(command, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    (out / "seconds").write_text(str(process.seconds))
    print(f"{case.name} on {runtime}: {process.seconds:.0f} s", flush=True)
    return out


def measure(runtime: str, bundles: dict[Case, Path], rounds: int) -> list[dict[str, Any]]:
    """Race and judge the artifacts of a runtime in one thread, whose processor time is what counts."""
    data = WORK / "data"
    source = WORK / "float" / f"{NETWORK}.onnx"
    reference = answers(NETWORK, open_artifact(source, "onnxruntime", 1), data)
    picture = {"pixel_values": np.load(data / f"{NETWORK}.evaluation.npz")["pixel_values"][:1]}
    opened = {"float32": open_artifact(source, runtime, 1, exact=True)}
    for case, bundle in bundles.items():
        opened[case.name] = open_artifact(bundle / "artifact" / BACKENDS[runtime][1], runtime, 1)
    runs = {name: timed(run, picture, time.process_time) for name, run in opened.items()}
    times: dict[str, Any] = paired.interleave(rounds, **runs)
    plans = {case: json.loads((bundle / "plan.json").read_text())["channels"] for case, bundle in bundles.items()}
    predictions = {case: plan["predicted"] for case, plan in plans.items() if plan}
    dense = next(iter(predictions.values()))["dense"]
    rows = []
    for case, bundle in bundles.items():
        mine = times[case.name]
        score = judge(NETWORK, answers(NETWORK, opened[case.name], data), reference, data)
        rows.append(
            {"runtime": runtime, "name": case.name, "case": asdict(case)}
            | {"predicted": predictions.get(case, {"dense": dense, "pruned": dense, "speed": 1.0})}
            | {"latency_ms": statistics.median(mine)}
            | {"faster_than_dense": paired.ratio(times[Case().name], mine)}
            | {"faster_than_float": paired.ratio(times["float32"], mine)}
            | {"size_bytes": sum(file.stat().st_size for file in (bundle / "artifact").iterdir())}
            | {"build_s": float((bundle / "seconds").read_text()), "score": asdict(score)}
        )
    return rows


def write(rows: list[dict[str, Any]], rounds: int) -> str:
    """Write both files; return the Markdown."""
    machine, versions = fingerprint(), {name: version(name) for name in BACKENDS}
    raw = {"machine": machine, "versions": versions, "rounds": rounds, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "channels.json").write_text(json.dumps(raw, indent=1) + "\n")
    lines = [
        "# Fewer channels, fewer weights",
        "",
        "EfficientNet-Lite0 in int8; nothing was trained after pruning. *Faster* is the dense int8 network's",
        "time over that of the pruned one on the same runtime, in one process and one thread, whose processor time",
        f"counts: {rounds} rounds of all artifacts in turn; median of pairs and 95 % interval. Other programs may run",
        "beside it, which changes times more than ratios. *Predicted* is what `edgec plan` says: the ratio of the",
        "multiply-adds, which speed comes up to at most. *Right* is top-1 on pictures whose class is known, *lost to",
        "float* what the float network has right more often (points, 95 % interval), *agrees* the same top-1 as the",
        "float network's.",
        "",
    ]
    for runtime in BACKENDS:
        lines += [f"On {runtime}:", "", "| " + " | ".join(_HEADS) + " |", "|---" * len(_HEADS) + "|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows if row["runtime"] == runtime] + [""]
    lines += [
        f"{machine['cpu_model']}, {machine['usable_cpus']} CPUs ({machine['cpu_flags']}), "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ". `make bench-channels`",
        "",
    ]
    (RESULTS / "channels.md").write_text("\n".join(lines))
    return "\n".join(lines)


_HEADS = (
    "what goes",
    "M parameters",
    "M multiply-adds",
    "MB",
    "predicted",
    "faster than dense int8",
    "faster than float32",
    "right",
    "lost to float",
    "agrees",
)


def _cells(row: dict[str, Any]) -> list[str]:
    score, predicted = row["score"], row["predicted"]
    low, high = score["lost_interval"]
    after = predicted["pruned"]
    counts = [
        f"{after['parameters'] / 1e6:.2f}",
        f"{after['multiply_adds'] / 1e6:.0f}",
        f"{predicted['speed']:.2f}",
    ]
    return [
        row["name"],
        *counts[:2],
        f"{row['size_bytes'] / 1e6:.2f}",
        counts[2],
        _ratio(row["faster_than_dense"]),
        _ratio(row["faster_than_float"]),
        f"{100 * score['right']:.1f} %",
        f"{100 * score['lost']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        f"{100 * score['agrees']:.1f} %",
    ]


def _ratio(numbers: tuple[float, float, float]) -> str:
    middle, low, high = numbers
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="take bundles that are there from an earlier run")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for runtime in BACKENDS:
        cases = [(number, case) for number, case in enumerate(CASES) if runtime in case.runtimes]
        bundles = {case: build(number, case, runtime, keep=arguments.keep) for number, case in cases}
        rows += measure(runtime, bundles, arguments.rounds)
    print(write(rows, arguments.rounds))


if __name__ == "__main__":
    main()
