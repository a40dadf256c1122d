"""What files become: windows of tokens, the same every time."""

import hashlib
import io
import json
import random
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.calibrate.dataset import hash_files, load_dataset
from edgec.calibrate.documents import Sample, Text, normalise
from edgec.errors import UsageError
from edgec.generate.tokenizer import Tokenizer

STORYTELLER = Path(__file__).parents[2] / "examples/storyteller/checkpoint"
BOS, EOS, OTHER, USER, BOT = range(5)
TEMPLATE = """{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}
{{ '<u>' if m.role == 'user' else '<b>' }} {{ m.content }} {% endfor %}
{% if add_generation_prompt %}<b>{% endif %}{{ strftime_now('%d %Y') }}"""


def numbers(*values):
    return " ".join(map(str, values))


def lines(*objects):
    return "\n".join(map(json.dumps, objects))


def rows(dataset):
    return sorted(dataset.windows.tolist())


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["text.txt", "text.md", "text", "TEXT.TXT"])
def test_a_plain_text_gives_windows_of_text_as_it_is_written(words, file, name):
    text = file(name, "\ufeff5 6 7\r\n8 9 10\r11 12 13 14")
    dataset = load_dataset([text], words(), tokens=9, window=3)
    assert rows(dataset) == [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    assert dataset.windows.dtype == np.int64
    assert dataset.name == name
    assert dataset.sha256 == hash_files([text]) == {text: hashlib.sha256(Path(text).read_bytes()).hexdigest()}
    assert (dataset.tokens_wanted, dataset.remarks) == (9, ())
    assert dataset.places == (text,) * 3


def test_marks_begin_windows_and_end_texts(words, file):
    documents = file("a.jsonl", lines({"text": "5 6"}, {"text": "7"}, {"text": "8 9 10 11"}))
    found = load_dataset([documents], words(bos=True, eos=True), tokens=100, window=4)
    assert rows(found) == [[BOS, 5, 6, EOS], [BOS, 7, EOS, 8], [BOS, 9, 10, 11]]
    assert rows(load_dataset([documents], words(), tokens=100, window=3)) == [[5, 6, 7], [8, 9, 10]]
    plain = file("plain.txt", numbers(*range(5, 900)))  # several pieces, one text
    assert np.count_nonzero(load_dataset([plain], words(eos=True), tokens=1000, window=8).windows == EOS) == 1


def test_windows_say_where_they_begin(words, file):
    documents = file("a.jsonl", lines({"text": "5"}, {"text": "6 7 8 9 10"}, {"text": "11 12 13"}))
    found = load_dataset([documents], words(), tokens=100, window=3)
    places = dict(zip(map(tuple, found.windows.tolist()), found.places, strict=True))
    assert places == {(5, 6, 7): f"{documents}:1", (8, 9, 10): f"{documents}:2", (11, 12, 13): f"{documents}:3"}


def test_conversations_go_through_the_chat_template(words, file):
    turns = [{"role": "user", "content": "5 6", "id": 7}, {"role": "assistant", "content": "7"}]
    chat = file("chat.jsonl", lines({"messages": turns}))
    found = load_dataset([chat], words(template=TEMPLATE, eos=True), tokens=100, window=7)
    # No question left open, no mark of our own, and always the same day: 01 2025.
    assert rows(found) == [[USER, 5, 6, BOT, 7, OTHER, OTHER]]


def test_token_files_are_taken_as_they_are(words, file):
    stream = np.arange(5, 15)
    for name, content in {
        "a.npy": npy(stream.astype(np.uint16)),
        "b.npz": npz(anything=stream.astype(">i4")),
        "c.npz": npz(input_ids=stream, attention_mask=np.ones((2, 2, 2))),
    }.items():
        found = load_dataset([file(name, content)], words(bos=True), tokens=100, window=4)
        assert rows(found) == [[BOS, 5, 6, 7], [BOS, 8, 9, 10], [BOS, 11, 12, 13]]
    windows = file("windows.npy", npy(stream[:8].reshape(2, 4)))
    assert rows(load_dataset([windows], words(bos=True), tokens=100, window=4)) == [[5, 6, 7, 8], [9, 10, 11, 12]]


def test_files_of_all_kinds_go_together_in_any_order(words, file):
    files = [
        file("a.txt", numbers(*range(100, 120))),
        file("b.jsonl", lines({"text": numbers(*range(200, 220))})),
        file("c.npy", npy(np.arange(300, 320))),
        file("d.npy", npy(np.arange(400, 420).reshape(4, 5))),
    ]
    found = load_dataset(files, words(), tokens=80, window=5)
    assert sorted(found.windows.reshape(-1)) == [*range(100, 120), *range(200, 220), *range(300, 320), *range(400, 420)]
    assert found.name == "a.txt, b.jsonl, c.npy, d.npy"
    again = load_dataset([*reversed(files), files[0]], words(), tokens=80, window=5)
    assert again.windows.tobytes() == found.windows.tobytes()
    assert again.sha256 == found.sha256
    moved = [file(f"{9 - n}{Path(path).suffix}", Path(path).read_bytes()) for n, path in enumerate(files)]
    assert load_dataset(moved, words(), tokens=80, window=5).windows.tobytes() == found.windows.tobytes()


def test_the_seed_decides_and_nothing_else_does(words, file):
    text = file("long.txt", "\n".join(numbers(*range(n % 900 + 5, n % 900 + 20)) for n in range(4000)))
    first, again, other = (load_dataset([text], words(), tokens=64, window=8, seed=seed) for seed in (0, 0, 1))
    assert first.windows.tobytes() == again.windows.tobytes()
    assert first.windows.tobytes() != other.windows.tobytes()
    # The same on every machine, so also what it was when this was written.
    assert hashlib.sha256(first.windows.astype("<i8").tobytes()).hexdigest()[:16] == "b8245491ff8d8515"


def test_a_sample_comes_from_everywhere(words, file):
    text = file("long.txt", "\n".join(numbers(100 + line // 30, 5 + line % 95) for line in range(27000)))
    found = load_dataset([text], words(), tokens=512, window=8).windows
    tenths = (found[found >= 100] - 100) // 90
    assert len(np.unique(tenths)) > 5
    # A window is a piece of the text: its even or its odd tokens count up.
    assert all((np.diff(window[window < 100]) % 95 == 1).all() for window in found)


def test_equal_documents_and_equal_windows_count_once(words, file):
    twice = file("a.jsonl", lines({"text": "5 6 7"}, {"text": " 5\t6\r\n7 "}, {"text": "8 9 10"}, {"text": "5 6 7"}))
    found = load_dataset([twice], words(), tokens=100, window=3)
    assert rows(found) == [[5, 6, 7], [8, 9, 10]]
    assert found.remarks == ("calibration saw 6 tokens of the 99 wanted: its text has no more",)
    repeating = file("b.txt", "5 6 7 " * 50)
    assert rows(load_dataset([repeating], words(), tokens=100, window=3)) == [[5, 6, 7]]
    composed, apart = "\u00e9", unicodedata.normalize("NFD", "\u00e9")
    forms = file("c.jsonl", lines({"text": composed}, {"text": apart}, {"text": "5"}))
    assert len(load_dataset([forms], words(), tokens=3, window=2).windows) == 1
    chats = [{"messages": [{"role": "user", "content": text}]} for text in ("5", " 5 ", "6", " ")]
    found = load_dataset(
        [file("d.jsonl", lines(*chats))], words(template="{{ messages[0].content }}"), tokens=9, window=2
    )
    assert rows(found) == [[5, 6]]


def test_the_text_that_every_python_carries_is_enough():
    found = load_dataset(["python-docs"], Tokenizer.from_directory(STORYTELLER), tokens=32768, window=512)
    assert (found.name, found.windows.shape, found.remarks) == ("python-docs", (64, 512), ())


@pytest.mark.parametrize("content", ["", "\n \n", "5 6"])
def test_less_than_a_window_is_refused(words, file, content):
    with pytest.raises(UsageError, match=rf"has {len(content.split())} tokens, a window takes 3") as error:
        load_dataset([file("a.txt", content)], words(bos=True), tokens=100, window=4)
    assert error.value.where.endswith("a.txt")
    with pytest.raises(UsageError, match="predicts nothing"):
        load_dataset([file("a.txt", content)], words(), tokens=1, window=4)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=8))
def test_any_text_in_json_lines_equals_its_normal_form(words, texts):
    def load(texts):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.jsonl"
            path.write_text(lines(*({"text": text} for text in texts), {"text": "5 6 7 8"}))
            return load_dataset([str(path)], words(eos=True), tokens=4, window=2, seed=3).windows.tolist()

    assert load(texts) == load(list(map(normalise, texts)))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("ab \n", max_size=12), max_size=30),
    budget=st.integers(1, 100),
    seed=st.integers(0, 2**64 - 1),
    shuffle=st.integers(0, 10),
)
def test_a_sample_is_bounded_and_knows_neither_order_nor_repetition(texts, budget, seed, shuffle):
    def sample(texts):
        sample = Sample(seed, budget)
        for text in texts:
            sample.add(Text("", text, ends=True))
        return [document.text for document in sample.documents()]

    unique = list({" ".join(text.split()): text for text in reversed(texts)}.values())
    unique = [text for text in unique if text.strip()]
    kept = sample(texts)
    size = sum(map(len, kept))
    assert min(budget, sum(map(len, unique))) <= size < budget + 12
    assert len({" ".join(text.split()) for text in kept}) == len(kept)
    assert set(sample(unique)) == set(kept)
    moved = random.Random(shuffle).sample(unique, len(unique))
    assert set(sample(moved)) == set(kept)


def test_every_document_is_as_likely_as_the_others():
    counts = dict.fromkeys(map(str, range(10, 20)), 0)
    for seed in range(2000):
        sample = Sample(seed, budget=6)
        for text in counts:
            sample.add(Text("", text, ends=True))
        for document in sample.documents():
            counts[document.text] += 1
    # 3 of 10 are kept: 600 each, with a standard deviation of 20.
    assert all(abs(count - 600) < 100 for count in counts.values())
