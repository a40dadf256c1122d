"""The optimization profile of a network follows the names of its sizes."""

import msgspec
import pytest

from edgec.backends.tensorrt.network_shapes import network_profile
from edgec.frontends.network import Network, Port


def shapes(*ports, **tokenizer_files):
    network = Network("net", "onnx", "test", None, ports, (), {}, tokenizer_files=tokenizer_files)
    return msgspec.to_builtins(network_profile(network).shapes)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (Port("ids", "int64", ("batch", "sequence")), [(1, 1), (1, 128), (8, 512)]),
        (Port("ids", "int64", (1, "text_length")), [(1, 1), (1, 128), (1, 512)]),
        (Port("image", "float32", ("N", 3, "height", "W")), [(1, 3, 32, 32), (1, 3, 224, 224), (8, 3, 1024, 1024)]),
        (Port("input", "float32", ("batch", "sequence")), [(1, 400), (1, 16000), (8, 480000)]),
        (Port("mel", "float32", ("input_0", 80, "frames")), [(1, 80, 1), (1, 80, 500), (8, 80, 3000)]),
        (Port("state", "float32", (2, "state_1", 128)), [(2, 1, 128), (2, 1, 128), (2, 8, 128)]),
    ],
)
def test_sizes_by_their_names(port, expected):
    assert shapes(port) == {port.name: dict(zip(("min", "opt", "max"), expected, strict=True))}


def test_sizes_that_are_known_need_none():
    assert shapes(Port("image", "float32", (1, 3, 224, 224)), Port("scale", "float32", ())) == {}


@pytest.mark.parametrize(
    ("config", "longest"),
    [(b'{"model_max_length": 77}', 77), (b'{"model_max_length": 1e30}', 512), (b"{}", 512), (b"[]", 512), (b"?", 512)],
)
def test_a_text_is_as_long_as_the_tokenizer_says(config, longest):
    ids = Port("ids", "int64", ("batch", "sequence"))
    found = shapes(ids, **{"tokenizer_config.json": config})["ids"]
    assert (found["opt"], found["max"]) == ((1, min(128, longest)), (8, longest))
