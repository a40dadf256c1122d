"""Build the TensorRT engine of the model beside this file, unless one that fits this device is there already.

    python3 build_engine.py [--cache DIR] [--rebuild] [--verbose]

Needs Python 3.8 or later and the device's own `tensorrt` package, nothing else. Prints the engine's path on stdout and
everything else on stderr. `DIR/MODEL/current.json` names the engine to load, and the one that it replaced.

An engine fits while TensorRT, the GPU's SM, Jetson Linux (L4T) and the bundle are those that it was built for. A new
engine takes over by one rename, when it lies whole on the disk; whatever goes wrong before, the old one keeps serving.

Exit codes: 0 an engine that fits is ready; 2 the cache cannot be written; 3 the bundle is damaged; 4 this device or its
TensorRT cannot build the engine; 6 TensorRT or the CUDA driver is missing; 70 a bug; 130 interrupted.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import importlib
import json
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPE = "recipe.json"
RECIPE_FORMAT = 1
SETTINGS = (
    *("name", "precision", "strongly_typed", "profiles", "tensorrt_min", "tensorrt_below", "sm"),
    *("workspace_bytes", "optimization_level", "dla", "timing_cache", "sparse_weights"),
)
CURRENT = "current.json"


class EngineError(Exception):
    """No engine that fits could be made: an exit code, and what to tell the user."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main() -> int:
    """Make sure that an engine that fits is there, print its path, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder of all models' engines (default: ~/.cache/edgec)")
    parser.add_argument("--rebuild", action="store_true", help="build even if an engine that fits is there")
    parser.add_argument("--verbose", action="store_true", help="show everything that TensorRT says")
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # the bindings' destructors warn of themselves
    folder = Path(__file__).resolve().parent
    cache = None
    try:
        recipe, bundle = read_recipe(folder)
        cache = Path(options.cache or Path.home() / ".cache" / "edgec", recipe["name"]).absolute()
        with locked(cache):
            engine = ready_engine(folder / "model.onnx", recipe, bundle, cache, options)
    except EngineError as failure:
        return report(failure.exit_code, str(failure), cache)
    except OSError as error:
        return report(2, f"cannot use the folder {cache}: {error.strerror or error}", cache)
    except KeyboardInterrupt:
        return report(130, "interrupted", cache)
    except Exception as error:  # noqa: BLE001  TensorRT's bindings raise many kinds, and the user needs the last line
        if options.verbose:
            traceback.print_exc()
        return report(70, f"{type(error).__name__}: {error} (--verbose shows where)", cache)
    sys.stdout.write(f"{engine}\n")
    return 0


def report(exit_code: int, message: str, cache: Path | None) -> int:
    """Tell what failed and what serves now, and return the exit code."""
    say(f"error: {message}")
    current = read_current(cache) if cache else {}
    if current:
        say(f"the engine built before, for {describe(current)}, keeps serving: {cache}/{current.get('engine')}")
    else:
        say("no engine was there before" if cache else "the engines built before were not touched")
    return exit_code


def describe(device: dict[str, Any]) -> str:
    return f"TensorRT {device.get('tensorrt')}, SM {device.get('sm')}, Jetson Linux {device.get('l4t')}"


def say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def read_recipe(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the settings of the build, and the recipe's own hash, after checking the hash of every file."""
    advice = "copy the bundle to this device again"
    try:
        content = (folder / RECIPE).read_bytes()
        recipe = json.loads(content)
        if recipe["format"] != RECIPE_FORMAT:
            raise EngineError(3, f"{RECIPE} has format {recipe['format']}, this script reads format {RECIPE_FORMAT}")
        for name, expected in recipe["files"].items():
            if sha256(folder / name) != expected["sha256"]:
                raise EngineError(3, f"{folder / name} is not the file that {RECIPE} was made for: {advice}")
        settings = {key: recipe["build"][key] for key in SETTINGS}
    except OSError as error:
        raise EngineError(3, f"cannot read {error.filename}: {error.strerror}; {advice}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(3, f"{folder / RECIPE} is damaged ({type(error).__name__}: {error}): {advice}") from error
    return settings, hashlib.sha256(content).hexdigest()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):  # hashlib.file_digest came with Python 3.11
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Let one build at a time into the cache; the system frees the lock of a process that was killed."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # an engine is executable code: let no one else write here
    with (cache / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build in {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ready_engine(model: Path, recipe: dict[str, Any], bundle: str, cache: Path, options: argparse.Namespace) -> Path:
    """Return the path of an engine that fits: the current one, the one before it, or a new one."""
    trt = import_tensorrt()
    device = {"tensorrt": trt.__version__, "sm": compute_capability(), "l4t": l4t_release()}
    check_device(device, recipe)
    key = hashlib.sha256(json.dumps([device, bundle], sort_keys=True).encode()).hexdigest()[:16]
    current = read_current(cache)
    if not options.rebuild and fits(current, key, cache):
        say("the engine is up to date")
        return Path(cache, current["engine"])
    previous = current.get("previous") or {}
    if not options.rebuild and fits(previous, key, cache):
        say("the engine before the current one fits: it takes over again")
        return switch(cache, previous, current)

    for leftover in cache.glob("*.tmp"):  # of a build that was killed
        leftover.unlink()
    say(f"building {recipe['name']} ({recipe['precision']}) for {describe(device)}: this takes minutes")
    timing_file = cache / f"timing-{trt.__version__}-sm{device['sm']}.bin"
    plan, timing = build(trt, recipe, model, timing_file, options.verbose)
    digest = hashlib.sha256(plan).hexdigest()
    record = {"engine": f"{key}-{digest[:12]}.plan", "key": key, "sha256": digest, "bundle": bundle, **device}
    write_whole(cache / record["engine"], plan)
    engine = switch(cache, record, current)
    if timing is not None:
        with suppress(OSError):  # it only makes the next build faster
            write_whole(timing_file, timing)
    return engine


def import_tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        hint = "use the system's python3, and `sudo apt install python3-libnvinfer` if it is not there"
        raise EngineError(6, f"this Python ({sys.executable}) has no working 'tensorrt' ({error}): {hint}") from error


def compute_capability() -> int:
    """Return the SM of the first GPU, 87 for 8.7, asking the CUDA driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        hint = "run this on the device itself; a container needs the NVIDIA runtime"
        raise EngineError(6, f"the CUDA driver is missing ({error}): {hint}") from error
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    status = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    )
    if status:
        raise EngineError(6, f"the CUDA driver finds no GPU that it can use (error {status})")
    return major.value * 10 + minor.value


def l4t_release() -> str:
    """Return the version of Jetson Linux, such as 36.4.3, or 'unknown'."""
    with suppress(OSError):
        text = Path("/etc/nv_tegra_release").read_text()
        found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
        if found:
            return f"{found[1]}.{found[2]}"
    say("warning: /etc/nv_tegra_release does not tell the version of Jetson Linux; use --rebuild after an update")
    return "unknown"


def check_device(device: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuse a device that the recipe was not made for."""
    lowest, beyond = recipe["tensorrt_min"], recipe["tensorrt_below"]
    if not version(lowest) <= version(device["tensorrt"]) < version(beyond):
        range_ = f"from {lowest} to below {beyond}"
        raise EngineError(4, f"this device has TensorRT {device['tensorrt']}, the bundle is made for versions {range_}")
    if device["sm"] not in recipe["sm"]:
        raise EngineError(4, f"this device's GPU has SM {device['sm']}, the bundle is made for SM {recipe['sm']}")


def version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def build(trt: Any, recipe: dict[str, Any], model: Path, timing_file: Path, verbose: bool) -> tuple[Any, Any]:
    """Return the serialized engine and, if the recipe wants it, the serialized timing cache."""
    logger = make_logger(trt, verbose)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # the bindings say only that a factory returned nullptr
        raise EngineError(4, f"TensorRT cannot use this GPU: {logger.why() or error}") from error
    # From TensorRT 11 on every network is strongly typed, and the flag is deprecated.
    typed = 0 if version(trt.__version__) >= (11,) else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)  # keep it: a parser on a network that is gone crashes the process
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):  # from the file, so that it finds the external data beside it
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        nodes = [f"\n  node '{e.node_name()}' ({e.node_operator()}): {e.desc()}" for e in errors]
        raise EngineError(4, f"TensorRT {trt.__version__} does not take the model:{''.join(nodes)}")
    config = configure(trt, builder, recipe)
    if recipe["timing_cache"]:
        load_timing(config, timing_file)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(4, f"TensorRT could not build the engine: {logger.why() or 'it does not say why'}")
    timing = config.get_timing_cache() if recipe["timing_cache"] else None
    return plan, None if timing is None else timing.serialize()


