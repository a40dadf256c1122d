"""What an artifact says about its engines: the content of `tensorrt.json`."""

from pathlib import Path

import msgspec

from edgec.backends.tensorrt.recipe import Profile
from edgec.json_file import read_json

ENGINES_FILE = "tensorrt.json"


class Engine(msgspec.Struct, frozen=True):
    """One engine that was compiled.

    Args:
        sm: the GPUs that it is for.
        compiler: name and version.
        size_bytes: of the engine.
        weights: data type -> how many numbers of the engine's constants have it, or {} where its log does not say.
        widened: weights that a kernel of their own widens to float16 in front of their matmul.
        file: its file in the artifact; None for a proxy, which is not shipped.
        profiles: the shapes that it takes, by optimization profile.
        integer_matmuls: kernels that multiply int8 by int8.
    """

    sm: int
    compiler: str
    size_bytes: int
    weights: dict[str, int]
    widened: int
    file: str | None = None
    profiles: tuple[Profile, ...] = ()
    integer_matmuls: int = 0


class Engines(msgspec.Struct, frozen=True):
    """The engines of an artifact.

    Args:
        sm: the target's GPU.
        on_device: whether the device builds its own engine, with `build_engine.py`.
        engine: for a target that takes engines compiled here, that engine; for one that builds its own, a proxy: the
            same graph compiled for the nearest GPU that the compiler here knows; None where that was not possible.
        no_engine: why there is no engine, where there is none.
    """

    sm: int
    on_device: bool
    engine: Engine | None
    no_engine: str | None = None


def read_engines(artifact: Path) -> Engines:
    """Return what an artifact says about its engines.

    Raises:
        BundleError: it says nothing, or nonsense.
    """
    return read_json(artifact / ENGINES_FILE, Engines, "the artifact's engines")


def describe(engines: Engines) -> str:
    """Return in words what was compiled, and what was not run."""
    engine = engines.engine
    made = engines.no_engine or ""
    if engine is not None:
        types = sorted(engine.weights.items(), key=lambda item: -item[1])
        kinds = ", ".join(f"{count / 1e6:.1f} M {dtype}" for dtype, count in types if count >= 1e5) or "not known"
        made = f"{engine.compiler} made {engine.size_bytes / 2**20:.1f} MiB for SM{engine.sm}; its constants: {kinds}"
        if engine.widened:
            made += f"; {engine.widened} weights are widened in front of their matmul"
        if engine.integer_matmuls:
            made += f"; {engine.integer_matmuls} kernels multiply int8 by int8"
    if engines.on_device:
        proxy = f"as a proxy for SM{engines.sm}, {made}" if engine is not None else f"no proxy: {made}"
        what = f"the device builds its own engine (build_engine.py); {proxy}"
    else:
        what = f"compiled, not run: {made}"
    return f"{what}; quality is that of the engine's graph, run in ONNX Runtime"
