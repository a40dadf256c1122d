"""Float network -> quantized network: calibrate, round, and leave in float what hurts most."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.calibrate.calibrators import calibrator_named
from edgec.calibrate.observe import observe
from edgec.calibrate.run import run
from edgec.calibrate.samples import Samples
from edgec.errors import RegressionError
from edgec.evaluate.fidelity import Fidelity, broken_bounds, loss
from edgec.evaluate.network import compare
from edgec.frontends.network import Port
from edgec.graph.store import Store
from edgec.quantize.bias import mean_shift
from edgec.quantize.placement import Placement, Site
from edgec.quantize.qdq import Grid, quantize_network, takes_shift
from edgec.spec.network_plan import Grids

Tick = Callable[[str], object]
Place = Callable[[frozenset[str]], Placement]
FindSlow = Callable[[Callable[[frozenset[str]], ir.Model], Placement], dict[str, str]]

_LEVELS = 256
# Enough to rank nodes and to see whether a bound holds, few enough to try each node.
_TRIED_SAMPLES = 32


class Rounding(msgspec.Struct, frozen=True):
    """How a network is rounded, out of a profile and a target.

    Args:
        range: a file in edgec/calibrate/calibrators.
        algorithm: a file in edgec/quantize/algorithms.
        grids: the integers of activations, see `edgec.backends.backend.NetworkLimits`.
        correct_bias: biases take up what rounding shifts on average.
        min_cosine: of each output with the float model's, below which nodes go back to float.
        keep_float: share of the nodes that may, and at least one of them; 0 for none.
        min_snr_db: of each output against the float model's, below which nodes go back to float, too.
    """

    range: str
    algorithm: str
    grids: Grids
    correct_bias: bool
    min_cosine: float
    keep_float: float
    min_snr_db: float = -math.inf


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized network.

    Args:
        model: the canonical graph with integers.
        kept_float: node -> why it stayed in float though it was meant to be int8.
        placement: what became int8; None where nothing did.
        remarks: what was done before, for people.
    """

    model: ir.Model
    kept_float: dict[str, str]
    placement: Placement | None
    remarks: tuple[str, ...] = ()


def quantize_static(
    model: ir.Model,
    outputs: Sequence[Port],
    place: Place,
    rounding: Rounding,
    samples: Samples,
    scratch: Path,
    tick: Tick,
    find_slow: FindSlow | None = None,
) -> Quantized:
    """Quantize weights and activations, with ranges from samples.

    Where an output of the whole is farther from the float model's than it may be, the nodes are rounded one at a
    time, and those that hurt most stay in float, as few as hold the bound.

    Args:
        model: the canonical float graph; not changed.
        outputs: of the model.
        place: gives the placement in which some nodes stay in float.
        rounding: how.
        samples: what ranges are taken from.
        scratch: a folder for the integers.
        tick: called while samples run, and for each node that is tried.
        find_slow: says which nodes are better left in float for speed, and why, given what quantizes the network but
            for some nodes, and what is in int8.

    Raises:
        UsageError: the samples cannot be used.
        CheckpointError: the model computes numbers that are not finite.
    """
    placement = place(frozenset())
    grids = _find_grids(model, placement, rounding, samples, tick)
    build = _Builder(model, grids, rounding, samples, scratch)
    quantized = build(placement)
    kept: dict[str, str] = {}
    few = _few(samples)
    reference = list(run(model, few.inputs()))

    def found(candidate: ir.Model) -> tuple[Fidelity, ...]:
        try:
            return compare(reference, run(candidate, few.inputs()), few, (), ports=outputs).outputs
        except RegressionError:  # it computes what is no number
            return ()

    def holds(candidate: ir.Model) -> bool:
        made = found(candidate)
        return bool(made) and not broken_bounds(made, rounding.min_cosine, rounding.min_snr_db)

    anchors = [site for site in placement.sites if site.data and site.weight is not None]
    most = _most(rounding.keep_float, len(anchors))
    if most and not holds(quantized):
        losses = {}
        for site in anchors:
            losses[site.node] = loss(found(build(_alone(site, placement), correct=False)))
            tick(site.node)
        worst = sorted(losses, key=lambda node: (-losses[node], node))
        for count in _counts(most):
            kept = {node: f"rounding it alone costs {losses[node]:.1e} of cosine or SNR" for node in worst[:count]}
            placement = place(frozenset(kept))
            quantized = build(placement)
            if holds(quantized):
                break
    if find_slow is not None:
        slow = find_slow(lambda more: build(place(frozenset({*kept, *more})), correct=False), placement)
        if slow:
            kept |= slow
            placement = place(frozenset(kept))
            quantized = build(placement)
    return Quantized(quantized, kept, placement)


def left_float(made: Quantized, meant: Iterable[str]) -> dict[str, str]:
    """Return why each of the nodes that were meant to be int8 and are not stayed in float."""
    there = set() if made.placement is None else {site.node for site in made.placement.sites}
    lost = (node for node in meant if node not in there)
    return {node: made.kept_float.get(node, "what it reads or gives stays in float") for node in lost}


class _Builder:
    """Quantizes one network in several placements, each in a file of its own."""

    def __init__(
        self, model: ir.Model, grids: Mapping[str, Grid], rounding: Rounding, samples: Samples, scratch: Path
    ) -> None:
        self._model, self._grids, self._rounding = model, grids, rounding
        self._nodes = {str(node.name): node for node in model.graph}
        self._samples, self._scratch, self._made = samples, scratch, 0

    def __call__(self, placement: Placement, *, correct: bool = True) -> ir.Model:
        quantized = self._quantize(placement, None)
        names = [
            site.node for site in placement.sites if site.weight is not None and takes_shift(self._nodes[site.node])
        ]
        if not (correct and self._rounding.correct_bias and names):
            return quantized
        shifts = mean_shift(self._model, quantized, names, self._samples.inputs())
        return self._quantize(placement, shifts)

    def _quantize(self, placement: Placement, shifts: Mapping[str, NDArray[np.float64]] | None) -> ir.Model:
        self._made += 1
        with Store(self._scratch / f"integers.{self._made}.bin") as store:
            return quantize_network(
                self._model, placement, self._grids, store, algorithm=self._rounding.algorithm, shifts=shifts
            )


def _find_grids(
    model: ir.Model, placement: Placement, rounding: Rounding, samples: Samples, tick: Tick
) -> dict[str, Grid]:
    """Return the grid of each value that any placement of fewer nodes might round."""
    names = {*placement.groups, *placement.groups.values()}
    histograms = observe(model, sorted(names), samples.inputs(), tick=tick)
    find = calibrator_named(rounding.range).find_range
    symmetric = rounding.grids == "signed"
    return {
        name: Grid.over(*find(histogram, _LEVELS, symmetric), symmetric=symmetric)
        for name, histogram in histograms.items()
    }


def _alone(site: Site, placement: Placement) -> Placement:
    return Placement((site,), {name: placement.groups[name] for name in site.data}, frozenset(), {})


def _most(share: float, count: int) -> int:
    """Return how many of some nodes a share is: at least one, so that a small network may keep one, too."""
    return min(count, max(1, int(share * count))) if share > 0 else 0


def _counts(most: int) -> Iterator[int]:
    """Yield 1, 2, 4 ... and `most`."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _few(samples: Samples) -> Samples:
    """Return the first of the samples."""
    runs = max(1, _TRIED_SAMPLES // samples.batch)
    count = min(samples.count, runs * samples.batch)
    return replace(samples, count=count, batches=lambda: islice(samples.batches(), runs))
