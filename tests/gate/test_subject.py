"""What bundles say of themselves: only where their files are those of their manifest."""

import json
import os
import shutil
from pathlib import Path

import pytest
from commands import fails, invoke
from tiny_networks import Tiny, weights

from edgec.errors import BundleError, UsageError
from edgec.gate.subject import describe

NETWORK = Tiny("(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", weights(w=(4, 4)), lambda rng, count: {})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    source = NETWORK.save(folder / "tiny.onnx")
    done = invoke("build", source, "--target", "cpu", "--profile", "fp32", "--no-verify", "-o", folder / "bundle")
    assert done.exit_code == 0
    return folder / "bundle"


@pytest.fixture
def bundle(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_a_whole_bundle(bundle):
    found = describe(bundle)
    assert (found.path, found.target, found.profile, found.backend) == (str(bundle), "cpu", "fp32", "onnx_cpu")
    assert found.sha256 == json.loads((bundle / "manifest.json").read_text())["content_sha256"]


def test_a_bare_artifact_is_taken_as_it_is(bundle):
    model = next((bundle / "artifact").glob("*.onnx"))
    model.write_bytes(model.read_bytes()[:-1])
    found = describe(bundle / "artifact")
    assert (found.sha256, found.target) == ("", "")


def cut(bundle):
    os.truncate(next((bundle / "artifact").glob("*.onnx")), 50)


def flip(bundle):
    path = next((bundle / "artifact").glob("*.onnx"))
    content = bytearray(path.read_bytes())
    content[-9] ^= 255
    path.write_bytes(content)


def retarget(bundle):
    path = bundle / "plan.json"
    assert '"cpu"' in path.read_text()
    path.write_text(path.read_text().replace('"cpu"', '"jetson-orin-nano"'))


def add(bundle):
    (bundle / "artifact/more.bin").touch()


def lose(bundle):
    (bundle / "plan.json").unlink()


def lose_manifest(bundle):
    (bundle / "manifest.json").unlink()


def spoil_manifest(bundle):
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 1, "\xff": 2'))


@pytest.mark.parametrize("change", [cut, flip, retarget, add, lose, lose_manifest, spoil_manifest])
def test_what_the_manifest_does_not_say_is_refused_as_inspect_does(bundle, change):
    change(bundle)
    with pytest.raises(BundleError) as caught:
        describe(bundle)
    if change not in (lose_manifest, spoil_manifest):
        assert caught.value.what == fails("inspect", bundle).what


def test_what_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is no bundle"):
        describe(tmp_path / "none")


def test_a_path_that_is_no_text(built, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff\xfe"))
    try:
        shutil.copytree(built, odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        describe(odd)
    assert caught.value.where == rf"{tmp_path}/b\xff\xfe"
    str(caught.value).encode()
    error = fails("gate", built, "--baseline", odd)
    assert (error.exit_code, error.hint) == (2, "rename it")
