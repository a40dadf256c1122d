"""What a history keeps of a gate; `history_file` reads and writes it."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from edgec.errors import InconclusiveError, UsageError
from edgec.gate.result import Finding, GateResult
from edgec.gate.settings import GateFile, Performance, Quality
from edgec.measure.fingerprint import machine_hash

SCHEMA_VERSION = 1
"""Of a `Record` as JSON: raised when a field changes its meaning or goes away, not when one is added."""

# Of a hash: as many as tell data apart.
_DIGITS = 16
# What a bundle says of its model besides the family: a commit that prunes would begin a series.
_SIZE = re.compile(r", [\d.]+ M parameters$")
# What is printed must not be taken for a command by a terminal.
_Line = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class Value(msgspec.Struct, frozen=True):
    """What was measured of the candidate.

    Args:
        value: in `unit`.
        unit: "" for numbers without one.
        higher_is_better: of the value.
    """

    value: float
    unit: _Line = ""
    higher_is_better: bool = False


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a gate.

    Args:
        schema_version: of this struct.
        when: it began.
        label: the commit, or whatever the user calls what was measured.
        model: the candidate's family; the artifact's name where there is no plan. The next three are its, too.
        target: or "".
        backend: that ran it.
        profile: or "".
        environment: the machine, the versions, and what was run.
        values: name of a metric, with where it was measured -> what it was.
    """

    schema_version: int = SCHEMA_VERSION
    when: Annotated[datetime, msgspec.Meta(tz=True)]
    label: _Line
    model: _Line = ""
    target: _Line = ""
    backend: _Line = ""
    profile: _Line = ""
    environment: dict[_Line, _Line]
    values: dict[_Line, Value]

    @property
    def machine(self) -> str:
        """The hash of what decides speed."""
        return machine_hash(self.environment)

    @property
    def bundle(self) -> str:
        """What kind of bundle it is: the same for each commit."""
        # Records of older versions name the size of the model, too.
        return "/".join(filter(None, (_family(self.model), self.target, self.profile, self.backend)))


def run_facts(file: GateFile, data: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a gate runs, as facts beside the machine's: other work takes other times, other data other values.

    Args:
        file: the gate's.
        data: that quality was measured on, name -> SHA-256 in hex.
    """
    facts = {}
    if isinstance(race := file.performance, Performance):
        facts["threads"] = str(race.threads or "the runtime's choice")
        facts["workloads"] = "; ".join(map(_words, race.workloads()))
    if isinstance(file.quality, Quality):
        hashes = [f"{Path(name).name}={sha256[:_DIGITS]}" for name, sha256 in (data or {}).items()]
        # The seed says which samples of the data are judged; of texts it chooses nothing.
        seed = [f"seed {file.seed}"] if file.quality.data else []
        told = [f"sha256 {' '.join(hashes)}"] if hashes else []
        facts["evaluation"] = ", ".join((_words(file.quality), *seed, *told))
    return facts


def record_of(result: GateResult, label: str) -> Record:
    """Return what a history keeps of a gate: the candidate's values, but for times of a run that is void.

    Args:
        result: of `run_gate`, or read from a file.
        label: a commit, or another name for what was measured.

    Raises:
        UsageError: there is no label, or the result says neither what was measured nor on which machine.
        InconclusiveError: the run is void, and nothing is left.
    """
    if not (name := _line(label)):
        raise UsageError("a run in a history needs a label", hint="name the commit: --label TEXT")
    counted = filter(result.counts, result.findings)
    values = {_name(each): value for each in counted if (value := _value(each)) is not None}
    if not values and result.void is not None:
        raise InconclusiveError(f"this run says nothing that could be kept: {result.void}", hint="run the gate again")
    if not values:
        raise UsageError("the gate result has no values to keep", hint="run the gate on performance or quality")
    if "cpu_model" not in result.environment:
        raise UsageError("the gate result does not say which machine it is of", hint="run the gate again")
    subject = result.candidate
    return Record(
        when=_time(result.started),
        label=name,
        model=_line(_family(subject.model) or Path(subject.path).name),
        target=_line(subject.target),
        backend=_line(subject.backend),
        profile=_line(subject.profile),
        environment={_line(fact): _line(found) for fact, found in result.environment.items()},
        values=values,
    )


def _words(settings: msgspec.Struct) -> str:
    """Return settings in one line, but for bounds, which change no value, and folders, which differ by machine."""
    told = {name: value for name, value in msgspec.to_builtins(settings).items() if name != "metrics" and value}
    return ", ".join(f"{name} {_setting(value)}" for name, value in told.items())


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={size}" for name, size in sorted(value.items()))
    if isinstance(value, list | tuple):
        return " ".join(Path(each).name for each in value)
    return str(value)


def _family(model: str) -> str:
    return _SIZE.sub("", model)


def _line(text: str) -> str:
    return "".join(each if each.isprintable() else "\ufffd" for each in " ".join(text.split()))


def _name(finding: Finding) -> str:
    """Return a name for the value, which is no ratio to the baseline."""
    return _line(msgspec.structs.replace(finding, metric=finding.metric.removesuffix("_ratio")).name)


def _value(finding: Finding) -> Value | None:
    if finding.candidate is None or not math.isfinite(finding.candidate):
        return None
    value = float(round(finding.candidate) if finding.unit == "bytes" else finding.candidate)
    return Value(value, _line(finding.unit), finding.higher_is_better)


def _time(started: str) -> datetime:
    if not started:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        found = datetime.fromisoformat(started)
    except ValueError as error:
        raise UsageError(f"the gate result says it began at '{_line(started)}', which is no time") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
