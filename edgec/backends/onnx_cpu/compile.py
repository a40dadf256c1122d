"""Graph -> Artifact: write the directory that the runtimes load."""

import json
from collections.abc import Callable
from pathlib import Path

from edgec.backends.backend import Job
from edgec.backends.onnx_cpu.files import ALL_LOGITS_FILE, MODEL_FILE
from edgec.backends.onnx_cpu.genai import genai_config
from edgec.backends.onnx_cpu.kernels import saturates
from edgec.backends.onnx_cpu.logits import last_logits_only
from edgec.backends.onnx_cpu.lower import lower
from edgec.graph.sparse import remarks, save
from edgec.graph.write import write_weights


def compile_decoder(job: Job, folder: Path, tick: Callable[[str], object]) -> tuple[str, ...]:
    """Write the artifact of a canonical decoder graph into `folder`; `tick` is called for each weight."""
    lowered = lower(job.model, job.plan.accuracy_level, unsigned_weights=saturates(job.target))
    write_weights(lowered, folder, tick, sparse=True)
    save(lowered, folder / ALL_LOGITS_FILE)
    save(last_logits_only(lowered), folder / MODEL_FILE)
    for name, content in job.tokenizer_files.items():
        (folder / name).write_bytes(content)
    positions = any(value.name == "position_ids" for value in lowered.graph.inputs)
    generation = json.loads(job.tokenizer_files.get("generation_config.json", b"{}"))
    settings = genai_config(job.decoder, job.config, generation, job.plan.context_length, positions)
    (folder / "genai_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return remarks(lowered)
