import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgec.checkpoint.safetensors_file import DTYPES, read_header, read_tensor
from edgec.errors import CheckpointError

Write = Callable[..., Path]


def tensor(dtype: str = "U8", shape: Any = (2,), offsets: Any = (0, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("code", DTYPES)
def test_reads_what_the_reference_implementation_wrote(code: str, tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3).astype(DTYPES[code])
    written = {"a": values, "scalar": values[0, 0], "empty": values[:, :0], "vector": values[1]}
    save_file({name: np.ascontiguousarray(value) for name, value in written.items()}, tmp_path / "x.safetensors")

    entries = read_header(tmp_path / "x.safetensors")

    for name, value in written.items():
        read = read_tensor(tmp_path / "x.safetensors", entries[name])
        assert entries[name].info.dtype == code
        assert read.dtype == DTYPES[code]
        assert read.shape == (value.shape if name != "scalar" else np.ascontiguousarray(value).shape)
        assert read.flags.c_contiguous
        assert read.tobytes() == np.ascontiguousarray(value).tobytes()


def test_metadata_is_no_tensor(safetensors: Write) -> None:
    path = safetensors({"__metadata__": {"format": "pt"}, "x": tensor()}, b"ab")
    assert list(read_header(path)) == ["x"]


HUGE = [2**40, 2**40]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": tensor()}, b"a", r"truncated: tensor 'x' needs bytes \d+\.\.\d+, the file ends at \d+"),
        ({"x": tensor()}, b"abc", "the last tensor ends at byte"),
        ({"x": tensor(offsets=(1, 3))}, b"abc", r"bytes \d+\.\.\d+, before tensor 'x', belong to no tensor"),
        ({"x": tensor(), "y": tensor(offsets=(1, 3))}, b"abc", r"tensor 'y' starts at byte \d+, inside tensor 'x'"),
        ({"x": tensor(), "y": tensor()}, b"ab", "inside tensor"),
        ({"x": tensor(shape=(3,))}, b"ab", "needs 3 bytes, its data_offsets 0..2 give 2"),
        ({"x": tensor(offsets=(2, 0))}, b"ab", "its data_offsets 2..0 give -2"),
        ({"x": tensor(dtype="F8_E4M3")}, b"ab", "tensor 'x' has dtype 'F8_E4M3', which is not supported"),
        ({"x": tensor(dtype=["F32"])}, b"ab", "which is not supported"),
        ({"x": tensor(shape=(-2,))}, b"ab", r"tensor 'x' has shape \[-2\]"),
        ({"x": tensor(shape=(True, 2))}, b"ab", "has shape"),
        ({"x": tensor(shape=(2.0,))}, b"ab", "has shape"),
        ({"x": tensor(shape="2")}, b"ab", "has shape"),
        ({"x": tensor(shape=[1] * 65)}, b"a", "at most 64 sizes"),
        ({"x": tensor(shape=[0, *HUGE], offsets=(0, 0))}, b"", "has shape"),
        ({"x": tensor(offsets=(0, 1, 2))}, b"ab", "data_offsets"),
        ({"x": tensor(offsets=(0, 10**100))}, b"ab", "data_offsets"),
        ({"x": tensor() | {"more": 1}}, b"ab", "exactly dtype, shape and data_offsets"),
        ({"x": [1]}, b"ab", "exactly dtype, shape and data_offsets"),
        ({"a\nb": tensor()}, b"ab", r"tensor name 'a\\nb' contains control characters"),
        ({"\ud800": tensor()}, b"ab", "contains control characters"),
        (b'{"x": 1, "x": 2}', b"", "the key 'x' occurs twice"),
        (b'{"x": ', b"", "is damaged"),
        (b'{"\xff": 1}', b"", "is damaged"),
        (b"[1]", b"", "does not start with"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "is damaged"),
        (b'{"x": 1' + b"0" * 5000 + b"}", b"", "is damaged"),
        (b" {}", b"", "does not start with"),
    ],
)
def test_refuses_a_header(header: Any, data: bytes, message: str, safetensors: Write) -> None:
    path = safetensors(header, data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(path)
    assert "model.safetensors" in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc", "truncated: a safetensors file starts with 8 bytes, this has 3"),
        (struct.pack("<Q", 2**63) + b"{}", "at most 100000000 are allowed"),
        (struct.pack("<Q", 100) + b"{}", r"truncated: the header needs bytes 8\.\.108, the file ends at 10"),
    ],
)
def test_refuses_a_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_says_when_the_file_becomes_shorter(safetensors: Write) -> None:
    path = safetensors({"x": tensor()}, b"ab")
    entry = read_header(path)["x"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="became shorter"):
        read_tensor(path, entry)


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(list(DTYPES)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
ENTRY = st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}) | JSON


@SETTINGS
@given(header=st.dictionaries(st.text(), ENTRY), data=st.binary(max_size=64))
def test_any_json_header_is_read_or_refused(header: dict[str, Any], data: bytes, safetensors: Write) -> None:
    read_or_refuse(safetensors(header, data))


@SETTINGS
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_corruption_is_read_or_refused(changes: list[tuple[int, int]], safetensors: Write) -> None:
    header = {"x": tensor("F32", (2, 3), (0, 24)), "y": tensor("BF16", (4,), (24, 32)), "z": tensor(offsets=(32, 34))}
    path = safetensors(header, bytes(34))
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content)
    read_or_refuse(path)


def read_or_refuse(path: Path) -> None:
    try:
        entries = read_header(path)
    except CheckpointError:
        return
    for entry in entries.values():
        assert read_tensor(path, entry).nbytes == entry.end - entry.begin


def test_one_tensor_is_read_without_the_rest(tmp_path: Path) -> None:
    large_bytes = 8 << 30
    header = json.dumps({
        "large": tensor("U8", (large_bytes,), (0, large_bytes)),
        "small": tensor("BF16", (512,), (large_bytes, large_bytes + 1024)),
    }).encode()  # fmt: skip
    path = tmp_path / "model.safetensors"
    values = np.arange(512).astype(ml_dtypes.bfloat16)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.seek(large_bytes, 1)  # a hole: the file takes no space on disk
        file.write(values.tobytes())

    tracemalloc.start()
    read = read_tensor(path, read_header(path)["small"])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert np.array_equal(read, values)
    assert peak_bytes < 1 << 20
