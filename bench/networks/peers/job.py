"""What a peer of bench/networks is asked for, in one JSON file; runs in the peer's environment."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]

_AXES = {"state": 1}  # where an input's axis of samples is not the first


@dataclass(frozen=True)
class Job:
    """One network, quantized in one way; `calibration` is an .npz file, samples first; `options` are the peer's own."""

    network: str
    source: Path
    calibration: Path
    out: Path
    options: dict[str, Any]

    def feeds(self) -> Iterator[Feed]:
        """Yield the calibration samples, one in each feed."""
        return feeds(self.calibration)


def feeds(path: Path, batch: int = 1) -> Iterator[Feed]:
    """Yield what a network takes, `batch` samples at once."""
    arrays = {name: array for name, array in np.load(path).items() if name != "label"}
    count = len(next(iter(arrays.values())))
    for first in range(0, count, batch):
        part = {name: array[first : first + batch] for name, array in arrays.items()}
        yield {name: np.ascontiguousarray(np.moveaxis(a, 0, _AXES.get(name, 0))) for name, a in part.items()}


def run(quantize: Callable[[Job], dict[str, str]]) -> None:
    """Do the job named on the command line; `quantize` writes into the folder, and returns versions."""
    text = json.loads(Path(sys.argv[1]).read_text())
    job = Job(**{**text, **{key: Path(text[key]) for key in ("source", "calibration", "out")}})
    shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir(parents=True)
    start = time.perf_counter()
    versions = quantize(job)
    report = {"quantize_s": time.perf_counter() - start, "versions": versions, "job": text}
    (job.out / "made.json").write_text(json.dumps(report, indent=1) + "\n")
