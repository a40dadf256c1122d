"""Run a canonical graph block by block: the memory needed is that of the largest block, not of the model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgec.graph.blocks import Block, cut

Array = NDArray[Any]
# Positions of which the logits are in memory at once; a vocabulary of 256 k needs 128 MB for each 128.
LOGITS_AT_ONCE = 128


class Streamed:
    """A canonical decoder graph that is run from disk.

    Integer matmuls run in exact mode (float32 activations), so this is the reference for every artifact.

    Args:
        blocks: what `cut` returned; a mixture of the blocks of several graphs of one model is fine.
        folder: where the weights file of the graph is; the blocks are written here.
    """

    def __init__(self, blocks: Sequence[Block], folder: Path, threads: int = 0) -> None:
        self.blocks = blocks
        self.folder = folder
        self.threads = threads

    def hidden(self, input_ids: NDArray[np.int64], tick: Callable[[str], Any] = lambda _: None) -> Array:
        """Return what goes into the head: (batch, sequence, hidden) float32 for (batch, sequence) token ids.

        Every row is a whole window without padding. `tick` is called with the name of each block.
        """
        batch, length = input_ids.shape
        values: dict[str, Array] = {
            "input_ids": input_ids,
            "attention_mask": np.ones((batch, length), np.int64),
            "position_ids": np.broadcast_to(np.arange(length), (batch, length)).copy(),
        }
        body, head = self.blocks[:-1], self.blocks[-1]
        for index, block in enumerate(body):
            values.update(self._run(block, values))
            still = {name for later in self.blocks[index + 1 :] for name in later.inputs}
            values = {name: value for name, value in values.items() if name in still}
            tick(block.name)
        (name,) = head.inputs
        return values[name]

    def logits(self, hidden: Array) -> Iterator[Array]:
        """Yield the logits of `hidden` (batch, sequence, hidden), in order, at most `LOGITS_AT_ONCE` rows at a time."""
        head = self.blocks[-1]
        (name,) = head.inputs
        run, feed = self._session(head)
        rows = hidden.reshape(-1, hidden.shape[-1])
        for start in range(0, len(rows), LOGITS_AT_ONCE):
            piece = rows[None, start : start + LOGITS_AT_ONCE]
            yield run(["logits"], {name: piece, **feed})[0][0]

    def _run(self, block: Block, values: dict[str, Array]) -> dict[str, Array]:
        run, feed = self._session(block)
        batch = max((len(values[name]) for name in block.inputs if name in values), default=1)
        for name in block.inputs:
            if name.startswith("past_key_values."):
                _, heads, _, dim = _shape(block, name)
                feed[name] = np.zeros((batch, heads, 0, dim), np.float32)
            else:
                feed[name] = values[name]
        wanted = [name for name in block.outputs if not name.startswith("present.")]
        return dict(zip(wanted, run(wanted, feed), strict=True))

    def _session(self, block: Block) -> tuple[Callable[..., list[Array]], dict[str, Array]]:
        path = self.folder / f"{block.name}.onnx"
        ir.save(block.model, path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        options.enable_cpu_mem_arena = False  # give the memory back after each run
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if any(node.op_type == "QuantizeLinear" for node in block.model.graph):
            # Rounded activations are multiplied as the floats that they stand for: the reference of integer kernels.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        path.unlink()
        feed = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in block.weights.items()}
        return session.run, feed


def _shape(block: Block, name: str) -> tuple[int, ...]:
    value = next(v for v in block.model.graph.inputs if v.name == name)
    assert value.shape is not None
    return tuple(d if isinstance(d, int) else 0 for d in value.shape)


def stream(model: ir.Model, folder: Path, threads: int = 0) -> Streamed:
    """Return a runner for a whole canonical graph."""
    return Streamed(cut(model), folder, threads)
