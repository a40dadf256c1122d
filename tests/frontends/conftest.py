"""Tiny random models of every family, in transformers and in edgec."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import transformers

from edgec.checkpoint.open import open_checkpoint
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families

COMMON = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "smollm3": {"num_hidden_layers": 4},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 64},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 64, "num_hidden_layers": 7},
    "gpt2": {},
    "gpt_neox": {},
    "olmo2": {},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
}


class Pair:
    """The same weights in transformers and in ONNX Runtime, the canonical graph with its cache."""

    def __init__(self, folder: Path, kind: str, changes: dict[str, Any]) -> None:
        settings = {**COMMON, **EXTRA[kind], **changes}
        if kind == "gpt2":
            names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                     "max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}  # fmt: skip
            settings = {names.get(k, k): v for k, v in settings.items()}
        if kind in ("gpt2", "gpt_neox"):
            del settings["num_key_value_heads"]
        torch.manual_seed(0)
        torch.set_num_threads(1)
        config = transformers.AutoConfig.for_model(kind, **settings)
        self.torch = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, weight in self.torch.named_parameters():
                if weight.ndim == 1:  # norms and biases start as ones and zeros, which would hide mistakes
                    weight.add_(0.3 * torch.randn_like(weight))
                else:
                    weight.mul_(3 if "embed" in name or "wte" in name else 4)
        self.torch.save_pretrained(folder)
        self.checkpoint = open_checkpoint(folder)
        self.decoder = describe(self.checkpoint)
        self.model = emit(self.decoder, self.checkpoint, self.checkpoint.read, self.decoder.context_length)
        ir.save(self.model, folder / "model.onnx")
        self.session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def reference(self, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Return transformers' logits for whole rows."""
        tensor = torch.from_numpy(ids)
        kept = torch.ones_like(tensor) if mask is None else torch.from_numpy(mask)
        positions = (kept.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            return self.torch(tensor, attention_mask=kept, position_ids=positions, use_cache=False).logits.numpy()

    def run(self, ids: np.ndarray, mask: np.ndarray | None = None, pieces: tuple[int, ...] = ()) -> np.ndarray:
        """Return the canonical graph's logits, fed in pieces of the given lengths through its cache."""
        mask = np.ones_like(ids) if mask is None else mask
        positions = np.maximum(mask.cumsum(-1) - 1, 0)
        names = [value.name for value in self.session.get_outputs()]
        feed = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past"):
                feed[value.name] = np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
        found, start = [], 0
        for length in pieces or (ids.shape[1],):
            piece = slice(start, start + length)
            feed |= {"input_ids": ids[:, piece], "attention_mask": mask[:, : piece.stop]}
            feed |= {"position_ids": positions[:, piece]}
            feed = {k: v for k, v in feed.items() if k in {i.name for i in self.session.get_inputs()}}
            outputs = dict(zip(names, self.session.run(None, feed), strict=True))
            found.append(outputs["logits"])
            feed |= {n.replace("present", "past_key_values"): v for n, v in outputs.items() if n != "logits"}
            start += length
        return np.concatenate(found, axis=1)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Return a function that makes a pair, once for each family and set of changes."""
    made: dict[str, Pair] = {}

    def make(kind: str, **changes: Any) -> Pair:
        key = f"{kind}{changes}"
        if key not in made:
            made[key] = Pair(tmp_path_factory.mktemp(kind), kind, changes)
        return made[key]

    return make


@pytest.fixture(params=sorted(families()))
def kind(request: pytest.FixtureRequest) -> str:
    """The model type of each family in the folder."""
    return request.param
