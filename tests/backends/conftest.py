"""Artifacts of a tiny Llama: as onnxruntime-genai's model builder writes it, and as edgec does, with both caches."""

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from edgec.backends.onnx_cpu.files import ALL_LOGITS_FILE, MODEL_FILE
from edgec.backends.onnx_cpu.genai import genai_config
from edgec.backends.onnx_cpu.logits import last_logits_only
from edgec.backends.onnx_cpu.lower import lower
from edgec.checkpoint.model import read_finite
from edgec.checkpoint.open import open_checkpoint
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe

CONTEXT = 128


@pytest.fixture(scope="session")
def peer_artifact(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int4 artifact of onnxruntime-genai's model builder."""
    folder = tmp_path_factory.mktemp("peer") / "artifact"
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    subprocess.run([*builder, "-i", str(tiny_llama), "-o", str(folder)], check=True, capture_output=True, timeout=120)
    return folder


def _write(model: ir.Model, tiny_llama: Path, folder: Path, *, shared: bool) -> None:
    checkpoint = open_checkpoint(tiny_llama)
    positions = any(value.name == "position_ids" for value in model.graph.inputs)
    settings = genai_config(describe(checkpoint), checkpoint.config, {}, CONTEXT, positions)
    settings["search"]["past_present_share_buffer"] = shared
    (folder / "genai_config.json").write_text(json.dumps(settings))
    for name, content in checkpoint.tokenizer_files().items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="session")
def canonical(tiny_llama: Path) -> ir.Model:
    checkpoint = open_checkpoint(tiny_llama)
    return emit(describe(checkpoint), checkpoint, lambda name: read_finite(checkpoint, name), CONTEXT)


@pytest.fixture(scope="session")
def growing_artifact(canonical: ir.Model, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The canonical graph in fp32: it takes position_ids, and returns its caches longer than it took them."""
    folder = tmp_path_factory.mktemp("growing")
    ir.save(canonical.clone(), folder / MODEL_FILE)
    _write(canonical, tiny_llama, folder, shared=False)
    return folder


@pytest.fixture(scope="session")
def lowered_artifact(canonical: ir.Model, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lowered graph in fp32, once for all logits and once for those of the last token; one shared buffer."""
    folder = tmp_path_factory.mktemp("lowered")
    lowered = lower(canonical, 1)
    ir.save(lowered.clone(), folder / ALL_LOGITS_FILE)
    ir.save(last_logits_only(lowered), folder / MODEL_FILE)
    _write(lowered, tiny_llama, folder, shared=True)
    return folder
