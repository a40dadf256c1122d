"""Run the graph that an engine is compiled from in ONNX Runtime: its numbers, not its speed.

The graph is strongly typed: float16 is rounded here where it is rounded there. An engine may add in another order, and
keep more digits inside a fused kernel.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgec.backends.backend import Mode
from edgec.backends.onnx_cpu.cache import GrowingCache, Slot
from edgec.backends.session import check_ids, check_length
from edgec.backends.settings import read_settings
from edgec.backends.tensorrt.logits import all_logits
from edgec.backends.tensorrt.recipe import MODEL_FILE
from edgec.errors import BundleError, UsageError
from edgec.graph.nvfp4 import expand_nvfp4

Ids = NDArray[np.int64]

# Integers become float16 once, when the graph is loaded: as QDQ, ONNX Runtime would fuse them into kernels that round
# activations to int8.
SESSION_ENTRIES = {"session.disable_quant_qdq": "1"}


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
    """

    def __init__(
        self, directory: Path, mode: Mode, *, threads: int | None = None, max_length: int | None = None
    ) -> None:
        settings = read_settings(directory)
        self.max_length = check_length(max_length, settings.context_length, directory)
        self.vocab_size = settings.vocab_size
        self.batch, self.length = 1, 0
        self._path = directory / MODEL_FILE
        self._session = _load(self._path, mode, threads)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._slots = [
            Slot(v.name, _present(v.name), v.shape[1], v.shape[3], "float16" if "float16" in v.type else "float32")
            for v in self._session.get_inputs()
            if v.name.startswith("past_key_values.")
        ]
        self._cache = GrowingCache(self._slots, 1)

    def step(self, input_ids: Ids) -> NDArray[np.float32]:
        """Append tokens (batch, new) to the cache; return logits (batch, new or 1, vocab)."""
        check_ids(self, input_ids, self._path)
        total = self.length + input_ids.shape[1]
        feed = {
            "input_ids": np.ascontiguousarray(input_ids, np.int64),
            "attention_mask": np.ones((self.batch, total), np.int64),
            "position_ids": np.tile(np.arange(self.length, total), (self.batch, 1)),
        }
        binding = self._session.io_binding()
        for name in feed.keys() & self._inputs:
            binding.bind_cpu_input(name, feed[name])
        binding.bind_output("logits")
        self._cache.bind(binding)
        self._session.run_with_iobinding(binding)
        self._cache.collect(binding)
        self.length = total
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return logits

    def reset(self, batch: int = 1) -> None:
        """Forget everything, and take `batch` rows from now on."""
        if batch < 1:
            raise UsageError(f"a batch has at least one row, not {batch}")
        self.batch, self.length = batch, 0
        self._cache = GrowingCache(self._slots, batch)

    def reorder(self, rows: Ids) -> None:
        """Make cache row i what row `rows[i]` was; the number of rows may change."""
        self._cache.reorder(rows, self.length)
        self.batch = len(rows)

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot go back to {length} tokens: the cache holds {self.length}")
        self._cache.rewind(length)
        self.length = length


def _present(past: str) -> str:
    return past.replace("past_key_values", "present")


def _load(path: Path, mode: Mode, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    for key, value in SESSION_ENTRIES.items():
        options.add_session_config_entry(key, value)
    try:
        with TemporaryDirectory(prefix="edgec-") as scratch:
            file = graph_for(path, mode, Path(scratch))
            return ort.InferenceSession(file, options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise BundleError(
            f"ONNX Runtime cannot load the graph: {error}", where=str(path), hint="copy or build it again"
        ) from error


def graph_for(path: Path, mode: Mode, folder: Path) -> Path:
    """Write the graph that answers in `mode` into `folder` where it is not `path` itself, and return its path."""
    model = ir.load(path)
    expanded = expand_nvfp4(model)  # ONNX Runtime has no kernel for FLOAT4
    if mode == "generate" and expanded is model:
        return path
    if mode != "generate":
        all_logits(expanded)
    if mode == "exact":
        _widen(expanded.graph)
    ir.save(expanded, folder / MODEL_FILE, external_data="data", size_threshold_bytes=1024)
    return folder / MODEL_FILE


def _widen(graph: ir.Graph) -> None:
    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for name, value in graph.initializers.items():
        if value.dtype in half and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() in half:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in half:
            value.type = ir.TensorType(ir.DataType.FLOAT)
