"""Run the graph that a network's engine is compiled from in ONNX Runtime: its numbers, not its speed.

What float16 cannot hold is found in exact mode (see `overflow.py`).
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.network import Feed, NetworkMode, check_feed, read_network_settings
from edgec.backends.tensorrt.network_floats import HALF
from edgec.backends.tensorrt.overflow import EXTREMES, HARMLESS, refuse_overflow, watch
from edgec.backends.tensorrt.recipe import MODEL_FILE
from edgec.backends.tensorrt.session import open_graph, unreadable, widen
from edgec.errors import BundleError
from edgec.graph.integers import without_rounding


class TensorRtNetwork:
    """A network's graph on the CPU; see `edgec.backends.network.NetworkSession`.

    Args:
        artifact: its directory.
        mode: see `edgec.backends.network.NetworkMode`.
        threads: number of threads; None leaves it to ONNX Runtime.

    Raises:
        BundleError: the artifact is incomplete or damaged.
    """

    def __init__(self, artifact: Path, mode: NetworkMode, *, threads: int | None = None) -> None:
        self.settings = read_network_settings(artifact)
        self._path = artifact / MODEL_FILE
        with TemporaryDirectory(prefix="edgec-") as scratch:
            exact = _write_exact(self._path, Path(scratch)) if mode == "exact" else None
            file, self._watched = exact or (self._path, ())
            self._session = open_graph(file, threads, self._path)

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Return the outputs for named inputs; see `edgec.backends.network.NetworkSession`.

        Raises:
            PlanError: in exact mode, something that engines compute in float16 is more than that can hold.
        """
        names = [port.name for port in self.settings.outputs]
        given = check_feed(feed, self.settings.inputs, str(self._path))
        try:
            found = self._session.run([*names, EXTREMES] if self._watched else names, given)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise BundleError(f"ONNX Runtime cannot run the graph: {error}", where=str(self._path)) from error
        if self._watched:
            refuse_overflow(self._watched, found.pop(), str(self._path))
        return dict(zip(names, found, strict=True))


def _write_exact(path: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Write the float32 twin of a graph without rounded activations; return it, and what it watches."""
    try:
        model = ir.load(path)
        without_rounding(model.graph)
        watched = watch(model.graph, list(_half_activations(model.graph)))
        widen(model.graph)
        ir.save(model, folder / MODEL_FILE, external_data="data", size_threshold_bytes=1024)
    except Exception as error:  # protobuf's and onnx_ir's errors have no base class in common
        raise unreadable(path, error) from error
    return folder / MODEL_FILE, watched


def _half_activations(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield what engines compute in float16 and may be too large for it."""
    constants = set(graph.initializers.values())
    for node in graph:
        if all(value in constants for value in node.inputs):
            constants.update(node.outputs)
        elif node.op_type not in HARMLESS:
            yield from (value for value in node.outputs if value.dtype == HALF)
