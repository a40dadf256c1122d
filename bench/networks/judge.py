"""How right the networks are: what each artifact answers to the same samples, beside the truth and the float network.

| network | right | agrees | distance |
|---|---|---|---|
| efficientnet_lite0 | top-1 is the picture's class | top-1 is the float network's | KL(float, artifact) |
| minilm | the nearest other sentence is of the same article | nearest as in float | 1 - cosine |
| silero_vad | the probability of speech is on the truth's side of 0.5 | on the float network's side | difference |

silero_vad carries its own state through each recording. Intervals are bootstraps over pictures, sentences, or seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from runners import Run

Array = NDArray[Any]

_RESAMPLES = 1000
_BATCH = 4


@dataclass(frozen=True)
class Score:
    """Means over samples, with 95 % intervals (low, high); `lost` is what the float network has right more often."""

    right: float
    lost: float
    lost_interval: tuple[float, float]
    agrees: float
    distance: float
    distance_interval: tuple[float, float]


def answers(network: str, run: Run, data: Path) -> Array:
    """Return logits (n, 1000), embeddings (n, 384) or probabilities of speech (n,)."""
    arrays = dict(np.load(data / f"{network}.evaluation.npz"))
    if network == "efficientnet_lite0":
        batches = _batches({"pixel_values": arrays["pixel_values"]})
        return np.concatenate([next(iter(run(feed).values())) for feed in batches])  # whatever logits are called
    if network == "minilm":
        return embeddings(run, arrays)
    first = np.load(data / "silero_vad.truth.npz")["first"]
    state, found = np.zeros((2, 1, 128), np.float32), []
    for piece, is_first in zip(arrays["input"], first, strict=True):
        made = run({"input": piece[None], "state": np.zeros_like(state) if is_first else state})
        state = made["stateN"]
        found.append(made["output"][0, 0])
    return np.array(found)


def judge(network: str, answer: Array, reference: Array, data: Path) -> Score:
    """Compare answers with the truth, and with those of the float network."""
    truth = dict(np.load(data / f"{network}.truth.npz"))
    right, agrees, distance = _JUDGES[network](answer, reference, truth["label"])
    right_float, *_ = _JUDGES[network](reference, reference, truth["label"])
    known, group = truth["label"] >= 0, truth["group"]
    lost = (right_float.astype(float) - right)[known]
    return Score(
        float(right[known].mean()),
        float(lost.mean()),
        interval(lost, group[known]),
        float(agrees.mean()),
        float(distance.mean()),
        interval(distance, group),
    )


def embeddings(run: Run, arrays: dict[str, Array]) -> Array:
    """Return the embeddings (n, 384) of tokenized sentences."""
    return np.concatenate([_pool(run(feed)["last_hidden_state"], feed) for feed in _batches(arrays)])


def _batches(arrays: dict[str, Array]) -> list[dict[str, Array]]:
    count = len(next(iter(arrays.values())))
    return [{name: a[first : first + _BATCH] for name, a in arrays.items()} for first in range(0, count, _BATCH)]


def _pool(hidden: Array, feed: dict[str, Array]) -> Array:
    """Return the mean over the tokens of each sentence, of length 1, as sentence-transformers takes it."""
    mean = (hidden * feed["attention_mask"][..., None]).sum(1)
    pooled: Array = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return pooled


def _classes(answer: Array, reference: Array, label: Array) -> tuple[Array, Array, Array]:
    def log_softmax(logits: Array) -> Array:
        shifted = logits - logits.max(1, keepdims=True)
        logs: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return logs

    ours, theirs = log_softmax(answer.astype(np.float64)), log_softmax(reference.astype(np.float64))
    top = answer.argmax(1)
    return top == label, top == reference.argmax(1), (np.exp(theirs) * (theirs - ours)).sum(1)


def sentences(answer: Array, reference: Array, label: Array) -> tuple[Array, Array, Array]:
    """Return whether each sentence's nearest is of its article, and the one of `reference`, and 1 - cosine."""

    def nearest(embeddings: Array) -> Array:
        cosines = embeddings @ embeddings.T
        np.fill_diagonal(cosines, -2)
        found: Array = cosines.argmax(1)
        return found

    ours, theirs = nearest(answer), nearest(reference)
    return label[ours] == label, ours == theirs, 1 - (answer.astype(np.float64) * reference).sum(1)


def _speech(answer: Array, reference: Array, label: Array) -> tuple[Array, Array, Array]:
    speaks = answer > 0.5
    return speaks == label, speaks == (reference > 0.5), np.abs(answer.astype(np.float64) - reference)


_JUDGES = {"efficientnet_lite0": _classes, "minilm": sentences, "silero_vad": _speech}


def interval(values: Array, groups: Array) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of the mean, whole groups of samples drawn at once."""
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(0).integers(len(sums), size=(_RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
