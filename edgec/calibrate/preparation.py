"""How a network wants its pictures and sounds, from what lies beside it: preprocessor_config.json of transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgec.calibrate.audio import Audio
from edgec.calibrate.images import Pictures
from edgec.calibrate.log_mel import LogMel
from edgec.checkpoint.files import exists, read_json_object
from edgec.errors import CheckpointError
from edgec.frontends.network import Port

PREPROCESSOR = "preprocessor_config.json"
# Newer directories have it in one file with the tokenizer's.
_PROCESSOR = "processor_config.json"
_CHANNELS = 3
_MOST = 1 << 16


def read_preprocessor(folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return how pictures or sound are prepared, and the file that says so by name; empty where nothing does.

    Raises:
        CheckpointError: the file is damaged.
    """
    for name, keys in ((PREPROCESSOR, ()), (_PROCESSOR, ("image_processor", "feature_extractor"))):
        if exists(folder / name):
            found = read_json_object(folder / name)
            return next((found[key] for key in keys if isinstance(found.get(key), dict)), found), {name: folder / name}
    return {}, {}


def find_pictures(ports: Sequence[Port], preprocessor: Mapping[str, Any]) -> Pictures | None:
    """Return how a network takes pictures: its one input of three channels and known height and width.

    Args:
        ports: the inputs of the network.
        preprocessor: as `read_preprocessor` returns it; where it is empty, pixels from 0 to 1 with ImageNet's mean and
            standard deviation.
    """
    found = [(port.name, size) for port in ports if (size := _picture_size(port)) is not None]
    if len(found) != 1:
        return None
    ((name, (height, width)),) = found
    plain = Pictures(input=name, height=height, width=width)
    return normalised(plain, preprocessor) if preprocessor else plain


def normalised(pictures: Pictures, preprocessor: Mapping[str, Any]) -> Pictures:
    """Return pictures with the mean and the standard deviation of a preprocessor."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if preprocessor.get("do_normalize", True):
        mean = _three(preprocessor.get("image_mean"), pictures.mean)
        std = _three(preprocessor.get("image_std"), pictures.std)
    # The preprocessor's numbers are for pixels that it has scaled, ours for pixels from 0 to 1.
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    span = 255 * float(factor)
    return msgspec.structs.replace(
        pictures,
        mean=(mean[0] / span, mean[1] / span, mean[2] / span),
        std=(std[0] / span, std[1] / span, std[2] / span),
    )


def find_audio(preprocessor: Mapping[str, Any]) -> Audio | None:
    """Return how a network takes sound; None where the preprocessor is not one of sound.

    Raises:
        CheckpointError: the sizes of its spectrograms make no sense.
    """
    kind, rate = preprocessor.get("feature_extractor_type"), preprocessor.get("sampling_rate")
    if not isinstance(rate, int) or not 0 < rate < _MOST << 4:
        return None
    if kind != "WhisperFeatureExtractor":
        return Audio(
            sample_rate_hz=rate, normalise=bool(preprocessor.get("do_normalize", kind == "Wav2Vec2FeatureExtractor"))
        )
    sizes = [preprocessor.get(key, size) for key, size in (("feature_size", 80), ("hop_length", 160), ("n_fft", 400))]
    if not all(isinstance(size, int) and 0 < size < _MOST for size in sizes):
        raise CheckpointError(
            f"{PREPROCESSOR} makes spectrograms of {sizes}", hint="take the file that came with the model"
        )
    bands, hop, window = sizes
    return Audio(sample_rate_hz=rate, features=LogMel(bands=bands, hop=hop, window=window, sample_rate_hz=rate))


def _picture_size(port: Port) -> tuple[int, int] | None:
    """Return height and width of the pictures that an input takes, channels first or last."""
    if len(port.shape) != 4 or np.dtype(port.dtype).kind != "f":
        return None
    first, last = port.shape[1] == _CHANNELS, port.shape[3] == _CHANNELS
    height, width = port.shape[2:] if first else port.shape[1:3]
    return (height, width) if (first or last) and isinstance(height, int) and isinstance(width, int) else None


def _three(values: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return one number for each of red, green and blue."""
    if isinstance(values, int | float):
        return float(values), float(values), float(values)
    if isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values):
        return float(values[0]), float(values[1]), float(values[2])
    return default
