"""Metrics of a network's outputs, a file each; a file's name is the metric's in profiles and on the command line.

A metric says of each sample what its value over many can be computed from, so that samples can be drawn again: the
intervals of differences come from that. Instead of a file's name, a user's own `module:function` is taken, called as
`function(outputs, labels, reference_outputs) -> (n,)`: outputs of n samples by name, (n, ...) each, what is right for
them (None, classes, numbers or texts), and the outputs of the float model (None where that is not at hand). Its metric
is the mean over samples; higher is better, unless the function has an attribute `higher_is_better = False`. Modules are
looked for in the working directory, too; nothing is imported that is not so named.
"""

import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch, Labels
from edgec.errors import UsageError
from edgec.user_code import working_directory

Stats = NDArray[np.float64]
"""(n, k): what a metric needs to know of n samples."""

Weights = NDArray[np.float64]
"""(r, n): how often each of n samples is drawn, for r values of a metric."""


@dataclass(frozen=True)
class Setting:
    """What is known about a model and what its outputs mean.

    Args:
        classes: names of its classes by index, where there are some.
        threshold: of models with a single score: above it a sample is of class 1, else of class 0.
        neighbours: how many `retrieval` looks for.
        pooling: what makes one embedding of those of a sequence: their mean, or the first.
        decode: text of token ids.
        vocabulary: how many tokens it knows, at least; 0 where nobody says.
        blank: the token that stands for none, in outputs for CTC; None where each position gives a token.
    """

    classes: Sequence[str] = ()
    threshold: float | None = None
    neighbours: int = 10
    pooling: Literal["mean", "first"] = "mean"
    decode: Callable[[Sequence[int]], str] | None = None
    vocabulary: int = 0
    blank: int | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Outputs for some samples, as a metric sees them.

    Args:
        outputs: of the model, name -> (n, ...).
        reference: of the float model; None where it is not at hand.
        output: the one to look at.
        labels: what is right, if that is known.
        mask: (n, positions), which positions of sequences are no padding; None where all are none.
        places: where the samples come from, for messages.
    """

    outputs: Batch
    reference: Batch | None
    output: str
    labels: Labels | None = None
    mask: NDArray[np.bool_] | None = None
    places: Sequence[str] = ()

    @property
    def values(self) -> NDArray[Any]:
        """Return the output to look at, (n, ...)."""
        return self.outputs[self.output]

    @property
    def expected(self) -> NDArray[Any]:
        """Return what the float model gives there, (n, ...)."""
        assert self.reference is not None
        return self.reference[self.output]

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Return which positions along the second axis of the output count, (n, positions); None if all do.

        Numbers (n, d) are no sequences, even where d happens to be the number of positions; integers (n, d) are.
        """
        is_sequence = self.values.ndim > 2 or (self.values.ndim == 2 and self.values.dtype.kind in "iu")
        fits = is_sequence and self.mask is not None and self.values.shape[:2] == self.mask.shape
        return self.mask if fits else None


class Metric(Protocol):
    """What a metric's file has; `TAKES_THRESHOLD` may be left out.

    Attributes:
        NEEDS_LABELS: whether it compares with labels; else with the float model's outputs.
        TAKES_THRESHOLD: whether single scores can be made two classes for it.
        HIGHER_IS_BETTER: which way is better.
        IS_FLAG: whether `per_sample` gives 1 or 0 for a sample that is right or wrong by its label in its first column,
            and the number of predictions in its second: two models can then be told apart by McNemar's test.
    """

    NEEDS_LABELS: bool
    HIGHER_IS_BETTER: bool
    IS_FLAG: bool

    def per_sample(self, part: Part, setting: Setting) -> Stats:
        """Return (n, k) float64: what `total` needs to know of each sample.

        Raises:
            UsageError: outputs or labels are not what the metric is about.
            MissingRuntimeError: a package is not installed.
        """
        ...

    def total(self, stats: Stats, weights: Weights) -> NDArray[np.float64]:
        """Return (r,): the values over r draws; NaN where it is not defined."""
        ...


@runtime_checkable
class Finishing(Protocol):
    """A metric for which samples must be seen together first."""

    def finish(self, stats: Stats, setting: Setting) -> Stats:
        """Return (n, k), what `total` needs, from what `per_sample` gave for all samples."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A metric of what is right or wrong: it can be the same for two models that are not."""

    def lost(self, stats: Stats) -> Stats | None:
        """Return (n, k), what `total` would need of the same samples if each were wholly wrong.

        None where stats turn out to be measured numbers, which differ wherever models do.
        """
        ...


