"""Training runs from nothing to a checkpoint, and stops when validation does."""

import dataclasses
import itertools
import json

import pytest
import torch
from loop import Settings, learning_rate, make_model, train
from train import run
from transformers import AutoModelForCausalLM

TINY = Settings(
    seed=0,
    steps=20,
    batch=2,
    length=64,
    learning_rate=1e-2,
    warmup=4,
    evaluate_every=5,
    patience=2,
    bf16=False,
    tokenizer_stories=100,
    vocab=400,
    hidden=32,
    layers=1,
    heads=2,
    kv_heads=1,
    intermediate=64,
)


def test_twenty_steps_write_a_checkpoint_that_has_learned(tmp_path) -> None:
    torch.set_num_threads(1)
    report = run(tmp_path, TINY, {"calibration": 3, "validation": 4, "heldout": 26})
    assert json.loads((tmp_path / "training_report.json").read_text()) == report
    assert [point["step"] for point in report["curve"]] == [5, 10, 15, 20]
    assert report["perplexity"]["validation"] == min(point["validation_perplexity"] for point in report["curve"])
    assert report["perplexity"]["validation"] < 0.7 * 400
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]


def test_training_stops_when_validation_no_longer_improves() -> None:
    still = dataclasses.replace(TINY, learning_rate=0.0, evaluate_every=1)
    ids = torch.arange(2 * 64).reshape(2, 64)
    curve = train(make_model(still, 400), [ids] * 20, [[0, 5, 6, 1]], still)
    assert [point.step for point in curve] == [1, 2, 3]


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, TINY) for step in range(TINY.steps)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] < 0.05 * TINY.learning_rate
