"""Bundles for tests that time them."""

from pathlib import Path

import pytest
from commands import invoke
from tiny_networks import NETWORKS

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller" / "checkpoint"


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    """The storyteller, as int8."""
    out = tmp_path_factory.mktemp("decoder") / "int8"
    options = ("--target", "cpu", "--profile", "int8", "--no-verify", "-o", out)
    assert invoke("build", STORYTELLER, *options).exit_code == 0
    return out


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """A tiny convolutional network that takes batches, of a size that is called N."""
    folder = tmp_path_factory.mktemp("network")
    model = NETWORKS["cnn"].save(folder / "cnn.onnx")
    options = ("--target", "cpu", "--profile", "fp32", "--no-verify", "-o", folder / "cnn")
    assert invoke("build", model, *options).exit_code == 0
    return folder / "cnn"
