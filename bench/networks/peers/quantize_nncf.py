"""NNCF's post-training quantization of an ONNX graph or of an OpenVINO model; options are arguments of nncf.quantize.

An option `backend` says which of the two.
"""

from importlib.metadata import version

import job
import nncf


def quantize(wanted: job.Job) -> dict[str, str]:
    options = dict(wanted.options)
    backend = options.pop("backend")
    if "preset" in options:
        options["preset"] = nncf.QuantizationPreset(options["preset"])
    if "model_type" in options:
        options["model_type"] = nncf.ModelType(options["model_type"])
    if "ignored_types" in options:  # of both backends, so some are in neither graph
        options["ignored_scope"] = nncf.IgnoredScope(types=options.pop("ignored_types"), validate=False)
    feeds = list(wanted.feeds())
    arguments = options | {"calibration_dataset": nncf.Dataset(feeds), "subset_size": len(feeds)}
    if backend == "onnx":
        import onnx

        onnx.save(nncf.quantize(onnx.load(wanted.source), **arguments), wanted.out / "model.onnx")
    else:
        import openvino as ov

        model = ov.convert_model(wanted.source)
        ov.save_model(nncf.quantize(model, **arguments), wanted.out / "model.xml", compress_to_fp16=False)
    return {name: version(name) for name in ("nncf", "onnx", "openvino")}


if __name__ == "__main__":
    job.run(quantize)
