"""The KL of single units, beside whole graphs in which one unit is quantized."""

import numpy as np
import pytest
import torch
from random_models import save_random

from edgec.backends.backend import get_backend
from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.divergence import Accumulator
from edgec.evaluate.streamed import stream
from edgec.frontends.families import describe
from edgec.graph.store import Store
from edgec.graph.tags import HEAD_ROTATION
from edgec.graph.weights import float_weights, load, matrix_name
from edgec.quantize.algorithms import algorithm_of
from edgec.quantize.scheme import Scheme
from edgec.quantize.transforms.quarot import emit_turned
from edgec.quantize.weights import as_codes, quantize_weights
from edgec.spec.load import load_profile, load_target
from edgec.spec.prune_plan import SparsePlan
from edgec.tune.check import prune_weights
from edgec.tune.sensitivity import Sensitivity, Variant, kl
from edgec.tune.units import candidates_of, units_of


def known(model, variant, stats):
    weights = {str(value.name): (value, kind) for value, kind in float_weights(model.graph)}
    scheme = variant.candidate.storage
    if not isinstance(scheme, Scheme):
        return lambda _: None
    algorithm = algorithm_of(scheme)
    return lambda n: as_codes(algorithm.quantize(torch.from_numpy(load(*weights[n])), stats.get(n), scheme))


@pytest.mark.parametrize(
    ("kind", "changes", "transforms", "zeros"),
    [
        ("llama", {}, (), ["fp16+2:4", "int4/16+2:4"]),
        ("llama", {"tie_word_embeddings": True}, ("quarot",), ["int8+50%"]),
        ("gpt2", {}, (), []),
        ("gpt_neox", {}, (), []),
        ("gemma2", {}, (), []),
        ("qwen2", {"tie_word_embeddings": False}, (), []),
    ],
)
@pytest.mark.parametrize("windows", [1, 3])
def test_kl_is_that_of_a_graph_with_one_unit_quantized(kind, changes, transforms, zeros, windows, tmp_path):
    save_random(kind, tmp_path / "source", **changes)
    checkpoint = open_checkpoint(tmp_path / "source")
    decoder = describe(checkpoint)
    ids = np.random.default_rng(0).integers(3, 97, (windows, 24))
    limits = get_backend("onnx_cpu").LIMITS
    labels = ["int4/16", "int8", *zeros]
    offered = candidates_of(labels, load_profile("int4"), load_target("cpu"), limits)
    todo = [Variant(unit, candidate) for unit in units_of(decoder) for candidate in offered]
    todo = [variant for variant in todo if variant.candidate == variant.candidate.of(variant.unit)]
    found = {}
    measured = Sensitivity(emit_turned(decoder, checkpoint, 24, transforms), ids)
    measured.measure(todo, found.__setitem__, lambda _: None)
    assert list(found) == todo
    reference = stream(emit_turned(decoder, checkpoint, 24, ()), tmp_path)
    hidden = reference.hidden(ids)
    for variant in todo[:: 3 if kind == "llama" else 4]:
        members = variant.unit.matrices

        def choose(value, _, members=members, variant=variant):
            name = matrix_name(value)
            mine = name in members if members else not name.startswith(("layers.", HEAD_ROTATION))
            return variant.candidate.storage if mine else "fp32"

        model = emit_turned(decoder, checkpoint, 24, transforms)
        if variant.candidate.pattern:
            prune_weights(model, SparsePlan(variant.candidate.pattern, "wanda", "uniform", members), measured.stats)
        with Store(tmp_path / "weights.bin") as store:
            quantize_weights(model, choose, store, lambda _: None, known(model, variant, measured.stats))
        runner = stream(model, tmp_path)
        accumulator = Accumulator()
        rows = np.zeros(ids.size, np.int64)
        expected = np.concatenate(list(reference.logits(hidden)))
        accumulator.add(expected, np.concatenate(list(runner.logits(runner.hidden(ids)))), rows, rows)
        assert found[variant] == pytest.approx(accumulator.result().mean_kl, rel=2e-3, abs=1e-8)


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1, 20])
def test_a_small_kl_is_not_drowned(size):
    rng = np.random.default_rng(0)
    p = 5 * rng.standard_normal((4, 3000), np.float32)
    d = (size * rng.standard_normal((4, 3000))).astype(np.float32) + 3
    logs = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p.astype(np.float64), p + d.astype(np.float64))]
    expected = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1)
    found = kl(torch.softmax(torch.from_numpy(p), -1), torch.from_numpy(d)).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3)
