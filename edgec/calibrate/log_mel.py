"""The spectrograms that Whisper listens to."""

from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import require


class LogMel(msgspec.Struct, frozen=True, kw_only=True):
    """What a spectrogram is made of.

    Args:
        bands: of the mel scale.
        hop: samples of sound from one column to the next.
        window: samples of sound that a column looks at.
        sample_rate_hz: of the sound.
    """

    bands: int = 80
    hop: int = 160
    window: int = 400
    sample_rate_hz: int = 16000


def log_mel(sound: NDArray[np.float32], columns: int, wanted: LogMel) -> NDArray[np.float32]:
    """Return the spectrogram of a sound, (bands, columns) float32, as transformers makes it for Whisper.

    Args:
        sound: (samples,) between -1 and 1; silence is put behind it, or it is cut.
        columns: how many.
        wanted: how.

    Raises:
        MissingRuntimeError: transformers is not installed.

    Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv 2212.04356, section 2.2.
    """
    made = _extractor(wanted)(
        sound, sampling_rate=wanted.sample_rate_hz, max_length=columns * wanted.hop, return_tensors="np"
    )
    return np.asarray(made["input_features"][0], np.float32)


@lru_cache(maxsize=1)
def _extractor(wanted: LogMel) -> Any:
    require("transformers", "build")
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(
        feature_size=wanted.bands,
        sampling_rate=wanted.sample_rate_hz,
        hop_length=wanted.hop,
        n_fft=wanted.window,
    )
