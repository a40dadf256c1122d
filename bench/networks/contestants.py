"""Who quantizes the networks, and how: the settings among which each peer's best is looked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NETWORKS = ("efficientnet_lite0", "minilm", "silero_vad")
PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Contestant:
    """A peer with its settings; `environment` is a folder of bench/.work/networks."""

    name: str
    environment: str
    script: Path
    networks: tuple[str, ...] = NETWORKS
    options: dict[str, Any] = field(default_factory=dict)


def _ort(name: str, *networks: str, per_channel: bool = True, **options: Any) -> Contestant:
    settings = {"per_channel": per_channel} | options
    return Contestant(f"ort-{name}", "env-ort", PEERS / "quantize_ort.py", networks or NETWORKS, settings)


def _nncf(name: str, *networks: str, **options: Any) -> list[Contestant]:
    """Return the same settings for ONNX graphs and for OpenVINO models."""
    script = PEERS / "quantize_nncf.py"
    return [
        Contestant(f"nncf-{backend}-{name}", "env-nncf", script, networks or NETWORKS, options | {"backend": backend})
        for backend in ("onnx", "openvino")
    ]


_MATRICES: dict[str, Any] = {"op_types_to_quantize": ["Conv", "Gemm", "MatMul"]}
_FLOAT_OUTPUTS: dict[str, Any] = {"extra_options": {"OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul"]}}
_SPECTRUM = ["Add", "LSTM", "LSTMSequence", "Pow", "Power", "Slice", "Sqrt", "StridedSlice"]

CONTESTANTS = (
    # Its entropy method, with its own 128 bins, takes the whole range, as minmax does: the same files.
    _ort("minmax"),
    _ort("percentile", method="Percentile"),
    _ort("per-tensor", per_channel=False),
    # What only moves or adds numbers stays float; then the outputs of matrices do, too.
    _ort("matrices", "minilm", "silero_vad", **_MATRICES),
    _ort("matrices-percentile", "minilm", "silero_vad", method="Percentile", **_MATRICES),
    _ort("float-outputs", "minilm", "silero_vad", **_MATRICES, **_FLOAT_OUTPUTS),
    _ort("dynamic", "minilm", dynamic=True, op_types_to_quantize=["MatMul"], extra_options={"MatMulConstBOnly": True}),
    *_nncf("performance", preset="performance"),
    *_nncf("mixed", preset="mixed"),
    *_nncf("mixed-accurate", "efficientnet_lite0", preset="mixed", fast_bias_correction=False),
    # The spectrum and the recurrence in float: without, NNCF's networks hear no speech.
    *_nncf("ignoring", "silero_vad", preset="mixed", ignored_types=_SPECTRUM),
    *_nncf("transformer", "minilm", preset="mixed", model_type="transformer"),
)
