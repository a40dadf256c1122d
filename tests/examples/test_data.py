"""The committed texts and tokenizer are what the generator makes, and the splits share no story."""

import itertools
import json
from pathlib import Path

import pytest
from data import BOS, BOS_ID, EOS, EOS_ID, encode_story, split_of, stories, training_rows
from grammar import story
from tokenizers import Tokenizer
from train import write_texts
from world import make_world

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"

FILES = {"calibration": "train", "validation": "validation", "heldout": "heldout"}


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {name: (STORYTELLER / "data" / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in FILES}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(STORYTELLER / "checkpoint" / "tokenizer.json"))


def test_the_generator_repeats_itself_and_seeds_differ() -> None:
    grammar = story(make_world())
    first, again, other = (list(itertools.islice(stories(grammar, "train", seed), 20)) for seed in (7, 7, 8))
    assert first == again
    assert not set(first) & set(other)


def test_the_committed_texts_are_what_the_generator_makes(texts, tmp_path) -> None:
    write_texts(story(make_world()), tmp_path, {name: len(lines) for name, lines in texts.items()})
    for name in FILES:
        committed = STORYTELLER / "data" / f"{name}.txt"
        assert committed.read_bytes() == (tmp_path / f"{name}.txt").read_bytes()
        assert committed.stat().st_size <= 250_000


def test_no_story_is_in_two_splits(texts) -> None:
    every = [text for lines in texts.values() for text in lines]
    assert len(set(every)) == len(every)
    for name, split in FILES.items():
        assert {split_of(text) for text in texts[name]} == {split}
    # What the model is trained on is drawn with another seed; its split alone keeps it apart.
    trained = set(itertools.islice(stories(story(make_world()), "train", 2), 2000))
    assert not trained & {*texts["validation"], *texts["heldout"]}


def test_splits_have_their_shares() -> None:
    counts = {"train": 0, "validation": 0, "heldout": 0}
    for number in range(20_000):
        counts[split_of(f"story {number}")] += 1
    assert counts["heldout"] == pytest.approx(1000, abs=130)
    assert counts["validation"] == pytest.approx(1000, abs=130)


def test_text_survives_the_tokenizer(texts, tokenizer) -> None:
    whole = (STORYTELLER / "data" / "heldout.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(whole).ids
    assert ids[0] == BOS_ID
    assert ids.count(EOS_ID) == len(texts["heldout"])
    assert tokenizer.decode(ids[1:], skip_special_tokens=False) == whole
    # One story a line, tokenized whole, is the stories tokenized one by one.
    assert ids[1:] == [token for text in texts["heldout"] for token in encode_story(tokenizer, text)[1:]]
    strange = "Ünïcode 中文 🦉\t<tags>  two spaces"
    assert tokenizer.decode(tokenizer.encode(strange).ids) == strange


def test_tokenizer_and_configs_name_the_same_ends(tokenizer) -> None:
    folder = STORYTELLER / "checkpoint"
    assert (tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)) == (BOS_ID, EOS_ID)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (BOS_ID, EOS_ID)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == (BOS, EOS)


def test_training_rows_start_afresh_and_go_on_in_turn(tokenizer) -> None:
    texts = list(itertools.islice(stories(story(make_world()), "train", 1), 8))
    one, two, three = itertools.islice(training_rows(tokenizer, iter(texts), 100), 3)
    assert [len(row) for row in (one, two, three)] == [100] * 3
    stream = [BOS_ID] + [token for text in texts for token in encode_story(tokenizer, text)[1:]]
    assert [*one, *two] == stream[:200]
    assert three[0] == BOS_ID
    assert tokenizer.decode(list(three)).startswith("Once")
