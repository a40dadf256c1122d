"""Samples of every kind, for networks."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.calibrate.images import Pictures
from edgec.calibrate.samples import load_samples
from edgec.errors import UsageError
from edgec.frontends.network import Port

PORTS = (Port("x", "float32", ("batch", 2)), Port("on", "bool", ("batch",)))
VISION = (Port("pixels", "float32", ("batch", 3, 2, 2)),)
SMALL = Pictures(input="pixels", height=2, width=2, mean=(0, 0, 0), std=(1, 1, 1))


def joined(samples):
    pairs = list(samples.batches())
    inputs = {name: np.concatenate([feed[name] for feed, _ in pairs]) for name in pairs[0][0]}
    return inputs, [label for _, labels in pairs for label in ([] if labels is None else labels)]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 30), samples=st.integers(1, 40), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_arrays_and_labels_stay_together(tmp_path_factory, count, samples, batch, seed):
    path = tmp_path_factory.getbasetemp() / "data.npz"
    number = np.arange(count)
    np.savez(path, on=number % 2 == 0, x=np.stack([number, -number], 1).astype(float), label=number.astype("u1"))
    found = load_samples(str(path), PORTS, samples=samples, batch=batch, seed=seed)
    inputs, labels = joined(found)
    assert found.count == len(labels) == min(count, samples)
    assert labels == sorted(set(labels))
    np.testing.assert_array_equal(inputs["x"][:, 0], labels)
    np.testing.assert_array_equal(inputs["on"], np.array(labels) % 2 == 0)
    assert list(found.places) == [f"data.npz[{label}]" for label in labels]
    again, _ = joined(found)
    np.testing.assert_array_equal(again["x"], inputs["x"])
    sizes = [len(feed["x"]) for feed, _ in found.batches()]
    assert sizes[:-1] == [batch] * (len(sizes) - 1)
    assert len(found.remarks) == (count < samples)


def test_archives_know_their_content(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), on=np.ones(3, bool), target=np.ones((3, 4), np.float32))
    found = load_samples(str(tmp_path / "a.npz"), PORTS, samples=3)
    _, labels = joined(found)
    assert np.shape(labels) == (3, 4)
    assert found.name == "a.npz"
    assert len(found.sha256) == 64
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), on=np.ones(3, bool), target=np.zeros((3, 4), np.float32))
    assert load_samples(str(tmp_path / "a.npz"), PORTS, samples=3).sha256 != found.sha256


def test_an_input_may_be_called_label(tmp_path):
    np.savez(tmp_path / "a.npz", label=np.zeros((3, 2)), target=np.arange(3))
    found = load_samples(str(tmp_path / "a.npz"), [Port("label", "float32", ("n", 2))], samples=3)
    assert joined(found)[1] == [0, 1, 2]
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), on=np.ones(3, bool), label=np.arange(3), target=np.arange(3))
    with pytest.raises(UsageError, match="label and target are both labels"):
        load_samples(str(tmp_path / "a.npz"), PORTS, samples=3)


def test_networks_that_take_a_fixed_number(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(14.0).reshape(7, 2))
    port = Port("x", "float32", (3, 2))
    found = load_samples(str(tmp_path / "a.npz"), [port], samples=7, batch=2)
    assert (found.count, found.batch, len(found.places)) == (6, 3, 6)
    assert [feed["x"].shape for feed, _ in found.batches()] == [(3, 2), (3, 2)]
    assert found.remarks == ("the model takes 3 samples at once: 1 were left out",)
    with pytest.raises(UsageError, match="takes 3 samples at once, there are 2"):
        load_samples(str(tmp_path / "a.npz"), [port], samples=2)


def test_memory_does_not_grow_with_the_samples(tmp_path):
    port, peaks = Port("x", "float32", ("n", 1000)), []
    for count in (500, 4000):
        np.savez_compressed(tmp_path / "a.npz", x=np.zeros((count, 1000), np.float32))
        found = load_samples(str(tmp_path / "a.npz"), [port], samples=count)
        tracemalloc.start()
        assert sum(len(feed["x"]) for feed, _ in found.batches()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2e6


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")

    def make(*names):
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            image.new("RGB", (4, 4), (number, 2 * number, 255)).save(tmp_path / name)
        return str(tmp_path)

    return make


def load(folder, labels=(), ports=VISION, samples=9):
    return load_samples(folder, ports, samples=samples, pictures=SMALL, labels=labels)


def test_folders_are_classes(pictures):
    folder = pictures("cat/b.png", "cat/more/a.png", "Polar_bear/c.png", "2/d.png")
    found = load(folder, ["polar bear", "cat", "dog"])
    inputs, labels = joined(found)
    assert list(found.places) == ["2/d.png", "Polar_bear/c.png", "cat/b.png", "cat/more/a.png"]
    assert labels == [2, 0, 1, 1]
    np.testing.assert_allclose(inputs["pixels"][:, 0, 0, 0] * 255, [3, 2, 0, 1], atol=1e-5)
    assert load(folder, ["polar bear", "dog", "cat"]).sha256 != found.sha256


def test_folders_that_are_no_classes(pictures):
    folder = pictures("a/b.png", "c/d.png")
    found = load(folder, ["cat", "dog"])
    assert joined(found)[1] == []
    assert found.remarks[0] == "samples have no labels: the model has no class 'a', 'c'"
    with pytest.raises(UsageError, match="'c' is no class") as error:
        load(folder, ["a", "dog"])
    assert error.value.where == "c/d.png"
    with pytest.raises(UsageError, match=r"'a' is the name of the classes \[0, 2\]"):
        load(folder, ["a", "c", "A"])
    assert joined(load(pictures("x.png"), ["cat"], samples=1))[1] == []


def test_a_file_of_classes(pictures, tmp_path):
    folder = pictures("a.png", "sub/b.png")
    (tmp_path / "labels.csv").write_text("file,class\nsub/b.png,dog\na.png,0\n", encoding="utf-8-sig")
    assert joined(load(folder, ["cat", "dog"]))[1] == [0, 1]
    (tmp_path / "labels.csv").write_text("a.png,0\n")
    with pytest.raises(UsageError, match=r"no line for sub/b.png"):
        load(folder)
    (tmp_path / "labels.csv").write_text("a.png,0,1\n")
    with pytest.raises(UsageError, match=r"a line is not `path,class`: a.png,0,1"):
        load(folder)


def test_channels_where_the_network_has_them(pictures):
    folder = pictures("a.png")
    first, _ = joined(load(folder))
    last, _ = joined(load(folder, ports=[Port("pixels", "float32", (1, 2, 2, 3))]))
    single, _ = joined(load(folder, ports=[Port("pixels", "float32", (3, 2, 2))]))
    np.testing.assert_array_equal(last["pixels"], first["pixels"].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(single["pixels"], first["pixels"][0])
    with pytest.raises(UsageError, match=r"'pixels' takes \(n, 3, 4, 4\), each sample has \(3, 2, 2\)"):
        load(folder, ports=[Port("pixels", "float32", ("n", 3, 4, 4))])


def test_what_is_no_source(tmp_path):
    for name, message in (("none.npz", "no such file"), ("none.bin", "no such file")):
        with pytest.raises(UsageError, match=message):
            load_samples(str(tmp_path / name), PORTS, samples=1)
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no samples from \.bin files"):
        load_samples(str(tmp_path / "a.bin"), PORTS, samples=1)
    with pytest.raises(UsageError, match="0 samples"):
        load_samples(str(tmp_path / "a.bin"), PORTS, samples=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures"):
        load(str(tmp_path / "empty"))


class Odd:
    """An object that numpy would pickle."""


@pytest.mark.parametrize(
    ("arrays", "message", "advice"),
    [
        ({"z": np.zeros((3, 2)), "on": np.ones(3, bool)}, "no input 'z'", "name arrays like the inputs"),
        ({"x": np.zeros((3, 2))}, "no 'on'", "an array for each input"),
        ({"x": np.zeros((3, 2)), "on": np.ones(3)}, "takes bool", "save the array as bool"),
        ({"x": np.zeros((3, 4)), "on": np.ones(3, bool)}, r"takes \(batch, 2\)", "of the sizes that the model takes"),
        ({"x": np.zeros((3, 2, 1)), "on": np.ones(3, bool)}, r"takes \(batch, 2\)", "along one axis more"),
        ({"x": np.full((3, 2), np.nan), "on": np.ones(3, bool)}, "is NaN", "leave it out"),
        ({"x": np.zeros((3, 2)), "on": np.ones(4, bool)}, "same number of samples", "savez"),
        ({"x": np.zeros((0, 2)), "on": np.ones(0, bool)}, "same number of samples", "savez"),
        ({"x": np.array([Odd()]), "on": np.ones(1, bool)}, "not numbers", "astype"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message, advice):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=message) as error:
        list(load_samples(str(tmp_path / "a.npz"), PORTS, samples=3).batches())
    assert advice in str(error.value.hint)
    assert str(tmp_path / "a.npz") in str(error.value.where)


@pytest.mark.parametrize("size", [0, 100, None])
def test_archives_that_are_damaged_or_missing(tmp_path, size):
    path = tmp_path / "a.npz"
    if size is not None:
        np.savez(path, x=np.zeros((3, 2)), on=np.ones(3, bool))
        path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UsageError) as error:
        load_samples(str(path), PORTS, samples=3)
    assert error.value.hint
    assert str(path) in str(error.value.where)


IDS, MASK, TYPES = (
    Port(name, "int64", ("batch", "tokens")) for name in ("input_ids", "attention_mask", "token_type_ids")
)


@pytest.fixture
def files(words):
    """A tokenizer that puts 0 before a text and 1 behind it, as token types 0 and 1."""
    engine = json.loads(words()._engine.to_str())
    special = {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in (("<s>", 0), ("</s>", 1))}
    piece = [[{"Sequence": {"id": name, "type_id": at}}, {"SpecialToken": {"id": "</s>", "type_id": at}}]
             for at, name in enumerate("AB")]  # fmt: skip
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    engine["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, *piece[0]],
        "pair": [start, *piece[0], *piece[1]],
        "special_tokens": special,
    }
    return {
        "tokenizer.json": json.dumps(engine).encode(),
        "tokenizer_config.json": json.dumps({"pad_token": {"content": "?"}}).encode(),
    }


def texts(path, files, ports=(IDS, MASK, TYPES), **more):
    return load_samples(path, ports, tokenizer_files=files, **({"samples": 99} | more))


def test_paragraphs_are_samples(file, files):
    found = texts(file("a.txt", "5 6\n7\n\n \n8\r\n\r\n9 10 11"), files)
    [(feed, labels)] = found.batches()
    assert feed["input_ids"].tolist() == [[0, 5, 6, 7, 1], [0, 8, 1, 2, 2], [0, 9, 10, 11, 1]]
    assert feed["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0], [1] * 5]
    assert not feed["token_type_ids"].any()
    assert labels is None
    assert found.places[1] == "a.txt: paragraph 2"


def test_long_texts_are_cut(file, files):
    path = file("a.md", "\n".join(f"{n} {n + 1}" for n in range(10, 90, 2)))
    found = texts(path, files, window=8)
    rows = np.concatenate([feed["input_ids"] for feed, _ in found.batches()])
    assert rows.shape[1] == 8
    assert found.count > 4
    assert rows[0].tolist() == [0, 10, 11, 12, 13, 14, 15, 1]
    ports = [Port("input_ids", "int32", (1, 9))]
    [first, *_] = (feed for feed, _ in texts(path, files, ports).batches())
    assert (first["input_ids"].shape, first["input_ids"].dtype) == ((1, 9), np.int32)
    [short] = (feed for feed, _ in texts(file("b.txt", "5"), files, [Port("input_ids", "int64", (9,))]).batches())
    assert short["input_ids"].tolist() == [0, 5, 1, *[2] * 6]
    with pytest.raises(UsageError, match="a window of 4 tokens"):
        texts(path, files, window=4)


def test_padding_is_as_the_tokenizer_has_it(file, files):
    config = json.loads(files["tokenizer.json"])
    config["padding"] = {
        "strategy": {"Fixed": 30}, "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": 7, "pad_type_id": 0, "pad_token": "7",
    }  # fmt: skip
    config["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    files["tokenizer.json"] = json.dumps(config).encode()
    [(feed, _)] = texts(file("a.txt", "5 6 8\n\n9"), files, [IDS]).batches()
    assert feed["input_ids"].tolist() == [[0, 5, 6, 8, 1], [7, 7, 0, 9, 1]]


def lines(*objects):
    return "\n".join(json.dumps(each) for each in objects)


def test_pairs_and_labels(file, files):
    path = file("a.jsonl", lines({"text": "5", "text_pair": "6 7", "label": "Dog"}, {"text": "8", "label": 0}))
    found = texts(path, files, labels=["cat", "dog"])
    [(feed, labels)] = found.batches()
    assert feed["input_ids"].tolist() == [[0, 5, 1, 6, 7, 1], [0, 8, 1, 2, 2, 2]]
    assert feed["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert (labels.tolist(), labels.dtype) == ([1, 0], np.int64)
    assert found.places == [f"{path}:1", f"{path}:2"]


def test_numbers_and_texts_as_labels(file, files):
    path = file("a.jsonl", lines({"text": "5", "label": 1}, {"text": "8", "label": 0.5}))
    assert joined(texts(path, files))[1] == [1.0, 0.5]
    path = file("b.jsonl", "\n\n" + lines({"text": "5", "target": "9", "idx": 3}, {"text": "8", "target": ""}))
    assert joined(texts(path, files))[1] == ["9", ""]
    path = file("c.jsonl", lines({"text": "5", "label": -1}, {"text": "8", "label": -1}))
    found = texts(path, files, labels=["a", "b"])
    assert (joined(found)[1], len(found.remarks)) == ([], 2)


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        ('{"text": "5"}\n{"text": 5}', "Expected `str`", ":2"),
        ('{"text": "5"}\nno', "the line cannot be used", ":2"),
        ('{"label": 1}', "required field `text`", ":1"),
        ('{"text": "5", "label": 1}\n{"text": "6"}', "no label, and others have one", ":2"),
        ('{"text": "5", "label": "cat"}\n{"text": "6", "label": "cow"}', "'cow' is no class", ":2"),
        ("", "no text", ""),
    ],
)
def test_lines_that_cannot_be_used(file, files, content, message, line):
    path = file("a.jsonl", content)
    with pytest.raises(UsageError, match=message) as error:
        texts(path, files, labels=["cat", "dog"])
    assert error.value.where == path + line
    assert error.value.hint


def test_parts_of_the_documentation_are_apart(files):
    # Words that are no numbers are all the same token: the places tell that samples are chosen from everywhere.
    found = texts("python-docs", files, [IDS], samples=20)
    other = texts("python-docs", files, [IDS], samples=20, purpose="evaluation")
    assert found.sha256 != other.sha256
    assert (found.count, len(set(found.places))) == (20, 20)
    assert texts("python-docs", files, [IDS], samples=20).places == found.places
    assert texts("python-docs", files, [IDS], samples=20, seed=1).places != found.places


def test_models_that_take_no_text(file, files):
    with pytest.raises(UsageError, match="no input 'input_ids'"):
        texts(file("a.txt", "5"), files, PORTS)
    with pytest.raises(UsageError, match="has no tokenizer"):
        texts(file("a.txt", "5"), {})
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        texts("none.txt", files)
    with pytest.raises(UsageError, match="have no 'pixel_values'"):
        texts(file("a.txt", "5"), files, [IDS, Port("pixel_values", "float32", ("batch", 3))])
