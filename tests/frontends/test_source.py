"""What a user may name as a model."""

import json

import pytest
from tiny_networks import NETWORKS

from edgec.calibrate.audio import Audio
from edgec.calibrate.images import Pictures
from edgec.calibrate.log_mel import LogMel
from edgec.errors import CheckpointError, EdgecError, UsageError
from edgec.frontends.source import NetworkOptions, is_network, open_network


@pytest.fixture
def directory(tmp_path):
    def write(config):
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    "source", ["model.onnx", "MODEL.ONNX", "a/b.onnx", "none.onnx", "net.pt2", "package.module:factory", "module:make"]
)
def test_networks_by_name(source):
    assert is_network(source)
    assert is_network(source, "text-generation")  # a file says what it is


@pytest.mark.parametrize(
    "source", ["model.gguf", "organisation/name", "no/such/directory", "a.b", "a:b:c", "1a:b", "C:\\model", ""]
)
def test_others_by_name(source):
    assert not is_network(source)


def test_a_directory_that_is_called_like_a_factory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    assert not is_network("a:b")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("bert", True), ("vit", True), ("resnet", True), ("llama", False), ("gpt2", False), ("no-such-kind", False),
     (None, False), (["bert"], False), (3, False)],
)  # fmt: skip
def test_directories_by_their_architecture(directory, kind, expected):
    assert is_network(directory({"model_type": kind})) == expected


def test_directories_by_the_task_that_the_user_names(directory):
    path = directory({"model_type": "llama"})
    assert is_network(path, "feature-extraction")
    assert not is_network(path, "text-generation")
    assert not is_network(directory({"model_type": "bert"}), "text-generation")


def test_directories_without_a_config(tmp_path):
    assert not is_network(str(tmp_path))
    assert not is_network(str(tmp_path), "feature-extraction")


@pytest.mark.parametrize("config", ["{", "[]", "\xff", ""])
def test_broken_configs(directory, config):
    with pytest.raises(CheckpointError):
        is_network(directory(config))


def test_a_file_is_read_and_fused(tmp_path):
    path = NETWORKS["mlp"].save(tmp_path / "mlp.onnx")
    network, fusions = open_network(str(path), NetworkOptions())
    assert (network.name, network.format) == ("mlp.onnx", "onnx")
    assert [(port.name, port.dtype, port.shape) for port in network.inputs] == [("x", "float32", ("N", 24))]
    assert [port.name for port in network.outputs] == ["z", "y"]
    assert network.files.keys() == {"mlp.onnx"}
    assert fusions.stage == "canonical"
    assert "Gemm" in {node.op_type for node in network.model.graph}  # MatMul and Add


def test_a_preprocessor_beside_the_file(tmp_path):
    path = NETWORKS["cnn"].save(tmp_path / "cnn.onnx")
    assert open_network(str(path), NetworkOptions())[0].pictures is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5, "image_std": 0.25}))
    network, _ = open_network(str(path), NetworkOptions())
    assert network.pictures == Pictures(input="x", height=12, width=12, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert list(network.files) == ["cnn.onnx", "preprocessor_config.json"]
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 16000})
    )
    network, _ = open_network(str(path), NetworkOptions())
    assert (network.pictures, network.audio) == (None, Audio(sample_rate_hz=16000, features=LogMel()))
    other = NETWORKS["mlp"].save(tmp_path / "mlp.onnx")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5}))
    assert list(open_network(str(other), NetworkOptions())[0].files) == ["mlp.onnx"]  # says nothing to it


def test_files_that_are_not_there(tmp_path):
    for name in ("none.onnx", "none.pt2"):
        with pytest.raises(UsageError, match="there is no file") as error:
            open_network(str(tmp_path / name), NetworkOptions())
        assert error.value.where == str(tmp_path / name)
        assert error.value.hint
    state = tmp_path / "none.pth"
    with pytest.raises(UsageError, match="there is no file"):
        open_network("module:make", NetworkOptions(state=state))
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match="there is no file"):
        open_network(str(tmp_path / "folder.onnx"), NetworkOptions())


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 64])
def test_files_that_are_no_models(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        open_network(str(path), NetworkOptions())


def test_factories_that_are_not_there():
    with pytest.raises(EdgecError) as caught:
        open_network("no_such_package_at_all:make", NetworkOptions(inputs=("x:float32[1]",)))
    assert caught.value.exit_code in (2, 6)
