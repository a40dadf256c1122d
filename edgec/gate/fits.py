"""Whether a gate file fits the bundles: what can be known before anything is run."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgec.backends.backend import backend_of
from edgec.bundle.open import find_artifact, is_network_bundle
from edgec.errors import MissingRuntimeError, UsageError
from edgec.gate.limits import Gated
from edgec.gate.result import Subject
from edgec.gate.settings import ForTarget, GateFile, Quality
from edgec.measure.energy import Meter
from edgec.measure.query import check_runs, check_workloads
from edgec.measure.workload import Workload
from edgec.spec.load import list_targets

_OF_DECODERS = ("texts", "tokens", "window")
_OF_NETWORKS = ("data", "samples")


def check_quality(quality: Quality, *, network: bool) -> None:
    """Refuse what says how models of the other kind are judged: it would be ignored.

    Raises:
        UsageError: there is such a thing.
    """
    mine, others = (_OF_NETWORKS, _OF_DECODERS) if network else (_OF_DECODERS, _OF_NETWORKS)
    for name in others:
        if getattr(quality, name) != getattr(Quality(), name):
            raise UsageError(
                f"`{name}` is for {'decoder' if network else 'other models than decoder'} language models",
                where=f"quality.{name}",
                hint=f"leave it out; {', '.join(f'`{each}`' for each in mine)} say what this one is judged on",
            )


def check_bundles(bundles: Sequence[Path], workloads: Sequence[Workload]) -> None:
    """Make sure, before any work, that bundles can be compared and take the workloads.

    Raises:
        UsageError: they cannot, or do not.
        BundleError: one cannot be read.
    """
    artifacts = [find_artifact(bundle) for bundle in bundles]
    kinds = [is_network_bundle(artifact) for artifact in artifacts]
    if True in kinds and False in kinds:
        other = bundles[kinds.index(not kinds[0])]
        what = ("a decoder language model", "not") if kinds[0] else ("no decoder language model", "one")
        raise UsageError(f"this bundle is {what[0]}, the first is {what[1]}", where=str(other))
    for bundle, artifact in zip(bundles, artifacts, strict=True):
        try:
            check_workloads(artifact, workloads)
        except UsageError as error:
            raise UsageError(error.what, where=str(bundle), hint=error.hint) from error


def check_metrics(wanted: Gated, *, network: bool) -> None:
    """Refuse bounds on what only models of the other kind have.

    Raises:
        UsageError: there is one.
    """
    others = ("ttft_", "token_", "tokens_") if network else ("latency_", "rows_")
    for name, place in wanted.named.items():
        if name.startswith(others):
            raise UsageError(
                f"{name} is of {'decoder' if network else 'other models than decoder'} language models",
                where=place,
                hint=f"bound {'latency_ms or rows_per_s' if network else 'ttft_ms, token_ms or tokens_per_s'} instead",
            )


def check_race(bundles: Iterable[Path], wanted: Gated) -> None:
    """Make sure that this machine runs bundles that are to be raced, and measures what is to be gated.

    Raises:
        MissingRuntimeError: it does not run one.
        UsageError: it does not tell the energy, which is gated.
    """
    if "energy_mj" in wanted.named and Meter().read_j() is None:
        raise UsageError(
            "this machine does not tell how much energy it takes",
            where=wanted.named["energy_mj"],
            hint="leave energy_mj out, or let this user read the counters below /sys/class/powercap",
        )
    for bundle in bundles:
        artifact = find_artifact(bundle)
        try:
            check_runs(backend_of(artifact), artifact, bundle)
        except MissingRuntimeError as error:
            hint = f"{error.hint}, or leave the race out: `performance = false`"
            raise MissingRuntimeError(error.what, where=error.where, hint=hint) from error


def for_target(file: GateFile, candidate: Subject) -> tuple[ForTarget, tuple[str, ...]]:
    """Return the bounds for a bundle's target, and what is to be said of the others' names.

    Raises:
        UsageError: there are bounds for other targets only.
    """
    if not file.targets:
        return ForTarget(), ()
    meant = _misspelt(file.targets, candidate.target)
    if candidate.target not in file.targets:
        close = [name for name, target in meant.items() if target == candidate.target]
        add = f"it is for {', '.join(file.targets)}: add [targets.{candidate.target or 'NAME'}]"
        raise UsageError(
            f"the gate file says nothing of the target '{candidate.target}'",
            where=candidate.path,
            hint=f"[targets.{close[0]}]: did you mean [targets.{candidate.target}]?" if close else add,
        )
    remarks = (f"[targets.{name}] of the gate file: did you mean {target}?" for name, target in meant.items())
    return file.targets[candidate.target], tuple(remarks)


def _misspelt(names: Iterable[str], own: str) -> Mapping[str, str]:
    """Return names that are no target's -> the target that is nearly called so, or has it as an alias."""
    known = {each: target.name for target in list_targets() for each in (target.name, *target.aliases)}
    if own:
        known[own] = own
    close = {name: difflib.get_close_matches(name, known, 1) for name in names if known.get(name) != name}
    return {name: known[found[0]] for name, found in close.items() if found}
