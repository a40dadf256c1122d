"""Graph -> Artifact: the strongly typed graph, and an engine where this machine can compile one."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import onnx_ir as ir

from edgec.backends.backend import Job
from edgec.backends.settings import write_settings
from edgec.backends.tensorrt.engine import ENGINES_FILE, Engine, Engines
from edgec.backends.tensorrt.kernels import AHEAD_OF_TIME
from edgec.backends.tensorrt.logits import last_logits_only
from edgec.backends.tensorrt.lower import lower
from edgec.backends.tensorrt.profiles import profiles
from edgec.backends.tensorrt.recipe import MODEL_FILE, Profile, Settings, write_recipe
from edgec.backends.tensorrt.refusal import NOT_OF_THE_GRAPH, note_nodes, refusal
from edgec.backends.tensorrt.worker import Failure, Order, compile_engine
from edgec.graph.write import write_weights
from edgec.json_file import write_json
from edgec.quantize.scheme import Scheme
from edgec.spec.exploit import eligible
from edgec.spec.plan import Plan
from edgec.spec.target import Target

_ENGINE_FILE = "model.sm{sm}.engine"
# The nearest GPU that TensorRT-RTX compiles for, for those that build their own engines.
_PROXY = {87: 86, 110: 120}
_NEWEST_TENSORRT = "12"


def compile_decoder(job: Job, folder: Path, tick: Callable[[str], object]) -> tuple[str, ...]:
    """Write the artifact of a canonical decoder graph into `folder`.

    Raises:
        PlanError: the compiler refuses the graph; it says which node, and the checkpoint tensor that it came from.
        MissingRuntimeError: the target takes engines from this machine, and the compiler is not installed.
    """
    ahead = AHEAD_OF_TIME in job.target.runtimes
    lowered, notes = write_graph(job, folder, tick, old=not ahead)
    shapes = profiles(lowered, job.plan.context_length)
    if not ahead:
        write_recipe(folder, _device_settings(job, shapes))
    write_engines(folder, job.target, shapes, notes)
    return ()


def write_engines(folder: Path, target: Target, shapes: tuple[Profile, ...], notes: dict[str, str]) -> Engines:
    """Compile the graph in `folder` for the target, or for a GPU near it, and write what came of it there.

    Args:
        folder: holds the graph and its weights.
        target: takes engines from here, or builds its own.
        shapes: what the engine takes.
        notes: what `note_nodes` said of the graph.

    Raises:
        PlanError: the compiler refuses the graph.
        MissingRuntimeError: the target takes engines from here, and the compiler cannot be loaded.
    """
    assert target.gpu is not None
    sm = target.gpu.sm
    if AHEAD_OF_TIME in target.runtimes:
        made = _compile(folder, shapes, sm, folder / _ENGINE_FILE.format(sm=sm))
        if isinstance(made, Failure):
            raise refusal(made, sm, notes)
        engines = Engines(sm, on_device=False, engine=made)
    else:
        engines = _proxy(folder, shapes, sm, notes)
    write_json(folder / ENGINES_FILE, engines)
    return engines


def write_graph(job: Job, folder: Path, tick: Callable[[str], object], *, old: bool) -> tuple[ir.Model, dict[str, str]]:
    """Write everything but the engine: the graph, its weights, tokenizer and settings; return the graph and its notes.

    Args:
        job: what to write.
        folder: where.
        tick: called for each weight.
        old: for TensorRT before 11.
    """
    # "No dedicated kernel": TensorRT-RTX refuses Attention in float32, and takes the operators that it consists of.
    half = ir.DataType.FLOAT if job.plan.weights == "fp32" else ir.DataType.FLOAT16
    lowered = last_logits_only(lower(job.model, half=half, old=old or half == ir.DataType.FLOAT))
    notes = note_nodes(lowered)
    write_weights(lowered, folder, tick)
    ir.save(lowered, folder / MODEL_FILE)
    for name, content in job.tokenizer_files.items():
        (folder / name).write_bytes(content)
    generation = json.loads(job.tokenizer_files.get("generation_config.json", b"{}"))
    write_settings(folder, job.config, generation, job.decoder.vocab_size, job.plan.context_length)
    return lowered, notes


def _device_settings(job: Job, shapes: tuple[Profile, ...]) -> Settings:
    settings = device_settings(
        job.target,
        f"{job.decoder.family}-{job.plan.sha256()[:12]}",
        f"weights {_words(job.plan)}, activations {'fp32' if job.plan.weights == 'fp32' else 'fp16'}",
        shapes,
    )
    return msgspec.structs.replace(settings, sparse_weights=bool(eligible(job.decoder, job.plan, job.target)))


def device_settings(target: Target, name: str, precision: str, shapes: tuple[Profile, ...]) -> Settings:
    """Return what a device needs to know to build its engine; nothing runs on a DLA (see `recipe.Settings.dla`)."""
    assert target.gpu is not None
    return Settings(
        name=name,
        precision=precision,
        profiles=shapes,
        tensorrt_min=oldest_tensorrt(target),
        tensorrt_below=_NEWEST_TENSORRT,
        sm=(target.gpu.sm,),
    )


def _words(plan: Plan) -> str:
    found = (plan.weights, *(matrix.storage for matrix in plan.layers.values()))
    return " and ".join(dict.fromkeys(s.dtype if isinstance(s, Scheme) else s for s in found))


def oldest_tensorrt(target: Target) -> str:
    """Return the oldest TensorRT that the target's vendor ships for it."""
    return min(target.runtimes["tensorrt"], key=lambda text: tuple(map(int, text.split("."))))


def _proxy(folder: Path, shapes: tuple[Profile, ...], sm: int, notes: dict[str, str]) -> Engines:
    if find_spec("tensorrt_rtx_bindings") is None:
        return Engines(sm, True, None, 'TensorRT-RTX is not installed here (pip install "edgec[tensorrt]")')
    if sm not in _PROXY:
        return Engines(sm, True, None, f"TensorRT-RTX compiles for no GPU that is near SM{sm}")
    with TemporaryDirectory(prefix="edgec-") as scratch:
        made = _compile(folder, shapes, _PROXY[sm], Path(scratch) / "proxy.engine")
    if isinstance(made, Engine):
        return Engines(sm, True, msgspec.structs.replace(made, file=None))
    error = refusal(made, _PROXY[sm], notes)
    if made.stage in NOT_OF_THE_GRAPH:
        return Engines(sm, True, None, error.what)
    raise error


def _compile(folder: Path, shapes: tuple[Profile, ...], sm: int, out: Path) -> Engine | Failure:
    made = compile_engine(Order(model=str(folder / MODEL_FILE), out=str(out), sm=sm, profiles=shapes))
    if isinstance(made, Failure):
        return made
    size, read = out.stat().st_size, (made.weights, made.widened)
    return Engine(sm, made.compiler, size, *read, out.name, shapes, made.integer_matmuls)
