"""What a contestant of bench/quality is asked for, and how it answers: it runs in an environment of its own.

A contestant is a script that is given one JSON file (`Job`), reads a float32 Hugging Face directory, quantizes the
matrices of the decoder layers, and writes the directory anew with those matrices dequantized, plus `quality.json`.
"""

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

MATRIX = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight")
"""What is quantized; everything else stays as it is."""

REPORT = "quality.json"
SCALE_BITS = 16  # every peer's scales are counted as float16
# What reads the output of each normalization, and the normalization before it.
_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Job:
    """One run of one contestant; `tokens` is a .npy file of token ids (windows, length), `options` are its own."""

    source: Path
    out: Path
    tokens: Path
    bits: int
    group: int
    symmetric: bool
    seed: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)

    def windows(self) -> torch.Tensor:
        """Return the token ids to calibrate with, int64."""
        return torch.from_numpy(np.load(self.tokens))


@dataclass(frozen=True)
class Answer:
    """What a contestant made: dequantized matrices by name, what they take in bits, and how it was set."""

    weights: Mapping[str, torch.Tensor]
    stored_bits: int
    version: str
    settings: dict[str, Any]


def run(quantize: Callable[[Job], Answer]) -> None:
    """Read the job named on the command line, do it, write the directory and its report."""
    text = json.loads(Path(sys.argv[1]).read_text())
    job = Job(**{**text, **{key: Path(text[key]) for key in ("source", "out", "tokens")}})
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    start, start_cpu = time.perf_counter(), time.process_time()
    answer = quantize(job)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    source = read_weights(job.source)
    matrices = [name for name in source if MATRIX.fullmatch(name)]
    if set(answer.weights) != set(matrices):
        sys.exit(f"{job.out}: not quantized or not known: {sorted(set(answer.weights) ^ set(matrices))}")
    write_directory(job.source, job.out, source | {name: answer.weights[name].float() for name in matrices})
    report = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes(),
        "bits_per_weight": answer.stored_bits / sum(source[name].numel() for name in matrices),
        "version": answer.version,
        "settings": answer.settings,
    }
    (job.out / REPORT).write_text(json.dumps(report, indent=1) + "\n")


def peak_bytes() -> int:
    """Return the peak memory of this program; that of getrusage would count the one that started it, too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def read_weights(folder: Path) -> Weights:
    weights: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            weights |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    return weights


def write_directory(source: Path, out: Path, weights: Weights) -> None:
    """Write a float32 Hugging Face directory that differs from the source in its weights alone."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copy(file, out)
    (out / "model.safetensors.index.json").unlink(missing_ok=True)
    contiguous = {name: weight.detach().to(torch.float32).contiguous() for name, weight in weights.items()}
    save_file(contiguous, out / "model.safetensors", {"format": "pt"})


def matrices(state: Mapping[str, torch.Tensor]) -> Weights:
    """Return the matrices of the decoder layers."""
    return {name: weight.detach().float() for name, weight in state.items() if MATRIX.fullmatch(name)}


def grouped_bits(shapes: Mapping[str, torch.Size], bits: int, group: int, zero_bits: int) -> int:
    """Return the bits of codes, scales and zero points, groups along the columns; a ragged rest is a group."""
    return sum(
        rows * (columns * bits + math.ceil(columns / group) * (SCALE_BITS + zero_bits))
        for rows, columns in shapes.values()
    )


def unfold_norms(source: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Weights:
    """Return the matrices for the source's own normalizations: scales that were folded into those go back.

    The function of the model is the same, and only matrices differ from the source.
    """
    weights = matrices(state)
    for name, before in source.items():
        layer, _, norm = name.removesuffix(".weight").rpartition(".")
        if norm not in _READERS or not layer.startswith("model.layers."):
            continue
        ratio = torch.where(before == 0, torch.ones_like(before), state[name].float() / before)
        for reader in _READERS[norm]:
            weights[f"{layer}.{reader}.weight"] *= ratio
    return weights
