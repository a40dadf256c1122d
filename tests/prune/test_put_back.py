"""Matrices of a graph, put back into the tensors that each family keeps them in."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from random_models import save_random
from tokenizers import Tokenizer, models
from torch_logits import torch_logits

from edgec.checkpoint.export import write_huggingface
from edgec.checkpoint.model import TensorInfo
from edgec.checkpoint.open import open_checkpoint
from edgec.frontends.decoder import emit
from edgec.frontends.decoder_tensors import linears
from edgec.frontends.families import describe, families
from edgec.graph.weights import float_weights
from edgec.prune.put_back import put_back

IDS = np.random.default_rng(0).integers(3, 97, (2, 24))


@pytest.fixture(params=sorted(families()))
def checkpoint(request, tmp_path):
    save_random(request.param, tmp_path / "source")
    Tokenizer(models.BPE()).save(str(tmp_path / "source" / "tokenizer.json"))
    return open_checkpoint(tmp_path / "source")


def graph(checkpoint):
    return emit(describe(checkpoint), checkpoint, checkpoint.read, 64)


def test_other_numbers_are_where_transformers_looks_for_them(checkpoint, tmp_path):
    model, generator = graph(checkpoint), np.random.default_rng(1)
    for value, kind in float_weights(model.graph):
        if kind == "matrix":
            scale = value.const_value.numpy().std()
            numbers = scale * generator.standard_normal(tuple(value.shape), np.float32)
            value.const_value = ir.tensor(numbers, name=value.name)
    changed = put_back(checkpoint, describe(checkpoint), model)
    again = graph(changed)
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(again.graph.initializers[name].const_value.numpy(), value.const_value.numpy())
    write_huggingface(changed, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    with torch.no_grad():
        found = loaded(torch.from_numpy(IDS), use_cache=False).logits.numpy()
    expected = torch_logits(model, IDS)
    assert expected.std() > 0.05, "logits this small would hide mistakes"
    assert np.abs(found - expected).max() <= 1e-4


def test_the_same_numbers_change_nothing(checkpoint):
    same = put_back(checkpoint, describe(checkpoint), graph(checkpoint))
    assert same.config == checkpoint.config
    assert dict(same.tensors) == dict(checkpoint.tensors)
    for name in checkpoint.tensors:
        np.testing.assert_array_equal(same.read(name), checkpoint.read(name), strict=True)


def test_nothing_is_read_before_it_is_asked_for(checkpoint):
    asked = []

    def read(name):
        asked.append(name)
        return checkpoint.read(name)

    decoder = describe(checkpoint)
    changed = put_back(checkpoint, decoder, emit(decoder, checkpoint, read, 64))
    assert asked == []
    wanted = linears(decoder)[0].weight
    changed.read(wanted)
    assert set(asked) == {wanted}


def test_tensors_of_no_use_are_left_out(checkpoint):
    extra = {"rotary_emb.inv_freq": TensorInfo("rotary_emb.inv_freq", "F32", (8,))}
    changed = put_back(
        replace(checkpoint, tensors={**checkpoint.tensors, **extra}), describe(checkpoint), graph(checkpoint)
    )
    assert set(changed.tensors) == set(checkpoint.tensors)
