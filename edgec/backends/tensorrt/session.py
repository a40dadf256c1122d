"""Run the graph that an engine is compiled from in ONNX Runtime: its numbers, not its speed.

The graph is strongly typed, but ONNX Runtime's CPU kernels compute float16 in float32 and round less often than an
engine. What float16 cannot hold is found in exact mode (see `overflow.py`).
"""

import errno
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgec.backends.backend import Mode
from edgec.backends.onnx_cpu.cache import GrowingCache, Slot
from edgec.backends.session import check_batch, check_ids, check_length, check_rewind, in_pieces, token_feed
from edgec.backends.settings import read_settings
from edgec.backends.tensorrt.logits import all_logits
from edgec.backends.tensorrt.overflow import EXTREMES, refuse_overflow, watch
from edgec.backends.tensorrt.recipe import MODEL_FILE
from edgec.errors import BundleError, OutputError
from edgec.graph.nvfp4 import expand_nvfp4
from edgec.quantize.activations import leave_float

Ids = NDArray[np.int64]

# Integers become float16 once, when the graph is loaded: as QDQ, ONNX Runtime would fuse them into kernels that round
# activations to int8.
SESSION_ENTRIES = {"session.disable_quant_qdq": "1"}
_CACHE_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8"}


class GraphSession:
    """A decoder's strongly typed graph in ONNX Runtime; see `edgec.backends.session.Session`.

    Args:
        directory: the artifact.
        mode: see `edgec.backends.backend.Mode`; "exact" computes in float32 what the graph computes in float16.
        threads: number of threads; None leaves it to ONNX Runtime.
        max_length: the most tokens in the cache; the artifact's context length by default, and at most.

    Raises:
        BundleError: the artifact is incomplete or damaged.
        UsageError: `max_length` is more than the context length.
        PlanError: in exact mode, a step made a number that float16 cannot hold.
    """

    def __init__(
        self, directory: Path, mode: Mode, *, threads: int | None = None, max_length: int | None = None
    ) -> None:
        settings = read_settings(directory)
        self.max_length = check_length(max_length, settings.context_length, directory)
        self.vocab_size = settings.vocab_size
        self.batch, self.length = 1, 0
        self._last_only = mode == "generate"
        self._path = directory / MODEL_FILE
        self._session, self._watched = _load(self._path, mode, threads)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._slots = [
            Slot(v.name, _present(v.name), v.shape[1], v.shape[3], _CACHE_TYPES[v.type])
            for v in self._session.get_inputs()
            if v.name.startswith("past_key_values.")
        ]
        self._cache = GrowingCache(self._slots, 1)

    def step(self, input_ids: Ids) -> NDArray[np.float32]:
        """Append tokens (batch, new) to the cache; return logits (batch, new or 1, vocab)."""
        check_ids(self, input_ids, self._path)
        return in_pieces(self._run, input_ids, last_only=self._last_only)

    def _run(self, input_ids: Ids) -> NDArray[np.float32]:
        feed = token_feed(self, input_ids)
        binding = self._session.io_binding()
        for name in feed.keys() & self._inputs:
            binding.bind_cpu_input(name, feed[name])
        for name in ("logits", EXTREMES) if self._watched else ("logits",):
            binding.bind_output(name)
        self._cache.bind(binding)
        self._session.run_with_iobinding(binding)
        self._cache.collect(binding)
        self.length += input_ids.shape[1]
        outputs = binding.get_outputs()
        if self._watched:
            refuse_overflow(self._watched, outputs[1].numpy(), str(self._path))
        logits: NDArray[np.float32] = outputs[0].numpy()
        return logits

    def reset(self, batch: int = 1) -> None:
        """Forget everything, and take `batch` rows from now on."""
        check_batch(batch)
        self.batch, self.length = batch, 0
        self._cache = GrowingCache(self._slots, batch)

    def reorder(self, rows: Ids) -> None:
        """Make cache row i what row `rows[i]` was; the number of rows may change."""
        self._cache.reorder(rows, self.length)
        self.batch = len(rows)

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        check_rewind(self, length)
        self._cache.rewind(length)
        self.length = length


def _present(past: str) -> str:
    return past.replace("past_key_values", "present")


def _load(path: Path, mode: Mode, threads: int | None) -> tuple[Any, tuple[str, ...]]:
    with TemporaryDirectory(prefix="edgec-") as scratch:
        file, watched = graph_for(path, mode, Path(scratch))
        return open_graph(file, threads, path), watched


def open_graph(file: Path, threads: int | None, path: Path) -> Any:
    """Open a graph in ONNX Runtime, which computes Q/DQ as it stands.

    Raises:
        BundleError: it cannot be loaded; says that of `path`, which `file` was made from.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    for key, value in SESSION_ENTRIES.items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(file, options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise BundleError(
            f"ONNX Runtime cannot load the graph: {error}", where=str(path), hint="copy or build it again"
        ) from error


def graph_for(path: Path, mode: Mode, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the graph that answers in `mode`, and the activations whose extremes it gives.

    It is written into `folder` where it is not `path` itself.

    Raises:
        BundleError: the graph cannot be read.
        OutputError: it cannot be written.
    """
    try:
        model = ir.load(path)
        expanded = expand_nvfp4(model)  # ONNX Runtime has no kernel for FLOAT4
        if mode == "generate" and expanded is model:
            return path, ()
        watched: tuple[str, ...] = ()
        if mode != "generate":
            all_logits(expanded)
        if mode == "exact":
            leave_float(expanded.graph)
            watched = watch(expanded.graph)
            widen(expanded.graph)
            _widen_cache(expanded.graph)
        ir.save(expanded, folder / MODEL_FILE, external_data="data", size_threshold_bytes=1024)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(
                f"cannot write a scratch copy of the graph: {error.strerror}",
                where=str(folder),
                hint="free some space, or set TMPDIR to another disk",
            ) from error
        raise unreadable(path, error) from error
    except Exception as error:  # protobuf's and onnx_ir's errors have no base class in common
        raise unreadable(path, error) from error
    return folder / MODEL_FILE, watched


def unreadable(path: Path, error: Exception) -> BundleError:
    """Return the error for a graph that cannot be read."""
    return BundleError(f"the graph cannot be read: {error}", where=str(path), hint="copy or build it again")


def widen(graph: ir.Graph) -> None:
    """Make the float16 of a graph float32: its inputs, constants, casts and what it computes."""
    half = ir.DataType.FLOAT16
    for name, value in graph.initializers.items():
        if value.dtype == half and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == half:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    for value in (*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)):
        if value.dtype == half:
            value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_cache(graph: ir.Graph) -> None:
    """Make an int8 cache, whose rounding is gone, float32."""
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype == ir.DataType.INT8:
            value.type = ir.TensorType(ir.DataType.FLOAT)
