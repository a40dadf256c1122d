"""Find the range in which to round an activation, from what flows through a model, in bounded memory."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.errors import CheckpointError
from edgec.evaluate.streamed import Streamed
from edgec.graph.blocks import Block, cut

Array = NDArray[Any]
Method = Literal["minmax", "percentile", "mse"]

_BINS = 2048
_KEPT = 0.9999
_CANDIDATES = 128
_STEPS = 127
"""Of int8, on each side of 0."""


class Histogram:
    """Counts of |x| in bins of one width, which doubles when a larger number comes: all the memory it takes.

    Edges are multiples of a power of two, so pairs of bins merge exactly: the counts are those of all numbers at once,
    whatever the order that they come in.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, x: Array) -> None:
        """Count the numbers of an array of any shape.

        Raises:
            ValueError: one is not finite.
        """
        sizes = np.abs(x, dtype=np.float64).ravel()
        largest = float(sizes.max(initial=0.0))
        if not math.isfinite(largest):
            raise ValueError("numbers that are not finite")
        self.largest = max(self.largest, largest)
        if not self.largest:
            self.counts[0] += sizes.size  # of any width
            return
        self._widen(math.ldexp(1.0, math.frexp(self.largest)[1]))  # more than the largest: no number is on the edge
        self.counts += np.bincount((sizes * (_BINS / self.limit)).astype(np.int64), minlength=_BINS)

    def _widen(self, limit: float) -> None:
        self.limit = self.limit or limit
        while self.limit < limit:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros_like(merged)])
            self.limit *= 2

    def range(self, method: Method) -> float:
        """Return the size from which numbers are clipped; 0 where all are 0.

        "minmax" clips nothing, "percentile" the largest ten-thousandth, "mse" what gives the smallest mean square of
        rounding to int8 and clipping together, numbers lying evenly in their bins.
        """
        if method == "minmax" or not self.largest:
            return self.largest
        if method == "percentile":
            kept = np.searchsorted(np.cumsum(self.counts), _KEPT * self.counts.sum())
            return min(self.largest, (int(kept) + 1) * self.limit / _BINS)
        candidates = self.largest * np.arange(1, _CANDIDATES + 1) / _CANDIDATES
        return float(candidates[np.argmin([self._error(clip) for clip in candidates])])

    def _error(self, clip: float) -> float:
        """Return the sum of squares that rounding in 127 steps up to `clip` costs, but for a constant factor."""
        edges = np.arange(_BINS + 1) * (self.limit / _BINS)
        inside, outside = np.minimum(edges, clip), np.maximum(edges, clip)
        step = clip / _STEPS
        # Integrals from 0 of the squared distance to the nearest step, and from the clip of that to the clip.
        whole = np.round(inside / step)
        rounding = whole * (step**3 / 12) + (inside - whole * step) ** 3 / 3
        clipping = (outside - clip) ** 3 / 3
        return float(self.counts @ np.diff(rounding + clipping))


def measure_clips(
    model: ir.Model,
    parts: Mapping[str, int],
    windows: NDArray[np.int64],
    folder: Path,
    *,
    method: Method,
    tick: Callable[[str], object] = lambda _: None,
    threads: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Run a canonical graph on a text, and return the size from which to clip some of its values, by their names.

    Memory is bounded by the weights of one block and what flows through it.

    Args:
        model: not changed; its own weights may be quantized.
        parts: the values, and in how many equal parts of their last axis each has a range of its own.
        windows: token ids (n, tokens); each row is a context of its own.
        folder: where the weights file of the graph is, and for the file of one block at a time.
        method: see `Histogram.range`.
        tick: called with the name of each block.
        threads: of ONNX Runtime; 0 takes all cores.

    Returns:
        (parts,) float64 for each value.

    Raises:
        CheckpointError: the model computes something that is not finite.
    """
    recorder = _Recorder(cut(model), parts, folder, threads)
    recorder.hidden(windows, tick)
    return {name: np.array([histogram.range(method) for histogram in recorder.histograms[name]]) for name in parts}


class _Recorder(Streamed):
    """Counts what some values of the layers are."""

    def __init__(self, blocks: Sequence[Block], parts: Mapping[str, int], folder: Path, threads: int) -> None:
        super().__init__([_giving(block, parts) for block in blocks], folder, threads)
        self.histograms = {name: [Histogram() for _ in range(count)] for name, count in parts.items()}

    def _run(self, block: Block, values: dict[str, Array]) -> dict[str, Array]:
        made = super()._run(block, values)
        for name in made.keys() & self.histograms.keys():
            histograms = self.histograms[name]
            try:
                for histogram, part in zip(histograms, np.split(made[name], len(histograms), axis=-1), strict=True):
                    histogram.add(part)
            except ValueError as error:
                raise CheckpointError(f"the model computes {error}", where=name) from error
        return made


def _giving(block: Block, names: Collection[str]) -> Block:
    """Return a block that also gives those of its values that are asked for."""
    graph = block.model.graph
    more = [v for node in graph for v in node.outputs if v.name in names and v not in graph.outputs]
    graph.outputs.extend(more)
    return replace(block, outputs=(*block.outputs, *(str(value.name) for value in more)))
