"""Judge a candidate by its baseline."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from edgec import __version__
from edgec.bundle.open import is_network_bundle
from edgec.errors import EdgecError, UsageError, explain
from edgec.gate.fits import check_bundles, check_metrics, check_quality, check_race, for_target
from edgec.gate.history import run_facts
from edgec.gate.limits import Gated, gated
from edgec.gate.network_quality import compare_networks
from edgec.gate.performance import Raced, reason, run_race
from edgec.gate.quality import compare_decoders, decoder_bounds
from edgec.gate.result import Finding, GateResult, Subject, overall
from edgec.gate.settings import ForTarget, GateFile, Grid, Performance, Quality
from edgec.gate.subject import describe
from edgec.measure.fingerprint import fingerprint

Tick = Callable[[str, int], object]
_NOTHING = Raced((), (), None, ())
_NO_BOUND = "nothing is judged: no metric has a bound"
_SEE = "see docs/gates.md"


def run_gate(candidate: Path, baseline: Path, file: GateFile, tick: Tick = lambda _, __: None) -> GateResult:
    """Race two bundles, compare what they predict, and judge.

    Args:
        candidate: the bundle that is judged.
        baseline: the bundle that it is judged by.
        file: what is measured, and what may not get worse.
        tick: told what is done and how often: "round" 1, 2, ...

    Raises:
        UsageError: the gate file asks for what these bundles cannot do.
        BundleError: a bundle cannot be read, or crashes.
        MissingRuntimeError: what would run a bundle is not here.
    """
    start, started = time.monotonic(), datetime.now(UTC)
    subjects = describe(candidate), describe(baseline)
    own, of_targets = for_target(file, subjects[0])
    network = is_network_bundle(candidate)
    race = _race_of(file, own, subjects[0].target, network=network)
    if race is not None and not race[1].limits and not isinstance(file.quality, Quality):
        raise UsageError(_NO_BOUND, where="performance.metrics", hint=_SEE)
    check_bundles((candidate, baseline), race[0].workloads() if race else ())
    if race is not None:
        check_race((candidate, baseline), race[1])
    quality, remarks, data = _compare(candidate, baseline, file, own, subjects[0].target, tick, network=network)
    raced = _NOTHING
    if race is not None:
        try:
            raced = run_race(
                candidate,
                baseline,
                *race,
                confidence=file.confidence,
                seed=file.seed,
                tick=lambda rounds: tick("round", rounds),
            )
        except Exception as error:
            if overall(quality) != "fail":
                raise
            # A loss that was found is one, whatever the race ends with.
            raced = Raced((), (), reason(error if isinstance(error, EdgecError) else explain(error)), ())
    findings = (*raced.findings, *quality)
    if raced.void is None and all(finding.verdict == "reported" for finding in findings):
        raise UsageError(_NO_BOUND, hint=_SEE)
    return GateResult(
        verdict=overall(findings, raced.void),
        candidate=subjects[0],
        baseline=subjects[1],
        findings=findings,
        sentinel=raced.sentinel,
        void=raced.void,
        rounds=len(raced.rounds),
        confidence=file.confidence,
        elapsed_s=time.monotonic() - start,
        started=started.isoformat(timespec="seconds"),
        environment={**fingerprint(), **run_facts(file, data)},
        remarks=(*_differences(*subjects), *of_targets, *remarks, *raced.remarks),
        edgec=__version__,
    )


def _compare(
    candidate: Path, baseline: Path, file: GateFile, own: ForTarget, target: str, tick: Tick, *, network: bool
) -> tuple[tuple[Finding, ...], tuple[str, ...], dict[str, str]]:
    """Compare what two bundles predict; return findings, remarks, and the SHA-256 of the data by name."""
    if not isinstance(file.quality, Quality):
        return (), (), {}
    check_quality(file.quality, network=network)
    windows = count(1)
    if not network:
        return compare_decoders(
            candidate,
            baseline,
            file.quality,
            bounds=decoder_bounds(file.quality, own.quality, target),
            confidence=file.confidence,
            tick=lambda _: tick("window", next(windows)),
        )
    return compare_networks(
        candidate,
        baseline,
        file.quality,
        bounds={**(file.quality.metrics or {}), **own.quality},
        confidence=file.confidence,
        seed=file.seed,
        tick=lambda _: tick("batch", next(windows)),
    )


def _race_of(file: GateFile, own: ForTarget, target: str, *, network: bool) -> tuple[Performance, Gated] | None:
    """Return how to race and what is gated, so that a gate file that asks for the impossible is refused at once."""
    wanted = file.performance
    if not isinstance(wanted, Performance):
        return None
    lengths = {(each.prompt_tokens, each.new_tokens) for each in wanted.workloads()}
    if network and lengths != {(Grid().prompt_tokens, Grid().new_tokens)}:
        raise UsageError(
            "`prompt_tokens` and `new_tokens` are for decoder language models",
            where="performance.workload",
            hint="leave them out; `sizes` says how large the inputs are",
        )
    found = gated(wanted.metrics, own.metrics, target)
    check_metrics(found, network=network)
    return wanted, found


def _differences(candidate: Subject, baseline: Subject) -> tuple[str, ...]:
    """Return what is to be said where the two are not the same model for the same target."""
    return tuple(
        f"the {name} differs: {mine or 'unknown'}, baseline {other or 'unknown'}"
        for name in ("model", "target", "backend", "profile")
        if (mine := getattr(candidate, name)) != (other := getattr(baseline, name))
    )
