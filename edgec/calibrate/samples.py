"""Samples for a network: to calibrate on, and to measure with.

| source | samples | labels |
|---|---|---|
| .npz | arrays named like the inputs, samples first | an array `label`, `labels`, `target` or `targets` |
| folder of .png and .jpg | pictures | `labels.csv` (`path,class`), or the first folder of each path |
| .txt, .md, "python-docs" | paragraphs | none |
| .jsonl, for networks with `input_ids` | `text`, perhaps `text_pair` | `label` (class or number), or `target` (text) |
| .wav, or a folder of them | pieces of the size that the model takes | as for pictures; then the first piece alone |
| .jsonl, for other networks | `audio`, the path of a .wav file | `text`, or `label` (class) |

A class is the index or the name of one of the model's. An array in an .npz file has one axis for samples, its first,
wherever the network has its own; what a network takes without such an axis must be the same for all samples of a run.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgec.calibrate.arrays import Batch, choose, load_arrays, open_samples
from edgec.calibrate.audio import Audio, list_waves
from edgec.calibrate.audio_samples import audio_source
from edgec.calibrate.encoding import INPUTS
from edgec.calibrate.images import SUFFIXES as PICTURES
from edgec.calibrate.images import Pictures
from edgec.calibrate.picture_samples import picture_source
from edgec.calibrate.ports import Axis, Shape, fit
from edgec.calibrate.source import Rows, Source
from edgec.calibrate.text_samples import SUFFIXES as TEXTS
from edgec.calibrate.text_samples import text_source
from edgec.errors import UsageError
from edgec.evaluate.corpus import PYTHON_DOCS, Purpose
from edgec.frontends.network import Port

LABELS = ("label", "labels", "target", "targets")

_WINDOW = 128
_KINDS = f"give .npz, {', '.join(TEXTS)}, .wav, or a folder of {', '.join(PICTURES)} or .wav files"


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a file or folder.

    Args:
        name: of the file or folder.
        sha256: in hex, of the file; for folders and sounds, of what was chosen and its labels.
        count: how many samples.
        places: where each comes from, for people.
        axis: what the ports of the network call the axis of samples; None where a run takes one, without an axis.
        batch: samples in a run; the last run may have fewer.
        batches: give the inputs of each run, and the labels of its samples, where there are some: classes (n,) int64,
            numbers (n, ...), or texts. Can be called again, and gives the same. Memory is bounded by three batches.
        remarks: what the user should know.
    """

    name: str
    sha256: str
    count: int
    places: Sequence[str]
    axis: Axis
    batch: int
    batches: Callable[[], Rows]
    remarks: tuple[str, ...] = ()

    def inputs(self) -> Iterator[Batch]:
        """Yield the inputs of each run."""
        return (batch for batch, _ in self.batches())