def make_logger(trt: Any, verbose: bool) -> Any:
    """Return a logger that writes to stderr and remembers errors; `trt.Logger` writes to stdout."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class known on the device only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                self.errors.append(msg)
            if verbose or int(severity) <= int(trt.ILogger.WARNING):
                say(f"TensorRT: {msg}")

        def why(self) -> str:
            return "; ".join(self.errors[-3:])

    return Logger()


def configure(trt: Any, builder: Any, recipe: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = recipe["optimization_level"]
    if recipe["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe["workspace_bytes"])
    for wanted in recipe["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shape in wanted["shapes"].items():
            profile.set_shape(name, tuple(shape["min"]), tuple(shape["opt"]), tuple(shape["max"]))
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(4, f"TensorRT does not take the optimization profile '{wanted['name']}'")
    if recipe["sparse_weights"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if recipe["dla"] is not None:
        core = recipe["dla"]["core"]
        if core >= builder.num_DLA_cores:
            raise EngineError(4, f"the bundle wants DLA core {core}, TensorRT finds {builder.num_DLA_cores} cores here")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = core
        if recipe["dla"]["gpu_fallback"]:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    return config


def load_timing(config: Any, timing_file: Path) -> None:
    """Give the builder the timings of earlier builds, or an empty cache if there are none that it takes."""
    saved = timing_file.read_bytes() if timing_file.is_file() else b""
    for content in (saved, b""):
        timing = config.create_timing_cache(content)
        if timing is not None and config.set_timing_cache(timing, ignore_mismatch=False):
            return


def read_current(cache: Path) -> dict[str, Any]:
    """Return the record of the engine that serves, or an empty one."""
    try:
        record = json.loads((cache / CURRENT).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def fits(record: dict[str, Any], key: str, cache: Path) -> bool:
    """Tell whether the record is of an engine built for `key` that is whole on the disk."""
    engine = cache / str(record.get("engine"))
    return record.get("key") == key and engine.is_file() and sha256(engine) == record.get("sha256")


def switch(cache: Path, record: dict[str, Any], current: dict[str, Any]) -> Path:
    """Let the engine of `record` serve from now on, and remove all others but the one that served until now."""
    same = current.get("engine") == record["engine"]
    previous = current.get("previous") if same else {k: v for k, v in current.items() if k != "previous"}
    content = json.dumps({**record, "previous": previous or None}, indent=2, sort_keys=True)
    write_whole(cache / CURRENT, content.encode())
    keep = {record["engine"], (previous or {}).get("engine")}
    for engine in cache.glob("*.plan"):
        if engine.name not in keep:
            engine.unlink()
    return Path(cache, record["engine"])


def write_whole(path: Path, content: Any) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main())
