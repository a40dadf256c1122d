"""Calibration does not see what quality is measured on."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from edgec.calibrate.dataset import Dataset, load_dataset
from edgec.calibrate.overlap import SPAN, check_overlap
from edgec.errors import UsageError
from edgec.evaluate.corpus import Corpus, load_corpus
from edgec.generate.tokenizer import Tokenizer

STORYTELLER = Path(__file__).parents[2] / "examples/storyteller"


@pytest.fixture(scope="module")
def storyteller():
    return Tokenizer.from_directory(STORYTELLER / "checkpoint")


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(5, 1000, shape)


def calibration(windows):
    places = tuple(f"calibration.jsonl:{n}" for n in range(len(windows)))
    return Dataset("calibration.jsonl", {"calibration.jsonl": "c"}, windows, places, windows.size)


def evaluation(windows):
    return Corpus("evaluation.txt", "e", windows)


def test_one_shared_span_is_found_and_shown(words):
    ours, theirs = noise((9, 128), 1), noise((4, 256), 2)
    assert check_overlap(calibration(ours), evaluation(theirs), words()) == ()
    theirs[2, 100 : 100 + SPAN] = ours[7, 30 : 30 + SPAN]
    with pytest.raises(UsageError, match="1 of 9 windows of calibration share 50 tokens in a row") as error:
        check_overlap(calibration(ours), evaluation(theirs), words())
    assert "evaluation.txt" in error.value.what
    assert words().decode(ours[7, 30 : 30 + SPAN].tolist()) in error.value.what
    assert error.value.where == "calibration.jsonl:7"
    theirs[2, 100] = 0  # one token less is chance
    assert check_overlap(calibration(ours), evaluation(theirs), words()) == ()


def test_a_few_windows_of_many_are_remarked_on(words):
    ours, theirs = noise((100, 64), 1), noise((4, 64), 2)
    theirs[0] = ours[42]
    (remark,) = check_overlap(calibration(ours), evaluation(theirs), words())
    assert remark.startswith("1 of 100 windows of calibration share 50 tokens in a row with evaluation.txt, such as '")
    theirs[1] = ours[43]
    with pytest.raises(UsageError, match="2 of 100"):
        check_overlap(calibration(ours), evaluation(theirs), words())


def test_edges_of_windows_hide_nothing(words):
    text = noise(600)
    theirs = np.column_stack([np.zeros(15, int), text.reshape(15, 40)])  # a mark, and less than a span
    ours = np.column_stack([np.zeros(4, int), text[20:420].reshape(4, 100)])
    with pytest.raises(UsageError, match="4 of 4 windows of calibration share 40 tokens"):
        check_overlap(calibration(ours), evaluation(theirs), words(bos=True))


def test_rules_and_empty_tables_are_no_text(words):
    ours, theirs = noise((3, 128), 1), noise((3, 128), 2)
    ours[:, 20:90] = theirs[:, 30:100] = 7
    ours[:, 20:90:9] = theirs[:, 30:100:9] = 8
    assert check_overlap(calibration(ours), evaluation(theirs), words()) == ()


@pytest.mark.parametrize("window", [16, 128, 512])
def test_stories_that_are_told_alike_are_no_copies(storyteller, window):
    heldout = load_corpus(STORYTELLER / "data/heldout.txt", storyteller, tokens=16384, window=256)
    dataset = load_dataset([str(STORYTELLER / "data/calibration.txt")], storyteller, tokens=8192, window=window)
    if window < SPAN:  # short windows can share a sentence
        with pytest.raises(UsageError, match="share 15 tokens"):
            check_overlap(dataset, heldout, storyteller)
    else:
        assert check_overlap(dataset, heldout, storyteller) == ()


def test_copies_in_other_files_are_found(storyteller, tmp_path):
    text = (STORYTELLER / "data/heldout.txt").read_text()
    heldout = load_corpus(STORYTELLER / "data/heldout.txt", storyteller, tokens=4096, window=256)
    copy = tmp_path / "copy.jsonl"
    copy.write_text(
        "\n".join(json.dumps({"text": f"Number {n}.\r\n{story}"}) for n, story in enumerate(text.split("\n")))
    )
    dataset = load_dataset([str(copy)], storyteller, tokens=8192, window=128)
    with pytest.raises(UsageError, match="windows of calibration share 50 tokens") as error:
        check_overlap(dataset, heldout, storyteller)
    assert re.fullmatch(rf"{re.escape(str(copy))}:\d+", error.value.where)


@pytest.mark.parametrize(("tokens", "window"), [(512, 128), (32768, 512)])
def test_parts_of_the_text_that_every_python_carries_share_nothing(storyteller, tokens, window):
    dataset = load_dataset(["python-docs"], storyteller, tokens=tokens, window=window)
    assert check_overlap(dataset, load_corpus("python-docs", storyteller, tokens=16384, window=256), storyteller) == ()
    whole = load_corpus("python-docs", storyteller, tokens=200_000, window=256)
    with pytest.raises(UsageError, match="share 50 tokens"):
        check_overlap(dataset, whole, storyteller)
