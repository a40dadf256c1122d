"""Passages from all over a text, and the documents that they come from."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, processors

from edgec.errors import UsageError
from edgec.evaluate.documents import Passages, load_passages, split_documents
from edgec.generate.tokenizer import Tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def letters(*, marks: bool = False) -> Tokenizer:
    """Every byte is a token."""
    vocab = {"<s>": 0, **{letter: n + 1 for n, letter in enumerate(ALPHABET)}}
    engine = Engine(models.BPE(vocab, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    if marks:
        engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(engine, {"bos_token": "<s>"})


def texts(passages: Passages) -> dict[int, str]:
    """Return what was taken of each document."""
    decode = letters().decode
    windows, documents = passages.windows.reshape(-1), passages.documents.reshape(-1)
    return {int(number): decode(windows[documents == number].tolist()) for number in np.unique(documents)}


def write(folder: Path, content: str | bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_articles_begin_with_a_heading_of_the_first_level():
    text = " \n = First = \n\n Some text . \n = = Section = = \n More . \n = Second = \n\n = = = Deep = = = \n x = y \n"
    first, second = split_documents(text)
    assert first.startswith(" = First = ")
    assert "Section" in first
    assert second.startswith(" = Second = ")
    assert "Deep" in second


@pytest.mark.parametrize("gap", ["\n\n\n", "\n \n\t\n", "\r\n\r\n\r\n", "\f", "\n\f\n"])
def test_gaps_part_documents(gap: str):
    parts = [f"Document {n}\n\nhas two paragraphs.\n" for n in range(9)]
    text = gap.join(parts)
    found = split_documents(text)
    assert "".join(found) == text
    assert [document.strip() for document in found] == [part.strip() for part in parts]


@pytest.mark.parametrize("text", ["", "one\n\ntwo", "\n\n\n".join("abcdefg"), " = Only = \n text\n\n\n more"])
def test_what_nothing_parts_is_one_text(text: str):
    assert split_documents(text) == [text]


def test_windows_are_spread_and_know_their_documents(tmp_path: Path):
    parts = [letter * 50 + "\n\n\n" for letter in "abcdefghij"]
    path = write(tmp_path, "".join(parts))
    found = load_passages(path, letters(), tokens=100, window=10)
    assert found.windows.shape == found.documents.shape == (10, 10)
    assert (found.name, found.sha256) == ("text.txt", hashlib.sha256(path.read_bytes()).hexdigest())
    taken = texts(found)
    assert list(taken) == list(range(10))
    assert [set(taken[n].strip()) for n in range(10)] == [{letter} for letter in "abcdefghij"]
    assert found.remarks == ()
    # All of it, if so much is wanted.
    whole = load_passages(path, letters(), tokens=530, window=10)
    assert "".join(texts(whole).values()) == "".join(parts)


def test_a_mark_begins_each_window_and_belongs_to_its_document(tmp_path: Path):
    path = write(tmp_path, "\n\n\n".join(letter * 50 for letter in "abcdefghij"))
    plain = load_passages(path, letters(), tokens=90, window=9)
    marked = load_passages(path, letters(marks=True), tokens=100, window=10)
    assert (marked.windows[:, 0] == 0).all()
    assert marked.windows[:, 1:].tolist() == plain.windows.tolist()
    assert marked.documents[:, 1:].tolist() == plain.documents.tolist()
    assert (marked.documents[:, 0] == marked.documents[:, 1]).all()


def test_without_documents_each_window_is_one(tmp_path: Path):
    found = load_passages(write(tmp_path, "abc " * 100), letters(), tokens=60, window=20)
    assert found.documents.tolist() == [[n] * 20 for n in range(3)]
    assert found.remarks == ("nothing in text.txt says where a document ends: each window counts as one",)


def test_lines_of_json_are_documents(tmp_path: Path):
    lines = [json.dumps({"text": letter * 20, "more": 1}) for letter in "abc"]
    path = write(tmp_path, "\n".join([lines[0], "", json.dumps({"text": " "}), *lines[1:]]), "some.jsonl")
    found = load_passages(path, letters(), tokens=66, window=11)
    assert [part.strip() for part in texts(found).values()] == ["a" * 20, "b" * 20, "c" * 20]
    bad = write(tmp_path, '{"text": "a"}\n{"messages": []}', "bad.jsonl")
    with pytest.raises(UsageError, match="cannot be used") as caught:
        load_passages(bad, letters(), tokens=66, window=11)
    assert str(caught.value.where).endswith("bad.jsonl:2")


@pytest.mark.parametrize(("name", "beginning"), [("python-docs", 'The "assert"'), ("python-source", "#! /usr/bin/env")])
def test_texts_that_every_python_carries(name: str, beginning: str):
    found = load_passages(name, letters(), tokens=8_000, window=100)
    assert found.windows.shape == (80, 100)
    assert len(np.unique(found.documents)) > 20
    assert texts(found)[0].startswith(beginning)
    again = load_passages(Path(name), letters(), tokens=8_000, window=100)
    assert (again.sha256, again.windows.tolist()) == (found.sha256, found.windows.tolist())


def test_a_text_that_is_too_short_says_so(tmp_path: Path):
    path = write(tmp_path, "a" * 45)
    assert "text.txt has 40 of the 100 tokens wanted" in load_passages(path, letters(), tokens=100, window=20).remarks
    with pytest.raises(UsageError, match="has 45 tokens, a window takes 50"):
        load_passages(path, letters(), tokens=100, window=50)
    with pytest.raises(UsageError, match="predicts nothing"):
        load_passages(path, letters(), tokens=100, window=1)


def test_what_is_read_is_bounded(tmp_path: Path):
    """A character may end where reading does; what is wrong behind it does not matter."""
    path = write(tmp_path, "\ufeffaé€😀".encode() * 1_000 + b"\xff")
    found = load_passages(path, letters(), tokens=10, window=10)
    assert texts(found)[0].startswith("aé")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_passages(path, letters(), tokens=10_000, window=10)


def test_files_that_cannot_be_read(tmp_path: Path):
    for path in (tmp_path, tmp_path / "missing.txt", tmp_path / "missing.jsonl"):
        with pytest.raises(UsageError, match="cannot be read"):
            load_passages(path, letters(), tokens=10, window=10)
