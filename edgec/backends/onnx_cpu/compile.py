"""Graph -> Artifact: write the directory that the runtimes load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgec.backends.onnx_cpu.files import ALL_LOGITS_FILE, MODEL_FILE
from edgec.backends.onnx_cpu.genai import genai_config
from edgec.backends.onnx_cpu.logits import last_logits_only
from edgec.backends.onnx_cpu.lower import lower, with_accuracy_level
from edgec.backends.onnx_cpu.write import write_weights
from edgec.frontends.architecture import Decoder
from edgec.spec.plan import Plan

EXACT_FILE = "exact.onnx"


def compile_decoder(
    model: ir.Model,
    decoder: Decoder,
    plan: Plan,
    config: dict[str, Any],
    tokenizer_files: dict[str, bytes],
    folder: Path,
    tick: Callable[[str], object],
) -> ir.Model:
    """Write the artifact of a canonical decoder graph into `folder`, and return the lowered model.

    Args:
        model: the canonical graph; not changed.
        decoder: its description.
        plan: the plan.
        config: the checkpoint's config.json.
        tokenizer_files: name -> content.
        folder: an empty directory.
        tick: called with the name of each weight when it is written.
    """
    lowered = lower(model, plan.accuracy_level)
    write_weights(lowered, folder, tick)
    ir.save(lowered, folder / ALL_LOGITS_FILE)
    ir.save(last_logits_only(lowered), folder / MODEL_FILE)
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    positions = any(value.name == "position_ids" for value in lowered.graph.inputs)
    generation = json.loads(tokenizer_files.get("generation_config.json", b"{}"))
    settings = genai_config(decoder, config, generation, plan.context_length, positions)
    (folder / "genai_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return lowered


def write_exact(lowered: ir.Model, folder: Path) -> str:
    """Write a twin of the evaluation model that computes with float32 activations, and return its file name."""
    ir.save(with_accuracy_level(lowered, 1), folder / EXACT_FILE)
    return EXACT_FILE