def load_samples(
    path_or_name: str,
    network_ports: Sequence[Port],
    *,
    samples: int,
    seed: int = 0,
    batch: int = 8,
    tokenizer_files: Mapping[str, bytes] | None = None,
    pictures: Pictures | None = None,
    labels: Sequence[str] = (),
    audio: Audio | None = None,
    window: int | None = None,
    purpose: Purpose = "calibration",
) -> Samples:
    """Choose samples, and find how they become what a network takes.

    Which are chosen depends on how many there are and the seed alone; they stay in order. Inputs that the samples lack
    are refused, but for states of recurrent networks, which start as zeros (see `edgec.calibrate.ports.fit`).

    Args:
        path_or_name: see the table above.
        network_ports: the inputs of the network.
        samples: how many, at most.
        seed: 0 to 2**64 - 1.
        batch: samples in one run, where the network leaves that open.
        tokenizer_files: name -> content, for texts.
        pictures: how the network takes pictures; by default what a preprocessor_config.json in the folder says, or else
            pixels from 0 to 1 with ImageNet's mean and standard deviation, which is remarked.
        labels: its classes, by index.
        audio: how it takes sound.
        window: tokens in a text, at most (128); frames in a sound where the network leaves that open.
        purpose: evaluation reads another part of "python-docs" than calibration.

    Raises:
        UsageError: the samples cannot be read, or are not what the network takes; says both.
        BundleError: the tokenizer cannot be read.
        MissingRuntimeError: pictures need Pillow, spectrograms transformers.
    """
    if samples < 1 or batch < 1:
        raise UsageError(f"{samples} samples in batches of {batch}: both must be at least 1")
    path, kind = Path(path_or_name), Path(path_or_name).suffix.lower()
    takes_text = any(port.name == INPUTS[0] for port in network_ports)
    if path_or_name == PYTHON_DOCS or (kind in TEXTS and (takes_text or kind != ".jsonl")):
        source = text_source(
            path_or_name,
            network_ports,
            tokenizer_files or {},
            labels,
            samples=samples,
            seed=seed,
            window=window or _WINDOW,
            purpose=purpose,
        )
    elif not path.exists():
        raise UsageError("there is no such file or folder of samples", where=path_or_name, hint=_KINDS)
    elif path.is_dir() and (pictures is not None or not list_waves(path)):
        source = picture_source(path, network_ports, pictures, labels, samples, seed)
    elif path.is_dir() or kind in {".wav", ".jsonl"}:
        source = audio_source(path, network_ports, audio or Audio(), labels, samples=samples, seed=seed, window=window)
    elif kind == ".npz":
        source = _archive(path, network_ports, samples, seed)
    else:
        raise UsageError(
            f"edgec reads no samples from {kind or 'such'} files",
            where=path_or_name,
            hint=_KINDS,
        )
    return _samples(source, network_ports, samples, batch)


def _samples(source: Source, ports: Sequence[Port], wanted: int, batch: int) -> Samples:
    fitted = fit(ports, source.shapes, batch=batch, where=source.where)
    found = len(source.places)
    left = found % fitted.batch if fitted.must_be_full else 0
    if left == found:
        raise UsageError(
            f"the model takes {fitted.batch} samples at once, there are {found}",
            where=source.where,
            hint="give more samples, or a model with an open batch",
        )

    def batches() -> Rows:
        for rows, labels in source.rows(fitted.batch):
            feed, count = fitted.feed(rows, source.where), len(next(iter(rows.values())))
            if count == fitted.batch or not fitted.must_be_full:
                yield feed, labels

    few = f"there are {found} samples of the {wanted} wanted" if found < wanted else ""
    cut = f"the model takes {fitted.batch} samples at once: {left} were left out" if left else ""
    return Samples(
        name=Path(source.where).name,
        sha256=source.sha256,
        count=found - left,
        places=source.places[: found - left],
        axis=fitted.axis,
        batch=fitted.batch,
        batches=batches,
        remarks=(*source.remarks, *fitted.remarks, *filter(None, (few, cut))),
    )


def _archive(path: Path, ports: Sequence[Port], samples: int, seed: int) -> Source:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            arrays, count = open_samples(file, str(path))
    except OSError as error:
        raise UsageError(
            f"the samples cannot be read: {error.strerror or error}", where=str(path), hint="check the file"
        ) from error
    known = {port.name for port in ports}
    found = [name for name in LABELS if name in arrays and name not in known]
    if len(found) > 1:
        raise UsageError(f"{' and '.join(found)} are both labels", where=str(path), hint="keep one of them")

    def rows(batch: int) -> Rows:
        for inputs in load_arrays(path, samples=samples, batch=batch, seed=seed):
            labels = inputs.pop(found[0]) if found else None
            yield inputs, labels.astype(np.int64) if labels is not None and labels.dtype.kind in "biu" else labels

    return Source(
        where=str(path),
        sha256=sha256,
        shapes={name: Shape(array.shape[1:], array.dtype) for name, array in arrays.items() if name not in found},
        places=[f"{path.name}[{index}]" for index in choose(count, samples, seed)],
        rows=rows,
    )
