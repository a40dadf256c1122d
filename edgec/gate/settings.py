"""The gate file: what is measured, and what of it may not get worse."""

import tomllib
from itertools import product
from pathlib import Path
from typing import Annotated

import msgspec

from edgec.errors import UsageError
from edgec.gate.advice import advise
from edgec.measure.workload import MOST_THREADS, MOST_TOKENS, Length, Rows, Scenario, Workload

_Ratio = Annotated[float, msgspec.Meta(ge=1, le=1000)]
_Loss = Annotated[float, msgspec.Meta(ge=0, le=1000)]
# Of a text, or of data: more would take days.
_MOST_JUDGED = 10_000_000


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Bound(_Table, frozen=True, kw_only=True):
    """What a metric may do, as a ratio to the baseline above which it is worse.

    Args:
        allowed: the gate fails when the metric is surely worse than that.  [default: the usual of the metric]
        margin: it passes when the metric is surely better than that.  [default: the usual of the metric]
    """

    allowed: _Ratio | None = None
    margin: _Ratio | None = None


class Grid(_Table, frozen=True, kw_only=True):
    """Workloads of one scenario: every prompt length with every number of new tokens; see `Workload`."""

    scenario: Scenario = "single-stream"
    prompt_tokens: Length | tuple[Length, ...] = 128
    new_tokens: Length | tuple[Length, ...] = 32
    batch: Rows = 1
    rate_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    sizes: dict[str, Length] = {}

    def __post_init__(self) -> None:
        self.workloads()  # a file that asks for the impossible is refused where it is read

    def workloads(self) -> tuple[Workload, ...]:
        """Return the workloads of the grid."""
        prompts, news = ((each,) if isinstance(each, int) else each for each in (self.prompt_tokens, self.new_tokens))
        if not (prompts and news):
            raise ValueError("`prompt_tokens` and `new_tokens` name at least one length")
        return tuple(
            Workload(
                scenario=self.scenario,
                prompt_tokens=prompt,
                new_tokens=new,
                batch=self.batch,
                rate_per_s=self.rate_per_s,
                sizes=self.sizes,
            )
            for prompt, new in product(prompts, news)
        )


class Performance(_Table, frozen=True, kw_only=True):
    """How the race is run.

    Args:
        threads: of the runtimes; left out, it is their choice. On shared machines one thread is far steadier: all
            processes of a round then run on the same CPU.
        time_limit_s: rounds end when it is reached; what is undecided then is inconclusive.
        min_rounds: of fresh processes, before anything is decided.
        max_rounds: of fresh processes.
        workload: what is run.
        metrics: name -> what it may do; left out, the usual ones (`edgec/gate/limits.py`).
    """

    threads: Annotated[int, msgspec.Meta(ge=1, le=MOST_THREADS)] | None = None
    time_limit_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 60.0
    min_rounds: Annotated[int, msgspec.Meta(ge=5, le=1000)] = 6
    max_rounds: Annotated[int, msgspec.Meta(ge=5, le=1000)] = 60
    workload: Annotated[tuple[Grid, ...], msgspec.Meta(min_length=1)] = (Grid(),)
    metrics: dict[str, Bound] | None = None

    def __post_init__(self) -> None:
        if self.max_rounds < self.min_rounds:
            raise ValueError(f"`max_rounds` ({self.max_rounds}) must be at least `min_rounds` ({self.min_rounds})")

    def workloads(self) -> tuple[Workload, ...]:
        """Return all workloads, each once."""
        found: list[Workload] = []
        for each in (workload for grid in self.workload for workload in grid.workloads()):
            if each not in found:
                found.append(each)
        return tuple(found)


class QualityBound(_Table, frozen=True, kw_only=True):
    """What quality may lose.

    Args:
        margin: the gate passes when the loss is surely smaller than that: a ratio of perplexities, nats of KL
            divergence, or a share of right answers.
        allowed: it fails when the loss is surely larger than that.  [default: the margin]
    """

    margin: _Loss
    allowed: _Loss | None = None

    def __post_init__(self) -> None:
        if self.allowed is not None and self.allowed > self.margin:
            raise ValueError(f"`allowed` ({self.allowed}) is at most `margin` ({self.margin})")


class Quality(_Table, frozen=True, kw_only=True):
    """What quality is measured on.

    Args:
        texts: of decoders: files, "python-docs" (prose) or "python-source" (code). Each is judged for itself, so that
            what was calibrated on one shows on another.
        tokens: of each text.
        window: tokens in a context.
        data: of other models: samples, as for `edgec eval --eval-data`; each is judged for itself.
        samples: of each.
        metrics: name -> what it may lose. Of decoders `perplexity_ratio`, `mean_kl` and `top1_disagreement`; of other
            models those of `edgec eval --metric`.
    """

    texts: tuple[str, ...] = ("python-docs", "python-source")
    tokens: Annotated[int, msgspec.Meta(ge=2, le=_MOST_JUDGED)] = 20_000
    window: Annotated[int, msgspec.Meta(ge=2, le=MOST_TOKENS)] = 512
    data: tuple[str, ...] = ()
    samples: Annotated[int, msgspec.Meta(ge=1, le=_MOST_JUDGED)] = 512
    metrics: dict[str, QualityBound] | None = None


class ForTarget(_Table, frozen=True, kw_only=True):
    """Bounds for bundles of one target, in place of those of the same name."""

    metrics: dict[str, Bound] = {}
    quality: dict[str, QualityBound] = {}


class GateFile(_Table, frozen=True, kw_only=True):
    """A gate.

    Args:
        confidence: of the intervals.
        seed: of what is random: the order of turns, prompts, arrivals, the samples that are judged, and the bootstrap.
        performance: None, by `performance = false`, for no race.
        quality: None, by `quality = false`, for no evaluation.
        targets: target -> bounds of its own. If there are any, bundles for other targets are refused.
    """

    confidence: Annotated[float, msgspec.Meta(ge=0.5, le=0.999)] = 0.95
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    performance: Performance | bool = Performance()
    quality: Quality | bool = Quality()
    targets: dict[str, ForTarget] = {}

    def __post_init__(self) -> None:
        for name in ("performance", "quality"):
            if getattr(self, name) is True:
                raise ValueError(f"`{name} = true` says nothing: leave it out for the usual, or write [{name}]")
        if self.performance is False and self.quality is False:
            raise ValueError("with neither performance nor quality there is nothing to compare")


def read_gate_file(path: Path) -> GateFile:
    """Read a gate file.

    Raises:
        UsageError: it cannot be read, or says what no gate can do (with the key).
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the gate file cannot be read: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the gate file is wrong: {error}", where=str(path), hint="see docs/gates.md") from error
    try:
        return msgspec.convert(values, GateFile)
    except msgspec.ValidationError as error:
        text, place, hint = advise(error, values, GateFile)
        where = f"{path}: {place}" if place else str(path)
        raise UsageError(f"the gate file is wrong: {text}", where=where, hint=hint or "see docs/gates.md") from error
