"""How far outputs are from those of the float model, and for which samples most."""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, agreement, snr_db
from edgec.evaluate.metrics._scores import class_scores, has_scores
from edgec.evaluate.metrics._texts import texts
from edgec.evaluate.metrics._vectors import cosines, flat

_SCORES = ("logit", "prob", "score", "softmax", "class")
_SHOWN = 10


class Fidelity(msgspec.Struct, frozen=True):
    """How far an output is from that of the float model; padding does not count.

    Args:
        output: its name.
        cosine: of the angle between all numbers of a sample, mean over samples.
        snr_db: power of the float output over that of the error; None where there is no error.
        max_abs_error: of all numbers.
        agreement: share of predictions that are the same, where the output scores classes or gives integers.
    """

    output: str
    cosine: float
    snr_db: float | None
    max_abs_error: float
    agreement: float | None


def broken_bounds(outputs: Iterable[Fidelity], min_cosine: float, min_snr_db: float) -> list[str]:
    """Return a sentence for each output and bound that it breaks; a NaN breaks each.

    Outputs without error, and those of a float model that gives nothing but 0, have no SNR: cosines are 1 and 0 there.
    """
    found = []
    for output in outputs:
        if not output.cosine >= min_cosine:
            found.append(
                f"the cosine of {output.output} with the float model's is {_below_one(output.cosine)} "
                f"(allowed at least {min_cosine:g})"
            )
        if output.snr_db is not None and not output.snr_db >= min_snr_db:
            found.append(
                f"the SNR of {output.output} against the float model's is {output.snr_db:.1f} dB "
                f"(allowed at least {min_snr_db:g} dB)"
            )
    return found


def loss(outputs: Iterable[Fidelity]) -> float:
    """Return how far the farthest output is from the float model's: 0 for none, infinite where there are no numbers.

    By angle or by noise, whichever is worse: a cosine does not see the size of outputs, and is 1 for single numbers of
    one sign; noise does not see samples with small outputs. Half of noise over signal is 1 - cosine at equal lengths.
    """
    found = [
        max(1 - output.cosine, 0.0 if output.snr_db is None else 10 ** (-output.snr_db / 10) / 2) for output in outputs
    ]
    return max(found, default=math.inf)


def _below_one(cosine: float) -> str:
    """Return a cosine with as many digits as tell it from 1."""
    return f"{cosine:.4f}" if not cosine > 1 - 5e-5 else f"1 - {1 - cosine:.1e}"


class Changed(msgspec.Struct, frozen=True):
    """A sample for which the output changed.

    Args:
        index: of the sample.
        place: where it comes from.
        distance: length of the error, over the sum of the lengths of both outputs: 0 to 1.
        reference: what the float model predicts, where that has a name: a class or a text.
        test: what the other one predicts.
    """

    index: int
    place: str
    distance: float
    reference: str | None = None
    test: str | None = None


class Tracker:
    """How far an output is from that of the float model, so far."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sums = np.zeros(2)
        self._agrees = np.zeros(2)
        self._cosine = self._largest = 0.0
        self._samples = 0

    def add(self, part: Part, setting: Setting) -> None:
        values, expected = flat(part.values, part.valid), flat(part.expected, part.valid)
        self._samples += len(values)
        self._cosine += float(cosines(values, expected).sum())
        self._largest = max(self._largest, float(np.abs(values - expected).max(initial=0)))
        self._sums += snr_db.per_sample(part, setting).sum(axis=0)
        if part.values.dtype.kind in "iu" or _scores(part, setting) is not None:
            self._agrees += agreement.per_sample(part, setting).sum(axis=0)

    def result(self) -> Fidelity:
        same, all_ = self._agrees
        return Fidelity(
            output=self._name,
            cosine=self._cosine / self._samples,
            snr_db=finite(float(snr_db.total(self._sums[None], np.ones((1, 1)))[0])),
            max_abs_error=self._largest,
            agreement=float(same / all_) if all_ else None,
        )


def _scores(part: Part, setting: Setting) -> NDArray[Any] | None:
    """Return the output where it scores classes, by its name or because it has as many numbers."""
    is_named = any(word in part.output.lower() for word in _SCORES)
    is_single = part.values.size == len(part.values)
    if part.values.dtype.kind != "f" or not has_scores(part.values) or (is_single and setting.threshold is None):
        return None
    scores = class_scores(part.values, setting)
    return scores if is_named or is_single or scores.shape[-1] == len(setting.classes) else None


def _predictions(part: Part, setting: Setting) -> list[str | None] | None:
    """Return what is predicted for each sample, where that has a name."""
    scores = _scores(part, setting)
    if scores is not None and scores.ndim == 2:
        best = scores.argmax(axis=1).tolist()
        names = setting.classes if len(setting.classes) == scores.shape[1] else range(scores.shape[1])
        return [str(names[index]) for index in best]
    is_float = part.values.dtype.kind == "f"
    is_text = part.values.ndim == (3 if is_float else 2) and not (
        is_float and part.values.shape[-1] < setting.vocabulary  # hidden states, or classes of tokens
    )
    return [*texts(part.values, part.valid, setting)] if is_text and setting.decode is not None else None


def changes(part: Part, first: int, places: Sequence[str], setting: Setting) -> Iterator[tuple[bool, Changed]]:
    """Yield each sample that changed, and whether its prediction did."""
    values, expected = flat(part.values, part.valid), flat(part.expected, part.valid)
    lengths = np.linalg.norm(values, axis=1) + np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(values - expected, axis=1)
    distances = np.divide(errors, lengths, out=np.zeros(len(errors)), where=lengths > 0).tolist()
    unnamed: list[str | None] = [None] * len(distances)
    predicted = _predictions(part, setting) or unnamed
    assert part.reference is not None
    right = _predictions(replace(part, outputs=part.reference), setting) or unnamed
    for row, (distance, was, now) in enumerate(zip(distances, right, predicted, strict=True)):
        if distance > 0:
            yield was != now, Changed(first + row, places[first + row], distance, was, now)


def largest(changed: Iterable[tuple[bool, Changed]]) -> list[tuple[bool, Changed]]:
    return heapq.nlargest(_SHOWN, changed, key=lambda item: (item[0], item[1].distance, -item[1].index))


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None where it is infinite or NaN."""
    return value if math.isfinite(value) else None
