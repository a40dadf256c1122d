"""Build SmolLM2-135M to int4 g32 with edgec and with onnxruntime-genai's model builder, and race the artifacts.

Both read the same float32 Hugging Face directory and write symmetric int4 in blocks of 32, rounded to nearest, with
int8 activations (accuracy level 4); edgec's int4 profile, which calibrates and searches scales, is built as well. The
artifacts are run by one runner, edgec's, in one process, in turn. Writes bench/results/builder.json and .md.
"""

import json
import os
import platform
import shutil
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import paired
import smollm2

from edgec.backends.onnx_cpu.session import OnnxCpuSession
from edgec.measure.fingerprint import fingerprint

ROUNDS_BUILD = 7
ROUNDS_SPEED = 40
PROMPT, NEW = 128, 32
WORK = smollm2.WORK
RESULTS = Path(__file__).parent.parent / "results"


def build_edgec(source: Path, profile: str, name: str) -> paired.Process:
    out = WORK / name
    shutil.rmtree(out, ignore_errors=True)
    edgec = str(Path(sys.executable).parent / "edgec")
    return paired.run([edgec, "build", str(source), "--profile", profile, "--out", str(out), "--no-verify"])


def build_peer(source: Path) -> paired.Process:
    out = WORK / "peer-int4"
    shutil.rmtree(out, ignore_errors=True)
    builder = [str(WORK / "peer/bin/python"), "-m", "onnxruntime_genai.models.builder"]
    return paired.run([*builder, "-i", str(source), "-o", str(out), "-p", "int4", "-e", "cpu"], HF_HUB_OFFLINE="1")


def race(artifact: Path) -> object:
    """Return a function that times one prompt and the tokens after it."""
    session = OnnxCpuSession(artifact, "generate", max_length=PROMPT + NEW)
    ids = np.random.default_rng(0).integers(100, 40000, (1, PROMPT + NEW))

    def once() -> tuple[float, float]:
        session.reset()
        start = paired.time.perf_counter()
        session.step(ids[:, :PROMPT])
        middle = paired.time.perf_counter()
        for i in range(PROMPT, PROMPT + NEW):
            session.step(ids[:, i : i + 1])
        end = paired.time.perf_counter()
        return PROMPT / (middle - start), NEW / (end - middle)

    return once


def build_seconds(builds: dict[str, list[paired.Process]], name: str) -> dict[str, list[float]]:
    return {"edgec": [b.seconds for b in builds[name]], "peer": [b.seconds for b in builds["peer"]]}


def build_megabytes(builds: dict[str, list[paired.Process]], name: str) -> dict[str, list[float]]:
    return {"edgec": [b.peak_bytes / 1e6 for b in builds[name]], "peer": [b.peak_bytes / 1e6 for b in builds["peer"]]}


def main() -> None:
    source = smollm2.huggingface()
    builds = paired.interleave(
        ROUNDS_BUILD,
        edgec=lambda: build_edgec(source, str(Path(__file__).parent / "rtn.toml"), "edgec-int4"),
        search=lambda: build_edgec(source, "int4", "edgec-int4-search"),
        peer=lambda: build_peer(source),
    )
    artifacts = {"edgec": WORK / "edgec-int4" / "artifact", "peer": WORK / "peer-int4"}
    races = paired.interleave(ROUNDS_SPEED, **{name: race(path) for name, path in artifacts.items()})
    size = {n: sum(f.stat().st_size for f in p.iterdir() if ".onnx" in f.name) for n, p in artifacts.items()}
    figures = {
        "build, s": build_seconds(builds, "edgec"),
        "build with scale search, s": build_seconds(builds, "search"),
        "build peak memory, MB": build_megabytes(builds, "edgec"),
        "the same with scale search, MB": build_megabytes(builds, "search"),
        "prefill, tokens/s": {n: [r[0] for r in races[n]] for n in races},
        "decode, tokens/s": {n: [r[1] for r in races[n]] for n in races},
        "model files, MB": {n: [size[n] / 1e6] * 2 for n in size},
    }
    lines = ["| | edgec | model builder | edgec / builder (95 %) |", "|---|---|---|---|"]
    for name, pair in figures.items():
        middle, low, high = paired.ratio(pair["edgec"], pair["peer"])
        a, b = (statistics.median(pair[n]) for n in ("edgec", "peer"))
        lines.append(f"| {name} | {a:.2f} | {b:.2f} | {middle:.3f} ({low:.3f} to {high:.3f}) |")
    packages = ("edgec", "onnxruntime", "onnx", "onnx-ir", "torch", "numpy")
    versions = {p: version(p) for p in packages} | {"onnxruntime-genai": "0.18.0", "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    raw = {"machine": fingerprint(), "versions": versions, "figures": figures}
    (RESULTS / "builder.json").write_text(json.dumps(raw, indent=1) + "\n")
    note = f"{ROUNDS_BUILD} builds and {ROUNDS_SPEED} races of each, in turn; prompt {PROMPT}, {NEW} new tokens."
    machine = f"{fingerprint()['cpu_model']}, {len(os.sched_getaffinity(0))} CPUs, Linux. "
    text = "\n".join([*lines, "", machine + note, ", ".join(f"{k} {v}" for k, v in versions.items()), ""])
    (RESULTS / "builder.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
