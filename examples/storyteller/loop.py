"""The training loop: warm-up and cosine, AdamW, clipped gradients, early stopping on validation stories."""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from data import BOS_ID, EOS_ID, training_rows
from measure import perplexity
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


def _option(default: float, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True)
class Settings:
    """What the trained weights depend on, and the options of the command line."""

    seed: int = _option(0, "of the first weights and of the training stories")
    steps: int = _option(2800, "steps at most")
    batch: int = _option(4, "rows a step")
    length: int = _option(512, "tokens a row, and the longest context of the model")
    learning_rate: float = _option(2e-3, "at the peak")
    warmup: int = _option(200, "steps until the peak")
    evaluate_every: int = _option(250, "steps between evaluations")
    patience: int = _option(4, "evaluations without improvement before training stops")
    bf16: bool = _option(default=True, help_text="multiply in bfloat16; weights and sums stay float32")
    tokenizer_stories: int = _option(8000, "stories that the tokenizer is trained on")
    vocab: int = _option(1536, "tokens")
    hidden: int = _option(192, "width")
    layers: int = _option(6, "layers")
    heads: int = _option(6, "query heads")
    kv_heads: int = _option(2, "key and value heads")
    intermediate: int = _option(512, "width of the gated MLP")
    outliers: float = _option(1.8, "spread of the norms' first weights, exp(outliers * normal)")
    spread: float = _option(0.8, "spread of the channels after training, 2 ** round(spread * normal)")


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation; the training loss is the mean since the one before, in nats a token."""

    step: int
    learning_rate: float
    training_loss: float
    validation_perplexity: float
    seconds: float


def make_model(settings: Settings, vocab_size: int) -> LlamaForCausalLM:
    """Return a model with random weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=settings.length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        dtype="float32",
    )
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")  # noqa: SLF001
    _make_outliers(model, settings.outliers)
    return model


def _make_outliers(model: LlamaForCausalLM, spread: float) -> None:
    """Let training begin with uneven norms; it evens most of them out, and `channels` makes up for it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                gain = torch.exp(spread * torch.randn_like(parameter))
                parameter.copy_(gain / gain.square().mean().sqrt())


def training_batches(tokenizer: Tokenizer, texts: Iterator[str], settings: Settings) -> Iterator[torch.Tensor]:
    """Yield token ids (rows, tokens) int64: half as long and twice as many until the last quarter, which is cheaper."""
    short = training_rows(tokenizer, texts, settings.length // 2)
    long = training_rows(tokenizer, texts, settings.length)
    for step in range(settings.steps):
        is_long = 4 * step >= 3 * settings.steps
        rows = itertools.islice(long, settings.batch) if is_long else itertools.islice(short, 2 * settings.batch)
        yield torch.tensor(list(rows))


def learning_rate(step: int, settings: Settings) -> float:
    """Return the rate of a step, from 0: a linear warm-up, then half a cosine down to a hundredth of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def train(
    model: LlamaForCausalLM, batches: Iterable[torch.Tensor], validation: Sequence[Sequence[int]], settings: Settings
) -> list[Point]:
    """Train in place, stop early when validation no longer improves, and leave the best weights in the model."""
    optimizer = _optimizer(model)
    curve: list[Point] = []
    losses: list[float] = []
    best: dict[str, torch.Tensor] = {}
    begin = time.perf_counter()
    for step, ids in enumerate(batches):
        rate = learning_rate(step, settings)
        losses.append(_train_step(model, optimizer, ids, rate, bf16=settings.bf16))
        if (step + 1) % settings.evaluate_every and step + 1 < settings.steps:
            continue
        loss, seconds = sum(losses) / len(losses), round(time.perf_counter() - begin, 1)
        curve.append(Point(step + 1, rate, loss, perplexity(model, validation), seconds))
        losses.clear()
        print(_line(curve[-1]), flush=True)
        leader = best_of(curve)
        if leader is curve[-1]:
            best = {name: value.clone() for name, value in model.state_dict().items()}
        elif len(curve) - 1 - curve.index(leader) >= settings.patience:
            break
    model.load_state_dict(best)
    return curve


def best_of(curve: Sequence[Point]) -> Point:
    """Return the evaluation whose weights are kept: the first of those with the lowest perplexity."""
    return min(curve, key=lambda point: point.validation_perplexity)


def _optimizer(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def _train_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ids: torch.Tensor, rate: float, *, bf16: bool
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _line(point: Point) -> str:
    return (
        f"step {point.step:5d}  rate {point.learning_rate:.2e}  training loss {point.training_loss:.4f}"
        f"  validation perplexity {point.validation_perplexity:.4f}  {point.seconds:.0f} s"
    )
