"""What cannot be used is refused, and said to lie where it lies."""

import contextlib
import io
import json
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.calibrate import readers
from edgec.calibrate.dataset import hash_files, load_dataset
from edgec.calibrate.npy import open_npz
from edgec.calibrate.readers import Limits, read_documents
from edgec.errors import UsageError

VOCABULARY = 1000
GOOD = '{"text": "5 6 7 8"}'
CHAT = '{"messages": [{"role": "%s", "content": "5 6 7 8"}]}'


def load(path, tokenizer):
    return load_dataset([path], tokenizer, tokens=100, window=4)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "truncated"),
        (b'{"text": "5"} 6', "trailing characters"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "either `text` or `messages`"),
        (b'{"txt": "5"}', "either `text` or `messages`"),
        (b'{"text": "5", "messages": []}', "either `text` or `messages`"),
        (b'{"text": 5}', "Expected `str`, got `int` - at `$.text`"),
        (b'{"text": null}', "Expected `str`, got `null`"),
        (b'{"text": "\xff"}', "it is not UTF-8: invalid start byte"),
        (b'{"text": "\\ud800 5 6 7"}', "surrogate"),
        (b'{"messages": []}', "at least one message"),
        (b'{"messages": ["5"]}', "Expected `object`, got `str` - at `$.messages[0]`"),
        (b'{"messages": [{"role": "user"}]}', "missing required field `content` - at `$.messages[0]`"),
        (b'{"messages": [{"role": "user", "content": ["5"]}]}', "Expected `str`, got `array`"),
        (b'{"messages": [{"role": "user", "content": "5"}]}', "no chat template: give it as `text`"),
        (b'{"a": ' + b"[" * 100_000, "recursion"),
    ],
)
def test_a_line_that_cannot_be_used_is_said_to_be_so(words, file, line, reason):
    path = file("a.jsonl", b"\xef\xbb\xbf" + GOOD.encode() + b"\n\n \r\n" + line + b"\n" + GOOD.encode())
    with pytest.raises(UsageError, match="1 line of the calibration text cannot be used: line 4: ") as error:
        load(path, words())
    assert reason in error.value.what
    assert error.value.where == f"{path}:4"
    assert error.value.exit_code == 2


def test_three_lines_are_told_and_the_others_counted(words, file):
    path = file("a.jsonl", "\n".join([GOOD, "x", GOOD, *["{}"] * 4]))
    with pytest.raises(UsageError, match=r"5 lines .*: line 2: .*; line 4: .*; line 5: .*; and 2 more\n") as error:
        load(path, words())
    assert error.value.where == f"{path}:2"


def test_lines_without_an_end_are_refused(words, file, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 100)
    path = file("a.jsonl", GOOD + "\n" + "[" * 101)
    with pytest.raises(UsageError, match="more than") as error:
        load(path, words())
    assert error.value.where == f"{path}:2"


