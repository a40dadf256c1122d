"""Sounds for a network: pieces of .wav files, or whole ones."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch, Labels, choose
from edgec.calibrate.audio import Audio, Wave, list_waves, open_wave, read_wave, sized
from edgec.calibrate.cache import key
from edgec.calibrate.classes import classes_of, classes_of_files
from edgec.calibrate.log_mel import log_mel
from edgec.calibrate.ports import Shape, is_state, listed, shown
from edgec.calibrate.source import Source, in_slices
from edgec.calibrate.text_samples import read_jsonl
from edgec.errors import UsageError
from edgec.frontends.network import Port

_MASK = "attention_mask"
_RATES = ("sr", "sample_rate", "sampling_rate")
_LONGEST_SECONDS = 10
_LINES = 'each line is an object, {"audio": "a.wav", "text": "..."}; for other inputs give .npz'
_MOST_AXES = 3  # samples, one channel or the bands of a spectrogram, time


class _Line(msgspec.Struct, frozen=True):
    audio: str | None = None
    text: str | None = None
    label: int | str | None = None


def audio_source(
    path: Path,
    ports: Sequence[Port],
    audio: Audio,
    labels: Sequence[str],
    *,
    samples: int,
    seed: int,
    window: int | None,
) -> Source:
    """Choose sounds; see `edgec.calibrate.samples.load_samples`.

    The one input of floats that is no state takes the sound or its spectrogram, one called "sr" or "sample_rate" its
    rate, and "attention_mask" ones. A sample has as many frames as the network takes, else `window`. Files without
    labels are cut into as many whole pieces as they have (of 10 s where nobody says), those with a class give their
    beginning, and those with a text are taken whole. What is too short is filled up with silence. Where sizes differ,
    each run must take a single sample: the network cannot tell silence from padding.

    Raises:
        UsageError: a file cannot be read, or is not what the network takes.
    """
    port = _sound_port(ports, audio, str(path))
    size = port.shape[-1] if isinstance(port.shape[-1], int) else None
    hop = audio.features.hop if audio.features else 1
    frames = size * hop if size else window
    waves, truth, remarks = _files(path, labels)
    rate_hz = _rate(waves, audio)
    if audio.sample_rate_hz is None:
        remarks = (*remarks, f"the sounds' rate of {rate_hz} Hz was taken for the model's")
    if isinstance(truth, list) and frames:
        _check_whole(waves, frames)
    most = frames or (_LONGEST_SECONDS * rate_hz if truth is None else None)
    pieces = [(wave, 0) for wave in waves] if truth is not None or most is None else _pieces(waves, most)
    if frames is None and most is not None:
        remarks = (*remarks, f"the model leaves open how much sound it takes: pieces of {_LONGEST_SECONDS} s")
    chosen = choose(len(pieces), samples, seed)
    kept = [pieces[index] for index in chosen]
    classes = truth[chosen] if isinstance(truth, np.ndarray) else truth and [truth[index] for index in chosen]
    inner = (audio.features.bands,) if audio.features else (1,) * (len(port.shape) - 2)
    rates = [port.name for port in ports if port.name in _RATES]
    masks = [port.name for port in ports if port.name == _MASK]

    def prepare(sound: NDArray[np.float32]) -> NDArray[np.float32]:
        if audio.features is None:
            return sized(sound, frames, normalise=audio.normalise)
        return log_mel(sound, size or -(-len(sound) // hop), audio.features)

    def read(some: range) -> Batch:
        sounds = [prepare(read_wave(wave, first, most)) for wave, first in kept[some.start : some.stop]]
        rows = _stacked(sounds, str(path))
        constants = {name: np.full(len(rows), rate_hz) for name in rates}
        ones = {name: np.ones((len(rows), rows.shape[-1]), np.int64) for name in masks}
        return {port.name: rows.reshape(len(rows), *inner, -1)} | constants | ones

    whole = np.dtype(np.int64)
    length = size if audio.features else frames
    return Source(
        where=str(path),
        sha256=key(*_content(kept, classes)),
        shapes={port.name: Shape((*inner, length), np.dtype(np.float32))}
        | {name: Shape((), whole) for name in rates}
        | {name: Shape((length,), whole) for name in masks},
        places=[_place(wave, first, path if path.is_dir() else path.parent) for wave, first in kept],
        rows=in_slices(read, len(kept), classes),
        remarks=remarks,
    )


def _stacked(sounds: Sequence[NDArray[np.float32]], where: str) -> NDArray[np.float32]:
    if len({sound.shape for sound in sounds}) > 1:
        raise UsageError(
            "the sounds of a run have different lengths",
            where=where,
            hint="use batches of one sample, or state the window in frames",
        )
    return np.stack(sounds)


def _sound_port(ports: Sequence[Port], audio: Audio, where: str) -> Port:
    floats = [p for p in ports if np.dtype(p.dtype).kind == "f" and not is_state(p) and p.name not in _RATES]
    found = [port for port in floats if 1 <= len(port.shape) <= _MOST_AXES]
    if len(found) != 1:
        raise UsageError(
            f"the model has {len(found)} inputs that may take sound, not one: it takes {listed(found or ports)}",
            where=where,
            hint="give the samples as an .npz file with an array for each input",
        )
    (port,) = found
    rows = port.shape[1] if len(port.shape) == _MOST_AXES else 1
    if isinstance(rows, int) and rows != (audio.features.bands if audio.features else 1):
        made = f"spectrograms of {audio.features.bands} bands are made" if audio.features else "nothing says how"
        raise UsageError(
            f"'{port.name}' takes {shown(port.shape)}, which is made of sound, and {made}",
            where=where,
            hint="put the preprocessor_config.json of its WhisperFeatureExtractor beside the model, or give .npz",
        )
    return port


def _files(path: Path, labels: Sequence[str]) -> tuple[list[Wave], Labels | None, tuple[str, ...]]:
    if path.is_dir():
        files = list_waves(path)
        if not files:
            raise UsageError("the folder has no .wav files", where=str(path))
        classes, remarks = classes_of_files(files, path, labels)
        return [open_wave(file) for file in files], classes, remarks
    if path.suffix.lower() != ".jsonl":
        return [open_wave(path)], None, ()
    try:
        with path.open("rb") as file:
            lines = list(read_jsonl(str(path), file, _Line))
    except OSError as error:
        raise UsageError(
            f"the samples cannot be read: {error.strerror or error}", where=str(path), hint="check the file"
        ) from error
    if not lines:
        raise UsageError("there is no line in it", where=str(path), hint=_LINES)
    if lacking := [place for place, line in lines if line.audio is None]:
        raise UsageError(
            "the line has no `audio`, the path of a .wav file: without 'input_ids' the model takes no text",
            where=lacking[0],
            hint=_LINES,
        )
    waves = [open_wave(path.parent / line.audio) for _, line in lines if line.audio is not None]
    texts = [line.text for _, line in lines if line.text is not None]
    names = [str(line.label) for _, line in lines if line.label is not None]
    if len(texts) == len(lines) and not names:
        return waves, texts, ()
    if len(names) == len(lines) and not texts:
        return waves, *classes_of(names, [place for place, _ in lines], labels)
    if texts or names:
        raise UsageError(
            "all lines must have a `text`, or all a `label`, or none either", where=str(path), hint="complete them"
        )
    return waves, None, ()


def _rate(waves: Sequence[Wave], audio: Audio) -> int:
    wanted = audio.sample_rate_hz or waves[0].rate_hz
    if odd := next((wave for wave in waves if wave.rate_hz != wanted), None):
        raise UsageError(
            f"the sound has {odd.rate_hz} Hz, {'the model' if audio.sample_rate_hz else 'others'} {wanted} Hz",
            where=str(odd.path),
            hint=f"convert it: edgec does not resample (ffmpeg -i in.wav -ar {wanted} out.wav)",
        )
    return wanted


def _check_whole(waves: Sequence[Wave], frames: int) -> None:
    if longer := next((wave for wave in waves if wave.frames > frames), None):
        raise UsageError(
            f"the sound has {longer.frames} frames, the model takes {frames}: its text would say too much",
            where=str(longer.path),
            hint="cut the sound and its text into shorter pieces",
        )


def _pieces(waves: Sequence[Wave], frames: int) -> list[tuple[Wave, int]]:
    return [(wave, frames * index) for wave in waves for index in range(max(1, wave.frames // frames))]


def _place(wave: Wave, first: int, folder: Path) -> str:
    name = wave.path.relative_to(folder) if wave.path.is_relative_to(folder) else wave.path
    return f"{name.as_posix()} at {first / wave.rate_hz:.2f} s" if first else name.as_posix()


def _content(kept: Sequence[tuple[Wave, int]], labels: Labels | None) -> list[str]:
    """Return what decides the samples: the files' hashes, where each piece begins, and what is right."""
    paths = {wave.path for wave, _ in kept}
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    truth = [] if labels is None else [str(label) for label in labels]
    return [*(f"{hashes[wave.path]} {first}" for wave, first in kept), *truth]
