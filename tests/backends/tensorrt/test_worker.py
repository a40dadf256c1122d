"""The process that compiles: what it imports, how it starts, and what it says of its end."""

import shutil
import subprocess

import numpy as np
import onnx_ir as ir
import pytest

from edgec.backends.tensorrt.recipe import Profile, Shapes
from edgec.backends.tensorrt.refusal import refusal
from edgec.backends.tensorrt.worker import Failure, Made, Order, compile_engine
from edgec.errors import MissingRuntimeError, OutputError, PlanError
from edgec.graph.emit import Emitter

pytest.importorskip("tensorrt_rtx_bindings")
COMPILER = shutil.which("cc")

PERSONALITY = """
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int personality(unsigned long wanted) {
    static const char *const calls = "%s";
    FILE *file = fopen(calls, "a");
    (void)wanted;
    fputc('x', file);
    if (ftell(file) > 3) _exit(3); /* it would go on for ever */
    fclose(file);
    return %d;
}
"""
DIES = {
    "import": "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
    "library": "import ctypes\nctypes.CDLL('libnvinfer.so.10')",
    "memory": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "crash": "import os\nos.abort()",
}


@pytest.fixture
def order(tmp_path):
    """An order for an engine of one matmul."""
    emitter = Emitter()
    emitter.block = "all"
    dims = ir.Shape([1, "tokens", 16])
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=dims)
    weight = emitter.weight("weight", (16, 16), lambda: np.eye(16, dtype=np.float32))
    y = emitter.op("MatMul", x, weight, name="y")
    y.shape = dims
    ir.save(emitter.model("product", [x], [y]), tmp_path / "model.onnx")
    shapes = Shapes((1, 1, 16), (1, 2, 16), (1, 4, 16))
    return Order(str(tmp_path / "model.onnx"), str(tmp_path / "engine"), 89, (Profile("all", {"x": shapes}),))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that puts a module in front of the installed TensorRT-RTX."""

    def write(content):
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "tensorrt_rtx_bindings.py").write_text(content + "\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))

    return write


@pytest.mark.skipif(COMPILER is None, reason="the stand-in for personality() needs a C compiler")
@pytest.mark.parametrize("answer", [-1, 0], ids=["refused", "taken"])
def test_it_asks_once_for_addresses_that_are_not_random(answer, order, tmp_path, monkeypatch):
    calls, library = tmp_path / "calls", tmp_path / "personality.so"
    (tmp_path / "personality.c").write_text(PERSONALITY % (calls, answer))
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, tmp_path / "personality.c"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    assert isinstance(compile_engine(order), Made)
    assert calls.read_text() == "x"


def test_modules_of_the_current_directory_are_not_imported(order, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("tensorrt_rtx_bindings", "json", "msgspec"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('imported from the current directory')\n")
    assert isinstance(compile_engine(order), Made)


@pytest.mark.parametrize("kind", ["import", "library"])
def test_a_compiler_that_cannot_be_loaded(kind, order, package):
    package(DIES[kind])
    failure = compile_engine(order)
    assert isinstance(failure, Failure)
    assert failure.stage == "import"
    error = refusal(failure, 89, {})
    assert isinstance(error, MissingRuntimeError)
    assert error.exit_code == 6
    assert "libnvinfer.so.10: cannot open shared object file" in error.what
    assert error.hint == 'pip install "edgec[tensorrt]"'


@pytest.mark.parametrize("place", ["missing/engine", "model.onnx/engine"])
def test_an_engine_that_cannot_be_written(place, order, tmp_path):
    failure = compile_engine(Order(order.model, str(tmp_path / place), order.sm, order.profiles))
    assert isinstance(failure, Failure)
    assert failure.stage == "write"
    error = refusal(failure, 89, {})
    assert isinstance(error, OutputError)
    assert str(tmp_path / place) in error.what


@pytest.mark.parametrize(("kind", "stage"), [("memory", "memory"), ("crash", "compile")])
def test_a_compiler_that_is_killed(kind, stage, order, package):
    package(DIES[kind])
    failure = compile_engine(order)
    assert isinstance(failure, Failure)
    assert failure.stage == stage
    error = refusal(failure, 89, {})
    assert isinstance(error, PlanError)
    assert ("too little memory" in error.what) == (kind == "memory")
    assert ("context_length" in error.hint) == (kind == "memory")
