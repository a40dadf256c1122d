"""Profile: what the user wants, one TOML file in `profiles/`; it knows no hardware."""

from typing import Annotated, Literal

import msgspec

from edgec.quantize.scheme import Scheme
from edgec.spec.network_profile import NetworkWishes
from edgec.spec.prune import Slim, Sparse

GROUP_SIZES = (16, 32, 64, 128, 256)
CALIBRATED = ("autoround", "awq", "gptq", "smoothquant")
"""Algorithms and transforms that can do nothing without calibration; `mse` and `kquant` make do."""
WEIGHTS_ALONE = ("hqq", "quarot", "rtn")
"""Algorithms and transforms that do not look at what flows through the model."""
_Ratio = Annotated[float, msgspec.Meta(ge=1)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How weights are stored.

    Args:
        dtype: fp32 and fp16 store floats; int8 and int4 store integers with scales, fp8 and nvfp4 small floats.
        group_size: inputs that share a scale, or "channel" for one scale per output.
        symmetric: integers around 0, without zero points.
        algorithm: a file in edgec/quantize/algorithms.
    """

    dtype: Literal["fp32", "fp16", "fp8", "int8", "int4", "nvfp4"]
    group_size: Literal[16, 32, 64, 128, 256, "channel"] = "channel"
    symmetric: bool = True
    algorithm: str = "rtn"

    def __post_init__(self) -> None:
        self.storage()  # a file that asks for an impossible scheme is refused where it is read

    def storage(self) -> Scheme | str:
        """Return the scheme, or "fp32" or "fp16".

        Raises:
            ValueError: there is no such scheme.
        """
        if self.dtype in ("fp32", "fp16"):
            return self.dtype
        group = None if self.group_size == "channel" else self.group_size
        return Scheme(self.dtype, group, self.symmetric, self.algorithm)  # type: ignore[arg-type]


class LayerWeights(Weights, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How some matrices inside the layers are stored, in place of what `weights` says; the last match wins.

    Args:
        match: a matrix, several, or patterns as in a shell: `layers.7.mlp.down`, `layers.*.mlp.down`, `layers.[0-3].*`.
            Blocks and matrices are called as `edgec plan` prints them.
        reason: why, for people.
    """

    match: str | Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    reason: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.match,) if isinstance(self.match, str) else self.match


