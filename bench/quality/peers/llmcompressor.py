"""llm-compressor: GPTQ, AWQ, or AWQ and then GPTQ, on the CPU."""

from importlib.metadata import version

import job
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM

# AWQ pins memory for a GPU, which fails where there is none.
if not torch.accelerator.is_available():
    IntermediatesCache.pin_memory = lambda *_, **__: None


def groups(weights: job.Weights, group: int) -> dict[str, int]:
    """Return the group of each matrix: the largest divisor of its width, for it takes no others."""
    sizes = {name: weight.shape[1] for name, weight in weights.items()}
    return {name: max(g for g in range(1, group + 1) if width % g == 0) for name, width in sizes.items()}


def recipe(task: job.Job, sizes: dict[str, int]) -> list[object]:
    schemes = {
        f"group_{size}": {
            "targets": [name.removesuffix(".weight") for name in sizes if sizes[name] == size],
            "weights": {
                "num_bits": task.bits,
                "type": "int",
                "symmetric": task.symmetric,
                "strategy": "group",
                "group_size": size,
                "observer": task.options["observer"],
            },
        }
        for size in set(sizes.values())
    }
    algorithms = task.options["algorithms"]
    last = GPTQModifier if "gptq" in algorithms else QuantizationModifier
    rounding = last(config_groups=schemes, ignore=["lm_head"])
    return [AWQModifier(duo_scaling="both"), rounding] if "awq" in algorithms else [rounding]


def dequantized(module: torch.nn.Module, group: int) -> torch.Tensor:
    """Return the weight on the grid of its scales, as float16 stores them."""
    rows, columns = module.weight.shape
    scale = module.weight_scale.float()
    stored = scale.half().float()[:, :, None]
    codes = (module.weight.float().view(rows, -1, group) / scale[:, :, None]).round()
    return (codes * stored).view(rows, columns)


def quantize(task: job.Job) -> job.Answer:
    source = job.read_weights(task.source)
    sizes = groups(job.matrices(source), task.group)
    model = AutoModelForCausalLM.from_pretrained(task.source, dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in task.windows()]
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe(task, sizes),
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]["input_ids"]),
        batch_size=8,
        shuffle_calibration_samples=False,
    )
    state = dict(model.state_dict())
    shapes, bits = {}, 0
    for name, group in sizes.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        state[name] = dequantized(module, group)
        shapes[name] = state[name].shape
        bits += job.grouped_bits({name: shapes[name]}, task.bits, group, 0)
    settings = task.options | {"groups": sorted(set(sizes.values())), "duo_scaling": "both", "actorder": "static"}
    for key, algorithm in (("duo_scaling", "awq"), ("actorder", "gptq")):
        if algorithm not in task.options["algorithms"]:
            del settings[key]
    return job.Answer(job.unfold_norms(source, state), bits, version("llmcompressor"), settings)


if __name__ == "__main__":
    job.run(quantize)
