"""What pruning costs and gains on SmolLM2-135M.

Zeros: magnitude, Wanda and SparseGPT at the same patterns, from the same calibration tokens, judged by bench/quality's
evaluator; rounding in the same pass beside rounding after it. Smaller shapes: size, quality, and decode speed beside
the dense model that is stored alike. SparseGPT's time and memory. Whatever is done is kept in bench/.work/prune and not
done again, but for --again. Writes bench/results/prune.json and .md after each step; exits 1 if a bound does not hold.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import compare
import numpy as np
import smaller
import smollm2
from cases import Case, all_cases
from compare import Checkpoint
from evaluate import Ids
from numpy.lib.stride_tricks import sliding_window_view
from pages import write_pages

from edgec.evaluate.corpus import PYTHON_DOCS, Purpose, read_text
from edgec.generate.tokenizer import Tokenizer

WORK = smollm2.WORK / "prune"
PEER = smollm2.WORK / "quality/llmcompressor/bin/python"
LENGTHS: dict[Purpose, int] = {"calibration": 256, "evaluation": 512}
SPAN = 50  # tokens in a row that two texts do not share by chance


def texts_of(text: str) -> dict[str, str]:
    """Return what to calibrate on and what to evaluate on: parts of the language reference, or halves of a file."""
    if text == PYTHON_DOCS:
        return {purpose: read_text(text, purpose).decode() for purpose in LENGTHS}
    lines = Path(text).read_text().splitlines(keepends=True)
    middle = len(lines) // 2
    return {"calibration": "".join(lines[:middle]), "evaluation": "".join(lines[middle:])}


def checkpoint_of(source: Path, text: str, counts: dict[Purpose, int]) -> Checkpoint:
    """Return SmolLM2 with so many windows for calibration and for evaluation."""
    tokenizer, texts, windows = Tokenizer.from_directory(source), texts_of(text), {}
    for purpose, length in LENGTHS.items():
        spread = purpose == "calibration"
        windows[purpose] = compare.windows_of(texts[purpose], tokenizer, counts[purpose], length, spread=spread)
    calibration, evaluation = (_spans(windows[purpose]) for purpose in LENGTHS)
    if shared := calibration & evaluation:
        sys.exit(f"{text}: calibration and evaluation share {len(shared)} spans of {SPAN} tokens")
    paths, said = {}, {}
    for purpose, ids in windows.items():
        digest = hashlib.sha256(ids.tobytes()).hexdigest()[:12]
        said[purpose] = f"{len(ids)} windows of {ids.shape[1]} tokens of {Path(text).name}, sha256 {digest}"
        paths[purpose] = WORK / "data" / f"{purpose}.{digest}.npy"
        paths[purpose].parent.mkdir(parents=True, exist_ok=True)
        np.save(paths[purpose], ids)
    return Checkpoint("smollm2", source, paths["calibration"], paths["evaluation"], said)


def _spans(windows: Ids) -> set[bytes]:
    return {span.tobytes() for span in sliding_window_view(windows, SPAN, axis=1).reshape(-1, SPAN)}


def judged(case: Case, checkpoint: Checkpoint, threads: int, *, again: bool) -> dict[str, Any]:
    """Return what a case took and how far from dense it is."""
    out = WORK / "out" / case.folder
    job = compare.job_of(case.contestant, checkpoint, case.setting, out)
    made, found = (compare.read(out / f"{name}.json") for name in ("quality", "evaluation"))
    if again or made.get("job") != job or found.get("text") != checkpoint.texts["evaluation"]:
        compare.quantize(case.contestant, job, out, threads)
        found = compare.judge(checkpoint, out, threads)
        (out / "model.safetensors").unlink()  # half a gigabyte
        made = compare.read(out / "quality.json")
    label = {"table": case.table, "pattern": case.pattern, "tool": case.tool, "name": case.name}
    return {**label, "made": {key: value for key, value in made.items() if key != "job"}, "found": found}


def kept(path: Path, make: Callable[[], dict[str, Any]], *, again: bool) -> dict[str, Any]:
    """Return the object in a JSON file, made and written where there is none."""
    if again or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return compare.read(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default=PYTHON_DOCS, help="UTF-8 text for zeros, half of it to calibrate with")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="to prune and judge with")
    parser.add_argument("--calibration", type=int, default=64, help="windows of 256 tokens")
    parser.add_argument("--evaluation", type=int, default=16, help="windows of 512 tokens")
    parser.add_argument("--parts", nargs="+", choices=("zeros", "process", "smaller"), help="all by default")
    parser.add_argument("--again", action="store_true", help="do even what is kept")
    parser.add_argument("--out", type=Path, default=smollm2.WORK.parent / "results", help="where to write the results")
    asked = parser.parse_args()
    parts = asked.parts or ["zeros", "process", "smaller"]
    source, threads, again = smollm2.huggingface(), asked.threads, asked.again
    counts: dict[Purpose, int] = {"calibration": asked.calibration, "evaluation": asked.evaluation}
    checkpoint = checkpoint_of(source, asked.text, counts)
    results: dict[str, Any] = {"texts": checkpoint.texts, "threads": threads, "zeros": []}
    for case in all_cases(PEER) if "zeros" in parts else ():
        results["zeros"].append(judged(case, checkpoint, threads, again=again))
        print(case.folder, results["zeros"][-1]["found"]["test_perplexity"], flush=True)
        write_pages(results, asked.out)
    if "process" in parts:
        results["process"] = kept(
            WORK / "process.json", partial(smaller.prune_whole, source, WORK / "whole", threads), again=again
        )
        write_pages(results, asked.out)
    if "smaller" in parts:
        results |= small(source, threads, again=again)
    failures, page = write_pages(results, asked.out)
    print(page)
    if failures:
        sys.exit(f"does not hold: {'; '.join(failures)}")


def small(source: Path, threads: int, *, again: bool) -> dict[str, Any]:
    """Return the reports of the smaller models, and their speeds by backend and number of threads."""
    reports, speeds = {}, {}
    for backend in smaller.BACKENDS:
        folder = WORK / "bundles" / backend
        for name in smaller.PROFILES:
            make = partial(smaller.build, source, name, backend, folder / name, threads)
            reports[f"{backend}, {name}"] = kept(folder / f"{name}.json", make, again=again)
            print("built", backend, name, flush=True)
        artifacts = {name: folder / name / "artifact" for name in smaller.PROFILES}
        for number in sorted({1, len(os.sched_getaffinity(0))}):
            race = partial(smaller.race, artifacts, backend, number)
            speeds[f"{backend}, {number}"] = kept(folder / f"speeds-{number}.json", race, again=again)
            print("raced", backend, number, flush=True)
    return {"reports": reports, "speeds": speeds}


if __name__ == "__main__":
    main()
