"""Build smaller models, and time them in turn with the dense one that is stored alike."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import paired

from edgec.backends.backend import get_backend

HERE = Path(__file__).parent
EDGEC = str(Path(sys.executable).parent / "edgec")
BACKENDS = ("onnx_cpu", "openvino")
DENSE = "dense-int4"
PROFILES = {
    DENSE: str(HERE / "profiles/dense-int4.toml"),
    "slim-25-int4": "slim-25-int4",
    "slim-25-mlp-int4": str(HERE / "profiles/slim-25-mlp-int4.toml"),
    "depth-25-int4": "depth-25-int4",
}
SHIPPED = ("slim-25-int4", "depth-25-int4")
PROMPT, NEW = 64, 32
OPENINGS, ROUNDS = 3, 12


def build(source: Path, profile: str, backend: str, out: Path, threads: int) -> dict[str, Any]:
    """Build a bundle and return its plan and report; only for ONNX Runtime is it verified, which takes minutes."""
    shutil.rmtree(out, ignore_errors=True)
    command = [EDGEC, "build", str(source), "--profile", PROFILES[profile], "--backend", backend, "--out", str(out)]
    command += ["--json", *(["--no-verify"] if backend != BACKENDS[0] else [])]
    # What calibration found serves both backends.
    environment = {**os.environ, "EDGEC_CACHE": str(out.parent.parent / "cache"), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: outside the profile's bounds, which is a result too
        sys.exit(f"{' '.join(command)} failed with status {done.returncode}")
    report = json.loads(done.stdout)["report"]
    return {**report, "status": done.returncode}


def race(artifacts: dict[str, Path], backend: str, threads: int) -> dict[str, Any]:
    """Return the decode speed of each artifact, and its ratio to the dense one's with a 95 % interval."""
    # What else the machine does is no part of the processor time of one thread; that of several says nothing.
    clock = time.process_time if threads == 1 else time.perf_counter
    speeds: dict[str, list[float]] = {name: [] for name in artifacts}
    for _ in range(OPENINGS):  # a session can be slower by a tenth for as long as it is open
        runners = {name: _decoder(path, backend, threads, clock) for name, path in artifacts.items()}
        rounds = paired.interleave(ROUNDS, **runners)
        for name, found in rounds.items():
            speeds[name] += cast("list[float]", found)
    dense = speeds[DENSE]
    return {
        name: {"tokens_per_s": statistics.median(found), "ratio": paired.ratio(found, dense)}
        for name, found in speeds.items()
    }


def _decoder(artifact: Path, backend: str, threads: int, clock: Callable[[], float]) -> Callable[[], float]:
    """Return a function that reads a prompt, decodes after it, and returns decoded tokens per second."""
    session = get_backend(backend).open_session(artifact, "generate", threads=threads, max_length=PROMPT + NEW)
    ids = np.random.default_rng(0).integers(100, 40000, (1, PROMPT + NEW))

    def once() -> float:
        session.reset(1)
        session.step(ids[:, :PROMPT])
        start = clock()
        for i in range(PROMPT, PROMPT + NEW):
            session.step(ids[:, i : i + 1])
        return NEW / (clock() - start)

    return once


def prune_whole(source: Path, out: Path, threads: int) -> dict[str, float]:
    """Prune by SparseGPT as a user does, and return what the whole process took: edgec's cache is empty."""
    shutil.rmtree(out, ignore_errors=True)
    profile = str(HERE / "profiles/sparsegpt-50.toml")
    command = [EDGEC, "build", str(source), "--profile", profile, "--out", str(out), "--no-verify"]
    process = paired.run(command, OMP_NUM_THREADS=str(threads))
    shutil.rmtree(out)
    return {"seconds": process.seconds, "peak_bytes": process.peak_bytes}
