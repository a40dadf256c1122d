"""Run a block of a canonical float graph in torch: on a CPU or with CUDA, and with gradients where they are asked for.

ONNX Runtime runs graphs faster; torch is for what calibration does between two matrices.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.nn import functional

from edgec.graph.blocks import Block

Tensor = torch.Tensor
Attributes = dict[str, Any]
_PAST = "past_key_values."
_TORCH = {
    ir.DataType.BOOL: torch.bool,
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.INT64: torch.int64,
}


class TorchBlock:
    """A block of a graph whose weights are given anew for each run.

    Rows are whole windows: nothing is in the key-value cache before them. A value that is the same for every row, such
    as the mask, may have one row.

    Args:
        block: of a canonical float graph, as `cut` returns it.
        device: where it runs.

    Raises:
        NotImplementedError: the graph has an operator that canonical graphs do not have.
    """

    def __init__(self, block: Block, device: str = "cpu") -> None:
        self.block, self.device = block, device
        self.nodes = list(block.model.graph)
        unknown = sorted({node.op_type for node in self.nodes} - _OPERATORS.keys())
        if unknown:
            raise NotImplementedError(f"{block.name}: no torch form of {', '.join(unknown)}")
        self.constants = {
            str(value.name): torch.from_numpy(np.array(value.const_value.numpy())).to(device)
            for value in block.model.graph.initializers.values()
            if value.const_value is not None
        }

    def load(self) -> dict[str, Tensor]:
        """Read the block's weights, as the graph has them."""
        weights = self.block.weights
        return {name: torch.from_numpy(np.asarray(tensor.numpy())).to(self.device) for name, tensor in weights.items()}

    def run(
        self, values: Mapping[str, Tensor], weights: Mapping[str, Tensor], keep: Collection[str]
    ) -> dict[str, Tensor]:
        """Return the values named in `keep`; nothing else is computed, and others are forgotten after their last use.

        Args:
            values: the block's inputs by name, without the key-value cache.
            weights: the block's weights by name, as the graph has them: matrices are (in, out).
            keep: names of values that the block computes or takes.
        """
        known: dict[str, Tensor] = {**self.constants, **weights, **values}
        nodes = self._needed(frozenset(keep) - known.keys())
        last_use = {str(v.name): node for node in nodes for v in node.inputs if v is not None}
        for node in nodes:
            taken = [self._input(known, v) for v in node.inputs]
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            known[str(node.outputs[0].name)] = _OPERATORS[node.op_type](attributes, *taken)
            for name in (str(v.name) for v in node.inputs if v is not None):
                if last_use[name] is node and name not in keep:
                    known.pop(name, None)
        return {name: known[name] for name in keep}

    def _needed(self, wanted: frozenset[str]) -> list[ir.Node]:
        """Return the nodes that the wanted values are computed with, in order."""
        pending, needed = set(wanted), []
        for node in reversed(self.nodes):
            if pending.intersection(str(v.name) for v in node.outputs):
                needed.append(node)
                pending.update(str(v.name) for v in node.inputs if v is not None)
        return needed[::-1]

    def _input(self, known: Mapping[str, Tensor], value: ir.Value | None) -> Tensor | None:
        if value is None or str(value.name).startswith(_PAST):
            return None
        return known[str(value.name)]


def _attention(
    a: Attributes, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, past_key: None = None, past_value: None = None
) -> Tensor:
    assert past_key is None
    assert past_value is None
    q, k, v = (_heads(x, a[f"{kind}_num_heads"]) for x, kind in ((q, "q"), (k, "kv"), (v, "kv")))
    scale = a.get("scale") or q.shape[-1] ** -0.5
    cap = a.get("softcap", 0.0)
    if cap:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = cap * torch.tanh(q @ k.transpose(2, 3) * scale / cap)
        y = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1) @ v
    else:
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Return (batch, sequence, heads * dim) as (batch, heads, sequence, dim)."""
    return torch.unflatten(x, 2, (heads, -1)).transpose(1, 2)


def _rotary(a: Attributes, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    half = cos.shape[1]
    split = torch.unflatten(x, 2, (a["num_heads"], -1))
    c, s = cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)
    first, second, rest = split[..., :half], split[..., half : 2 * half], split[..., 2 * half :]
    return torch.cat((first * c - second * s, second * c + first * s, rest), dim=-1).flatten(2)


def _rms(a: Attributes, x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, a["epsilon"])


def _layer_norm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.layer_norm(x, weight.shape, weight, bias, a["epsilon"])


def _reshape(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def _unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _gather(a: Attributes, table: Tensor, indices: Tensor) -> Tensor:
    return table[indices] if a.get("axis", 0) == 0 else table.index_select(a["axis"], indices)


def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=a.get("approximate", "none"))


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda _, x, y: x + y,
    "And": lambda _, x, y: x & y,
    "Attention": _attention,
    "Cast": lambda a, x: x.to(_TORCH[ir.DataType(a["to"])]),
    "Div": lambda _, x, y: x / y,
    "Equal": lambda _, x, y: x == y,
    "Gather": _gather,
    "Gelu": _gelu,
    "Greater": lambda _, x, y: x > y,
    "LayerNormalization": _layer_norm,
    "LessOrEqual": lambda _, x, y: x <= y,
    "MatMul": lambda _, x, y: x @ y,
    "Mul": lambda _, x, y: x * y,
    "Or": lambda _, x, y: x | y,
    "RMSNormalization": _rms,
    "Range": lambda _, start, stop, step: torch.arange(int(start), int(stop), int(step), device=start.device),
    "Relu": lambda _, x: functional.relu(x),
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Shape": lambda _, x: torch.tensor(x.shape, device=x.device),
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Sub": lambda _, x, y: x - y,
    "Tanh": lambda _, x: torch.tanh(x),
    "Transpose": lambda a, x: x.permute(*a["perm"]),
    "Unsqueeze": _unsqueeze,
}
