"""The tables that a choice is made from: what each candidate of each unit costs, and what it loses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec import __version__
from edgec.backends.backend import get_backend
from edgec.calibrate.cache import cache_dir, code_key, key, load, save
from edgec.calibrate.stats import Stats
from edgec.checkpoint.model import Checkpoint
from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder
from edgec.measure.bandwidth import read_bandwidth_gb_per_s
from edgec.spec.load import THIS_MACHINE
from edgec.spec.plan import Plan
from edgec.spec.target import Target
from edgec.tune.cost import fixed_bytes, unit_shapes, unit_sizes, unit_traffic
from edgec.tune.sensitivity import Sensitivity, Variant
from edgec.tune.solve import Table
from edgec.tune.units import EMBEDDING, Candidate, Unit, cheap

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
    """

    units: Sequence[Unit]
    candidates: Sequence[Candidate]
    kl: Table
    size: Table
    fixed_size: float
    latency: Table | None = None
    fixed_latency: float = 0.0
    latency_source: str = ""

    @property
    def costs(self) -> Table:
        """What a budget bounds: the latency where it was asked for, else the size."""
        return self.size if self.latency is None else self.latency

    def choose(self, choice: NDArray[np.int64]) -> dict[Unit, Candidate]:
        return {unit: self.candidates[column] for unit, column in zip(self.units, choice, strict=True)}

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
        return problem
    if target.name == THIS_MACHINE and plan.backend == "onnx_cpu":
        times = _kernel_times(decoder, plan, units, candidates)
        return replace(problem, latency=times, latency_source="ONNX Runtime's kernels, timed on this machine")
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
    return replace(problem, latency=moved * ms, fixed_latency=rest * ms, latency_source=where)


def _kernel_times(decoder: Decoder, plan: Plan, units: Sequence[Unit], candidates: Sequence[Candidate]) -> Table:
    from edgec.tune.kernels import matmul_ms

    level = plan.accuracy_level
    shapes = unit_shapes(decoder, units)
    return np.array([[matmul_ms(*shape, candidate.storage, level) for candidate in candidates] for shape in shapes])


def measure_kl(
    model: ir.Model,
    checkpoint: Checkpoint,
    windows: Ids,
    problem: Problem,
    tick: Callable[[str], object],
    *,
    rotated: bool = False,
) -> tuple[Problem, Mapping[str, Stats]]:
    """Return the problem with the KL of each unit and candidate, and the statistics of the inputs of all weights.

    What was measured before is read from the cache, and each layer's results are written there when it is done. Floats
    are taken to lose nothing. `rotated` says whether `model` is the checkpoint's or a rotated one.
    """
    base = key(
        __version__,
        torch.__version__,
        code_key("tune"),
        msgspec.json.encode(checkpoint.fingerprint(), order="sorted"),
        windows.tobytes(),
        str((windows.shape, rotated)),
    )
    folder = cache_dir() / "sensitivity" / base
    table = problem.kl.copy()
    where = {(u.name, c.label): (i, j) for i, u in enumerate(problem.units) for j, c in enumerate(problem.candidates)}

    def path(variant: Variant) -> str:
        return f"{variant.unit.name}.{key(str(cheap(variant.candidate.storage)))[:16]}.npz"

    def found(variant: Variant, value: float) -> None:
        save(folder / path(variant), {"kl": np.array(value)})
        table[where[variant.unit.name, variant.candidate.label]] += value

    todo = []
    for unit in problem.units:
        for candidate in problem.candidates:
            variant = Variant(unit, candidate)
            if candidate.weights.dtype in ("fp32", "fp16"):
                continue
            known = load(folder / path(variant))
            if known is None:
                todo.append(variant)
            else:
                table[where[unit.name, candidate.label]] += float(known["kl"])
    sensitivity = Sensitivity(model, windows)
    sensitivity.measure(todo, found, tick)
    return replace(problem, kl=table), sensitivity.stats


def base_candidate(choice: Mapping[Unit, Candidate]) -> Candidate:
    """Return the candidate of most matrices inside the layers."""
    counts: dict[Candidate, int] = {}
    for unit, candidate in choice.items():
        if unit.name != EMBEDDING:
            counts[candidate] = counts.get(candidate, 0) + len(unit.matrices)
    return max(counts, key=lambda candidate: counts[candidate])
