"""The metrics that are asked for, on the outputs that they look at."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from edgec.errors import EdgecError, UsageError
from edgec.evaluate.metrics import Finishing, Metric, Part, Setting, Stats, metric_of, parse
from edgec.frontends.network import Port


@dataclass(frozen=True, eq=False)
class Wanted:
    """A metric of an output.

    Args:
        name: as it was asked for.
        metric: its file, or the user's function.
        output: that it looks at.
        threshold: of single scores, where one was given.
    """

    name: str
    metric: Metric
    output: str
    threshold: float | None

    def fitted(self, setting: Setting) -> Setting:
        """Return what the metric knows about the model."""
        return setting if self.threshold is None else replace(setting, threshold=self.threshold)

    def per_sample(self, part: Part, setting: Setting) -> Stats:
        """Return (n, k): what the metric needs to know of each sample.

        Raises:
            EdgecError: the samples or outputs are not what it is about; says which metric it is.
        """
        with self._named():
            if self.metric.NEEDS_LABELS and part.labels is None:
                raise UsageError(
                    f"the metric {self.name!r} needs labels, and the samples have none",
                    hint="give samples with labels, or use `agreement`, `cosine` or `retrieval`",
                )
            return self.metric.per_sample(replace(part, output=self.output), self.fitted(setting))

    def finish(self, stats: Sequence[Stats], setting: Setting) -> Stats:
        """Return (n, k), what the metric's total needs, from what `per_sample` gave for all samples."""
        whole = np.concatenate(stats)
        with self._named():
            return self.metric.finish(whole, self.fitted(setting)) if isinstance(self.metric, Finishing) else whole

    def total(self, stats: Stats) -> float:
        """Return the metric's value over all samples; NaN where it is not defined."""
        with self._named():
            return float(self.metric.total(stats, np.ones((1, len(stats))))[0])

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let errors say which metric it is, where they do not say more."""
        try:
            yield
        except EdgecError as error:
            error.where = error.where or f"metric {self.name}, output {self.output}"
            raise


def wanted_metrics(names: Iterable[str], ports: Sequence[Port], *, alone: bool = False) -> list[Wanted]:
    """Return the metrics of some names, each once.

    Args:
        names: "metric", "metric:threshold", "metric@output" or "metric:threshold@output"; see `edgec.evaluate.metrics`.
        ports: outputs of the network.
        alone: the float model is not at hand.

    Raises:
        UsageError: there is no such metric or output, or it takes the float model.
    """
    return [_wanted(name, [port.name for port in ports], alone) for name in dict.fromkeys(names)]


def _wanted(name: str, known: Sequence[str], alone: bool) -> Wanted:
    asked = parse(name)
    if asked.output is not None and asked.output not in known:
        raise UsageError(
            f"the model has no output {asked.output!r}: it has {', '.join(known)}",
            where=name,
            hint="write NAME@OUTPUT with one of them, or the NAME alone for the first",
        )
    metric = metric_of(asked.metric)
    if alone and not metric.NEEDS_LABELS and ":" not in asked.metric:
        raise UsageError(
            f"the metric {asked.metric!r} compares with the float model, which is not given",
            where=name,
            hint="name it with --source",
        )
    return Wanted(name, metric, asked.output or known[0], asked.threshold)
