"""How far a dequantized checkpoint is from its source: both run in float32 by transformers, token by token.

Usage: python evaluate.py SOURCE TEST WINDOWS.npy
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import job
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from edgec.evaluate.divergence import Accumulator, Divergence

Ids = NDArray[np.int64]


def evaluate(source: Path, test: Path, windows: Ids, cache: Path, threads: int) -> Divergence:
    """Compare two Hugging Face directories on windows of token ids (n, length); the last token of each is only read.

    The source's logits are computed once and kept in the file `cache`.
    """
    torch.set_num_threads(threads)
    check_only_matrices_differ(source, test)
    if not cache.exists():
        _save_logits(source, windows, cache)
    reference = np.load(cache, mmap_mode="r")
    accumulator = Accumulator()
    for number, (ids, logits) in enumerate(zip(windows, _logits(test, windows), strict=True)):
        targets = ids[1:]
        accumulator.add(np.asarray(reference[number]), logits, targets, np.full(len(targets), number))
    return accumulator.result()


def check_only_matrices_differ(source: Path, test: Path) -> None:
    """Stop unless the matrices of the decoder layers, all of them, are the only weights that differ."""
    a, b = job.read_weights(source), job.read_weights(test)
    if a.keys() != b.keys():
        sys.exit(f"{test}: other tensors than the source: {sorted(a.keys() ^ b.keys())}")
    different = {name for name in a if not torch.equal(a[name], b[name])}
    matrices = {name for name in a if job.MATRIX.fullmatch(name)}
    if different != matrices:
        sys.exit(f"{test}: unlike the task, these differ or do not: {sorted(different ^ matrices)}")
    broken = [name for name in matrices if not b[name].isfinite().all()]
    if broken:
        sys.exit(f"{test}: not finite: {sorted(broken)}")


def _logits(folder: Path, windows: Ids) -> Iterator[NDArray[np.float32]]:
    """Yield the logits (length - 1, vocabulary) of each window."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        for ids in windows:
            yield model(torch.from_numpy(ids[None, :-1])).logits[0].numpy()


def _save_logits(folder: Path, windows: Ids, cache: Path) -> None:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    partial = cache.with_suffix(".partial.npy")
    shape = (len(windows), windows.shape[1] - 1, vocabulary)
    stored = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    for number, logits in enumerate(_logits(folder, windows)):
        stored[number] = logits
    stored.flush()
    partial.rename(cache)


if __name__ == "__main__":
    ids = np.load(sys.argv[3])
    found = evaluate(Path(sys.argv[1]), Path(sys.argv[2]), ids, Path(sys.argv[3]).with_suffix(".logits.npy"), 1)
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
