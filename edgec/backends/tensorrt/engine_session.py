"""Run the engine of an artifact on a GPU of this machine.

The engine that a Jetson builds for itself with `build_engine.py` is run by the device's own code, never from here.
"""

import weakref
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgec.backends.backend import Mode
from edgec.backends.onnx_cpu.cache import Slot
from edgec.backends.session import check_ids, check_length, check_rewind
from edgec.backends.settings import read_settings
from edgec.backends.tensorrt.cuda import Device, Gpu
from edgec.backends.tensorrt.engine import Engine
from edgec.backends.tensorrt.program import DECODE, PREFILL, TOKEN_INPUTS, Program
from edgec.errors import BundleError, UsageError

Ids = NDArray[np.int64]


class EngineSession:
    """A decoder's engine on a GPU, for one row; see `edgec.backends.session.Session`.

    For each tensor of the cache there are two buffers: the engine reads the past in one and writes past and new tokens
    to the other, and then the two change places.

    Args:
        directory: the artifact.
        engine: what it says about its engine.
        gpu: the GPU, which the engine is for.
        mode: "generate", or "evaluate": the engine gives the logits of the last token alone, so it then gets the tokens
            one at a time.
        max_length: the most tokens in the cache; the artifact's context length by default, and at most.

    Raises:
        BundleError: the artifact is incomplete or damaged.
        MissingRuntimeError: TensorRT-RTX is missing, or the driver is too old for it.
        UsageError: `max_length` is more than the context length, or more than the GPU has memory for.
    """

    def __init__(self, directory: Path, engine: Engine, gpu: Gpu, mode: Mode, *, max_length: int | None = None) -> None:
        settings = read_settings(directory)
        self.max_length = check_length(max_length, settings.context_length, directory)
        self.vocab_size = settings.vocab_size
        self.batch, self.length = 1, 0
        self._profile: int | None = None
        with ExitStack() as owned:
            self._device = Device(gpu)
            owned.callback(self._device.close)
            self._program = Program(directory, engine)
            owned.callback(self._program.close)
            owned.callback(self._device.use)  # is called first: TensorRT frees its memory in this context
            if self._program.vocab_size != self.vocab_size:
                raise BundleError(
                    f"the engine gives {self._program.vocab_size} logits for {self.vocab_size} tokens",
                    where=str(self._program.path),
                    hint="copy the artifact or build it again",
                )
            self._piece = 1 if mode == "evaluate" else self._program.prompt_tokens
            self._places = self._allocate()
            self._pasts, self._presents = self._allocate_cache(), self._allocate_cache()
            weakref.finalize(self, owned.pop_all().close)

    def step(self, input_ids: Ids) -> NDArray[np.float32]:
        """Append tokens (1, new) to the cache; return logits (1, 1, vocab), or (1, new, vocab) in mode "evaluate"."""
        check_ids(self, input_ids, self._program.path)
        self._device.use()
        ids = np.ascontiguousarray(input_ids[0], np.int64)
        logits = [self._run(ids[start : start + self._piece]) for start in range(0, len(ids), self._piece)]
        return np.concatenate(logits, axis=1) if self._piece == 1 else logits[-1]

    def reset(self, batch: int = 1) -> None:
        """Forget everything; an engine takes a batch of one row."""
        if batch != 1:
            raise self._one_row(f"{batch} rows")
        self.length = 0

    def reorder(self, rows: Ids) -> None:
        """Keep the one row that there is."""
        if rows.tolist() != [0]:
            raise self._one_row(f"rows {rows.tolist()}")

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        check_rewind(self, length)
        if 0 < length < self.length:
            self._device.use()
            for slot, past, present in zip(self._program.slots, self._pasts, self._presents, strict=True):
                self._keep(slot, past, present, length)
            self._pasts, self._presents = self._presents, self._pasts
        self.length = length

    def _run(self, ids: Ids) -> NDArray[np.float32]:
        """Append at most `_piece` tokens (new,); return the logits of the last, (1, 1, vocab)."""
        new, total = len(ids), self.length + len(ids)
        device, program, places = self._device, self._program, self._places
        self._choose(DECODE if new == 1 else PREFILL)
        device.upload(places["input_ids"], ids)
        device.upload(places["position_ids"], np.arange(self.length, total, dtype=np.int64))
        for name in program.token_inputs:
            program.bind(name, places[name], (1, total if name == "attention_mask" else new))
        for slot, past, present in zip(program.slots, self._pasts, self._presents, strict=True):
            program.bind(slot.past, past, (1, slot.heads, self.length, slot.head_dim))
            program.bind(slot.present, present)
        program.bind("logits", places["logits"])
        program.execute(device.stream)
        logits = np.empty((1, 1, self.vocab_size), np.float32)
        device.download(logits, places["logits"])
        device.synchronize()
        self._pasts, self._presents = self._presents, self._pasts
        self.length = total
        return logits

    def _choose(self, profile: int) -> None:
        if profile != self._profile:
            self._program.choose(profile, self._device.stream)
            self._profile = profile

    def _keep(self, slot: Slot, past: int, present: int, length: int) -> None:
        """Copy the first tokens of each head: without the others, heads lie closer together."""
        row_bytes = _token_bytes(slot) // slot.heads
        for head in range(slot.heads):
            source = past + head * self.length * row_bytes
            self._device.copy(present + head * length * row_bytes, source, length * row_bytes)

    def _allocate(self) -> dict[str, int]:
        """Return the addresses of all but the cache; the mask, which hides nothing, is written once."""
        new = min(self._piece, self.max_length)
        tokens = {name: self.max_length if name == "attention_mask" else new for name in TOKEN_INPUTS}
        places = {name: self._device.allocate(8 * count) for name, count in tokens.items()}
        self._device.upload(places["attention_mask"], np.ones(self.max_length, np.int64))
        return {**places, "logits": self._device.allocate(4 * self.vocab_size)}

    def _allocate_cache(self) -> list[int]:
        return [self._device.allocate(self.max_length * _token_bytes(slot)) for slot in self._program.slots]

    def _one_row(self, asked: str) -> UsageError:
        return UsageError(
            f"the engine takes one row, not {asked}",
            where=str(self._program.path),
            hint="take one text at a time, and no beams",
        )


def _token_bytes(slot: Slot) -> int:
    return slot.heads * slot.head_dim * np.dtype(slot.dtype).itemsize
