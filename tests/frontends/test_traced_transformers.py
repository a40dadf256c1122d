"""Families of transformers, tiny and random: graphs give what transformers gives, on sizes not traced with."""

import json
import os

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import transformers

from edgec.calibrate.audio import Audio
from edgec.calibrate.images import Pictures
from edgec.calibrate.log_mel import LogMel
from edgec.errors import CheckpointError, UsageError
from edgec.frontends.sentence import read_pooling
from edgec.frontends.transformers_model import trace_transformers

TEXT = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
}
SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": [16, 16], "conv_stride": [10, 8], "conv_kernel": [12, 8], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 20,
}  # fmt: skip
FAMILIES = {
    "bert": ("BertModel", TEXT | {"num_hidden_layers": 2}),
    "bert-masked": ("BertForMaskedLM", TEXT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": 97, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
    ),
    "roberta": ("RobertaForTokenClassification", TEXT | {"type_vocab_size": 1}),
    "mpnet": ("MPNetModel", TEXT),
    "modernbert": (
        "ModernBertModel",
        TEXT | {"local_attention": 8, "num_hidden_layers": 2, "global_attn_every_n_layers": 2, "pad_token_id": 0},
    ),
    "vit": ("ViTForImageClassification", VISION | {"patch_size": 8}),
    "dinov2": ("Dinov2Model", VISION | {"patch_size": 8}),
    "resnet": ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}),
    "mobilenet_v1": ("MobileNetV1Model", {"image_size": 32, "depth_multiplier": 0.25, "min_depth": 4}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"image_size": 32, "depth_multiplier": 0.25, "min_depth": 4}),
    "whisper": (
        "WhisperModel",
        {"vocab_size": 97, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 20,
         "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", SPEECH),
}  # fmt: skip
PREPROCESSORS = {
    "resnet": {"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": True},
    "whisper": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8, "sampling_rate": 16000},
}


def build(folder, kind, **changes):
    """Write a random model of a family to a directory and return it."""
    name, settings = FAMILIES[kind]
    architecture = getattr(transformers, name)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = architecture(architecture.config_class(**(settings | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as they start, norms and biases would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if kind in PREPROCESSORS:
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSORS[kind]))
    return model


def sample(network, batch=3, length=29, seed=5):
    """Return inputs of sizes that the frontend has not seen, padded but for the first row."""
    rng = np.random.default_rng(seed)
    feed = {}
    for port in network.inputs:
        open_sizes = {"batch": batch, "sequence": length, "samples": 7001}
        shape = [open_sizes.get(size, size) for size in port.shape]
        if port.name == "attention_mask":
            feed[port.name] = (np.arange(shape[1]) < np.linspace(shape[1], 3, shape[0])[:, None]).astype(np.int64)
        elif port.dtype == "int64":
            feed[port.name] = rng.integers(2, 97, shape) if port.name == "input_ids" else rng.integers(0, 2, shape)
        else:
            feed[port.name] = rng.standard_normal(shape).astype(np.float32)
    return feed


def run(network, feed, folder):
    ir.save(network.model, folder / "traced.onnx")
    session = ort.InferenceSession(folder / "traced.onnx", providers=["CPUExecutionProvider"])
    return dict(zip([port.name for port in network.outputs], session.run(None, feed), strict=True))


def assert_same(network, model, folder):
    feed = sample(network)
    found = run(network, feed, folder)
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(array) for name, array in feed.items()})
    assert found
    for name, array in found.items():
        expected = wanted[name].numpy()
        assert array.shape == expected.shape
        assert expected.std() > 1e-3, "outputs this small would hide mistakes"
        assert np.abs(array - expected).max() <= 1e-4 * np.abs(expected).max()


KINDS = [
    pytest.param(kind, marks=pytest.mark.slow if kind == "mobilenet_v1" else ())  # like the second version
    for kind in FAMILIES
    if kind != "vit"  # traced below
]


@pytest.mark.parametrize("kind", KINDS)
def test_family(tmp_path, kind, capsys):
    model = build(tmp_path, kind)
    model = model.get_encoder() if kind == "whisper" else model
    network = trace_transformers(tmp_path)
    assert_same(network, model, tmp_path)
    assert all(port.shape[0] == "batch" for port in (*network.inputs, *network.outputs))
    assert not any("is fixed" in remark for remark in network.remarks)
    assert not any(node.domain for node in network.model.graph.all_nodes())
    assert capsys.readouterr().out == ""
    heard = Audio(sample_rate_hz=16000, features=LogMel(bands=8))
    assert network.audio == (heard if kind == "whisper" else None)
    guessed = "there is no preprocessor_config.json: pictures get ImageNet's mean and standard deviation"
    assert (guessed in network.remarks) == (network.pictures is not None and kind not in PREPROCESSORS)
    names = set(model.state_dict())
    weights = {
        name for name, v in network.model.graph.initializers.items() if len(v.shape) > 1 and v.const_value.size > 99
    }
    assert len(weights - names) <= 1, weights - names  # Whisper's table of positions is folded


