"""Pictures as a vision model takes them."""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError, require

SUFFIXES = (".png", ".jpg", ".jpeg")


class Pictures(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of a picture.

    Args:
        input: the model's input.
        height: in pixels.
        width: in pixels.
        mean: of red, green and blue, between 0 and 1; subtracted.
        std: of red, green and blue; divided by. Both are ImageNet's by default.
    """

    input: str
    height: int
    width: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def list_pictures(folder: Path) -> list[Path]:
    """Return the PNG and JPEG files in a folder and the folders below it, by path.

    Raises:
        UsageError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise UsageError("the folder has no pictures (.png, .jpg, .jpeg)", where=str(folder))
    return files


def read_picture(path: Path, wanted: Pictures) -> NDArray[np.float32]:
    """Return a picture as (3, height, width) float32: upright, stretched to the size (bilinear), and normalised.

    Raises:
        UsageError: the file is no picture, is damaged, or is suspiciously large.
        MissingRuntimeError: Pillow is not installed.
    """
    require("PIL", "vision")
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            resized = upright.resize((wanted.width, wanted.height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as many as Pillow has plugins
        raise UsageError(f"the picture cannot be read: {error}", where=str(path)) from error
    pixels = np.asarray(resized, np.float32) / np.float32(255)
    normal = (pixels - np.array(wanted.mean, np.float32)) / np.array(wanted.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))
