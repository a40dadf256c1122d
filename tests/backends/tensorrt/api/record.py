"""Record the API of a TensorRT bindings wheel, for the stand-in that `build_engine.py` is tested against.

    pip download --no-deps --only-binary=:all: tensorrt-cu12-bindings==10.3.0
    python tests/backends/tensorrt/api/record.py tensorrt_cu12_bindings-10.3.0-cp311-*.whl tensorrt-10.3.json

Needs a C compiler and the Python version that the wheel is for. The bindings import without a GPU, a driver or TensorRT
itself when the few functions that they take from TensorRT's libraries are there, so empty ones are compiled. What is
written comes from the types that the bindings define and from the signatures that pybind11 writes in their docstrings.
"""

import ctypes
import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

CLASSES = (
    *("Builder", "BuilderFlag", "DeviceType", "IBuilderConfig", "IHostMemory", "ILogger", "ILogger.Severity"),
    *("INetworkDefinition", "IOptimizationProfile", "ITimingCache", "Logger", "MemoryPoolType"),
    *("NetworkDefinitionCreationFlag", "OnnxParser", "ParserError"),
)
SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)


def main(wheel: str, output: str) -> None:
    """Write the API of `wheel` to `output`."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(wheel) as archive:
        archive.extractall(name)
        _load_empty_libraries(Path(name))
        sys.path.insert(0, name)
        api = describe(importlib.import_module("tensorrt_bindings"))
    Path(output).write_text(json.dumps(api, indent=1, sort_keys=True) + "\n")


def _load_empty_libraries(folder: Path) -> None:
    needed = set(re.findall(rb"libnv[a-z_]+\.so\.\d+", (folder / "tensorrt_bindings" / "tensorrt.so").read_bytes()))
    source = folder / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in sorted(name.decode() for name in needed):
        path = folder / library
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", path, source], check=True)
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


def describe(module: ModuleType) -> dict[str, Any]:
    """Return the version of the bindings and each class in `CLASSES`."""
    classes = {}
    for name in CLASSES:
        value: Any = module
        for part in name.split("."):
            value = getattr(value, part)
        classes[name] = _describe_class(value)
    return {"version": module.__version__, "classes": classes}


def _describe_class(cls: type) -> dict[str, Any]:
    if members := getattr(cls, "__members__", None):
        return {"members": {name: int(member) for name, member in members.items()}}
    names = [name for name in dir(cls) if not name.startswith("_") or name in {"__init__", "__bool__"}]
    values = {name: getattr(cls, name) for name in names}
    functions = {name: v for name, v in values.items() if callable(v) and not isinstance(v, type)}
    return {
        "bases": [base.__name__ for base in cls.__bases__ if base.__name__ in CLASSES],
        "buffer": "buffer protocol" in (cls.__doc__ or ""),
        "constants": {name: str(v) for name, v in values.items() if hasattr(type(v), "__members__")},
        "properties": {name: _describe_property(v) for name, v in values.items() if isinstance(v, property)},
        "methods": {name: found for name, v in functions.items() if (found := signatures(v.__doc__ or ""))},
    }


def _describe_property(value: property) -> dict[str, Any]:
    returns = [signature.split(" -> ")[1] for signature in signatures(value.fget.__doc__ or "")]
    return {"type": returns[0] if returns else None, "settable": value.fset is not None}


def signatures(doc: str) -> list[str]:
    """Return the signatures, without self, that pybind11 put into a docstring: one, or one for each overload."""
    lines = re.findall(r"^\d+\. (\w+\(.*)", doc, re.MULTILINE) if "Overloaded function." in doc else [doc]
    found = [re.match(r"\w*\(\w+: [\w.:]+(?:, )?(.*\) -> .+)", line) for line in lines]
    return ["(" + re.sub(r"\btensorrt\w*\.tensorrt\w*\.", "", match[1]) for match in found if match]


if __name__ == "__main__":
    main(*sys.argv[1:])
