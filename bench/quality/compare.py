"""Quantize the same checkpoints with edgec and with its peers, and judge all with one evaluator.

Every contestant reads the same float32 directory and the same calibration tokens, is asked for the same bits and
groups, uses its own best settings, and answers with dequantized weights, which are run in float32 (evaluate.py).
What a contestant made is kept in bench/.work/quality/out, and used again where it was asked for the same; --again, as
after a change of its code, has it made anew.
Writes bench/results/quality.json, .md and .png from all that is kept.
"""

import argparse
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import contestants
import evaluate
import msgspec
import numpy as np
import paired
import smollm2
from contestants import Contestant
from evaluate import Ids
from report import write_report

from edgec.generate.tokenizer import Tokenizer

HERE = Path(__file__).parent
WORK = smollm2.WORK / "quality"
STORYTELLER = HERE.parent.parent / "examples/storyteller"
SEED = 0
PYTHON_DOCS = "python-docs"


@dataclass(frozen=True)
class Setting:
    """What is asked for; `group` by checkpoint."""

    bits: int
    group: dict[str, int]


@dataclass(frozen=True)
class Checkpoint:
    """A float32 Hugging Face directory, token windows (n, length) for calibration and for evaluation."""

    name: str
    folder: Path
    calibration: Path
    evaluation: Path
    texts: dict[str, str] = field(default_factory=dict)


SETTINGS = {
    "int4": Setting(4, {"smollm2": 128, "storyteller": 64}),  # 128 does not divide storyteller's 192
    "int3": Setting(3, {"smollm2": 64, "storyteller": 64}),
}


def storyteller() -> Checkpoint:
    data = STORYTELLER / "data"
    texts = {"calibration": (data / "calibration.txt").read_text(), "evaluation": (data / "heldout.txt").read_text()}
    shapes = {"calibration": (256, 128), "evaluation": (64, 256)}
    return _checkpoint("storyteller", STORYTELLER / "checkpoint", texts, shapes)


def smollm2_135m(text: str) -> Checkpoint:
    """Return the checkpoint with the text's first half for calibration, its second half for evaluation."""
    shapes = {"calibration": (128, 256), "evaluation": (32, 512)}
    return _checkpoint("smollm2", smollm2.huggingface(), _halves(text), shapes)


def _halves(text: str) -> dict[str, str]:
    lines = (python_docs() if text == PYTHON_DOCS else Path(text).read_text()).splitlines(keepends=True)
    middle = len(lines) // 2
    return {"calibration": "".join(lines[:middle]), "evaluation": "".join(lines[middle:])}


def python_docs() -> str:
    """Return the language reference that every Python carries."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def windows_of(text: str, tokenizer: Tokenizer, count: int, length: int, *, spread: bool) -> Ids:
    """Return at most `count` windows (n, length) that do not overlap: the first ones, or spread over the text."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = tokenizer.encode(text, special=False)
    step = length - len(start)
    count = min(count, len(ids) // step)
    stride = len(ids) // count if spread else step
    return np.array([start + ids[i * stride : i * stride + step] for i in range(count)], np.int64)


def _checkpoint(name: str, folder: Path, texts: dict[str, str], shapes: dict[str, tuple[int, int]]) -> Checkpoint:
    tokenizer = Tokenizer.from_directory(folder)
    paths, said = {}, {}
    for purpose, (count, length) in shapes.items():
        windows = windows_of(texts[purpose], tokenizer, count, length, spread=purpose == "calibration")
        digest = hashlib.sha256(windows.tobytes()).hexdigest()[:12]
        said[purpose] = f"{len(windows)} windows of {length} tokens, sha256 {digest}"
        paths[purpose] = WORK / "data" / f"{name}.{purpose}.{digest}.npy"
        paths[purpose].parent.mkdir(parents=True, exist_ok=True)
        np.save(paths[purpose], windows)
    return Checkpoint(name, folder, paths["calibration"], paths["evaluation"], said)


def job_of(contestant: Contestant, checkpoint: Checkpoint, setting: Setting, out: Path) -> dict[str, Any]:
    """Return what a contestant is asked for, but for the number of threads."""
    return {
        "source": str(checkpoint.folder),
        "out": str(out),
        "tokens": str(checkpoint.calibration),
        "bits": setting.bits,
        "group": setting.group[checkpoint.name],
        "symmetric": True,
        "seed": SEED,
        "options": contestant.options | contestant.options_of.get(checkpoint.name, {}),
    }


def quantize(contestant: Contestant, job: dict[str, Any], out: Path, threads: int) -> None:
    """Run a contestant; its report gains the seconds of the whole process, and what it was asked for."""
    path = out.parent / f"{out.name}.job.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job | {"threads": threads}, indent=1) + "\n")
    # -P: a script is called like the package that it runs.
    command = [str(contestant.python), "-P", str(contestant.script), str(path)]
    environment = {"PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    process = paired.run(command, **environment, **contestant.variables)
    report = json.loads((out / "quality.json").read_text())
    report |= {"process_seconds": process.seconds, "job": job}
    (out / "quality.json").write_text(json.dumps(report, indent=1) + "\n")


def judge(checkpoint: Checkpoint, out: Path, threads: int) -> dict[str, Any]:
    """Return the evaluation of what a contestant wrote, computed once for each text."""
    path = out / "evaluation.json"
    kept = read(path)
    if kept.get("text") != checkpoint.texts["evaluation"]:
        windows = np.load(checkpoint.evaluation)
        cache = checkpoint.evaluation.with_suffix(".logits.npy")
        found = evaluate.evaluate(checkpoint.folder, out, windows, cache, threads)
        kept = msgspec.to_builtins(found) | {"text": checkpoint.texts["evaluation"]}
        path.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def read(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = {c.name: c for c in contestants.all_contestants(WORK)}
    parser.add_argument("--only", nargs="+", choices=known, default=list(known), metavar="CONTESTANT")
    parser.add_argument(
        "--checkpoints", nargs="+", choices=("storyteller", "smollm2"), default=["storyteller", "smollm2"]
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--text", default=PYTHON_DOCS, help="UTF-8 text for SmolLM2, half of it to calibrate with")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--again", action="store_true", help="quantize even what is kept")
    arguments = parser.parse_args()
    make = {"storyteller": storyteller, "smollm2": lambda: smollm2_135m(arguments.text)}
    checkpoints = [make[name]() for name in arguments.checkpoints]
    for checkpoint in checkpoints:
        for name in arguments.only:
            for setting in arguments.settings:
                if setting not in known[name].settings:
                    continue
                out = WORK / "out" / checkpoint.name / setting / name
                job = job_of(known[name], checkpoint, SETTINGS[setting], out)
                if arguments.again or read(out / "quality.json").get("job") != job:
                    quantize(known[name], job, out, arguments.threads)
                found = judge(checkpoint, out, arguments.threads)
                print(f"{checkpoint.name} {setting} {name}: KL {found['mean_kl']:.5f}", flush=True)
    texts = {checkpoint.name: checkpoint.texts for checkpoint in checkpoints}
    print(write_report(WORK / "out", list(known), {n: asdict(s) for n, s in SETTINGS.items()}, texts))


if __name__ == "__main__":
    main()
