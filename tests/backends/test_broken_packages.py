"""A package that is there, but cannot be loaded: exit code 6 and the reason, never a bug of edgec's."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from edgec.backends.settings import write_settings
from edgec.errors import EdgecError, MissingRuntimeError, explain, require

MISSING = "libvendor.so.4: cannot open shared object file: No such file or directory"
BROKEN = {
    "ImportError": f"raise ImportError({MISSING!r})",
    "OSError": "import ctypes\nctypes.CDLL('libvendor.so.4')",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_required_package_is_loaded(content, tmp_path, monkeypatch):
    (tmp_path / "broken_vendor.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingRuntimeError) as caught:
        require("broken_vendor", "vendor")
    assert caught.value.what == f"the Python package 'broken_vendor' cannot be loaded: {MISSING}"
    require("broken_vendor", "vendor", load=False)
    with pytest.raises(MissingRuntimeError, match="not installed") as caught:
        require("no_vendor", "vendor", load=False)
    assert caught.value.hint == 'pip install "edgec[vendor]"'


@pytest.mark.parametrize(
    ("package", "how"), [("openvino", "OSError"), ("openvino", "ImportError"), ("onnxruntime", "ImportError")]
)
def test_a_command_exits_with_6(package, how, lowered_artifact, tmp_path):
    artifact = shutil.copytree(lowered_artifact, tmp_path / "artifact")
    if package == "openvino":
        (artifact / "genai_config.json").unlink()
        (artifact / "openvino_model.xml").touch()
        write_settings(artifact, {}, {}, vocab_size=320, context_length=64)
    (tmp_path / f"{package}.py").write_text(BROKEN[how])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    lengths = ["--prompt-tokens", "4", "--new-tokens", "2"]
    for arguments in (["run", artifact, "--prompt", "The fox"], ["bench", artifact, artifact, "--compare", *lengths]):
        command = [sys.executable, "-m", "edgec", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 6, done.stderr
        assert f"cannot be loaded: {MISSING}" in done.stderr
        assert "bug" not in done.stderr


def test_an_import_that_edgec_has_wrong_is_a_bug():
    with pytest.raises(ImportError) as caught:
        from edgec.errors import no_such_name  # noqa: F401
    told = explain(caught.value)
    assert type(told) is EdgecError
    assert told.exit_code == 70


@pytest.mark.parametrize(("number", "code"), [(errno.EFBIG, 2), (errno.ENOSPC, 2), (errno.EROFS, 2), (errno.EBADF, 70)])
def test_a_file_that_finds_no_room_is_no_bug(number, code):
    told = explain(OSError(number, os.strerror(number), "/tmp/there"))
    assert told.exit_code == code
    if code == 2:
        assert (told.where, "TMPDIR" in str(told.hint)) == ("/tmp/there", True)
