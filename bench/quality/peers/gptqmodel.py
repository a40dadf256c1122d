"""GPTQModel: GPTQ with activation order and static groups, on the CPU; the packed layers are what is dequantized."""

import tempfile
from importlib.metadata import version

import job
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def quantize(task: job.Job) -> job.Answer:
    settings = {"desc_act": True, "static_groups": True, "mse": 2.0, **task.options}
    config = QuantizeConfig(
        bits=task.bits, group_size=task.group, sym=task.symmetric, device="cpu", offload_to_disk=False, **settings
    )
    model = GPTQModel.load(str(task.source), config, dtype=torch.float32)
    windows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in task.windows()]
    model.quantize(windows, batch_size=8, calibration_sort=None)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        packed = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    weights = {}
    for name, module in packed.model.named_modules():
        if hasattr(module, "dequantize_weight"):
            # The scales are float16 numbers; in float32 the products are not rounded once more.
            module.scales = module.scales.float()
            weights[f"{name}.weight"] = module.dequantize_weight().T
    shapes = {name: weight.shape for name, weight in weights.items()}
    bits = job.grouped_bits(shapes, task.bits, task.group, 0)
    return job.Answer(weights, bits, version("gptqmodel"), settings)


if __name__ == "__main__":
    job.run(quantize)
