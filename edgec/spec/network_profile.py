"""What a profile wants of networks, which are all models that are no decoder language models: its `[network]` table."""

from typing import Annotated, Literal

import msgspec

from edgec.quantize.scheme import Scheme
from edgec.spec.prune import SparseWishes

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Decibel = Annotated[float, msgspec.Meta(ge=-300, le=300)]
Activations = Literal["static", "dynamic", "float"]
Range = Literal["minmax", "percentile", "entropy", "mse"]
Importance = Literal["magnitude", "activation", "wanda"]


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ranges, and the importance of channels and weights, are taken from; the command line names the data.

    Args:
        samples: how many, at most.
        seed: of the sample that is taken of the data.
    """

    samples: _Count = 128
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


class Channels(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Channels of layers that go before all else; shapes shrink.

    Args:
        share: of `of` that goes, at least; channels go in steps, so it may be a little more.
        of: "multiply_adds" for speed, "parameters" for size.
        importance: what decides which go, a method of edgec/prune/channels_scores.py. There is no "taylor": it needs a
            loss, and its gradients, which networks in ONNX do not have.
        refit: layers that read the channels make up for those that are gone, as far as these follow from the others.
        uniform: all groups of channels give up the same share; else those give most whose channels count least.
        multiple: of the channels that stay: what kernels like. With fewer than four multiples, layers take half of it.
        skip: layers that keep all channels that they give, by their names as `edgec plan` prints them, or patterns as
            in a shell.
    """

    share: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    of: Literal["parameters", "multiply_adds"] = "multiply_adds"
    importance: Importance = "wanda"
    refit: bool = True
    uniform: bool = False
    multiple: _Count = 32
    skip: tuple[str, ...] = ()

    @property
    def needs_samples(self) -> bool:
        """Whether samples say which channels count, or how to make up for them."""
        return self.refit or self.importance != "magnitude"


class NetworkSparse(SparseWishes, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Weights of convolutions and products that become 0 before they are rounded; shapes stay.

    Args:
        pattern: "2:4", "4:8" (so many of so many consecutive input channels stay, for each output and each place of a
            kernel), or the share of zeros in each weight as "50%".
        method: a file in edgec/prune/methods; "sparsegpt" changes the weights that stay, too.
        skip: layers that stay dense, by their names as `edgec plan` prints them, or patterns as in a shell.
    """

    skip: tuple[str, ...] = ()

    @property
    def needs_samples(self) -> bool:
        """Whether samples say which weights stay."""
        return self.method != "magnitude"


class NetworkBounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a build must keep of the float model, as it came; outside of it, it exits 1.

    Args:
        min_cosine: mean cosine of each output with the float model's.
        min_snr_db: of each output, power over that of the difference to the float model's; a cosine sees no sizes, and
            nothing at all in single numbers.
        max_drop: how much worse than the float model's each metric may be that looks at labels, in its own units.
        samples: how many to measure on, at most.
    """

    min_cosine: _Share
    min_snr_db: _Decibel = 10.0
    max_drop: Annotated[float, msgspec.Meta(ge=0)] = 0.02
    samples: _Count = 512


class NetworkWishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a network is stored and computed.

    Args:
        weights: fp32 and fp16 store floats, int8 integers around 0 with one scale for each output.
        activations: what int8 weights are multiplied with: "static" rounds activations with scales from calibration,
            "dynamic" with scales that the runtime finds, "float" leaves them alone.
        range: how a static range is found: "minmax" clips nothing, "percentile" the outermost ten-thousandth,
            "entropy" loses the least information, "mse" has the smallest mean square error.
        algorithm: that rounds weights: a file in edgec/quantize/algorithms that looks at weights alone.
        equalize: scale channels of consecutive layers alike before rounding, which leaves the model what it is.
        smooth: scale channels of activations in front of products, where that makes rounding hurt less; the same.
        correct_bias: add to biases what rounding shifts on average.
        fast: where the target is the machine that builds, leave in float what int8 makes slower there, as measured;
            what was found is kept in the cache, so that the next build gives the same bytes.
        skip: nodes that stay in float, by their names as `edgec plan` prints them, or patterns as in a shell.
        keep_float: share of the int8 nodes that may go back to float where the model would leave its bounds; those
            that hurt most go first.
        channels: that go first, so that all else here is about what is left.
        sparse: weights of that which become 0.
        calibration: of static activations, channels and zeros.
        verify: bounds.
    """

    weights: Literal["fp32", "fp16", "int8"]
    activations: Activations = "static"
    range: Range = "minmax"
    algorithm: str = "rtn"
    equalize: bool = False
    smooth: bool = False
    correct_bias: bool = False
    fast: bool = True
    skip: tuple[str, ...] = ()
    keep_float: _Share = 0.25
    channels: Channels | None = None
    sparse: NetworkSparse | None = None
    calibration: Samples = Samples()
    verify: NetworkBounds

    def __post_init__(self) -> None:
        Scheme("int8", None, symmetric=True, algorithm=self.algorithm)

    @property
    def is_static(self) -> bool:
        """Whether activations are rounded with scales from calibration."""
        return self.weights == "int8" and self.activations == "static"

    @property
    def needs_samples(self) -> bool:
        """Whether a build looks at what samples make of the network."""
        return self.is_static or any(part is not None and part.needs_samples for part in (self.channels, self.sparse))


class NetworkProfile(msgspec.Struct, frozen=True):
    """The part of a profile that is for networks."""

    name: str
    title: str
    wishes: NetworkWishes
