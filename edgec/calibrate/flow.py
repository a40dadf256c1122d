"""What flows through a model for a whole calibration text, carried from block to block in torch."""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError
from edgec.graph.tags import MASK
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.threads import one_thread

T = TypeVar("T")
Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
Rows = Tensor
"""Numbers of windows."""

# Tokens that go through a block at once: enough to keep matmuls busy, few enough that a block's values stay small.
_TOKENS_AT_ONCE = 1024
_PIECES = 4
# Pieces of the text that are worked on at once; each takes the memory of what is inside a block.
_AT_ONCE = min(4, os.cpu_count() or 1)


class Flow:
    """The values between two blocks, for every window; a block takes some windows at a time.

    Memory: (windows, tokens, hidden) float32 for each value that later blocks read, which is one or two, and as much
    again while a block runs.

    Args:
        windows: token ids (n, tokens); each row is a context of its own.
        device: where blocks run; the values lie there too.
    """

    def __init__(self, windows: NDArray[np.int64], device: str = "cpu") -> None:
        count, length = windows.shape
        self.count = count
        # Also a short text is cut into pieces, as many on every machine.
        self.rows = max(1, min(_TOKENS_AT_ONCE // length, -(-count // _PIECES)))
        self.values: dict[str, Tensor] = {
            "input_ids": torch.from_numpy(windows).to(device),
            "attention_mask": torch.ones((1, length), dtype=torch.int64, device=device),
            "position_ids": torch.arange(length, device=device)[None],
        }

    def batches(self, block: TorchBlock, weights: Weights, keep: Collection[str]) -> Iterator[dict[str, Tensor]]:
        """Run `block` on some windows at a time, and yield the values named in `keep` for each of them, in order."""
        return self.map(lambda rows: block.run(self.rows_of(block, rows), weights, keep))

    def map(self, work: Callable[[Rows], T], chosen: NDArray[np.int64] | None = None) -> Iterator[T]:
        """Yield what `work` makes of some windows at a time, in order, some of them at once.

        Each is worked on by one thread, so that results do not depend on the number of cores.

        Args:
            work: takes the numbers of some windows.
            chosen: windows; None takes all.
        """
        windows = np.arange(self.count) if chosen is None else chosen
        pieces = [torch.from_numpy(windows[i : i + self.rows]) for i in range(0, len(windows), self.rows)]
        gradients = torch.is_grad_enabled()

        def alone(rows: Rows) -> T:
            with torch.set_grad_enabled(gradients):
                return work(rows)

        with one_thread(), ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting = deque(pool.submit(alone, piece) for piece in pieces[:_AT_ONCE])
            for following in [*pieces[_AT_ONCE:], *[None] * len(waiting)]:
                done = waiting.popleft().result()
                if following is not None:
                    waiting.append(pool.submit(alone, following))
                yield done

    def rows_of(self, block: TorchBlock, rows: Rows) -> dict[str, Tensor]:
        """Return the block's inputs for some windows; what is the same for all windows has one row."""
        taken = {name: self.values[name] for name in block.block.inputs if name in self.values}
        return {name: value[rows] if len(value) == self.count else value for name, value in taken.items()}

    def advance(self, block: TorchBlock, weights: Weights, later: Collection[str]) -> None:
        """Run `block`, keep its outputs, and forget what is not in `later`, the values that later blocks read."""
        values = {**self.values, **self.outputs(block, weights)}
        self.values = {name: value for name, value in values.items() if name in later}

    def outputs(self, block: TorchBlock, weights: Weights) -> dict[str, Tensor]:
        """Return what `block` gives to others, for all windows."""
        wanted = [name for name in block.block.outputs if not name.startswith("present.")]
        if block.block.name == MASK:  # the same for every window
            return block.run(self.rows_of(block, torch.arange(1)), weights, wanted)
        made: dict[str, Tensor] = {}
        for number, piece in enumerate(self.batches(block, weights, wanted)):
            for name, value in piece.items():
                whole = made.setdefault(name, value.new_empty((self.count, *value.shape[1:])))
                whole[number * self.rows :][: len(value)] = value
        return made


def measure(
    flow: Flow, block: TorchBlock, weights: Weights, names: Collection[str], *, hessian: bool
) -> dict[str, Stats]:
    """Return the statistics of some values (windows, tokens, cols) in a block, by their names.

    Raises:
        CheckpointError: the model computes something that is not finite.
    """
    sums = {name: _Sums() for name in names}

    def work(rows: Rows) -> dict[str, _Sums]:
        made = block.run(flow.rows_of(block, rows), weights, names)
        return {name: _Sums.of(made[name].flatten(0, 1), hessian=hessian) for name in names}

    for piece in flow.map(work):
        for name in names:
            sums[name] += piece[name]
    try:
        return {name: each.stats() for name, each in sums.items()}
    except ValueError as error:
        raise CheckpointError("the model computes numbers that are not finite", where=block.block.name) from error


@dataclass
class _Sums:
    """Sums over tokens; of squares and sizes in float64, as there are many tokens."""

    tokens: int = 0
    square: Tensor = field(default_factory=lambda: torch.zeros(()))
    size: Tensor = field(default_factory=lambda: torch.zeros(()))
    largest: Tensor = field(default_factory=lambda: torch.zeros(()))
    products: Tensor = field(default_factory=lambda: torch.zeros(()))

    @classmethod
    def of(cls, x: Tensor, *, hessian: bool) -> Self:
        """Return the sums over some tokens (tokens, cols)."""
        size = x.abs()
        products = x.T @ x if hessian else torch.zeros(())
        square = x.square().sum(0, dtype=torch.float64)
        return cls(len(x), square, size.sum(0, dtype=torch.float64), size.amax(0), products)

    def __iadd__(self, other: Self) -> Self:
        self.tokens += other.tokens
        self.square = self.square + other.square
        self.size = self.size + other.size
        self.largest = torch.maximum(self.largest, other.largest)
        self.products = self.products + other.products
        return self

    def stats(self) -> Stats:
        products = self.products / self.tokens if self.products.ndim else None
        magnitude = (self.size / self.tokens).float()
        return Stats((self.square / self.tokens).float(), self.largest, products, magnitude)
