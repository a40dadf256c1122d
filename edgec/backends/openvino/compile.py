"""Graph -> Artifact: write the directory that the runtimes load."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import openvino as ov

from edgec.backends.backend import Job
from edgec.backends.openvino import MARKER
from edgec.backends.openvino.lower import lower
from edgec.backends.openvino.tokenizer import write_tokenizer
from edgec.backends.openvino.weights import Weights
from edgec.backends.settings import write_settings
from edgec.generate.tokenizer import TOKENIZER
from edgec.graph.store import Store
from edgec.spec.plan import Plan

_SCRATCH = "weights.tmp"


def compile_decoder(job: Job, folder: Path, tick: Callable[[str], object]) -> tuple[str, ...]:
    """Write the artifact of a canonical decoder graph into `folder`; return what it lacks, and why."""
    generation = json.loads(job.tokenizer_files.get("generation_config.json", b"{}"))
    for name, content in job.tokenizer_files.items():
        (folder / name).write_bytes(content)
    write_settings(folder, job.config, generation, job.decoder.vocab_size, job.plan.context_length)
    remarks = write_tokenizer(folder) if TOKENIZER in job.tokenizer_files else ()
    with Store(folder / _SCRATCH) as store:
        weights = Weights(store, tick)
        model = lower(job.model, weights)
        for name, value in runtime_options(job.plan).items():
            model.set_rt_info(value, ["runtime_options", name])
        ov.save_model(model, folder / MARKER, compress_to_fp16=False)
        del model  # before the memory that it reads
    (folder / _SCRATCH).unlink()
    return remarks


def runtime_options(plan: Plan) -> Mapping[str, str]:
    """Return the properties that the model asks its plugin for, whoever loads it.

    Source: OpenVINO documentation, runtime_options in the model's rt_info.
    """
    options = {"KV_CACHE_PRECISION": "u8" if plan.kv_cache == "int8" else "f16"}
    if plan.accuracy_level in (1, 4):
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "32" if plan.accuracy_level == 4 else "0"
    return options
