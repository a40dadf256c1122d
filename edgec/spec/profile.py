"""Profile: what the user wants, one TOML file in `profiles/`; it knows no hardware."""

from typing import Annotated, Literal

import msgspec

from edgec.quantize.scheme import Scheme

GROUP_SIZES = (16, 32, 64, 128, 256)
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


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the artifact computes.

    Args:
        accuracy_level: of integer matmuls: 0 leaves it to the runtime, 1 keeps activations in float32, 4 rounds them
            to int8 in blocks.
        kv_cache: how keys and values of past tokens are stored: in the backend's floating-point type, or as int8.
    """

    accuracy_level: Annotated[int, msgspec.Meta(ge=0, le=4)] = 4
    kv_cache: Literal["float", "int8"] = "float"


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What algorithms that look at a model's inputs see; rounding to nearest looks at weights alone.

    Args:
        text: "python-docs", of which evaluation sees another part, or a path.
        tokens: how many.
        window: tokens in one window.
    """

    text: str = "python-docs"
    tokens: Annotated[int, msgspec.Meta(ge=64)] = 512
    window: Annotated[int, msgspec.Meta(ge=16)] = 128


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
        runtime: how the artifact computes.
        calibration: the text for algorithms that take one; without it they look at weights alone.
        context_length: the most tokens; the plan takes less where the model has less.
        verify: bounds.
    """

    name: str
    title: str
    weights: Weights
    embedding: Weights | None = None
    runtime: Runtime = Runtime()
    calibration: Calibration | None = None
    context_length: Annotated[int, msgspec.Meta(ge=16)] = 4096
    verify: Verify
