"""Write calibration and evaluation samples: .work/networks/data/NETWORK.calibration.npz and NETWORK.evaluation.npz.

Arrays are named like the inputs, samples first. Pictures have `label`. What is known beside, and no tool may see, is
in NETWORK.truth.npz: the article of each sentence, and whether each piece of a recording is speech.

| network | calibration | evaluation |
|---|---|---|
| efficientnet_lite0 | two views of a third of ai-benchmark's pictures | four views of the others and of foolbox's |
| minilm | sentences of the language reference that Python carries | sentences of another text, by article |
| silero_vad | digits, cards and commands spoken by several people, with noise | five sentences of a novel, with noise |

No picture, text or recording is in both. The state of silero_vad is what its float network had come to.
Run in edgec's environment: python data.py [--text FILE]
"""

import argparse
import hashlib
import io
import json
import random
import re
import wave
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import sources
from classes import CLASSES
from numpy.typing import NDArray
from PIL import Image

DATA = sources.WORK / "data"
UNKNOWN = -1
Arrays = dict[str, NDArray[Any]]

SIZE = 224
# Length of the shorter side, where the crop lies (0 left or top, 1 right or bottom), flipped.
VIEWS = ((256, 0.5, False), (240, 0.5, True), (280, 0.0, False), (280, 1.0, True))

WORDS, LENGTH = (6, 60), 64
PER_ARTICLE = 10

RATE, PIECE, CONTEXT = 16000, 512, 64
RECORDINGS = {
    "calibration": [f"cards/{n:03}.wav" for n in range(1, 6)]
    + ["forever/input_2_16k.wav", "forever/input_4_16k.wav", "goforward.raw", "numbers.raw", "something.raw"],
    "evaluation": [
        f"librivox/sense_and_sensibility_01_austen_64kb-{n}.wav" for n in ("0870", "0880", "0890", "0920", "0930")
    ],
}
NOISES = ((None, "white"), (15, "white"), (10, "pink"), (0, "pink"))
"""Decibels that speech is louder than noise, and the kind of noise."""
GAP_SECONDS = 0.6
LOUD = 0.012  # of clips whose largest sample is 0.25; what is less loud may be a pause
CALIBRATION_PIECES = 1024


