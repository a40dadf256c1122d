"""NNCF's data-aware compression of a torch model: AWQ and scale estimation, which is all that its torch backend has."""

import math
from importlib.metadata import version

import job
import nncf
import torch
from nncf.torch.function_hook.wrapper import get_hook_storage
from nncf.torch.quantization.layers import INT4SymmetricWeightsDecompressor, SQMultiply
from transformers import AutoModelForCausalLM


def quantize(task: job.Job) -> job.Answer:
    model = AutoModelForCausalLM.from_pretrained(task.source, dtype=torch.float32)
    model.config.use_cache = False
    shapes = {name: weight.shape for name, weight in job.matrices(model.state_dict()).items()}
    windows = task.windows()
    settings = {"awq": True, "scale_estimation": True, "group_size_fallback_mode": "adjust"}
    compressed = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=1.0,
        group_size=task.group,
        ignored_scope=nncf.IgnoredScope(patterns=[".*embed_tokens.*", ".*lm_head.*"], validate=False),
        dataset=nncf.Dataset([{"input_ids": row[None]} for row in windows]),
        subset_size=len(windows),
        awq=True,
        scale_estimation=True,
        backup_mode=nncf.BackupMode.NONE,
        advanced_parameters=nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        ),
    )
    hooks = [(name, module) for name, module in get_hook_storage(compressed).named_modules()]
    weights, bits = {}, 0
    for name, module in hooks:
        if isinstance(module, INT4SymmetricWeightsDecompressor):
            weight = matrix_of(name, shapes)
            weights[weight] = module(compressed.get_parameter(weight))
            bits += math.prod(shapes[weight]) * task.bits + module._scale.numel() * job.SCALE_BITS  # noqa: SLF001
    for name, module in hooks:
        if isinstance(module, SQMultiply):  # on the input: what it does, the columns can do
            weight = matrix_of(name, shapes)
            weights[weight] = weights[weight] * module.scale.reshape(1, -1)
    return job.Answer(weights, bits, version("nncf"), settings)


def matrix_of(hook: str, names: object) -> str:
    """Return the matrix that a hook is on: its name has the module's path, however it is separated."""
    path = "".join(c if c.isalnum() else "." for c in hook)
    (found,) = [name for name in names if name.removesuffix(".weight").replace("_", ".") + "." in path + "."]
    return found


if __name__ == "__main__":
    job.run(quantize)