POOLING = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def write_sentence(folder, modules=("Transformer", "Pooling", "Normalize"), pooling=POOLING):
    """Make a directory of sentence-transformers out of one with a model."""
    paths = ("", "1_Pooling", "2_Normalize")
    chain = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(modules, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(chain))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_sentence_embeddings(tmp_path):
    model = build(tmp_path, "bert-masked").bert  # whose pooler nobody has trained, and whose head nobody needs
    write_sentence(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    network = trace_transformers(tmp_path)
    assert [port.name for port in network.outputs] == ["last_hidden_state", "sentence_embedding"]
    assert [port.name for port in network.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert network.tokenizer_files == {"tokenizer.json": b"{}"}
    files = {"modules.json", "1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"}
    assert set(network.files) == files
    assert {"Attention", "Gelu", "LayerNormalization"} <= {node.op_type for node in network.model.graph}
    assert "encoder.layer.0.attention.self.query.weight" in network.model.graph.initializers
    feed = sample(network)
    found = run(network, feed, tmp_path)
    with torch.no_grad():
        hidden = model(**{name: torch.from_numpy(array) for name, array in feed.items()}).last_hidden_state.numpy()
    assert np.abs(found["last_hidden_state"] - hidden).max() <= 1e-4 * np.abs(hidden).max()
    kept = feed["attention_mask"][:, :, None]
    mean = (hidden * kept).sum(1) / kept.sum(1)
    assert np.abs(found["sentence_embedding"] - mean / np.linalg.norm(mean, axis=1, keepdims=True)).max() <= 1e-5


def test_pooling_by_the_first_token(tmp_path):
    write_sentence(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "cls"})
    pooling = read_pooling(tmp_path)
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    assert pooling.embed(hidden, torch.ones(2, 3))["sentence_embedding"].tolist() == [[0, 1], [6, 7]]


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        (("Transformer", "Pooling", "Dense"), POOLING),
        (("Transformer", "Pooling"), POOLING | {"pooling_mode_max_tokens": True}),
        (("Transformer",), POOLING),
    ],
)
def test_pooling_that_is_not_known(tmp_path, modules, pooling):
    write_sentence(tmp_path, modules, pooling)
    found = read_pooling(tmp_path)
    assert found.mode is None
    assert "no sentence_embedding" in found.remarks[0]


def test_modules_outside_the_directory_are_refused(tmp_path):
    modules = [{"idx": 0, "path": "../elsewhere", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="outside the directory"):
        trace_transformers(tmp_path)


def test_what_is_known_of_pictures_and_classes(tmp_path):
    model = build(tmp_path, "vit", id2label={0: "cat", 1: "dog", 2: "cow"})
    preprocessor = {
        "size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 2 / 255,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    network = trace_transformers(tmp_path)
    assert network.task == "image-classification"
    assert network.labels == ("cat", "dog", "cow")
    assert network.inputs[0].shape == ("batch", 3, 32, 32)
    # (2 x - 0.5) / 0.25 of a pixel x from 0 to 1
    assert network.pictures == Pictures(input="pixel_values", height=32, width=32, mean=(0.25,) * 3, std=(0.125,) * 3)
    assert network.tokenizer_files == {}
    assert set(network.files) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert_same(network, model, tmp_path)


def test_pictures_of_any_size_where_the_user_asks(tmp_path):
    model = build(tmp_path, "resnet")
    network = trace_transformers(tmp_path, inputs=["pixel_values:float32[batch,3,height=64,width=64]"])
    assert network.inputs[0].shape == ("batch", 3, "height", "width")
    picture = np.random.default_rng(0).standard_normal((2, 3, 40, 72)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(picture)).logits.numpy()
    found = run(network, {"pixel_values": picture}, tmp_path)["logits"]
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.slow
def test_sound_with_a_mask(tmp_path):
    model = build(tmp_path, "wav2vec2", feat_extract_norm="layer", do_stable_layer_norm=True)
    processor = {"feature_extractor": {"return_attention_mask": True}}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    network = trace_transformers(tmp_path)
    assert [port.name for port in network.inputs] == ["input_values", "attention_mask"]
    assert_same(network, model, tmp_path)


def test_pooler_without_weights_is_left_out(tmp_path):
    build(tmp_path, "bert-masked")
    network = trace_transformers(tmp_path, task="default")
    assert [port.name for port in network.outputs] == ["last_hidden_state"]
    assert any("pooler_output is left out" in remark for remark in network.remarks)


def test_head_without_weights_is_refused(tmp_path):
    build(tmp_path, "bert")
    with pytest.raises(CheckpointError, match=r"lacks 2 weights of this model, the first is 'classifier\.bias'"):
        trace_transformers(tmp_path, task="text-classification")


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("bert", "image-classification", "no task of a traced bert"),
        ("bert", "text-generation", "no task of a traced bert"),
        ("whisper", "automatic-speech-recognition", "no task of a traced whisper"),
    ],
)
def test_tasks_that_a_model_does_not_have(tmp_path, kind, task, message):
    build(tmp_path, kind)
    with pytest.raises(UsageError, match=message) as caught:
        trace_transformers(tmp_path, task=task)
    assert "feature-extraction" in str(caught.value.hint)


def test_decoders_and_unknown_inputs_are_refused(tmp_path):
    config = transformers.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    with pytest.raises(UsageError, match="no task fits"):
        trace_transformers(tmp_path / "llama")
    build(tmp_path / "bert", "bert")
    with pytest.raises(UsageError, match="no input 'pictures'"):
        trace_transformers(tmp_path / "bert", inputs=["pictures:float32[batch,3]"])


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_weights(tmp_path):
    model = build(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(trace_transformers(tmp_path), model, tmp_path)
    torch.save({**model.state_dict(), "more": Attack(tmp_path / "owned")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot load the weights"):
        trace_transformers(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"model_type": "nobody_knows", "auto_map": {"AutoConfig": "code.Config"}}, "does not know the model"),
        ({"hidden_size": 64}, "cannot load the weights"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, changes, message):
    build(tmp_path, "bert")
    (tmp_path / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'owned')!r})")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        trace_transformers(tmp_path)
    assert not (tmp_path / "owned").exists()
