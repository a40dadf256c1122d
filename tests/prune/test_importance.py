"""What counts on a text: against torch's autograd and hooks on transformers, and what must not count."""

from functools import partial

import numpy as np
import pytest
import torch
import transformers
from msgspec.structs import replace
from random_models import save_random
from safetensors.numpy import load_file, save_file

from edgec.calibrate import flow as flow_module
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError, UsageError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.prune import importance as module
from edgec.prune import taylor
from edgec.prune.importance import choose, importance, most_important
from edgec.prune.keep import Sizes, full
from edgec.prune.scores import METHODS, Importance
from edgec.prune.slim import slim

WINDOWS = np.random.default_rng(0).integers(3, 97, (5, 20))


def measured(folder, method, windows=WINDOWS):
    checkpoint = open_checkpoint(folder)
    decoder = describe(checkpoint)
    return importance(emit(decoder, checkpoint, checkpoint.read, 64), decoder, windows, method)


def edited(folder, change, **changes):
    """Write a random Llama whose tensors `change` was at."""
    save_random("llama", folder, **changes)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


class Reference:
    """What flows through transformers' model in float64, with the gradients of its own loss.

    Attributes:
        inputs: (windows, tokens, features) of each module, by its name; their gradients are in `grad`.
        layers: what goes into each layer and what it gives.
    """

    def __init__(self, folder):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.inputs, self.layers = {}, []
        for name, part in self.model.named_modules():
            part.register_forward_hook(self.keep(name), with_kwargs=True)
        ids = torch.from_numpy(WINDOWS)
        self.model(ids, labels=ids, use_cache=False).loss.backward()

    def keep(self, name):
        def hook(module, args, kwargs, output):
            x = args[0] if args else kwargs.get("hidden_states")
            if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
                return
            x.requires_grad_()
            x.retain_grad()
            self.inputs[name] = x
            if name.rpartition(".")[2].isdigit():
                self.layers.append((x.detach(), (output[0] if isinstance(output, tuple) else output).detach()))

        return hook

    def named(self, *ends):
        """Return the inputs of modules whose names end so, in the order of layers."""
        return [x for name, x in self.inputs.items() if name.endswith(ends)]

    def weight(self, name):
        return self.model.get_parameter(f"{name}.weight").detach()


def close(found, expected, rtol=2e-4):
    expected = np.stack([np.asarray(each) for each in expected])
    assert expected.min() >= 0
    assert expected.max() > 0
    assert np.abs(found - expected).max() <= rtol * expected.max()


DOWN = {"gpt2": ".mlp.c_proj", "gpt_neox": ".dense_4h_to_h"}
OUT = {"gpt2": ".attn.c_proj", "gpt_neox": ".attention.dense"}


@pytest.mark.parametrize("kind", sorted(families()))
def test_taylor_is_torch_s_autograd_on_the_whole_model(kind, tmp_path):
    save_random(kind, tmp_path)
    found, reference = measured(tmp_path, "taylor"), Reference(tmp_path)
    groups = found.groups.shape[1]
    down = [(x * x.grad).detach() for x in reference.named(DOWN.get(kind, ".down_proj"))]
    close(found.mlp, [each.abs().sum((0, 1)) for each in down])
    heads = [(x * x.grad).detach().unflatten(2, (groups, -1)).sum(3) for x in reference.named(OUT.get(kind, ".o_proj"))]
    close(found.groups, [each.abs().sum((0, 1)) for each in heads])
    if kind == "llama":
        stream = reference.named("input_layernorm", "post_attention_layernorm", "model.norm")
        assert len(stream) == 5
        close(found.hidden, sum((x * x.grad).detach().abs().sum((0, 1)) for x in stream))


@pytest.mark.parametrize("kind", sorted(families()))
def test_layers_count_as_much_as_they_turn_the_stream(kind, tmp_path):
    save_random(kind, tmp_path)
    layers = Reference(tmp_path).layers
    cosines = [torch.cosine_similarity(x, y, dim=2).mean() for x, y in layers]
    found = measured(tmp_path, "magnitude").layers
    assert len(found) == len(cosines)
    np.testing.assert_allclose(found, [1 - cosine for cosine in cosines], atol=1e-6)


