"""Measure a model of stories: its perplexity, what rounding its weights costs, and whether it obeys the grammar."""

import copy
import math
from collections.abc import Sequence

import torch
from data import BOS_ID, EOS_ID, encode_story
from teller import Grammar, NotInGrammarError, read
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaForCausalLM

_BATCH = 16


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, documents: Sequence[Sequence[int]]) -> float:
    """Return the perplexity per token of whole documents, each without its first token, which nothing predicts."""
    total, count = 0.0, 0
    ordered = sorted(documents, key=len)
    for start in range(0, len(ordered), _BATCH):
        batch = [torch.tensor(ids) for ids in ordered[start : start + _BATCH]]
        # Padding after the end changes nothing before it.
        inputs = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=EOS_ID)
        targets = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)[:, 1:]
        logits: Tensor = model(input_ids=inputs[:, :-1], use_cache=False).logits
        total += nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += int((targets != -100).sum())
    return math.exp(total / count)


def floor(grammar: Grammar, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Return the perplexity per token of a model that knows the grammar, over whole stories."""
    bits = sum(read(grammar, text) for text in texts)
    return float(2 ** (bits / sum(len(encode_story(tokenizer, text)) - 1 for text in texts)))


def rounded(model: LlamaForCausalLM, bits: int, group: int | None = None) -> LlamaForCausalLM:
    """Return a copy with every matrix and the embedding rounded to symmetric integers.

    Args:
        model: left as it is.
        bits: of the integers.
        group: columns that share a scale; None gives one scale to each row.
    """
    clone = copy.deepcopy(model)
    for module in clone.modules():
        # A tied output matrix is the embedding, and is rounded once.
        if isinstance(module, nn.Linear | nn.Embedding) and module is not clone.lm_head:
            weight = module.weight.data
            blocks = weight.view(len(weight), -1, group or weight.shape[1])
            scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
            module.weight.data = ((blocks / scale).round() * scale).view_as(weight)
    clone.tie_weights()
    return clone


def share_in_grammar(model: LlamaForCausalLM, tokenizer: Tokenizer, grammar: Grammar, count: int, seed: int) -> float:
    """Return the share of `count` sampled stories that the grammar could have told, every fact and number right."""
    torch.manual_seed(seed)
    start = torch.full((count, 1), BOS_ID)
    limit = model.config.max_position_embeddings
    output = model.generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_length=limit, pad_token_id=EOS_ID
    )
    good = sum(_tells(grammar, text) for text in tokenizer.decode_batch(output.tolist()))
    return good / count


def _tells(grammar: Grammar, text: str) -> bool:
    try:
        read(grammar, text)
    except NotInGrammarError:
        return False
    return True
