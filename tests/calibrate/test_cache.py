"""Results on disk: whole or not there, and found by all that they were made from."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgec.calibrate import cache
from edgec.errors import OutputError

ARRAYS = {
    "codes/layers.0": np.arange(-4, 4, dtype=np.int8).reshape(2, 4),
    "scale": np.array(0.5, np.float32),
    "words": np.array(["a", "bcd"]),
    "none": np.array((), np.str_),
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "deep" / "er" / "result.npz"
    cache.save(file, ARRAYS)
    return file


def test_what_is_saved_is_loaded(path):
    found = cache.load(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)
    assert found["codes/layers.0"].dtype == np.int8
    assert [each.name for each in path.parent.iterdir()] == ["result.npz"]


def test_the_same_arrays_are_the_same_bytes(path, tmp_path):
    cache.save(tmp_path / "again.npz", ARRAYS)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_what_is_broken_is_not_there(path):
    whole = path.read_bytes()
    assert cache.load(path.with_name("missing.npz")) is None
    assert cache.load(path.parent) is None
    np.save(path.with_name("single.npy"), ARRAYS[next(iter(ARRAYS))])
    assert cache.load(path.with_name("single.npy")) is None
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        assert cache.load(path) is None
    for position in range(0, len(whole), 11):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        found = cache.load(path)  # flags of the archive that nobody reads may be anything
        assert found is None or all(np.array_equal(found[name], ARRAYS[name]) for name in found)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["Ctrl-C", "full"])
def test_an_interrupted_save_leaves_what_was_there(path, monkeypatch, error):
    before = path.read_bytes()

    def savez(file, **_):
        file.write(b"half")
        raise error

    monkeypatch.setattr(cache.np, "savez", savez)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(expected):
        cache.save(path, {"other": np.zeros(3)})
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["result.npz"]


def test_a_folder_that_is_none_is_an_error_of_usage(tmp_path):
    (tmp_path / "file").write_text("in the way")
    where = tmp_path / "file" / "calibration"
    assert cache.load(where / "result.npz") is None
    with pytest.raises(OutputError, match="cannot keep a result of calibration: ") as error:
        cache.save(where / "result.npz", ARRAYS)
    assert error.value.exit_code == 2
    assert error.value.where == str(where)
    assert "EDGEC_CACHE" in error.value.hint


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_folder_that_may_not_be_written_is_an_error_of_usage(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    # Permissions do not bind root: the user "nobody" tries.
    script = f"""
import os
import numpy
from pathlib import Path
from edgec.calibrate import cache
from edgec.errors import OutputError
if os.geteuid() == 0:
    os.setuid(65534)
path = Path({str(tmp_path / "cache" / "result.npz")!r})
assert cache.load(path) is None
try:
    cache.save(path, {{"a": numpy.zeros(2)}})
except OutputError as error:
    print(error.exit_code, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("2 cannot keep a result of calibration: Permission denied"), done.stderr


def test_where_the_folder_is(monkeypatch):
    monkeypatch.setenv("EDGEC_CACHE", "/somewhere/else")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_dir() == Path("/somewhere/else")
    monkeypatch.setenv("EDGEC_CACHE", "")
    assert cache.cache_dir() == Path("/xdg/edgec")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache/edgec"


def test_tests_do_not_touch_the_users_cache(cache_of_tests):
    assert cache.cache_dir() == cache_of_tests
    assert Path.home() not in cache_of_tests.parents


def test_keys_know_where_a_part_ends():
    parts = [("a", "bc"), ("ab", "c"), ("abc",), ("abc", ""), ("", "abc"), (), ("",), ("1:a",), ("a", "1:b"), ("a1:b",)]
    keys = {cache.key(*each) for each in parts}
    assert len(keys) == len(parts)
    assert cache.key("a", "bc") == cache.key(b"a", b"bc")
    assert all(len(each) == 64 for each in keys)


def test_other_code_has_another_key(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "code.py").write_text("x = 1\n")
    (tmp_path / "calibrate").mkdir()
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "calibrate" / "cache.py"))
    both, first = cache.code_key("first", "second"), cache.code_key("first")
    assert both != first
    assert both == cache.code_key("second", "first")
    (tmp_path / "first" / "notes.txt").write_text("no code")
    assert cache.code_key("first") == first
    (tmp_path / "second" / "deep" / "code.py").write_text("x = 2\n")
    assert cache.code_key("first") == first
    assert cache.code_key("first", "second") != both
    (tmp_path / "first" / "deep" / "code.py").rename(tmp_path / "first" / "deep" / "other.py")
    assert cache.code_key("first") != first


def test_code_that_decides_results_is_found():
    assert cache.code_key("tune") != cache.code_key()
