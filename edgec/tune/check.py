"""Measure a whole mixture: what its graph predicts, how large its artifact is, and how fast here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.backends.backend import Job, get_backend
from edgec.calibrate.stats import Stats
from edgec.checkpoint.model import Checkpoint
from edgec.errors import MissingRuntimeError
from edgec.evaluate.divergence import Divergence
from edgec.evaluate.streamed import stream
from edgec.evaluate.verify import compare_graphs
from edgec.frontends.architecture import Decoder
from edgec.graph.store import Store
from edgec.graph.weights import Codes, float_weights, load, matrix_name
from edgec.measure.latency import measure_decoder
from edgec.quantize.algorithms import algorithm_of
from edgec.quantize.scheme import Scheme
from edgec.quantize.transforms.quarot import emit_turned
from edgec.quantize.weights import as_codes, quantize_weights
from edgec.spec.plan import Plan, resolve
from edgec.spec.profile import Profile
from edgec.spec.target import Target
from edgec.tune.units import cheap

Ids = NDArray[np.int64]

_LATENCY = {"prompt_tokens": 16, "new_tokens": 48, "repeats": 5, "warmup": 1}


@dataclass(frozen=True)
class Measured:
    """A mixture as measured.

    Args:
        divergence: of its canonical graph from the float model.
        size_bytes: of its artifact; None where none was made.
        latency_ms: of a token on this machine, the median of the fastest repeat; None where it was not measured.
    """

    divergence: Divergence
    size_bytes: int | None = None
    latency_ms: float | None = None


class Checker:
    """Measures mixtures of one model for one target.

    Args:
        checkpoint: the model.
        decoder: its description.
        target: the device.
        backend: of the target.
        stats: the inputs of each weight, by its name; of the rotated model where profiles rotate it.
        windows: token ids (n, tokens).
        folder: for weights and artifacts, one at a time.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        decoder: Decoder,
        target: Target,
        backend: str,
        stats: Mapping[str, Stats],
        windows: Ids,
        folder: Path,
    ) -> None:
        self.checkpoint, self.decoder, self.target, self.backend = checkpoint, decoder, target, backend
        self.stats, self.windows, self.folder = stats, windows, folder
        self.source = stream(emit_turned(decoder, checkpoint, windows.shape[1], ()), folder)
        self.hidden = self.source.hidden(windows)

    def measure(self, profile: Profile, *, artifact: bool = False, latency: bool = False) -> Measured:
        """Measure a profile's mixture, of the rotated model where the profile says so; it is not scaled.

        Args:
            profile: what to measure; algorithms that need more than the importance of inputs are replaced by `mse`.
            artifact: compile it, for its size.
            latency: run the artifact too.
        """
        with TemporaryDirectory(dir=self.folder) as scratch, Store(Path(scratch) / "weights.bin") as store:
            folder = Path(scratch)
            plan = resolve(self.checkpoint, self.decoder, self.target, profile, self.backend)
            model = emit_turned(self.decoder, self.checkpoint, plan.context_length, plan.transforms)
            known = self._codes(model, plan)
            quantize_weights(model, lambda value, _: plan.storage_of(matrix_name(value)), store, _ignore, known)
            divergence = compare_graphs(self.source, stream(model, folder), self.windows, self.hidden)
            if not artifact:
                return Measured(divergence)
            out = folder / "artifact"
            out.mkdir()
            parts = self.decoder, plan, self.target, self.checkpoint.config, self.checkpoint.tokenizer_files()
            try:
                get_backend(self.backend).compile_decoder(Job(model, *parts), out, _ignore)
            except MissingRuntimeError:
                return Measured(divergence)
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            return Measured(divergence, size, self._latency(out, plan) if latency else None)

    def _codes(self, model: ir.Model, plan: Plan) -> Callable[[str], Codes | None]:
        """Return what gives the codes of a weight that the plan stores as integers, by its name."""
        weights = {str(value.name): (value, kind) for value, kind in float_weights(model.graph)}

        def known(name: str) -> Codes | None:
            value, kind = weights[name]
            scheme = cheap(plan.storage_of(matrix_name(value)))
            if not isinstance(scheme, Scheme):
                return None
            rows = torch.from_numpy(load(value, kind))
            return as_codes(algorithm_of(scheme).quantize(rows, self.stats.get(name), scheme))

        return known

    def _latency(self, artifact: Path, plan: Plan) -> float:
        length = min(plan.context_length, _LATENCY["prompt_tokens"] + _LATENCY["new_tokens"])
        session = get_backend(self.backend).open_session(artifact, "generate", max_length=length)
        settings = {**_LATENCY, "new_tokens": length - _LATENCY["prompt_tokens"]}
        samples = measure_decoder(session, **settings).token_samples_ms
        # Whatever else a machine does makes it slower: the quietest repeat is nearest to the truth.
        return min(median(repeat) for repeat in samples)


def _ignore(_: object) -> None:
    pass
