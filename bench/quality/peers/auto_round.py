"""AutoRound: signed gradient descent on the rounding of a block, with its extended algorithm, on the CPU."""

from importlib.metadata import version

import job
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer


def quantize(task: job.Job) -> job.Answer:
    settings = {"iters": 200, "batch_size": 8, "enable_alg_ext": True, **task.options}
    windows = task.windows()
    model = AutoModelForCausalLM.from_pretrained(task.source, dtype=torch.float32)
    rounder = AutoRound(
        model,
        AutoTokenizer.from_pretrained(task.source),
        bits=task.bits,
        group_size=task.group,
        sym=task.symmetric,
        dataset=list(windows.split(settings["batch_size"])),
        nsamples=len(windows),
        seqlen=windows.shape[1],
        device_map="cpu",
        amp=False,
        seed=task.seed,
        enable_torch_compile=False,
        **settings,
    )
    rounded, _ = rounder.quantize()
    weights = job.matrices(rounded.state_dict())
    shapes = {name: weight.shape for name, weight in weights.items()}
    return job.Answer(weights, job.grouped_bits(shapes, task.bits, task.group, 0), version("auto-round"), settings)


if __name__ == "__main__":
    job.run(quantize)