# olmo2 has no norm in front of its matrices: they read the stream.
@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("olmo2", False)])
def test_magnitudes_activations_and_wanda_are_their_formulas(kind, tied, tmp_path):
    save_random(kind, tmp_path, tie_word_embeddings=tied)
    reference, names = Reference(tmp_path), [f"model.layers.{i}" for i in range(2)]
    norms = [reference.weight("model.embed_tokens").square().sum(0)]
    mlp, groups, hidden = ({method: [] for method in METHODS} for _ in range(3))

    def flowing(readers, kept, count):
        x = reference.inputs[readers[0]].detach()
        squares = sum(reference.weight(reader).square().sum(0) for reader in readers)
        kept["activation"].append(x.abs().mean((0, 1)).view(count, -1).sum(1))
        kept["wanda"].append((x.square().mean((0, 1)) * squares).sqrt().view(count, -1).sum(1))
        norms.append(squares)

    for name in names:
        w = {part: reference.weight(f"{name}.{part}_proj").square() for part in (
            "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")}  # fmt: skip
        mlp["magnitude"].append((w["mlp.gate"].sum(1) + w["mlp.up"].sum(1) + w["mlp.down"].sum(0)).sqrt())
        per_group = [w[f"self_attn.{part}"].sum(1) for part in "qkv"] + [w["self_attn.o"].sum(0)]
        groups["magnitude"].append(sum(each.view(2, -1).sum(1) for each in per_group).sqrt())
        norms += [w["self_attn.o"].sum(1), w["mlp.down"].sum(1)]
        flowing([f"{name}.mlp.{part}_proj" for part in ("gate", "up")], hidden, 64)
        flowing([f"{name}.self_attn.{part}_proj" for part in "qkv"], hidden, 64)
        before = len(norms)
        flowing([f"{name}.mlp.down_proj"], mlp, 80)
        flowing([f"{name}.self_attn.o_proj"], groups, 2)
        del norms[before:]
    flowing(["lm_head"], hidden, 64)
    hidden["magnitude"] = [torch.stack(norms[1:] if tied else norms).sum(0).sqrt()]  # a tied table counts once
    for method in ("magnitude", "activation", "wanda"):
        found = measured(tmp_path, method)
        close(found.mlp, mlp[method], 1e-5)
        close(found.groups, groups[method], 1e-5)
        close(found.hidden, sum(hidden[method]), 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_units_that_do_nothing_go_first(method, tmp_path):
    def silence(tensors):
        for layer, unit, group in ((0, 7, 1), (1, 33, 0)):
            name, rows = f"model.layers.{layer}.", slice(32 * group, 32 * group + 32)
            tensors[f"{name}mlp.down_proj.weight"][:, unit] = 0
            tensors[f"{name}self_attn.o_proj.weight"][:, rows] = 0
            if method in (
                "magnitude",
                "activation",
            ):  # of which the first looks at what makes the unit, the other at it
                for part in ("gate", "up"):
                    tensors[f"{name}mlp.{part}_proj.weight"][unit] = 0
                for part in "kv":
                    tensors[f"{name}self_attn.{part}_proj.weight"][16 * group : 16 * group + 16] = 0
                tensors[f"{name}self_attn.q_proj.weight"][rows] = 0
        tensors["model.embed_tokens.weight"][:, 11] = 0
        for name, weight in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[11] = 0
            elif method == "magnitude" and weight.ndim == 2 and "embed" not in name:
                weight[:, 11] = 0

    edited(tmp_path, silence, tie_word_embeddings=True)
    found = measured(tmp_path, method)
    assert found.mlp.argmin(1).tolist() == [7, 33]
    assert found.groups.argmin(1).tolist() == [1, 0]
    assert found.hidden.argmin() == 11
    assert found.mlp.min() == found.groups.min() == found.hidden.min() == 0
    keep = most_important(found, Sizes(2, 79, 1, 63))
    assert [set(range(80)) - set(units) for units in keep.mlp] == [{7}, {33}]
    assert keep.groups == ((0,), (1,))
    assert set(range(64)) - set(keep.hidden) == {11}


def test_a_layer_that_gives_what_it_takes_goes_first(tmp_path):
    def skip(tensors):
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.1.{part}.weight"][:] = 0

    edited(tmp_path, skip, num_hidden_layers=4)
    found = measured(tmp_path, "activation")
    assert found.layers.argmin() == 1
    assert abs(found.layers[1]) < 1e-6
    assert most_important(found, Sizes(3, 80, 2, 64)).layers == (0, 2, 3)


@pytest.mark.parametrize("method", METHODS)
def test_layers_and_widths_are_chosen_together(method, tmp_path):
    save_random("llama", tmp_path, num_hidden_layers=4)
    checkpoint = open_checkpoint(tmp_path)
    decoder = describe(checkpoint)
    model, there = emit(decoder, checkpoint, checkpoint.read, 64), full(decoder)
    wanted, ticks = Sizes(3, 48, 1, 32), []
    chosen = partial(choose, model, decoder, WINDOWS, source="llama", folder=tmp_path / "kept")
    keep = chosen(wanted, method, tick=ticks.append)
    assert keep.sizes == wanted
    assert full(describe(slim(checkpoint, decoder, keep))) == wanted
    assert (ticks[0], ticks[-1], len(ticks)) == ("mask", "head", 11)
    # Which layers stay is not a matter of the method, and what stays within them not of the layers.
    assert chosen(replace(there, layers=3), method).layers == keep.layers
    narrow = chosen(replace(wanted, layers=4), method)
    assert keep.mlp == tuple(narrow.mlp[layer] for layer in keep.layers)
    assert keep.groups == tuple(narrow.groups[layer] for layer in keep.layers)
    assert keep.hidden == narrow.hidden


def test_what_was_measured_is_found_again_for_any_sizes_but_not_for_anything_else(tmp_path, monkeypatch):
    save_random("llama", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    decoder, measured = describe(checkpoint), []

    def counting(*arguments, **options):
        measured.append(arguments[3])
        return importance(*arguments, **options)

    monkeypatch.setattr(module, "importance", counting)
    model = emit(decoder, checkpoint, checkpoint.read, 64)

    some = Sizes(2, 48, 1, 64)

    def chosen(windows=WINDOWS, wanted=some, method="taylor", source="llama"):
        return choose(model, decoder, windows, wanted, method, source=source, folder=tmp_path / "kept")

    keep = chosen()
    assert chosen() == keep
    assert chosen(wanted=Sizes(1, 40, 1, 48)).sizes == Sizes(1, 40, 1, 48)
    assert measured == ["taylor"]
    chosen(windows=WINDOWS[::2])
    chosen(method="wanda")
    chosen(source="another llama")
    assert measured == ["taylor", "taylor", "wanda", "taylor"]
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert chosen() == keep
    assert len(measured) == 5


def test_magnitudes_need_no_text(tmp_path, monkeypatch):
    save_random("llama", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    decoder = describe(checkpoint)
    model = emit(decoder, checkpoint, checkpoint.read, 64)
    known, alone = (importance(model, decoder, windows, "magnitude") for windows in (WINDOWS, None))
    for name in ("mlp", "groups", "hidden"):
        np.testing.assert_array_equal(vars(alone)[name], vars(known)[name])
    assert known.layers.all()
    assert not alone.layers.any()
    monkeypatch.delattr(module, "Flow")
    wanted = Sizes(2, 48, 1, 48)
    keep = choose(model, decoder, WINDOWS, wanted, "magnitude", source="", folder=tmp_path / "kept")
    assert keep == most_important(known, wanted)
    assert choose(model, decoder, None, wanted, "magnitude", source="", folder=tmp_path / "kept") == keep


def test_of_what_counts_the_same_the_first_stays():
    found = Importance(np.ones(4), np.ones((4, 6)), np.ones((4, 2)), np.array([1.0, 2.0, 1.0, 2.0]))
    keep = most_important(found, Sizes(2, 3, 1, 3))
    assert (keep.layers, keep.mlp, keep.groups, keep.hidden) == ((0, 1), ((0, 1, 2),) * 2, ((0,),) * 2, (0, 1, 3))


@pytest.mark.parametrize("method", METHODS)
def test_how_much_is_worked_on_at_once_changes_only_how_sums_are_rounded(method, tmp_path, monkeypatch):
    save_random("gpt_neox", tmp_path)  # whose layers hand on two values
    expected = measured(tmp_path, method)
    monkeypatch.setattr(flow_module, "_TOKENS_AT_ONCE", 60)
    monkeypatch.setattr(taylor, "_LOGITS_AT_ONCE", 97 * 7)
    for name, scores in vars(measured(tmp_path, method)).items():
        np.testing.assert_allclose(scores, vars(expected)[name], rtol=1e-4, atol=1e-6)


def test_one_token_predicts_nothing(tmp_path):
    save_random("llama", tmp_path)
    with pytest.raises(UsageError, match="no next token"):
        measured(tmp_path, "taylor", WINDOWS[:, :1])
    assert measured(tmp_path, "wanda", WINDOWS[:, :1]).mlp.max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_overflow_are_refused(method, tmp_path):
    def overflow(tensors):
        for part in ("gate", "up"):  # each is finite, their product is not
            tensors[f"model.layers.1.mlp.{part}_proj.weight"] *= np.float32(1e38)

    edited(tmp_path, overflow)
    with pytest.raises(CheckpointError, match="not finite"):
        measured(tmp_path, method)
