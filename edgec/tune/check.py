"""Measure a whole mixture: what its graph predicts, how large its artifact is, and how fast here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.backends.backend import Job, get_backend
from edgec.build_prune import Left
from edgec.calibrate.stats import Stats
from edgec.errors import MissingRuntimeError
from edgec.evaluate.divergence import Divergence
from edgec.evaluate.streamed import stream
from edgec.evaluate.verify import compare_graphs
from edgec.graph.store import Store, shape_of
from edgec.graph.weights import Codes, float_weights, load, matrix_name
from edgec.measure.latency import measure_decoder
from edgec.prune.methods import masked, method_of
from edgec.prune.pattern import Pattern
from edgec.quantize.algorithms import algorithm_of
from edgec.quantize.scheme import Scheme
from edgec.quantize.transforms.quarot import emit_turned
from edgec.quantize.weights import as_codes, quantize_weights
from edgec.spec.plan import Plan, resolve
from edgec.spec.profile import Profile
from edgec.spec.prune_plan import SparsePlan
from edgec.spec.target import Target
from edgec.tune.units import cheap, cheap_method

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


class Reference:
    """What mixtures are compared with: the dense float model on a text.

    Args:
        dense: the model as it came.
        windows: token ids (n, tokens).
        folder: for weights and artifacts, one at a time.
    """

    def __init__(self, dense: Left, windows: Ids, folder: Path) -> None:
        self.windows, self.folder = windows, folder
        self.source = stream(emit_turned(dense.decoder, dense.checkpoint, windows.shape[1], ()), folder)
        self.hidden = self.source.hidden(windows)

    def divergence(self, model: ir.Model, folder: Path | None = None) -> Divergence:
        """Return how far a canonical graph, whose weights may be in a file in `folder`, is from the dense model."""
        return compare_graphs(self.source, stream(model, folder or self.folder), self.windows, self.hidden)


@dataclass(frozen=True)
class Checker:
    """Measures mixtures of one shape of a model for one target.

    Args:
        left: the shape.
        target: the device.
        backend: of the target.
        stats: the inputs of each weight, by its name; of the rotated model where profiles rotate it.
        reference: the dense model.
    """

    left: Left
    target: Target
    backend: str
    stats: Mapping[str, Stats]
    reference: Reference

    def measure(self, profile: Profile, *, artifact: bool = False, latency: bool = False) -> Measured:
        """Measure a profile's mixture, of the rotated model where the profile says so; it is not scaled.

        Args:
            profile: what to measure of this shape, whatever its `[slim]`; algorithms that need more than the importance
                of inputs are replaced by `mse`, and `sparsegpt` by `wanda`.
            artifact: compile it, for its size.
            latency: run the artifact too.
        """
        checkpoint, decoder, _ = self.left
        within = TemporaryDirectory(dir=self.reference.folder)
        with within as scratch, Store(Path(scratch) / "weights.bin") as store:
            folder = Path(scratch)
            wishes = msgspec.structs.replace(profile, slim=None)
            plan = resolve(checkpoint, decoder, self.target, wishes, self.backend)
            model = self.left.graph(plan)
            if plan.sparse is not None:
                prune_weights(model, plan.sparse, self.stats)
            known = self._codes(model, plan)
            quantize_weights(model, lambda value, _: plan.storage_of(matrix_name(value)), store, _ignore, known)
            divergence = self.reference.divergence(model, folder)
            if not artifact:
                return Measured(divergence)
            out = folder / "artifact"
            out.mkdir()
            job = Job(model, decoder, plan, self.target, checkpoint.config, checkpoint.tokenizer_files())
            try:
                get_backend(self.backend).compile_decoder(job, out, _ignore)
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
            tensor = algorithm_of(scheme).quantize(rows, self.stats.get(name), scheme)
            sparse = plan.sparse is not None and matrix_name(value) in plan.sparse.matrices
            return as_codes(masked(tensor, rows != 0) if sparse else tensor)

        return known

    def _latency(self, artifact: Path, plan: Plan) -> float:
        length = min(plan.context_length, _LATENCY["prompt_tokens"] + _LATENCY["new_tokens"])
        session = get_backend(self.backend).open_session(artifact, "generate", max_length=length)
        settings = {**_LATENCY, "new_tokens": length - _LATENCY["prompt_tokens"]}
        samples = measure_decoder(session, **settings).token_samples_ms
        # Whatever else a machine does makes it slower: the quietest repeat is nearest to the truth.
        return min(median(repeat) for repeat in samples)


def prune_weights(model: ir.Model, wanted: SparsePlan, stats: Mapping[str, Stats]) -> None:
    """Let the matrices of a canonical float graph that a plan makes sparse have their zeros when they are read."""
    pattern, method = Pattern.parse(wanted.pattern), method_of(cheap_method(wanted.method))

    def zeroed(name: str, dense: ir.TensorProtocol) -> ir.TensorProtocol:
        rows = torch.from_numpy(np.ascontiguousarray(dense.numpy().T, np.float32))
        pruned = method.prune(rows, stats.get(name), pattern)
        return ir.tensor(np.ascontiguousarray(pruned.weight.numpy().T), name=name)

    for value in (value for value, _ in float_weights(model.graph) if matrix_name(value) in wanted.matrices):
        name, dense = str(value.name), value.const_value
        assert dense is not None
        value.const_value = ir.LazyTensor(
            partial(zeroed, name, dense), ir.DataType.FLOAT, ir.Shape(shape_of(dense)), name=name
        )


def _ignore(_: object) -> None:
    pass
