"""Pictures, where Pillow is installed."""

import numpy as np
import pytest

from edgec.calibrate.arrays import load_arrays
from edgec.calibrate.images import Pictures, read_picture
from edgec.errors import UsageError

Image = pytest.importorskip("PIL.Image")

PLAIN = Pictures(input="pixels", height=2, width=3, mean=(0, 0, 0), std=(1, 1, 1))


def test_a_picture_becomes_normalised_channels(tmp_path):
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", PLAIN)
    assert (found.shape, found.dtype) == ((3, 2, 3), np.float32)
    np.testing.assert_allclose(found, pixels.transpose(2, 0, 1) / 255, atol=1e-7)
    normal = read_picture(tmp_path / "a.png", Pictures(input="pixels", height=2, width=3))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(normal, ((pixels / 255 - mean) / std).transpose(2, 0, 1), rtol=1e-5)


def test_other_sizes_modes_and_orientations(tmp_path):
    grey = Image.new("L", (64, 32), 51)
    grey.save(tmp_path / "a.PNG")
    np.testing.assert_allclose(read_picture(tmp_path / "a.PNG", PLAIN), np.full((3, 2, 3), 0.2), atol=1e-6)
    lying = Image.new("RGB", (8, 16))
    lying.paste((255, 255, 255), (0, 0, 8, 8))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it: the right half is white
    lying.save(tmp_path / "b.jpg", exif=exif, quality=95)
    found = read_picture(tmp_path / "b.jpg", Pictures(input="x", height=1, width=2, mean=(0, 0, 0), std=(1, 1, 1)))
    assert found[0, 0, 0] < 0.3 < 0.7 < found[0, 0, 1]


def test_a_folder_gives_batches(tmp_path):
    (tmp_path / "below").mkdir()
    for n in range(5):
        Image.new("RGB", (4, 4), (n, n, n)).save(tmp_path / ("below" if n % 2 else ".") / f"{n}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    batches = list(load_arrays(tmp_path, samples=9, batch=2, pictures=PLAIN))
    assert [batch["pixels"].shape for batch in batches] == [(2, 3, 2, 3), (2, 3, 2, 3), (1, 3, 2, 3)]
    first = [round(255 * float(row[0, 0, 0])) for batch in batches for row in batch["pixels"]]
    assert first == [0, 2, 4, 1, 3]  # by path
    assert len(list(load_arrays(tmp_path, samples=3, batch=1, pictures=PLAIN))) == 3


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"])
def test_what_is_no_picture(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read") as error:
        read_picture(tmp_path / "a.png", PLAIN)
    assert error.value.where == str(tmp_path / "a.png")


def test_damaged_pictures(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    for cut in (20, 40, 100, len(good) // 2):
        (tmp_path / "a.png").write_bytes(good[:cut])
        with pytest.raises(UsageError, match="cannot be read"):
            read_picture(tmp_path / "a.png", PLAIN)
