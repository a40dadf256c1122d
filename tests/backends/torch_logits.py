"""Run canonical graphs in torch, for tests: with their own weights, or with others in their place."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate.flow import Flow
from edgec.graph.blocks import Block, cut
from edgec.graph.torch_run import TorchBlock


def weights_of(block: Block) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(tensor.numpy())) for name, tensor in block.weights.items()}


@torch.no_grad()
def torch_logits(model: ir.Model, ids: NDArray[np.int64], others: Mapping[str, torch.Tensor] | None = None):
    """Return the logits (windows, tokens, vocab) of a float graph, some of its weights replaced by `others`."""
    *body, head = cut(model)
    flow = Flow(ids)
    for index, block in enumerate(body):
        later = {name for other in [*body[index + 1 :], head] for name in other.inputs}
        flow.advance(TorchBlock(block), {**weights_of(block), **(others or {})}, later)
    return flow.outputs(TorchBlock(head), {**weights_of(head), **(others or {})})["logits"].numpy()