def pictures() -> dict[str, Arrays]:
    """Return pixels (n, 3, 224, 224) of (byte - 127) / 128, their classes, and which picture each is a view of."""
    shown = [f"ai_benchmark/data/classification/{n}.jpg" for n in range(100)]
    streets = [f"ai_benchmark/data/enhancement/{n}.jpg" for n in range(0, 100, 3)]
    files = sources.read(sources.AI_BENCHMARK, shown + streets)
    calibration = [files[name] for name in shown[::3] + streets]
    evaluation = [(files[name], CLASSES[n]) for n, name in enumerate(shown) if n % 3 and n in CLASSES]
    names = sorted(name for name in sources.names(sources.FOOLBOX) if "/imagenet_" in name)
    labelled = sources.read(sources.FOOLBOX, names)
    evaluation += [(labelled[name], int(name.removesuffix(".jpg").rpartition("_")[2])) for name in names]
    calibrating = {"pixel_values": np.stack([view(data, *v) for data in calibration for v in VIEWS[:2]])}
    pixels = np.stack([view(data, *v) for data, _ in evaluation for v in VIEWS])
    labels = np.repeat(np.array([label for _, label in evaluation], np.int64), len(VIEWS))
    return {
        "calibration": calibrating,
        "evaluation": {"pixel_values": pixels, "label": labels},
        "truth": {"label": labels, "group": np.arange(len(labels)) // len(VIEWS)},
    }


def view(data: bytes, shorter: int, place: float, flipped: bool) -> NDArray[np.float32]:
    """Return a square of a picture, (3, 224, 224)."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale = shorter / min(picture.size)
    wide, high = (round(side * scale) for side in picture.size)
    left, top = round((wide - SIZE) * place), round((high - SIZE) * place)
    square = picture.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + SIZE, top + SIZE))
    pixels = (np.asarray(square, np.float32) - 127) / 128
    return np.ascontiguousarray((pixels[:, ::-1] if flipped else pixels).transpose(2, 0, 1))


def sentences(text: Path | None) -> dict[str, Arrays]:
    """Return token ids (n, 64) with their masks; articles of the evaluation are the topics left over, or the text's."""
    from pydoc_data.topics import topics

    names = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest())
    articles = [topics[name] for name in names[len(names) // 2 :]] if text is None else wikitext(text.read_text())
    evaluation = [s for s in (split(article) for article in articles) if len(s) >= PER_ARTICLE]
    chosen = [s[i * len(s) // PER_ARTICLE] for s in evaluation for i in range(PER_ARTICLE)]
    calibration = [s for name in names[: len(names) // 2] for s in split(topics[name])]
    calibration = [calibration[i * len(calibration) // 128] for i in range(128)]
    article = np.repeat(np.arange(len(evaluation)), PER_ARTICLE)
    return {
        "calibration": tokens(calibration),
        "evaluation": tokens(chosen),
        "truth": {"label": article, "group": np.arange(len(chosen))},
    }


def wikitext(text: str) -> list[str]:
    """Return the articles of WikiText, as people would write them."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:?!)%']|'s|n't)", r"\1", text).replace("( ", "(")
    return re.split(r"^ = [^=].*= *$", text, flags=re.MULTILINE)[1:]


def split(text: str) -> list[str]:
    """Return the sentences of a text."""
    found = re.split(r"(?<=[.?!])\s+|\n\s*\n", text)
    clean = (re.sub(r'\s+|[*"`|=+]', " ", sentence).strip() for sentence in found)
    return [s for s in clean if WORDS[0] <= len(s.split()) <= WORDS[1] and s[0].isupper() and s.endswith(".")]


def tokens(texts: Sequence[str]) -> Arrays:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models.CHECKPOINTS / "minilm/tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(list(texts))
    rows = {
        "input_ids": [e.ids for e in encoded],
        "attention_mask": [e.attention_mask for e in encoded],
        "token_type_ids": [e.type_ids for e in encoded],
    }
    return {name: np.array(row, np.int64) for name, row in rows.items()}


def speech() -> dict[str, Arrays]:
    """Return pieces (n, 576), each with the end of the one before, and states (n, 2, 128) of the float network."""
    made: dict[str, Arrays] = {}
    for purpose, files in RECORDINGS.items():
        clips = list(sources.read(sources.POCKETSPHINX, [f"test/data/{name}" for name in files]).items())
        parts = [recording(clips, decibels, kind, seed) for seed, (decibels, kind) in enumerate(NOISES)]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        inputs = {key: joined[key] for key in ("input", "state")}
        if purpose == "calibration":
            count = len(joined["input"])
            rows = np.arange(CALIBRATION_PIECES) * count // CALIBRATION_PIECES
            made[purpose] = {key: array[rows] for key, array in inputs.items()}
        else:
            made[purpose] = inputs
            made["truth"] = {key: joined[key] for key in ("label", "group", "first")}
    return made


def recording(clips: Iterable[tuple[str, bytes]], decibels: int | None, kind: str, seed: int) -> Arrays:
    """Join clips with gaps, add noise, and cut; `label` is 1 in speech, 0 between clips, -1 where it is hard to say."""
    gap = np.zeros(int(GAP_SECONDS * RATE), np.float32)
    sound, spoken = [gap], [gap]
    for name, data in clips:
        clip = samples(name, data)
        clip *= 0.25 / np.abs(clip).max()
        sound += [clip, gap]
        spoken += [np.ones_like(clip), gap]
    clean, inside = np.concatenate(sound), np.concatenate(spoken)
    noisy = clean
    if decibels is not None:
        power = (clean[inside == 1] ** 2).mean() / 10 ** (decibels / 10)
        noisy = clean + noise(len(clean), kind, seed) * np.sqrt(power)
    count = len(clean) // PIECE
    pieces = noisy[: count * PIECE].reshape(count, PIECE).astype(np.float32)
    before = np.concatenate([np.zeros((1, CONTEXT), np.float32), pieces[:-1, -CONTEXT:]])
    inputs = np.concatenate([before, pieces], axis=1)
    loud = np.sqrt((clean[: count * PIECE].reshape(count, PIECE) ** 2).mean(1))
    within = inside[: count * PIECE].reshape(count, PIECE)
    label = np.where((within.min(1) == 1) & (loud > LOUD), 1, np.where(within.max(1) == 0, 0, UNKNOWN))
    return {
        "input": inputs,
        "state": states(inputs),
        "label": label,
        "first": np.arange(count) == 0,
        "group": np.arange(count) // 31 + seed * 10000,
    }


def samples(name: str, data: bytes) -> NDArray[np.float32]:
    """Return 16-bit samples as numbers of -1 to 1."""
    if name.endswith(".wav"):
        with wave.open(io.BytesIO(data)) as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                raise ValueError(f"{name} is not 16 kHz, one channel, 16 bits")
            data = file.readframes(file.getnframes())
    return (np.frombuffer(data, "<i2") / 32768).astype(np.float32)


def noise(count: int, kind: str, seed: int) -> NDArray[np.float32]:
    """Return noise of power 1; pink noise has less of high frequencies."""
    white = np.frombuffer(random.Random(seed).randbytes(2 * count), "<i2").astype(np.float64)
    spectrum = np.fft.rfft(white)
    if kind == "pink":
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 20 * count / RATE))
    shaped = np.fft.irfft(spectrum, count)
    power_one: NDArray[np.float32] = (shaped / shaped.std()).astype(np.float32)
    return power_one


def states(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the state before each piece (n, 2, 128), as the float network carries it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(models.FLOAT / "silero_vad.onnx", options, providers=["CPUExecutionProvider"])
    state, found = np.zeros((2, 1, 128), np.float32), []
    for piece in inputs:
        found.append(state[:, 0])
        _, state = session.run(None, {"input": piece[None], "state": state})
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="WikiText, to evaluate minilm on; without: Python's documentation")
    arguments = parser.parse_args()
    DATA.mkdir(parents=True, exist_ok=True)
    made = {"efficientnet_lite0": pictures(), "minilm": sentences(arguments.text), "silero_vad": speech()}
    said: dict[str, Any] = {}
    for network, parts in made.items():
        for purpose, arrays in parts.items():
            path = DATA / f"{network}.{purpose}.npz"
            np.savez(path, allow_pickle=False, **arrays)
            shapes = {name: list(array.shape) for name, array in arrays.items()}
            said[path.name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "shapes": shapes}
    said["text"] = "Python's documentation" if arguments.text is None else arguments.text.name
    (DATA / "data.json").write_text(json.dumps(said, indent=1) + "\n")
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
