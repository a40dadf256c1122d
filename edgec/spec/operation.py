"""The operations of a decoder as a plan sees them, and the kernels that backends have for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgec.frontends.architecture import Attention, Decoder, Layer, Linear
from edgec.quantize.scheme import Scheme

Storage = Scheme | str
"""How weights are stored: a scheme of integers, or "fp32" or "fp16"."""

StorageOf = Callable[[str], Storage]
"""Gives the storage of a matrix by its name, which is that of its node in the graph; see `Operation.matrix`."""

Kind = Literal["matmul", "lookup", "attention", "norm"]

SAME_INPUT = (("q", "k", "v"), ("gate", "up"))
"""Matrices of a block that multiply the same input."""


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        block: where it is, such as `layers.3.mlp`.
        name: of its weight, or what it does.
        kind: what it is.
        size: (in, out) of a matmul, (out, in) = (vocab, hidden) of a lookup's table, () elsewhere.
        storage: of its weight, None where it has none or keeps it in float32.
        attention: the attention that it is.
        siblings: storage of the other matmuls that read the same input, which a runtime may join with it.
    """

    block: str
    name: str
    kind: Kind
    size: tuple[int, ...] = ()
    storage: Storage | None = None
    attention: Attention | None = None
    siblings: tuple[Storage, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """The (out, in) of its weight."""
        first, second = self.size
        return (second, first) if self.kind == "matmul" else (first, second)

    @property
    def matrix(self) -> str:
        """The name of its weight among all of the model: `layers.3.mlp.down`."""
        return f"{self.block}.{self.name}"


class Kernel(msgspec.Struct, frozen=True):
    """What runs an operation on the target.

    Args:
        name: the runtime's name for it, and how it computes.
        fallback: why it is not the kernel that the storage is meant for; None where it is.
        read_as: bytes that one weight takes when the kernel reads it, where that differs from how it is stored.
        spills: how many times attention writes its scores to memory and reads them again, between kernels.
        caveat: why this is not certain; None where it is.
    """

    name: str
    fallback: str | None = None
    read_as: float | None = None
    spills: int = 0
    caveat: str | None = None


def operations(decoder: Decoder, storage_of: StorageOf) -> Iterator[Operation]:
    """Yield the operations that cost time, in the order of the graph."""
    table, embedding = (decoder.vocab_size, decoder.hidden_size), storage_of("embedding")
    yield Operation("embedding", "embedding", "lookup", table, embedding)
    for index, layer in enumerate(decoder.layers):
        yield from _layer(f"layers.{index}", layer, storage_of)
    yield Operation("head", f"{decoder.final_norm.kind} norm", "norm")
    yield Operation("head", "output matrix", "matmul", table[::-1], embedding)


def _layer(name: str, layer: Layer, storage_of: StorageOf) -> Iterator[Operation]:
    attention, mlp = layer.attention, layer.mlp
    norms = {
        "attention": (layer.attention_norm, attention.q_norm, attention.k_norm, layer.attention_post_norm),
        "mlp": (layer.mlp_norm, layer.mlp_post_norm),
    }
    matrices: dict[str, dict[str, Linear | None]] = {
        "attention": {"q": attention.q, "k": attention.k, "v": attention.v, "o": attention.o},
        "mlp": {"gate": mlp.gate, "up": mlp.up, "down": mlp.down},
    }
    for part in ("attention", "mlp"):
        block = f"{name}.{part}"
        yield from (Operation(block, f"{norm.kind} norm", "norm") for norm in norms[part] if norm is not None)
        present = {matrix: linear for matrix, linear in matrices[part].items() if linear is not None}
        stored = {matrix: storage_of(f"{block}.{matrix}") for matrix in present}
        for matrix, linear in present.items():
            family = next((family for family in SAME_INPUT if matrix in family), ())
            siblings = tuple(stored[other] for other in family if other in stored and other != matrix)
            yield Operation(block, matrix, "matmul", linear.size, stored[matrix], siblings=siblings)
        if part == "attention":
            yield Operation(block, "attention", "attention", attention=attention)
