"""llm-compressor: magnitude, Wanda or SparseGPT on the CPU, float weights."""

from importlib.metadata import version

import job
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM

METHODS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}
# Memory is pinned for a GPU, which fails where there is none.
if not torch.accelerator.is_available():
    IntermediatesCache.pin_memory = lambda *_, **__: None


def prune(task: job.Job) -> job.Answer:
    model = AutoModelForCausalLM.from_pretrained(task.source, dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in task.windows()]
    modifier = METHODS[task.options["method"]](
        sparsity=0.5, mask_structure=task.options["structure"], targets=["Linear"], ignore=["re:.*lm_head"]
    )
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=[modifier],
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]["input_ids"]),
        batch_size=8,
        shuffle_calibration_samples=False,
    )
    weights = job.matrices(model.state_dict())
    count = sum(weight.numel() for weight in weights.values())
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    return job.Answer(weights, 16 * count, version("llmcompressor"), task.options | {"zeros": zeros / count})


if __name__ == "__main__":
    job.run(prune)
