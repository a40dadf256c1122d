"""The tables that a choice is made from: what each candidate of each unit costs, and what it loses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec import __version__
from edgec.backends.backend import get_backend
from edgec.calibrate.cache import cache_dir, code_key, key, load, save
from edgec.calibrate.stats import Stats
from edgec.errors import PlanError
from edgec.evaluate.divergence import Divergence
from edgec.frontends.architecture import Decoder
from edgec.measure.bandwidth import read_bandwidth_gb_per_s
from edgec.quantize.scheme import Scheme
from edgec.spec.load import THIS_MACHINE
from edgec.spec.plan import Plan
from edgec.spec.target import Target
from edgec.tune.cost import fixed_bytes, unit_shapes, unit_sizes, unit_traffic
from edgec.tune.sensitivity import Sensitivity, Variant
from edgec.tune.solve import Table, total
from edgec.tune.units import EMBEDDING, Candidate, Unit, cheap, cheap_method

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """What a choice is made from; tables are (units, candidates).

    Args:
        kl: of each unit alone, nats.
        size: bytes in the artifact.
        latency: ms for a token; None where it was not asked for.
        fixed_size: a guess of the bytes that no choice changes.
        fixed_latency: of the ms.
        latency_source: where `latency` is from, in words.
        floats: how far this shape's float model is from the dense one; None where it is that. `kl` comes on top.
    """

    units: Sequence[Unit]
    candidates: Sequence[Candidate]
    kl: Table
    size: Table
    fixed_size: float
    latency: Table | None = None
    fixed_latency: float = 0.0
    latency_source: str = ""
    floats: Divergence | None = None

    @property
    def costs(self) -> Table:
        """What a budget bounds: the latency where it was asked for, else the size."""
        return self.size if self.latency is None else self.latency

    def choose(self, choice: NDArray[np.int64]) -> dict[Unit, Candidate]:
        return {unit: self.candidates[column].of(unit) for unit, column in zip(self.units, choice, strict=True)}

    def predicted_kl(self, choice: NDArray[np.int64]) -> float:
        """Return the sum of what the shape loses and of what the units of a choice lose alone, nats."""
        return total(self.kl, choice) + (self.floats.mean_kl if self.floats else 0.0)

    def only(self, allowed: Callable[[Unit, Candidate], bool]) -> "Problem":
        """Return the problem with fewer candidates for some units."""
        mask = np.array([[allowed(unit, candidate) for candidate in self.candidates] for unit in self.units])
        return replace(self, kl=np.where(mask, self.kl, np.inf))


def cost_tables(
    decoder: Decoder,
    plan: Plan,
    target: Target,
    units: Sequence[Unit],
    candidates: Sequence[Candidate],
    tokenizer_files: dict[str, bytes],
    *,
    latency: bool,
    no_fallback: bool = False,
) -> Problem:
    """Return a problem without KL: nothing is run but, for the latency on this machine, single matmuls.

    Zeros that buy nothing of what the budget bounds are refused where the same storage may be had without them.

    Raises:
        PlanError: the target's memory bandwidth is not known, and a latency was asked for; or everything falls back.
    """
    moved, rest, fallen = unit_traffic(decoder, plan, target, units, candidates)
    refused = np.where((fallen > 0) & no_fallback, np.inf, 0.0)
    if not np.isfinite(refused).any(axis=1).all():
        raise PlanError("every candidate falls back on this target", hint="leave --no-fallback out")
    size = unit_sizes(decoder, units, candidates, get_backend(plan.backend).LIMITS)
    problem = Problem(units, candidates, refused, size, fixed_bytes(decoder, plan, tokenizer_files))
    if not latency:
        return _without_idle_zeros(problem)
    if target.name == THIS_MACHINE and plan.backend == "onnx_cpu":
        times = _kernel_times(decoder, plan, units, candidates)
        source = "ONNX Runtime's kernels, timed on this machine"
        return _without_idle_zeros(replace(problem, latency=times, latency_source=source))
    if target.name == THIS_MACHINE:
        bandwidth, where = read_bandwidth_gb_per_s(), "this machine's memory bandwidth, as measured"
    elif target.memory_bandwidth_gbps is not None:
        bandwidth, where = target.memory_bandwidth_gbps, "the target's memory bandwidth: a lower bound"
    else:
        raise PlanError(
            f"target '{target.name}' does not say its memory bandwidth, so its latency cannot be told",
            where=target.name,
            hint="tune for a size, or give the target a memory_bandwidth_gbps",
        )
    ms = 1e3 / (bandwidth * 1e9)
    return _without_idle_zeros(replace(problem, latency=moved * ms, fixed_latency=rest * ms, latency_source=where))


def _without_idle_zeros(problem: Problem) -> Problem:
    columns = {candidate: column for column, candidate in enumerate(problem.candidates)}
    kl, costs = problem.kl.copy(), problem.costs
    sparse = np.array([not unit.dense for unit in problem.units])
    for column, candidate in enumerate(problem.candidates):
        twin = columns.get(candidate.dense)
        if candidate.pattern is not None and twin is not None:
            kl[sparse & (costs[:, column] >= costs[:, twin]), column] = np.inf
    return replace(problem, kl=kl)


def _kernel_times(decoder: Decoder, plan: Plan, units: Sequence[Unit], candidates: Sequence[Candidate]) -> Table:
    from edgec.tune.kernels import matmul_ms

    level = plan.accuracy_level
    shapes = unit_shapes(decoder, units)
    return np.array([[matmul_ms(*shape, candidate.storage, level) for candidate in candidates] for shape in shapes])


def measure_kl(
    model: ir.Model, source: str, windows: Ids, problem: Problem, tick: Callable[[str], object]
) -> tuple[Problem, Mapping[str, Stats]]:
    """Return the problem with the KL of each unit and candidate, and the statistics of the inputs of all weights.

    What was measured before is read from the cache, and each layer's results are written there when it is done. Floats
    without zeros are taken to lose nothing. `source` is what tells float graphs apart: checkpoint, shape, rotation.
    """
    base = key(__version__, torch.__version__, code_key("tune"), source, windows.tobytes(), str(windows.shape))
    folder = cache_dir() / "sensitivity" / base
    table = problem.kl.copy()
    places: dict[Variant, list[tuple[int, int]]] = {}
    for row, unit in enumerate(problem.units):
        for column, candidate in enumerate(problem.candidates):
            meant = candidate.of(unit)
            loses = meant.pattern is not None or isinstance(meant.storage, Scheme)
            if loses and np.isfinite(table[row, column]):
                places.setdefault(Variant(unit, meant), []).append((row, column))

    def put(variant: Variant, value: float) -> None:
        for place in places[variant]:
            table[place] += value

    def found(variant: Variant, value: float) -> None:
        save(folder / _file(variant), {"kl": np.array(value)})
        put(variant, value)

    todo = []
    for variant in places:
        known = load(folder / _file(variant))
        if known is None:
            todo.append(variant)
        else:
            put(variant, float(known["kl"]))
    sensitivity = Sensitivity(model, windows)
    sensitivity.measure(todo, found, tick)
    return replace(problem, kl=table), sensitivity.stats


def _file(variant: Variant) -> str:
    candidate = variant.candidate
    zeros = candidate.pattern and (candidate.pattern, cheap_method(candidate.method))
    return f"{variant.unit.name}.{key(str((cheap(candidate.storage), zeros)))[:16]}.npz"


def base_candidate(choice: Mapping[Unit, Candidate]) -> Candidate:
    """Return the candidate of most matrices inside the layers."""
    counts: dict[Candidate, int] = {}
    for unit, candidate in choice.items():
        if unit.name != EMBEDDING:
            counts[candidate] = counts.get(candidate, 0) + len(unit.matrices)
    return max(counts, key=lambda candidate: counts[candidate])
