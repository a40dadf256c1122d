"""Models whose files pass the 2 GB limit of protobuf (make test-slow)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgec.backends.onnx_cpu.session import OnnxCpuSession
from edgec.cli import edgec

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
def test_an_artifact_over_2_gb(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    spec = importlib.util.spec_from_file_location("memory_run", BENCH / "memory" / "run.py")
    memory_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory_run)
    memory_run.make_llama(tmp_path / "source", depth=7)
    out = tmp_path / "out"
    arguments = ["build", str(tmp_path / "source"), "--profile", "fp32", "--no-verify", "--out", str(out)]
    done = CliRunner().invoke(edgec, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert (out / "artifact" / "model.onnx.data").stat().st_size > 2**31
    logits = OnnxCpuSession(out / "artifact", "generate", max_length=16).step(np.array([[1, 2, 3]]))
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01
