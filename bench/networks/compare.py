"""Race the artifacts of edgec, of its peers and of the float networks on ONNX Runtime and on OpenVINO, and judge them.

All artifacts of a network are open in one process and run in turn. Ratios are of the float artifact's time to
the artifact's, pair by pair, on the same runtime with the same threads: 2 is twice as fast as float32.
Writes bench/results/networks.json and .md. What the columns of accuracy mean is in judge.py.

Run in edgec's environment: python compare.py [--networks ...] [--rounds N]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paired
from build_edgec import BUNDLES
from contestants import NETWORKS
from judge import Array, answers, judge
from report import table, write_report
from runners import RUNTIMES, Feed, Run, open_artifact
from sources import WORK

DATA = WORK / "data"
THREADS = (1, 2)
SECONDS = 0.008
"""What one measurement takes at least: short runs are repeated within it."""


@dataclass(frozen=True)
class Artifact:
    """A model file of one contestant, for one runtime; `exact` keeps OpenVINO from computing in bfloat16."""

    network: str
    contestant: str
    runtime: str
    path: Path
    exact: bool = False


@dataclass(frozen=True)
class Speed:
    """How long a run takes (median), and how many times faster than the float network it is (95 % interval)."""

    network: str
    contestant: str
    runtime: str
    threads: int
    work: str
    latency_ms: float
    speedup: tuple[float, float, float]


def artifacts(network: str) -> Iterator[Artifact]:
    """Yield what there is of a network: the float network first, for each runtime."""
    source = WORK / "float" / f"{network}.onnx"
    for runtime in RUNTIMES:
        yield Artifact(network, "float32", runtime, source, exact=True)
    yield Artifact(network, "float, as OpenVINO computes it", "openvino", source)
    for path in sorted((WORK / "out" / network).glob("*/made.json")):
        onnx, xml = path.with_name("model.onnx"), path.with_name("model.xml")
        if onnx.exists():
            yield from (Artifact(network, path.parent.name, runtime, onnx) for runtime in RUNTIMES)
        else:
            yield Artifact(network, path.parent.name, "openvino", xml)
    for runtime, file in (("onnxruntime", "model.onnx"), ("openvino", "openvino_model.xml")):
        path = BUNDLES / f"{network}-{runtime}" / "artifact" / file
        if path.exists():
            yield Artifact(network, f"edgec-{runtime}", runtime, path)


def works(network: str) -> dict[str, Feed]:
    """Return what is timed: one sample; for minilm, a sentence of 16 tokens and one of 128."""
    arrays = np.load(DATA / f"{network}.evaluation.npz")
    if network == "efficientnet_lite0":
        return {"one picture": {"pixel_values": arrays["pixel_values"][:1]}}
    if network == "silero_vad":
        return {"one piece": {"input": arrays["input"][100:101], "state": np.zeros((2, 1, 128), np.float32)}}
    ids = arrays["input_ids"][arrays["attention_mask"] == 1]
    return {
        f"{length} tokens": {
            "input_ids": ids[:length][None],
            "attention_mask": np.ones((1, length), np.int64),
            "token_type_ids": np.zeros((1, length), np.int64),
        }
        for length in (16, 128)
    }


def timed(run: Run, feed: Feed, clock: Callable[[], float]) -> Callable[[], float]:
    """Return a function that gives the milliseconds of one run."""
    run(feed)
    start = clock()
    run(feed)
    repeats = max(1, int(SECONDS / (clock() - start)))

    def measure() -> float:
        start = clock()
        for _ in range(repeats):
            run(feed)
        return (clock() - start) / repeats * 1000

    return measure


def race(some: list[Artifact], threads: int, rounds: int) -> Iterator[Speed]:
    """Time artifacts of one network on one runtime in turn; the first one is the float network.

    With one thread it is the processor's time that counts, which other programs on the machine change less.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    opened = {a.contestant: open_artifact(a.path, a.runtime, threads, exact=a.exact) for a in some}
    for work, feed in works(some[0].network).items():
        times: dict[str, Any] = paired.interleave(rounds, **{n: timed(run, feed, clock) for n, run in opened.items()})
        for artifact in some:
            mine = times[artifact.contestant]
            speedup = paired.ratio(times[some[0].contestant], mine)
            latency = statistics.median(mine)
            yield Speed(artifact.network, artifact.contestant, artifact.runtime, threads, work, latency, speedup)


def judged(some: list[Artifact]) -> Iterator[dict[str, Any]]:
    """Judge artifacts of one network; the float network's answers in ONNX Runtime are the reference."""
    answer = partial(answers, some[0].network, data=DATA)
    reference: Array = answer(run=open_artifact(some[0].path, some[0].runtime, THREADS[-1]))
    for artifact in some:
        given = answer(run=open_artifact(artifact.path, artifact.runtime, THREADS[-1], exact=artifact.exact))
        score = judge(artifact.network, given, reference, DATA)
        names = {key: getattr(artifact, key) for key in ("network", "contestant", "runtime")}
        yield names | asdict(score)


def made_of(some: list[Artifact]) -> dict[str, Any]:
    """Return size, and what the peers' reports say, by contestant."""
    found = {}
    for artifact in some:
        files = artifact.path.parent.glob(f"{artifact.path.stem}.*")  # weights may be in a file of their own
        report = next(
            (
                path
                for path in (artifact.path.with_name("made.json"), artifact.path.parents[1] / "made.json")
                if path.exists()
            ),
            artifact.path,
        )
        made = json.loads(report.read_text()) if report.name == "made.json" else {}
        kept = {key: made[key] for key in ("process_s", "peak_bytes", "versions") if key in made}
        found[artifact.contestant] = {"size_bytes": sum(file.stat().st_size for file in files)} | kept
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--only", nargs="+", help="contestants; float32 is always there; nothing is written")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    speeds: list[Speed] = []
    scores: list[dict[str, Any]] = []
    made = {}
    for network in arguments.networks:
        every = list(artifacts(network))
        if arguments.only:
            every = [a for a in every if a.contestant in {"float32", *arguments.only}]
        scores += judged(every)
        made[network] = made_of(every)
        for runtime in RUNTIMES:
            for threads in THREADS:
                speeds += race([a for a in every if a.runtime == runtime], threads, arguments.rounds)
    rows = [asdict(speed) for speed in speeds]
    if arguments.only:
        raw = {"made": made, "scores": scores, "speeds": rows}
        print("\n".join(line for network in arguments.networks for line in table(network, raw)))
    else:
        print(write_report(rows, scores, made, json.loads((DATA / "data.json").read_text())))


if __name__ == "__main__":
    main()