def test_what_a_template_refuses_is_said_to_lie_where_it_lies(words, file):
    path = file("a.jsonl", f"{CHAT % 'user'}\n{CHAT % 'system'}")
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}5 6 7 8"
    with pytest.raises(UsageError, match="no system") as error:
        load(path, words(template=template))
    assert error.value.where == f"{path}:2"


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"\xff", 1), (b"5 6\n7 \xe9 8\n", 2), (b"5\n" * 9000 + b"\xff", 9001), (b"5\n6\n\xe2\x82", 3)],
)
def test_plain_text_that_is_not_utf8(words, file, content, line):
    path = file("a.txt", content)
    with pytest.raises(UsageError, match="is not UTF-8") as error:
        load(path, words())
    assert error.value.where == f"{path}:{line}"


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("aé日😀 \n"), max_size=200), st.integers(1, 9))
def test_pieces_of_a_plain_text_are_the_text(text, piece):
    pieces = list(readers._read_plain("a", io.BytesIO(text.encode()), piece))
    assert "".join(part.text for part in pieces) == text
    assert [part.ends for part in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)
    assert all(len(part.text) <= 2 * piece for part in pieces)


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("aé日 \n"), max_size=30000))
def test_pieces_of_a_line_of_json_are_its_text(text):
    file = io.BytesIO(json.dumps({"text": text}).encode())
    pieces = list(read_documents("a.jsonl", file, Limits(16, VOCABULARY, has_template=False)))
    assert "".join(part.text for part in pieces) == text
    assert [part.ends for part in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(part.text) <= 4096 for part in pieces)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", npy(np.array([5, VOCABULARY])), "token 1000 is outside of the vocabulary of 1000"),
        ("a.npy", npy(np.array([[5, 6, 7, -1]])), "token -1 is outside"),
        ("a.npy", npy(np.array([2**64 - 1], np.uint64)), "outside of the vocabulary"),
        ("a.npy", npy(np.array([5.0])), r"float64 \(1,\) are no token ids"),
        ("a.npy", npy(np.zeros((1, 1, 4), int)), "are no token ids"),
        ("a.npy", npy(np.zeros((2, 5), int)), "windows of 5 tokens, calibration takes 4"),
        ("a.npy", npy(np.array(5)), "no axes"),
        ("a.npy", npy(np.zeros((4, 4), int, order="F")), "column by column"),
        ("a.npy", npy(np.array([5, None])), "holds object, not numbers"),
        ("a.npy", npy(np.arange(9))[:-1], "damaged"),
        ("a.npy", npy(np.arange(9)) + b"0", "damaged"),
        ("a.npy", npy(np.arange(9)).replace(b"(9,)", b"(9e9"), "NumPy's format"),
        ("a.npy", b"5 6 7 8", "NumPy's format"),
        ("a.npy", b"", "NumPy's format"),
        ("a.npz", npz(a=np.arange(4), b=np.arange(4)), "2 arrays and none is called input_ids: a, b"),
        ("a.npz", npz(), "0 arrays"),
        ("a.npz", npz(a=np.array([None])), "not numbers"),
        ("a.npz", b"5 6 7 8", "no archive"),
        ("a.npz", npz(a=np.arange(999))[:-30], "no archive"),
    ],
)  # fmt: skip
def test_files_of_tokens_that_hold_something_else(words, file, name, content, message):
    path = file(name, content)
    with pytest.raises(UsageError, match=message) as error:
        load(path, words())
    assert error.value.where.startswith(path)


def test_damage_inside_an_archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(np.random.default_rng(0).integers(0, 999, 5000)))
    content = bytearray(buffer.getvalue())
    content[len(content) // 2] ^= 0xFF
    array = open_npz(io.BytesIO(content), "a.npz")["a"]
    with pytest.raises(UsageError, match="the array is damaged") as error:
        list(array.blocks(100))
    assert error.value.where == "a.npz: a.npy"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_of_tokens_are_refused_or_read(words, tmp_path_factory, data):
    suffix, good = data.draw(st.sampled_from([(".npy", npy(np.arange(5, 40))), (".npz", npz(a=np.arange(5, 40)))]))
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        assert load(str(path), words()).windows.max() < VOCABULARY


@pytest.mark.parametrize("name", ["missing.txt", ".", "missing\0.txt"])
def test_files_that_are_not_there(words, tmp_path, name):
    for read in (hash_files, lambda names: load_dataset(names, words(), tokens=9, window=4)):
        with pytest.raises(UsageError, match="is missing, or is no file") as error:
            read([str(tmp_path / name)])
        assert error.value.where == str(tmp_path / name)


@pytest.mark.parametrize("name", ["a.json", "a.parquet", "a.txt.gz"])
def test_kinds_that_are_not_known(file, name):
    path = file(name, GOOD)
    with pytest.raises(UsageError, match=re.escape(".txt, .md, .jsonl, .npy, .npz or in nothing")) as error:
        hash_files([path])
    assert error.value.where == path
