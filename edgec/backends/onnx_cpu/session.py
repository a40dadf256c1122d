"""Run a decoder artifact in ONNX Runtime with a key-value cache that is allocated once.

It takes every directory that onnxruntime-genai takes: edgec's artifacts and those of onnxruntime-genai's model builder.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgec.backends.backend import Mode
from edgec.backends.onnx_cpu.cache import Cache, GrowingCache, SharedCache, Slot
from edgec.backends.onnx_cpu.files import ALL_LOGITS_FILE
from edgec.backends.onnx_cpu.settings import Decoder, read_settings
from edgec.backends.session import check_batch, check_ids, check_length, check_rewind, in_pieces
from edgec.errors import BundleError

Ids = NDArray[np.int64]
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8"}


class OnnxCpuSession:
    """A decoder in ONNX Runtime on the CPU; see `edgec.backends.session.Session`.

    Args:
        directory: the artifact.
        mode: see `edgec.backends.backend.Mode`; where an artifact has but one graph, that one is loaded.
        threads: number of threads; None leaves it to ONNX Runtime.
        max_length: the most tokens in the cache; the artifact's context length by default, and at most.
        options: ONNX Runtime session configuration entries.

    Raises:
        BundleError: the artifact is incomplete or damaged.
        UsageError: `max_length` is more than the context length.
    """

    def __init__(
        self,
        directory: Path,
        mode: Mode,
        *,
        threads: int | None = None,
        max_length: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        settings = read_settings(directory)
        decoder, context = settings.model.decoder, settings.model.context_length
        self.max_length = check_length(max_length, context, directory)
        all_logits = directory / ALL_LOGITS_FILE
        self._path = directory / decoder.filename if mode == "generate" or not all_logits.is_file() else all_logits
        self._session = load(self._path, threads, options or {}, _exact if mode == "exact" else None)
        self._inputs, self._logits = decoder.inputs, decoder.outputs.logits
        self._has_positions = any(value.name == self._inputs.position_ids for value in self._session.get_inputs())
        logits = _find(self._session.get_outputs(), self._logits, self._path)
        self._dtype = _dtype(logits, self._path)
        self._last_only = logits.shape[1] == 1
        self.vocab_size = logits.shape[2] if isinstance(logits.shape[2], int) else settings.model.vocab_size
        self._slots = _slots(self._session, decoder, self._path)
        self._shared = settings.search.past_present_share_buffer
        self.reset()

    def step(self, input_ids: Ids) -> NDArray[np.float32]:
        """Append tokens (batch, new) to the cache; return logits (batch, new or 1, vocab)."""
        check_ids(self, input_ids, self._path)
        new = input_ids.shape[1]
        if self.batch == 1:
            return in_pieces(self._run, input_ids, last_only=self._last_only)
        if self.length == 0 or new == 1:
            return self._run(input_ids)
        # GroupQueryAttention takes several tokens after a filled cache for a single row only.
        pieces = [self._run(input_ids[:, i : i + 1]) for i in range(new)]
        return pieces[-1] if self._last_only else np.concatenate(pieces, axis=1)

    def reset(self, batch: int = 1) -> None:
        """Forget everything, and take `batch` rows from now on."""
        check_batch(batch)
        self.batch, self.length = batch, 0
        self._binding = self._session.io_binding()
        self._cache: Cache = (
            SharedCache(self._slots, batch, self.max_length) if self._shared else GrowingCache(self._slots, batch)
        )

    def reorder(self, rows: Ids) -> None:
        """Make cache row i what row `rows[i]` was; the number of rows may change."""
        self._cache.reorder(rows, self.length)
        self.batch = len(rows)

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        check_rewind(self, length)
        self._cache.rewind(length)
        self.length = length

    def _run(self, input_ids: Ids) -> NDArray[np.float32]:
        new, total = input_ids.shape[1], self.length + input_ids.shape[1]
        # These arrays are bound by address: they must live until the run is over.
        feed = {
            self._inputs.input_ids: np.ascontiguousarray(input_ids, np.int64),
            self._inputs.attention_mask: np.ones((self.batch, total), np.int64),
        }
        if self._has_positions:
            feed[self._inputs.position_ids] = np.tile(np.arange(self.length, total), (self.batch, 1))
        logits = np.empty((self.batch, 1 if self._last_only else new, self.vocab_size), self._dtype)
        binding = self._binding
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output(self._logits, "cpu", 0, logits.dtype.type, logits.shape, logits.ctypes.data)
        self._cache.bind(binding)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise BundleError(f"ONNX Runtime cannot run the model: {error}", where=str(self._path)) from error
        self._cache.collect(binding)
        self.length = total
        return logits.astype(np.float32, copy=False)


def load(
    path: Path,
    threads: int | None,
    options: Mapping[str, str] | None = None,
    exact: Callable[[Path], bytes] | None = None,
) -> Any:
    """Open a graph of an artifact in ONNX Runtime.

    Args:
        path: the graph; its weights are beside it.
        threads: number of threads; None leaves it to ONNX Runtime.
        options: session configuration entries.
        exact: gives the graph's twin for proofs, which is then opened in its place.

    Raises:
        BundleError: it is missing or damaged.
    """
    if not path.is_file():
        raise BundleError(f"the artifact lacks '{path.name}'", where=str(path), hint="copy or build it again")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = threads or 0
    entries = dict(options or {})
    if exact is not None:
        from edgec.backends.onnx_cpu.exact import EXACT_ENTRIES

        entries |= {**EXACT_ENTRIES, "session.model_external_initializers_file_folder_path": str(path.parent)}
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(exact(path) if exact else path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # neither ONNX Runtime's errors nor protobuf's have a base class of their own
        raise BundleError(
            f"ONNX Runtime cannot load the model: {error}", where=str(path), hint="copy or build it again"
        ) from error


def _exact(path: Path) -> bytes:
    from edgec.backends.onnx_cpu.exact import exact_model

    return exact_model(path)


def _find(values: list[Any], name: str, path: Path) -> Any:
    for value in values:
        if value.name == name:
            return value
    raise BundleError(f"the graph has no '{name}', which the settings name", where=str(path))


def _dtype(value: Any, path: Path) -> str:
    if value.type not in _DTYPES:
        raise BundleError(f"'{value.name}' is a {value.type}; known are {', '.join(_DTYPES)}", where=str(path))
    return _DTYPES[value.type]


def _slots(session: Any, decoder: Decoder, path: Path) -> list[Slot]:
    """Return the tensors of the cache; a size that the graph leaves open is the one in the settings."""
    pairs = (
        (decoder.inputs.past_key_names, decoder.outputs.present_key_names),
        (decoder.inputs.past_value_names, decoder.outputs.present_value_names),
    )
    inputs, slots = session.get_inputs(), []
    for layer in range(decoder.num_hidden_layers):
        for past_pattern, present_pattern in pairs:
            past = _find(inputs, past_pattern.replace("%d", str(layer)), path)
            present = _find(session.get_outputs(), present_pattern.replace("%d", str(layer)), path)
            heads = past.shape[1] if isinstance(past.shape[1], int) else decoder.num_key_value_heads
            head_dim = past.shape[3] if isinstance(past.shape[3], int) else decoder.head_size
            slots.append(Slot(past.name, present.name, heads, head_dim, _dtype(past, path)))
    return slots
