"""Find the range in which to round an activation, from what flows through a model, in bounded memory."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.calibrate.calibrators import calibrator_named
from edgec.calibrate.histogram import Histogram
from edgec.errors import CheckpointError
from edgec.evaluate.streamed import Streamed
from edgec.graph.blocks import Block, cut

Array = NDArray[Any]

_LEVELS = 256


def measure_clips(
    model: ir.Model,
    parts: Mapping[str, int],
    windows: NDArray[np.int64],
    folder: Path,
    *,
    method: str,
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
        method: a calibrator.
        tick: called with the name of each block.
        threads: of ONNX Runtime; 0 takes all cores.

    Returns:
        (parts,) float64 for each value.

    Raises:
        CheckpointError: the model computes something that is not finite.
    """
    recorder = _Recorder(cut(model), parts, folder, threads)
    recorder.hidden(windows, tick)
    find_range = calibrator_named(method).find_range
    return {name: np.array([find_range(h, _LEVELS, True)[1] for h in recorder.histograms[name]]) for name in parts}


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
