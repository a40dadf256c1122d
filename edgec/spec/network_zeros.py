"""Which layers of a network a profile makes sparse, and what the target makes of that."""

from collections.abc import Collection, Sequence

import onnx_ir as ir

from edgec.errors import PlanError
from edgec.prune.network_layers import Layer, find_layers
from edgec.spec.exploit import may_skip
from edgec.spec.network_plan import ZerosPlan
from edgec.spec.network_profile import NetworkWishes
from edgec.spec.target import Target


def zeros_of(
    model: ir.Model, wishes: NetworkWishes, target: Target, backend: str, int8: Collection[str]
) -> ZerosPlan | None:
    """Return which layers become sparse; None where the wishes have none.

    Args:
        model: canonical, what is left after channels went; no weights are read.
        wishes: of the profile, with names of nodes in `skip`.
        target: the device.
        backend: of the plan.
        int8: nodes that will compute on integers.

    Raises:
        PlanError: no layer can have the pattern.
    """
    if wishes.sparse is None:
        return None
    layers, dense = find_layers(model, wishes.sparse.parsed, wishes.sparse.skip)
    if not layers:
        reasons = list(dict.fromkeys(dense.values()))
        raise PlanError(
            f"no layer of this network can have zeros by the pattern {wishes.sparse.pattern}",
            where="network.sparse",
            hint="; ".join(reasons[:5]) or "it has no convolutions or products with constant weights",
        )
    kernels = _kernels(layers, wishes, target, int8) if backend == "tensorrt" else ()
    return ZerosPlan(tuple(layer.name for layer in layers), dense, kernels)


def _kernels(layers: Sequence[Layer], wishes: NetworkWishes, target: Target, int8: Collection[str]) -> tuple[str, ...]:
    assert wishes.sparse is not None
    found = []
    for layer in layers:
        kind = "fp32" if wishes.weights == "fp32" else "int8" if layer.name in int8 else "fp16"
        plain = layer.groups == 1 and layer.node.op_type != "ConvTranspose"
        sizes = (layer.inputs, layer.outputs)
        static = kind != "int8" or wishes.is_static
        if plain and static and may_skip(wishes.sparse.parsed, kind, sizes, target):
            found.append(layer.name)
    return tuple(found)
