"""onnxruntime's quantize_static, or quantize_dynamic, after its own preprocessing; options are arguments of those."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import job
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration samples, one at a time."""

    def __init__(self, feeds: Iterator[job.Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> job.Feed | None:
        return next(self._feeds, None)


def prepare(source: Path, path: Path) -> None:
    """Preprocess; where its symbolic shape inference fails, as its documentation says, without."""
    try:
        quant_pre_process(source, path, auto_merge=True)
    except TypeError:  # it does not know reductions of opset 18
        quant_pre_process(source, path, skip_symbolic_shape=True)


def quantize(wanted: job.Job) -> dict[str, str]:
    options = dict(wanted.options)
    prepared, path = wanted.out / "prepared.onnx", wanted.out / "model.onnx"
    prepare(wanted.source, prepared)
    if options.pop("dynamic", False):
        quantize_dynamic(prepared, path, weight_type=QuantType.QInt8, **options)
    else:
        method = CalibrationMethod[options.pop("method", "MinMax")]
        quantize_static(
            prepared,
            path,
            Reader(wanted.feeds()),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=False,
            calibrate_method=method,
            **options,
        )
    prepared.unlink()
    return {"onnxruntime": version("onnxruntime"), "onnx": version("onnx")}


if __name__ == "__main__":
    job.run(quantize)
