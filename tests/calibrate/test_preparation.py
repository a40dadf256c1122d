"""How networks want pictures and sounds."""

import json

import numpy as np
import pytest

from edgec.calibrate.audio import Audio
from edgec.calibrate.images import Pictures
from edgec.calibrate.log_mel import LogMel
from edgec.calibrate.preparation import find_audio, find_pictures, read_preprocessor
from edgec.calibrate.samples import load_samples
from edgec.errors import CheckpointError, UsageError
from edgec.frontends.network import Port

PORT = Port("image", "float32", ("batch", 3, 4, 6))
WHISPER = {"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 16000}


@pytest.mark.parametrize("shape", [("batch", 3, 4, 6), ("batch", 4, 6, 3), (1, 3, 4, 6)])
def test_pictures_of_a_known_size(shape):
    other = Port("scale", "float32", ("batch", 1))
    found = find_pictures([Port("image", "float32", shape), other], {})
    assert found == Pictures(input="image", height=4, width=6)


@pytest.mark.parametrize(
    "ports",
    [
        [],
        [Port("image", "float32", ("batch", 3, "height", 6))],
        [Port("image", "float32", ("batch", 1, 4, 6))],
        [Port("image", "int64", ("batch", 3, 4, 6))],
        [Port("image", "float32", (3, 4, 6))],
        [PORT, Port("other", "float32", ("batch", 3, 4, 6))],
    ],
)
def test_what_are_no_pictures(ports):
    assert find_pictures(ports, {}) is None


def test_pictures_as_the_preprocessor_says():
    found = find_pictures([PORT], {"image_mean": [0.5, 0.5, 0.5], "image_std": 0.25})
    assert found == Pictures(input="image", height=4, width=6, mean=(0.5,) * 3, std=(0.25,) * 3)
    raw = find_pictures([PORT], {"do_rescale": False, "do_normalize": False})
    assert raw is not None
    np.testing.assert_allclose(raw.std, [1 / 255] * 3)


def test_sound_as_the_preprocessor_says():
    assert find_audio({}) is None
    assert find_audio({"image_mean": [0, 0, 0]}) is None
    plain = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000}
    assert find_audio(plain) == Audio(sample_rate_hz=8000, normalise=True)
    assert find_audio({**plain, "do_normalize": False}) == Audio(sample_rate_hz=8000)
    assert find_audio(WHISPER | {"feature_size": 128}) == Audio(sample_rate_hz=16000, features=LogMel(bands=128))
    with pytest.raises(CheckpointError, match="makes spectrograms of"):
        find_audio(WHISPER | {"n_fft": 10**9})


def test_newer_directories_have_it_in_another_file(tmp_path):
    assert read_preprocessor(tmp_path) == ({}, {})
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"image_std": 2}}))
    found, files = read_preprocessor(tmp_path)
    assert (found, [*files]) == ({"image_std": 2}, ["processor_config.json"])


@pytest.fixture
def folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in "ab":
        image.new("RGB", (6, 4), (255, 0, 51)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_without_a_word_of_it_pictures_are_as_imagenet_has_them(folder):
    found = load_samples(str(folder), [PORT], samples=2)
    ((feed, _),) = found.batches()
    np.testing.assert_allclose(
        feed["image"][0, :, 0, 0], [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], rtol=1e-5
    )
    assert "resized to 4 x 6, scaled to 0..1, ImageNet's mean and standard deviation" in found.remarks[0]


def test_a_preprocessor_among_the_pictures(folder):
    before = load_samples(str(folder), [PORT], samples=2).sha256
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5, "image_std": 0.5}))
    found = load_samples(str(folder), [PORT], samples=2)
    ((feed, _),) = found.batches()
    np.testing.assert_allclose(feed["image"][0, :, 0, 0], [1, -1, -0.6], rtol=1e-5)
    assert found.remarks == ("pictures were prepared as preprocessor_config.json in their folder says",)
    assert found.sha256 != before


def test_networks_that_take_no_pictures(folder):
    with pytest.raises(UsageError, match=r"it takes x float32 \(batch, 3, h, w\)") as error:
        load_samples(str(folder), [Port("x", "float32", ("batch", 3, "h", "w"))], samples=2)
    assert "--input image:float32[batch,3,224,224]" in str(error.value.hint)
