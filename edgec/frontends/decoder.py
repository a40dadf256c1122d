"""The decoder frontend: write the canonical graph of a language model from its description and its weights.

Inputs: `input_ids` (batch, sequence), `attention_mask` (batch, past + sequence), `position_ids` (batch, sequence), all
int64, and `past_key_values.N.key|value` (batch, kv_heads, past, head_dim) float32. Outputs: `logits` (batch, sequence,
vocab) float32 and `present.N.key|value`. Weights are lazy: they are read from the checkpoint when a pass asks for them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.checkpoint.model import Checkpoint
from edgec.frontends.architecture import Attention, Decoder, Layer, Linear, Mlp, Norm, Rope
from edgec.frontends.decoder_tensors import check_tensors
from edgec.frontends.rope import cos_sin
from edgec.graph.emit import Emitter
from edgec.graph.tags import MASK, SOURCE, WINDOW

Array = NDArray[Any]
Read = Callable[[str], Array]


def emit(decoder: Decoder, checkpoint: Checkpoint, read: Read, context_length: int) -> ir.Model:
    """Return the canonical float32 graph of `decoder`.

    Args:
        decoder: what to write.
        checkpoint: where the shapes of the weights are checked.
        read: returns a checkpoint tensor by name; called once for each use.
        context_length: the number of positions in the rotary tables, at most the decoder's own.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the config says.
        ValueError: `context_length` is more than the decoder takes.
    """
    if context_length > decoder.context_length:
        raise ValueError(f"a context of {context_length} tokens for a decoder that takes {decoder.context_length}")
    check_tensors(decoder, checkpoint)
    writer = _Writer(decoder, read, context_length)
    return writer.write()


class _Writer(Emitter):
    """Emitter with the vocabulary of decoders: linear, norm, rope, attention, mlp."""

    def __init__(self, decoder: Decoder, read: Read, context_length: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.read = read
        self.context_length = context_length
        self.past: list[ir.Value] = []
        self.present: list[ir.Value] = []
        self.masks: dict[int | None, ir.Value] = {}
        self.ropes: dict[Rope, tuple[ir.Value, ir.Value]] = {}
        self.input_ids = _input("input_ids", ir.DataType.INT64, "batch", "sequence")
        self.attention_mask = _input("attention_mask", ir.DataType.INT64, "batch", "total")
        self.position_ids = _input("position_ids", ir.DataType.INT64, "batch", "sequence")

    def write(self) -> ir.Model:
        decoder = self.decoder
        with self.in_block(MASK):
            for window in dict.fromkeys(layer.attention.window for layer in decoder.layers):
                self.masks[window] = self.mask(window)
        with self.in_block("embedding"):
            hidden = self.embed()
        for index, layer in enumerate(decoder.layers):
            hidden = self.layer(index, layer, hidden)
        with self.in_block("head"):
            logits = self.head(hidden)
        logits.name = "logits"
        logits.shape = ir.Shape(["batch", "sequence", decoder.vocab_size])
        inputs = [self.input_ids, self.attention_mask, self.position_ids, *self.past]
        return self.model(decoder.family, inputs, [logits, *self.present])

    def layer(self, index: int, layer: Layer, hidden: ir.Value) -> ir.Value:
        name = f"layers.{index}"
        with self.in_block(f"{name}.attention"):
            branch = self.norm(f"{name}.attention_norm", layer.attention_norm, hidden)
            branch = self.attention(index, layer.attention, branch)
            branch = self.norm(f"{name}.attention_post_norm", layer.attention_post_norm, branch)
            middle = self.residual(f"{name}.attention_residual", layer, hidden, branch)
        with self.in_block(f"{name}.mlp"):
            branch = self.norm(f"{name}.mlp_norm", layer.mlp_norm, hidden if layer.parallel else middle)
            branch = self.mlp(f"{name}.mlp", layer.mlp, branch)
            branch = self.norm(f"{name}.mlp_post_norm", layer.mlp_post_norm, branch)
            return self.residual(f"{name}.mlp_residual", layer, middle, branch)

    def residual(self, name: str, layer: Layer, hidden: ir.Value, branch: ir.Value) -> ir.Value:
        branch = self.multiply(f"{name}.multiplier", branch, layer.residual_multiplier)
        return self.op("Add", hidden, branch, name=name)

    def embed(self) -> ir.Value:
        decoder = self.decoder
        table = self.tensor(decoder.embedding, (decoder.vocab_size, decoder.hidden_size))
        hidden = self.op("Gather", table, self.input_ids, name="embedding", axis=0)
        hidden = self.multiply("embedding.multiplier", hidden, decoder.embedding_multiplier)
        if decoder.position_embedding:
            positions = self.tensor(decoder.position_embedding, (decoder.context_length, decoder.hidden_size))
            offset = self.op("Gather", positions, self.position_ids, name="position_embedding", axis=0)
            hidden = self.op("Add", hidden, offset, name="embedding.sum")
        return hidden

    def head(self, hidden: ir.Value) -> ir.Value:
        decoder = self.decoder
        hidden = self.norm("final_norm", decoder.final_norm, hidden)
        if decoder.head:
            logits = self.linear("lm_head", decoder.head, hidden)
        else:
            table = self.initializers[decoder.embedding]
            shape = ir.Shape([decoder.hidden_size, decoder.vocab_size])
            matrix = self.op("Transpose", table, name="lm_head.transpose", perm=[1, 0], shape=shape)
            logits = self.op("MatMul", hidden, matrix, name="lm_head")
        logits = self.multiply("lm_head.multiplier", logits, decoder.logits_multiplier)
        if decoder.logits_softcap:
            cap = self.constant("lm_head.softcap", np.float32(decoder.logits_softcap))
            logits = self.op("Div", logits, cap, name="lm_head.softcap_div")
            logits = self.op("Tanh", logits, name="lm_head.softcap_tanh")
            logits = self.op("Mul", logits, cap, name="lm_head.softcap_mul")
        return logits

    def attention(self, index: int, attention: Attention, x: ir.Value) -> ir.Value:
        name, a = f"layers.{index}.attention", attention
        q, k, v = (self.linear(f"{name}.{n}", linear, x) for n, linear in (("q", a.q), ("k", a.k), ("v", a.v)))
        q = self.head_norm(f"{name}.q_norm", a.q_norm, q, a.heads, a.head_dim)
        k = self.head_norm(f"{name}.k_norm", a.k_norm, k, a.kv_heads, a.head_dim)
        if a.rope:
            q = self.rotate(f"{name}.q_rope", a.rope, q, a.heads, a.head_dim)
            k = self.rotate(f"{name}.k_rope", a.rope, k, a.kv_heads, a.head_dim)
        names = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
        past = [_input(n, ir.DataType.FLOAT, "batch", a.kv_heads, "past", a.head_dim) for n in names]
        y, *present = self.ops(
            "Attention",
            q,
            k,
            v,
            self.masks[a.window],
            *past,
            name=name,
            outputs=[name, f"present.{index}.key", f"present.{index}.value"],
            q_num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            scale=a.scale,
            softcap=a.softcap,
        )
        if a.window is not None:
            self.nodes[-1].metadata_props[WINDOW] = str(a.window)
        for value in present:
            value.shape = ir.Shape(["batch", a.kv_heads, "total", a.head_dim])
        self.past += past
        self.present += present
        return self.linear(f"{name}.o", a.o, y)

    def rotate(self, name: str, rope: Rope, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        if rope not in self.ropes:
            number = len(self.ropes)
            tables = zip(("cos", "sin"), cos_sin(rope, self.context_length), strict=True)
            cos, sin = (self.constant(f"rope.{number}.{part}", table) for part, table in tables)
            self.ropes[rope] = (cos, sin)
        dim = 2 * len(rope.inverse_frequencies)
        partial_dim: dict[str, Any] = {} if dim == head_dim else {"rotary_embedding_dim": dim}
        return self.op(
            "RotaryEmbedding", x, *self.ropes[rope], self.position_ids, name=name, num_heads=heads, **partial_dim
        )

    def head_norm(self, name: str, norm: Norm | None, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        if norm is None or norm.size == heads * head_dim:
            return self.norm(name, norm, x)
        split = self.constant(f"shape.heads.{heads}.{head_dim}", np.array([0, 0, heads, head_dim], np.int64))
        joined = self.constant(f"shape.joined.{heads * head_dim}", np.array([0, 0, heads * head_dim], np.int64))
        x = self.op("Reshape", x, split, name=f"{name}.split")
        x = self.norm(name, norm, x)
        return self.op("Reshape", x, joined, name=f"{name}.join")

    def mlp(self, name: str, mlp: Mlp, x: ir.Value) -> ir.Value:
        if mlp.gate is None:
            inner = self.activate(f"{name}.activation", mlp.activation, self.linear(f"{name}.up", mlp.up, x))
        else:
            gate = self.activate(f"{name}.activation", mlp.activation, self.linear(f"{name}.gate", mlp.gate, x))
            inner = self.op("Mul", gate, self.linear(f"{name}.up", mlp.up, x), name=f"{name}.gated")
        return self.linear(f"{name}.down", mlp.down, inner)

    def activate(self, name: str, activation: str, x: ir.Value) -> ir.Value:
        match activation:
            case "silu":
                return self.op("Mul", x, self.op("Sigmoid", x, name=f"{name}.sigmoid"), name=name)
            case "gelu":
                return self.op("Gelu", x, name=name, approximate="none")
            case "gelu_tanh":
                return self.op("Gelu", x, name=name, approximate="tanh")
            case _:
                return self.op("Relu", x, name=name)

    def norm(self, name: str, norm: Norm | None, x: ir.Value) -> ir.Value:
        if norm is None:
            return x
        weight = self.tensor(norm.weight, (norm.size,), lambda w: w + np.float32(norm.offset))
        if norm.kind == "rms":
            return self.op("RMSNormalization", x, weight, name=name, axis=-1, epsilon=norm.eps)
        bias = self.tensor(norm.bias, (norm.size,)) if norm.bias else None
        return self.op("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=norm.eps)

    def linear(self, name: str, linear: Linear, x: ir.Value) -> ir.Value:
        suffix = f".{linear.part}" if linear.part else ""
        weight = self.tensor(linear.weight, linear.size, partial(_matrix, linear), suffix)
        y = self.op("MatMul", x, weight, name=name)
        if linear.bias:
            bias = self.tensor(linear.bias, linear.size[1:], partial(_rows, linear), suffix)
            y = self.op("Add", y, bias, name=f"{name}.bias")
        return y

    def multiply(self, name: str, x: ir.Value, factor: float) -> ir.Value:
        return x if factor == 1.0 else self.op("Mul", x, self.constant(f"{name}.factor", np.float32(factor)), name=name)

    def tensor(
        self, source: str, shape: tuple[int, ...], change: Callable[[Array], Array] | None = None, suffix: str = ""
    ) -> ir.Value:
        """Return the initializer for the checkpoint tensor `source`, changed by `change` after it was read."""

        def load() -> Array:
            array = self.read(source).astype(np.float32, copy=False)
            return change(array) if change else array

        value = self.weight(source + suffix, shape, load)
        value.metadata_props[SOURCE] = source
        return value

    def mask(self, window: int | None) -> ir.Value:
        """Return the (batch, 1, sequence, total) boolean mask: causal, in the window, not padding.

        Every query may see its own key, so that the rows of padding tokens have a defined softmax.
        """
        name = "mask" if window is None else f"mask.{window}"
        i64 = ir.DataType.INT64
        flag = ir.DataType.BOOL
        zero, one = self.constant("zero", np.int64(0)), self.constant("one", np.int64(1))
        total = self.op("Gather", self.shape_of(self.attention_mask, name), one, name=f"{name}.total", dtype=i64)
        length = self.op("Gather", self.shape_of(self.input_ids, name), one, name=f"{name}.length", dtype=i64)
        past = self.op("Sub", total, length, name=f"{name}.past", dtype=i64)
        key = self.op("Range", zero, total, one, name=f"{name}.key", dtype=i64)
        query = self.op("Range", past, total, one, name=f"{name}.query_row", dtype=i64)
        query = self.op("Unsqueeze", query, self.constant("axis.1", np.array([1])), name=f"{name}.query", dtype=i64)
        seen = self.op("LessOrEqual", key, query, name=f"{name}.causal", dtype=flag)
        if window is not None:
            width = self.constant(f"{name}.width", np.int64(window))
            first = self.op("Sub", query, width, name=f"{name}.first", dtype=i64)
            near = self.op("Greater", key, first, name=f"{name}.near", dtype=flag)
            seen = self.op("And", seen, near, name=f"{name}.in_window", dtype=flag)
        axes = self.constant("axes.1.2", np.array([1, 2]))
        real = self.op("Cast", self.attention_mask, name=f"{name}.real_flat", dtype=flag, to=flag)
        real = self.op("Unsqueeze", real, axes, name=f"{name}.real", dtype=flag)
        seen = self.op("And", seen, real, name=f"{name}.seen", dtype=flag)
        own = self.op("Equal", key, query, name=f"{name}.own", dtype=flag)
        return self.op("Or", seen, own, name=name, dtype=flag, shape=ir.Shape(["batch", 1, "sequence", "total"]))

    def shape_of(self, value: ir.Value, name: str) -> ir.Value:
        return self.op("Shape", value, name=f"{name}.{value.name}_shape", dtype=ir.DataType.INT64)


def _rows(linear: Linear, array: Array) -> Array:
    if linear.rows is None:
        return array
    return np.concatenate([array[start:stop] for start, stop in linear.rows])


def _matrix(linear: Linear, array: Array) -> Array:
    """Return the (in, out) matrix; a view of the checkpoint's (out, in) memory where nothing is cut."""
    return _rows(linear, array.T if linear.transposed else array).T


def _input(name: str, dtype: ir.DataType, *shape: str | int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
