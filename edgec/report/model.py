"""What a build measured."""

import msgspec

from edgec.evaluate.divergence import Divergence
from edgec.measure.latency import DecoderLatency
from edgec.spec.prediction import Prediction


class Stage(msgspec.Struct, frozen=True):
    """One stage of a build; the peak is that of the whole process or of its largest child, up to the stage's end."""

    name: str
    seconds: float
    peak_rss_bytes: int


class EvaluationText(msgspec.Struct, frozen=True):
    """The text that quality was measured on."""

    name: str
    sha256: str
    tokens: int
    windows: int


class Exact(msgspec.Struct, frozen=True):
    """Artifact against canonical graph, both with float32 activations.

    Args:
        max_error: largest absolute difference of two logits.
        relative_error: the same, in standard deviations of the canonical logits.
        tokens: how many positions were compared.
        bound: what `relative_error` may be.
    """

    max_error: float
    relative_error: float
    tokens: int
    bound: float

    @property
    def passed(self) -> bool:
        return self.relative_error <= self.bound


class Integers(msgspec.Struct, frozen=True):
    """Whether the integers in the artifact's files are those of the canonical graph, bit for bit.

    Args:
        weights: quantized weights of the canonical graph.
        different: those that the artifact lacks, or has with other codes, scales or zero points.
        activations: those with scales of their own in the canonical graph; `different` may name them, too.
    """

    weights: int
    different: tuple[str, ...]
    activations: int = 0


class Blame(msgspec.Struct, frozen=True):
    """What quantizing one group of layers alone costs."""

    group: str
    mean_kl: float


class Verification(msgspec.Struct, frozen=True):
    """The evidence of a build; `failures` says in words which bounds are broken."""

    integers: Integers
    exact: Exact
    shipped: Divergence
    failures: tuple[str, ...]
    blame: tuple[Blame, ...] = ()


class Zeros(msgspec.Struct, frozen=True):
    """The zeros among the weights of the canonical graph.

    Args:
        matrices: that were to become sparse.
        share: of their weights that are 0.
        runtime: what the target's runtime makes of them.
    """

    matrices: int
    share: float
    runtime: str


class AgainstDense(msgspec.Struct, frozen=True):
    """The artifact beside one of the dense model that is stored alike, measured in turn.

    Args:
        size_bytes: of the artifact's files.
        dense_size_bytes: of those of the dense one.
        speed: decoded tokens per second over those of the dense one: median over pairs of runs.
        low: lower end of its 95 % interval.
        high: upper end.
        dense_decode_tokens_per_s: of the dense one.
    """

    size_bytes: int
    dense_size_bytes: int
    speed: float
    low: float
    high: float
    dense_decode_tokens_per_s: float


class Pruning(msgspec.Struct, frozen=True):
    """What pruning was to give, and what it gave.

    Args:
        predicted: by the plan.
        zeros: None where none were wanted.
        measured: None where it was not: without a text to measure on, where the artifact does not run here, and where
            activations or cache have calibrated scales, which the dense model would need its own of.
    """

    predicted: Prediction
    zeros: Zeros | None
    measured: AgainstDense | None


class Report(msgspec.Struct, frozen=True):
    """The evidence that a bundle carries; None where something was not measured, which the page then says.

    Args:
        size_bytes: artifact file -> size.
        environment: the machine and the versions that measured.
        remarks: what the artifact or its calibration lacks, and why.
        not_run: why the artifact itself was not run here, and what was run instead; None where it was.
        pruning: None where nothing was pruned.
    """

    edgec: str
    plan_sha256: str
    stages: tuple[Stage, ...]
    size_bytes: dict[str, int]
    text: EvaluationText | None
    verification: Verification | None
    latency: DecoderLatency | None
    environment: dict[str, str]
    not_run: str | None = None
    remarks: tuple[str, ...] = ()
    pruning: Pruning | None = None