class Activations(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What integer weights are multiplied with.

    Args:
        dtype: "float" leaves activations as they are, "int8" rounds them.
        mode: of int8: "dynamic" finds the scales as the model runs, in blocks of each token's inputs; it is what
            runtimes do by default, takes all integer weights and needs no calibration. "static" takes one scale for
            each tensor from calibration, which makes matmuls faster and hurts more: it is for int8 weights with one
            scale per output; other matmuls, and the output matrix, stay dynamic.
        range: how a static scale is found: "minmax" clips nothing, "percentile" the largest ten-thousandth, "mse" what
            gives the smallest mean square error.
        skip: of static: matrices that stay as they are without it, by patterns as in `LayerWeights`; with one of those
            that read the same input (q, k, v; gate, up), all of them do. Where a model has a few huge activations, as
            many have in front of some `mlp.down`, one scale is too coarse for the rest.
    """

    dtype: Literal["float", "int8"] = "int8"
    mode: Literal["dynamic", "static"] = "dynamic"
    range: Literal["minmax", "percentile", "mse"] = "mse"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype == "float" and self.mode == "static":
            raise ValueError('static scales are those of int8 activations: dtype = "int8"')
        if self.skip and self.mode != "static":
            raise ValueError('skip leaves matrices out of static activations: mode = "static"')

    @property
    def accuracy_level(self) -> int:
        """The `Runtime.accuracy_level` that says the same of matmuls that are not static."""
        return 1 if self.dtype == "float" else 4


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the artifact computes.

    Args:
        accuracy_level: ONNX Runtime's name for `Activations` without static scales, with more shades: 0 leaves integer
            matmuls to the runtime, 1 is float, 4 is dynamic int8. The default is what `activations` says, else 4.
        kv_cache: how keys and values of past tokens are stored: in the backend's floating-point type, or as int8 with
            a scale for each head. ONNX Runtime and TensorRT take those scales from calibration, OpenVINO finds one
            for each token as it runs.
    """

    accuracy_level: Annotated[int, msgspec.Meta(ge=0, le=4)] | None = None
    kv_cache: Literal["float", "int8"] = "float"


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What algorithms that look at a model's inputs see; rounding to nearest looks at weights alone.

    Args:
        text: paths, relative to the working directory, of plain text (.txt, .md, no suffix), of lines of JSON with
            `text` or `messages` (.jsonl) or of token ids (.npy, .npz); or "python-docs", of which evaluation sees
            another part.
        tokens: how many.
        window: tokens in one window.
        seed: of the sample that is taken of the text.
        steps: of `autoround`, for each block; the time that it takes is proportional.
        device: where calibration runs, "cpu" or "cuda"; it has a say in the last digits of what it finds.
    """

    text: str | Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = "python-docs"
    tokens: Annotated[int, msgspec.Meta(ge=64)] = 512
    window: Annotated[int, msgspec.Meta(ge=16)] = 128
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0

    device: Literal["cpu", "cuda"] = "cpu"
    steps: Annotated[int, msgspec.Meta(ge=1)] = 200

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text


class Verify(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a build must keep; outside of it, it exits 1.

    Args:
        max_perplexity_ratio: artifact over source.
        max_mean_kl: in nats.
        min_top1_agreement: share of tokens with the same most likely next token.
        max_logit_error: in exact mode, against the canonical graph, in standard deviations of its logits.
        text: what to evaluate on when the user names no text: "python-docs" or a path.
        tokens: how many.
        window: tokens in one window.
    """

    max_perplexity_ratio: _Ratio
    max_mean_kl: _Positive
    min_top1_agreement: _Share
    max_logit_error: _Positive = 1e-3
    text: str = "python-docs"
    tokens: Annotated[int, msgspec.Meta(ge=64)] = 2048
    window: Annotated[int, msgspec.Meta(ge=16)] = 256


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A set of wishes.

    Args:
        name: the file's name without `.toml`.
        title: in one line.
        weights: for the matrices inside the layers.
        embedding: for the token embedding and the output matrix, where it differs.
        layers: for some of the matrices inside the layers, where it differs.
        slim: parts of the model that go before all else.
        sparse: weights that become 0 before rounding.
        transforms: changes of the float weights that leave the model as it is and make rounding hurt less, in order:
            "quarot" rotates the whole model, "awq" and "smoothquant" scale the inputs of matrices.
        activations: what integer weights are multiplied with; what `runtime.accuracy_level` says by default.
        runtime: how the artifact computes.
        calibration: the text that shows what flows through the model; without one, algorithms look at weights alone.
        context_length: the most tokens; the plan takes less where the model has less.
        verify: bounds.
        network: what is wanted of models that are no decoder language models, for which all else here is.
    """

    name: str
    title: str
    weights: Weights
    embedding: Weights | None = None
    layers: tuple[LayerWeights, ...] = ()
    slim: Slim | None = None
    sparse: Sparse | None = None
    transforms: tuple[Literal["quarot", "awq", "smoothquant"], ...] = ()
    activations: Activations | None = None
    runtime: Runtime = Runtime()
    calibration: Calibration | None = None
    context_length: Annotated[int, msgspec.Meta(ge=16)] = 4096
    verify: Verify
    network: NetworkWishes | None = None

    def __post_init__(self) -> None:
        self._check_transforms()
        if self._prunes_by_text() and self.calibration is None:
            raise ValueError("pruning looks at what flows through the model: give the profile a [calibration]")
        if self.activations is None:
            return
        level = self.activations.accuracy_level
        if self.runtime.accuracy_level not in (None, level):
            raise ValueError(
                f"[activations] says accuracy_level = {level}, [runtime] {self.runtime.accuracy_level}: leave one out"
            )
        if self.activations.mode == "static" and self.calibration is None:
            raise ValueError("static activations take their scales from a text: give the profile a [calibration]")

    def reads_text(self, *, static_cache: bool) -> bool:
        """Say whether a build looks at what flows through the model; `static_cache` of a backend, for an int8 cache."""
        weights = (self.weights, *([self.embedding] if self.embedding else []), *self.layers)
        algorithms = (w.algorithm for w in weights if isinstance(w.storage(), Scheme))
        return (
            self._prunes_by_text()
            or any(name not in WEIGHTS_ALONE for name in (*self.transforms, *algorithms))
            or (self.activations is not None and self.activations.mode == "static")
            or (self.runtime.kv_cache == "int8" and static_cache)
        )

    def _prunes_by_text(self) -> bool:
        return any(part is not None and part.reads_text for part in (self.slim, self.sparse))

    def _check_transforms(self) -> None:
        if "quarot" in self.transforms[1:]:
            raise ValueError("quarot rotates the whole model: it comes first in transforms, once")
        if len(set(self.transforms)) < len(self.transforms):
            raise ValueError("a transform is there twice")
        weights = (self.weights, *([self.embedding] if self.embedding else []), *self.layers)
        for name in dict.fromkeys((*self.transforms, *(w.algorithm for w in weights))):
            if name in CALIBRATED and self.calibration is None:
                raise ValueError(f"{name} looks at what flows through the model: give the profile a [calibration]")

    @property
    def accuracy_level(self) -> int:
        """`Runtime.accuracy_level` with its default resolved."""
        if self.activations is not None:
            return self.activations.accuracy_level
        return 4 if self.runtime.accuracy_level is None else self.runtime.accuracy_level
