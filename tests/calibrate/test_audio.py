"""Sounds: what .wav files hold, and how networks take it."""

import json
import struct
import wave

import numpy as np
import pytest

from edgec.calibrate.audio import Audio, open_wave, read_wave
from edgec.calibrate.log_mel import LogMel
from edgec.calibrate.samples import load_samples
from edgec.errors import UsageError
from edgec.frontends.network import Port

FIXED, OPEN = Port("input", "float32", ("batch", 8)), Port("input", "float32", ("batch", "frames"))


def write(path, numbers, *, rate=16000, width=2, channels=1):
    """Write integers (frames, channels) with the standard library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        data = np.asarray(numbers, np.int64).ravel() + (128 if width == 1 else 0)
        file.writeframes(b"".join(int(n).to_bytes(width, "little", signed=width > 1) for n in data))
    return str(path)


def riff(form, data, *, before=b"", size=None):
    chunks = before + b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def form(tag, bits, channels=1, rate=16000):
    return struct.pack("<HHIIHH", tag, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integers_of_each_width(tmp_path, width):
    half = 2 ** (8 * width - 1)
    numbers = [0, 1, -1, half - 1, -half, half // 2]
    write(tmp_path / "a.wav", numbers, width=width, rate=8000)
    found = open_wave(tmp_path / "a.wav")
    assert (found.rate_hz, found.channels, found.frames, found.width_bytes) == (8000, 1, 6, width)
    np.testing.assert_array_equal(read_wave(found), np.float32(np.array(numbers) / half))
    np.testing.assert_array_equal(read_wave(found, 2, 2), np.float32(np.array([-1, half - 1]) / half))


def test_channels_are_averaged(tmp_path):
    write(tmp_path / "a.wav", [[100, 300], [-2, 4]], channels=2)
    np.testing.assert_allclose(read_wave(open_wave(tmp_path / "a.wav")) * 32768, [200, 1])


def test_floats_extensible_formats_and_other_chunks(tmp_path):
    numbers = np.array([0.5, -0.25, 1.5], "<f4")
    extended = form(0xFFFE, 32) + struct.pack("<HHIH", 22, 32, 4, 3) + bytes(14)
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    for content in (
        riff(form(3, 32), numbers.tobytes()),
        riff(extended, numbers.tobytes(), before=odd),
        riff(form(3, 32), numbers.tobytes(), size=0xFFFFFFFF),
    ):
        (tmp_path / "a.wav").write_bytes(content)
        np.testing.assert_array_equal(read_wave(open_wave(tmp_path / "a.wav")), numbers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no .wav file that edgec reads"),
        (b"RIFF\0\0\0\0AVI ", "does not begin with RIFF and WAVE"),
        (riff(form(1, 16), b"\0\0")[:30], "no .wav file"),
        (riff(form(1, 16), b"\0\0" * 4)[:-2], "shorter than its header says"),
        (riff(form(1, 16), b""), "no sound"),
        (riff(form(6, 8), b"\0\0"), "format 6 with 8 bits is neither"),
        (riff(form(1, 16, channels=0), b"\0\0"), "0 channels"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "sound comes before its format"),
        (b"RIFF\0\0\0\0WAVE", "no sound"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        load_samples(str(tmp_path / "a.wav"), [FIXED], samples=1)
    assert error.value.where == str(tmp_path / "a.wav")


def test_numbers_that_are_not_finite(tmp_path):
    (tmp_path / "a.wav").write_bytes(riff(form(3, 32), np.array([0, np.nan], "<f4").tobytes()))
    with pytest.raises(UsageError, match="not finite"):
        list(load_samples(str(tmp_path / "a.wav"), [FIXED], samples=1).batches())


def rows(samples, name="input"):
    return np.concatenate([feed[name] for feed, _ in samples.batches()])


def test_sounds_are_cut_into_pieces(tmp_path):
    write(tmp_path / "a.wav", range(20))
    write(tmp_path / "b" / "c.WAV", range(100, 105))
    found = load_samples(str(tmp_path), [FIXED], samples=9)
    expected = [[*range(8)], [*range(8, 16)], [*range(100, 105), 0, 0, 0]]
    np.testing.assert_array_equal(rows(found) * 32768, expected)
    assert found.places == ["a.wav", "a.wav at 0.00 s", "b/c.WAV"]
    assert found.remarks == (
        "samples have no labels: the model has no class 'b'",
        "the sounds' rate of 16000 Hz was taken for the model's",
        "there are 3 samples of the 9 wanted",
    )
    again = load_samples(str(tmp_path), [Port("input", "float32", (1, 1, 8))], samples=9)
    assert [feed["input"].shape for feed, _ in again.batches()] == [(1, 1, 8)] * 3
    window = load_samples(str(tmp_path / "a.wav"), [OPEN], samples=9, window=5, audio=Audio(sample_rate_hz=16000))
    np.testing.assert_array_equal(rows(window) * 32768, np.arange(20).reshape(4, 5))
    assert window.remarks == ("there are 4 samples of the 9 wanted",)


def test_which_pieces_are_taken_depends_on_the_seed(tmp_path):
    path = write(tmp_path / "a.wav", np.arange(8000) % 30000)
    zero, again, one = (load_samples(path, [FIXED], samples=5, seed=seed) for seed in (0, 0, 1))
    assert rows(zero).tolist() == rows(again).tolist() != rows(one).tolist()
    assert zero.sha256 == again.sha256 != one.sha256


def test_recurrent_networks_get_rate_and_state(tmp_path):
    write(tmp_path / "a.wav", range(20))
    ports = [FIXED, Port("state", "float32", (2, "batch", 4)), Port("sr", "int64", ())]
    [(feed, _)] = load_samples(str(tmp_path / "a.wav"), ports, samples=9).batches()
    assert {name: x.shape for name, x in feed.items()} == {"input": (2, 8), "sr": (), "state": (2, 2, 4)}
    assert feed["sr"] == 16000


def test_open_sizes_go_one_by_one(tmp_path):
    write(tmp_path / "a.wav", range(5))
    write(tmp_path / "b.wav", range(7))
    ports = [OPEN, Port("attention_mask", "int64", ("batch", "frames"))]
    found = load_samples(str(tmp_path), ports, samples=9, batch=1, audio=Audio(normalise=True))
    assert [feed["attention_mask"].tolist() for feed, _ in found.batches()] == [[[1] * 5], [[1] * 7]]
    feed, _ = next(found.batches())
    assert feed["input"].mean() == pytest.approx(0, abs=1e-5)
    with pytest.raises(UsageError, match="different lengths"):
        list(load_samples(str(tmp_path), ports, samples=9).batches())
    long = write(tmp_path / "long.wav", np.zeros(16000 * 21), width=1)
    pieces = load_samples(long, [OPEN], samples=9, batch=1)
    assert [feed["input"].shape for feed, _ in pieces.batches()] == [(1, 160000)] * 2


def test_folders_are_classes(tmp_path):
    write(tmp_path / "yes" / "a.wav", range(20))
    write(tmp_path / "no" / "b.wav", range(3))
    [(feed, labels)] = load_samples(str(tmp_path), [FIXED], samples=9, labels=["yes", "no"]).batches()
    assert labels.tolist() == [1, 0]
    np.testing.assert_array_equal(feed["input"][1] * 32768, range(8))


def manifest(tmp_path, *objects):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(each) for each in objects))
    return str(tmp_path / "a.jsonl")


def test_manifests(tmp_path):
    write(tmp_path / "x.wav", range(5))
    write(tmp_path / "sub" / "y.wav", range(8))
    path = manifest(tmp_path, {"audio": "x.wav", "text": "one"}, {"audio": "sub/y.wav", "text": "two"})
    [(feed, labels)] = load_samples(path, [FIXED], samples=9).batches()
    assert (labels, feed["input"].shape) == (["one", "two"], (2, 8))
    with pytest.raises(UsageError, match="has 8 frames, the model takes 6"):
        load_samples(path, [Port("input", "float32", ("batch", 6))], samples=9)
    path = manifest(tmp_path, {"audio": "x.wav", "label": "no"}, {"audio": "sub/y.wav", "label": 0})
    [(_, labels)] = load_samples(path, [FIXED], samples=9, labels=["yes", "no"]).batches()
    assert labels.tolist() == [1, 0]
    path = manifest(tmp_path, {"audio": "x.wav"})
    [(_, labels)] = load_samples(path, [FIXED], samples=9).batches()
    assert labels is None
    path = manifest(tmp_path, {"audio": "x.wav", "text": "one"}, {"audio": "x.wav"})
    with pytest.raises(UsageError, match="all lines must have"):
        load_samples(path, [FIXED], samples=9)
    with pytest.raises(UsageError, match=r"the line has no `audio`.* the model takes no text"):
        load_samples(manifest(tmp_path, {"text": "one"}), [FIXED], samples=9)
    with pytest.raises(UsageError, match=r"No such file") as error:
        load_samples(manifest(tmp_path, {"audio": "z.wav"}), [FIXED], samples=9)
    assert error.value.where == str(tmp_path / "z.wav")
    with pytest.raises(UsageError, match="no line"):
        load_samples(manifest(tmp_path), [FIXED], samples=9)


def test_rates_are_not_changed(tmp_path):
    path = write(tmp_path / "a.wav", range(20), rate=44100)
    with pytest.raises(UsageError, match="has 44100 Hz, the model 16000 Hz") as error:
        load_samples(path, [FIXED], samples=1, audio=Audio(sample_rate_hz=16000))
    assert "ffmpeg" in error.value.hint
    write(tmp_path / "b.wav", range(20), rate=8000)
    with pytest.raises(UsageError, match="has 8000 Hz, others 44100 Hz"):
        load_samples(str(tmp_path), [FIXED], samples=1)


def test_networks_that_take_no_sound(tmp_path):
    path = write(tmp_path / "a.wav", range(20))
    for ports, message in (
        ([], "0 inputs"),
        ([FIXED, Port("y", "float32", ("n", 3))], r"2 inputs .* input float32 \(batch, 8\), y float32 \(n, 3\)"),
        ([Port("image", "float32", ("batch", 3, 4, 4))], "0 inputs"),
        ([Port("input_features", "float32", ("batch", 80, 4))], "is made of sound, and nothing says how"),
    ):
        with pytest.raises(UsageError, match=message):
            load_samples(path, ports, samples=1)


def test_pieces_of_ten_seconds_where_the_model_leaves_that_open(tmp_path):
    path = write(tmp_path / "a.wav", range(25), rate=1)
    found = load_samples(path, [OPEN], samples=9)
    assert [feed["input"].shape for feed, _ in found.batches()] == [(2, 10)]
    assert "the model leaves open how much sound it takes: pieces of 10 s" in found.remarks
    assert not any("pieces of" in remark for remark in load_samples(path, [FIXED], samples=9).remarks)


def test_spectrograms(tmp_path):
    """What a network hears is what transformers would have made for it."""
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    write(tmp_path / "a.wav", rng.integers(-9000, 9000, 8000))
    write(tmp_path / "b.wav", rng.integers(-9000, 9000, 1000))
    port = Port("input_features", "float32", ("batch", 40, 20))
    audio = Audio(sample_rate_hz=16000, features=LogMel(bands=40))
    found = load_samples(str(tmp_path), [port], samples=9, audio=audio)
    ((feed, _),) = found.batches()
    assert list(found.places) == ["a.wav", "a.wav at 0.20 s", "b.wav"]
    make = transformers.WhisperFeatureExtractor(feature_size=40)
    sounds = [read_wave(open_wave(tmp_path / "a.wav"), 3200, 3200), read_wave(open_wave(tmp_path / "b.wav"))]
    for row, sound in zip(feed["input_features"][1:], sounds, strict=True):
        wanted = make(sound, sampling_rate=16000, max_length=3200, return_tensors="np")["input_features"][0]
        np.testing.assert_array_equal(row, wanted)
    ((longer, _),) = load_samples(
        str(tmp_path / "b.wav"), [Port("x", "float32", (1, 40, "time"))], samples=1, audio=audio
    ).batches()
    assert longer["x"].shape == (1, 40, 7)  # 1000 samples, 160 for each column
    with pytest.raises(UsageError, match="spectrograms of 40 bands are made"):
        load_samples(str(tmp_path), [Port("x", "float32", ("batch", 80, 20))], samples=1, audio=audio)
