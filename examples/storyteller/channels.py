"""Make channels uneven without changing what the model computes.

Large language models have a few channels that are much larger than the others; a small model has none, and rounding
its weights costs next to nothing. Here each channel between a norm and the matrices that read it, and between the two
halves of the MLP, is multiplied by a power of two on one side and divided by it on the other. In floating point the
result is the same to the last bit; at four bits the small channels of a row drown.

Source: Dettmers et al. 2022 (arXiv:2208.07339) on outlier features; the rescaling is that of Xiao et al. 2022
(arXiv:2211.10438), the other way round.
"""

import torch
from transformers import LlamaForCausalLM


def spread_channels(model: LlamaForCausalLM, spread: float, seed: int = 0) -> None:
    """Rescale in place by 2 ** round(spread * normal)."""
    generator = torch.Generator().manual_seed(seed)

    def powers(count: int) -> torch.Tensor:
        return torch.exp2(torch.round(spread * torch.randn(count, generator=generator)))

    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            readers = {
                layer.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
                layer.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
            }
            for norm, matrices in readers.items():
                scale = powers(len(norm.weight))
                norm.weight.mul_(scale)
                for matrix in matrices:
                    matrix.weight.div_(scale)
            scale = powers(len(mlp.up_proj.weight))
            mlp.up_proj.weight.mul_(scale[:, None])
            mlp.down_proj.weight.div_(scale)
