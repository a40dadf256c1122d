import hashlib
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, processors

from edgec.errors import UsageError
from edgec.evaluate.corpus import load_corpus, python_documents, read_text
from edgec.generate.tokenizer import Tokenizer

BOS, BREAK = 0, 2


def words(*, marks: bool) -> Tokenizer:
    """Words "1" to "99" are tokens 11 to 109; a line break is a token too."""
    vocab = {"<s>": BOS, "?": 1, "\n": BREAK, **{str(n): n + 10 for n in range(1, 100)}}
    engine = Engine(models.WordLevel(vocab, unk_token="?"))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    if marks:
        engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return Tokenizer(engine, {"bos_token": "<s>"})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("1 2 3\n4 5\n\n6 7 8 9\n \n\n\n10 11")
    return path


def test_a_text_without_marks_is_one_stream(text: Path):
    corpus = load_corpus(text, words(marks=False), tokens=100, window=4)
    assert corpus.windows.tolist() == [[11, 12, 13, BREAK], [14, 15, BREAK, BREAK], [16, 17, 18, 19], [BREAK] * 4]
    assert (corpus.name, corpus.sha256) == ("text.txt", hashlib.sha256(text.read_bytes()).hexdigest())


def test_a_mark_begins_each_window(text: Path):
    corpus = load_corpus(text, words(marks=True), tokens=100, window=5)
    assert corpus.windows[:, 0].tolist() == [BOS] * 4
    unmarked = load_corpus(text, words(marks=False), tokens=100, window=4)
    assert corpus.windows[:, 1:].tolist() == unmarked.windows.tolist()


def test_every_python_carries_a_text():
    corpus = load_corpus("python-docs", words(marks=True), tokens=5000, window=100)
    assert (corpus.name, corpus.windows.shape) == ("python-docs", (50, 100))
    assert corpus.sha256 == load_corpus("python-docs", words(marks=False), tokens=50, window=10).sha256


@pytest.mark.parametrize(("tokens", "shape"), [(8, (2, 4)), (11, (2, 4)), (3, (1, 3)), (100, (4, 4))])
def test_takes_the_first_tokens(text: Path, tokens: int, shape: tuple[int, int]):
    assert load_corpus(text, words(marks=False), tokens=tokens, window=4).windows.shape == shape


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "has 0 tokens"), (b"\n", "has 1 tokens"), (b"1 2", "has 2 tokens, a window takes 3"), (b"1 \xff", "byte 2")],
)
def test_refuses_texts_that_measure_nothing(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        load_corpus(path, words(marks=True), tokens=100, window=4)
    assert error.value.where == str(path)


def test_refuses_what_it_cannot_read(tmp_path: Path):
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            load_corpus(path, words(marks=True), tokens=100, window=4)


def test_refuses_windows_that_predict_nothing(text: Path):
    with pytest.raises(UsageError, match="predicts nothing"):
        load_corpus(text, words(marks=True), tokens=100, window=1)


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf1 2 3 4")
    assert load_corpus(path, words(marks=False), tokens=4, window=4).windows.tolist() == [[11, 12, 13, 14]]


def test_calibration_has_nothing_of_what_evaluation_reads_of_the_text_that_every_python_carries():
    evaluation, calibration = read_text("python-docs"), read_text("python-docs", "calibration")
    assert len(evaluation) > 300_000
    assert len(calibration) > 150_000
    assert not set(evaluation[:200_000].split(b"\n\n")) & set(calibration.split(b"\n\n"))


def test_every_python_carries_its_source():
    whole = read_text("python-source")
    assert whole == read_text(Path("python-source"))  # as a command line gives it
    assert read_text(Path("python-docs")) == read_text("python-docs")
    assert len(whole) > 1_000_000
    assert b"def contextmanager(func):" in whole
    corpus = load_corpus("python-source", words(marks=False), tokens=100, window=10)
    assert (corpus.name, corpus.sha256) == ("python-source", hashlib.sha256(whole).hexdigest())


def test_the_source_is_pythons_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "base64.py").write_text("mine = 1")
    monkeypatch.syspath_prepend(tmp_path)
    assert not any("mine = 1" in module for module in python_documents("python-source"))


def test_topics_do_not_repeat_each_other_and_leave_calibration_alone():
    topics = python_documents("python-docs")
    paragraphs = [paragraph for topic in topics for paragraph in dict.fromkeys(topic.split("\n\n"))]
    assert len(topics) > 50
    assert len(set(paragraphs)) == len(paragraphs)
    assert not set(paragraphs) & set(read_text("python-docs", "calibration").decode().split("\n\n"))


def test_source_is_for_evaluation_alone():
    with pytest.raises(UsageError, match="cannot be read"):
        read_text("python-source", "calibration")


def test_a_python_without_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(UsageError, match="carries no text"):
        read_text("python-source")
