"""Sound as a network takes it: one channel, at one rate, in pieces."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.log_mel import LogMel
from edgec.errors import UsageError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# What writers that do not know the length put there.
_OPEN_ENDED = 0xFFFFFFFF
# As in the feature extractor of Wav2Vec2.
_LEAST_VARIANCE = 1e-7


class Audio(msgspec.Struct, frozen=True, kw_only=True):
    """How a model takes sound.

    Args:
        sample_rate_hz: of the model; None takes that of the files, which must all have the same.
        normalise: give each sample mean 0 and variance 1, as the models that ask for `do_normalize` want.
        features: the spectrograms that it takes in place of sound.
    """

    sample_rate_hz: int | None = None
    normalise: bool = False
    features: LogMel | None = None


class Wave(msgspec.Struct, frozen=True):
    """A .wav file whose header has been read.

    Args:
        path: of the file.
        rate_hz: frames in a second.
        channels: numbers in a frame.
        is_float: float32 numbers; else integers.
        width_bytes: of one number.
        offset: of the first frame.
        frames: in the file.
    """

    path: Path
    rate_hz: int
    channels: int
    is_float: bool
    width_bytes: int
    offset: int
    frames: int


def list_waves(folder: Path) -> list[Path]:
    """Return the .wav files in a folder and the folders below it, by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".wav" and path.is_file())


def open_wave(path: Path) -> Wave:
    """Read the header of a file.

    Raises:
        UsageError: it cannot be read, is damaged, or holds something other than PCM of 8, 16, 24 or 32 bits or float32.
    """
    try:
        with path.open("rb") as file:
            return _header(file, path)
    except OSError as error:
        raise UsageError(f"the sound cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, struct.error) as error:
        raise UsageError(f"this is no .wav file that edgec reads: {error}", where=str(path)) from error


def read_wave(wave: Wave, first: int = 0, frames: int | None = None) -> NDArray[np.float32]:
    """Return frames of a file, (frames,) float32 between -1 and 1: the mean of its channels.

    Raises:
        UsageError: the file cannot be read, or a number in it is not finite.
    """
    frames = wave.frames - first if frames is None else min(frames, wave.frames - first)
    size = wave.channels * wave.width_bytes
    try:
        with wave.path.open("rb") as file:
            file.seek(wave.offset + first * size)
            data = file.read(frames * size)
    except OSError as error:
        raise UsageError(f"the sound cannot be read: {error.strerror or error}", where=str(wave.path)) from error
    mono: NDArray[np.float32] = _numbers(data, wave).reshape(-1, wave.channels).mean(axis=1).astype(np.float32)
    if not np.isfinite(mono).all():
        raise UsageError("a number in the sound is not finite", where=str(wave.path))
    return mono


def sized(sound: NDArray[np.float32], frames: int | None, *, normalise: bool) -> NDArray[np.float32]:
    """Return a sound as one sample: normalised if asked for, and with silence behind it where it is too short."""
    if normalise:
        sound = np.divide(sound - sound.mean(), np.sqrt(sound.var() + _LEAST_VARIANCE), dtype=np.float32)
    silence = 0 if frames is None else max(0, frames - len(sound))
    return np.concatenate([sound, np.zeros(silence, np.float32)])


def _header(file: IO[bytes], path: Path) -> Wave:
    riff, _, kind = struct.unpack("<4sI4s", file.read(12))
    if (riff, kind) != (b"RIFF", b"WAVE"):
        raise ValueError("it does not begin with RIFF and WAVE")
    form = None
    for name, size in _chunks(file):
        if name == b"fmt ":
            form = file.read(min(size, 40))
        if name == b"data":
            break
    else:
        raise ValueError("it has no sound")
    if form is None:
        raise ValueError("its sound comes before its format")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    tag = struct.unpack_from("<H", form, 24)[0] if tag == _EXTENSIBLE else tag
    if (tag, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32)}:
        raise ValueError(f"format {tag} with {bits} bits is neither PCM of 8, 16, 24 or 32 bits nor float32")
    if not channels or not rate or block != channels * bits // 8:
        raise ValueError(f"{channels} channels at {rate} Hz in blocks of {block} bytes")
    offset = file.tell()
    there = file.seek(0, 2) - offset
    if size not in {0, _OPEN_ENDED} and size > there:
        raise ValueError("the file is shorter than its header says")
    frames = (there if size in {0, _OPEN_ENDED} else size) // block
    if not frames:
        raise ValueError("it has no sound")
    return Wave(path, rate, channels, tag == _FLOAT, bits // 8, offset, frames)


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield name and size of each chunk; what of it the caller does not read is skipped."""
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        start = file.tell()
        yield name, size
        file.seek(start + size + size % 2)


def _numbers(data: bytes, wave: Wave) -> NDArray[np.float64]:
    if wave.is_float:
        return np.frombuffer(data, "<f4").astype(np.float64)
    match wave.width_bytes:
        case 1:
            whole = np.frombuffer(data, np.uint8).astype(np.int64) - 128
        case 3:
            parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
            whole = ((parts << np.array([8, 16, 24], np.int32)).sum(axis=1, dtype=np.int32) >> 8).astype(np.int64)
        case width:
            whole = np.frombuffer(data, f"<i{width}").astype(np.int64)
    return whole / math.ldexp(1, 8 * wave.width_bytes - 1)