def names() -> list[str]:
    """Return the names of all metrics."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def metric_of(name: str) -> Metric:
    """Return a metric by its name, or the user's `module:function`.

    Raises:
        UsageError: there is none.
    """
    if ":" in name:
        return _user_metric(name)
    if name not in names():
        raise UsageError(
            f"there is no metric {name!r}", hint=f"use one of {', '.join(names())}, or a module:function of your own"
        )
    return cast("Metric", import_module(f"{__name__}.{name}"))


def judges(name: str) -> bool:
    """Say whether a metric knows better than the float model: by labels, or as the user's own function."""
    metric = parse(name).metric
    return ":" in metric or metric_of(metric).NEEDS_LABELS


class Asked(NamedTuple):
    """A metric as it is asked for.

    Attributes:
        metric: its name, or the user's `module:function`.
        threshold: of single scores, or None.
        output: that it looks at; None for the first.
    """

    metric: str
    threshold: float | None
    output: str | None


def parse(name: str) -> Asked:
    """Return what "cosine@pooler_output" or "f1:0.5@probability" asks for; a number behind a name is its threshold.

    Raises:
        UsageError: the metric takes no threshold, or it is no number.
    """
    whole, _, output = name.partition("@")
    metric, colon, number = whole.partition(":")
    if not colon or metric not in names():
        return Asked(whole, None, output or None)
    if not getattr(metric_of(metric), "TAKES_THRESHOLD", False):
        raise UsageError(f"the metric {metric!r} takes no threshold", where=name, hint=f"leave out ':{number}'")
    try:
        threshold = float(number)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise UsageError(f"the threshold {number!r} is no number", where=name, hint=f"such as {metric}:0.5")
    return Asked(metric, threshold, output or None)


@dataclass(frozen=True)
class _User:
    name: str
    function: Callable[[Batch, Labels | None, Batch | None], Any]

    NEEDS_LABELS = False
    IS_FLAG = False

    @property
    def HIGHER_IS_BETTER(self) -> bool:  # noqa: N802  as in files
        return bool(getattr(self.function, "higher_is_better", True))

    def per_sample(self, part: Part, setting: Setting) -> Stats:  # noqa: ARG002
        try:
            found = np.asarray(self.function(part.outputs, part.labels, part.reference), np.float64)
        except Exception as error:  # whatever the user's code raises
            alone = "; without --source there are no reference outputs" if part.reference is None else ""
            raise UsageError(
                f"the metric failed: {type(error).__name__}: {error}",
                where=self.name,
                hint=f"it is called as function(outputs, labels, reference_outputs){alone}",
            ) from error
        if found.shape != (len(part.values),) or not np.isfinite(found).all():
            raise UsageError(
                f"the metric gave {found.shape} numbers for {len(part.values)} samples, or some that are not finite",
                where=self.name,
                hint="return one number for each sample",
            )
        return found[:, None]

    def total(self, stats: Stats, weights: Weights) -> NDArray[np.float64]:
        return ratio(weights @ stats[:, 0], weights.sum(axis=1))

    def lost(self, stats: Stats) -> Stats | None:
        is_flag = bool(np.isin(stats, (0, 1)).all())
        return np.full_like(stats, not self.HIGHER_IS_BETTER) if is_flag else None


def _user_metric(name: str) -> Metric:
    module, _, function = name.partition(":")
    try:
        with working_directory():
            found = getattr(import_module(module), function)
    except Exception as error:  # the user's module may raise anything
        raise UsageError(
            f"the metric cannot be imported: {type(error).__name__}: {error}",
            where=name,
            hint="the module must be importable from here: in the working directory, or in PYTHONPATH",
        ) from error
    if not callable(found):
        raise UsageError("the metric is no function", where=name, hint="name one: module:function")
    return cast("Metric", _User(name, found))


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return part / whole, and NaN where the whole is 0."""
    undefined = np.full(np.broadcast(part, whole).shape, np.nan)
    found: NDArray[np.float64] = np.divide(part, whole, out=undefined, where=whole != 0)
    return found
