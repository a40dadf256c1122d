"""The recipe on the host: reproducible, checked, and refused where no device could follow it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgec.backends.tensorrt.device.build_engine import SETTINGS as KNOWN_SETTINGS
from edgec.backends.tensorrt.recipe import (
    RECIPE_FILE,
    SCRIPT_FILE,
    Dla,
    Profile,
    Settings,
    Shapes,
    read_recipe,
    write_recipe,
)
from edgec.errors import BundleError, PlanError

FIXED = (Profile("image", {"image": Shapes((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))}),)
SETTINGS = Settings(
    name="tiny",
    precision="fp16",
    profiles=(Profile("decode", {"input_ids": Shapes((1, 1), (1, 8), (1, 8))}),),
    tensorrt_min="10.3",
    tensorrt_below="12",
    sm=(87,),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    (tmp_path / "model.onnx.data").write_bytes(b"its weights")
    return tmp_path


def test_written_recipe_is_read_and_has_the_hash_of_each_file(folder: Path) -> None:
    recipe = write_recipe(folder, SETTINGS)
    assert read_recipe(folder) == recipe
    assert set(recipe.files) == {"model.onnx", "model.onnx.data", SCRIPT_FILE}
    for name, file in recipe.files.items():
        content = (folder / name).read_bytes()
        assert (file.sha256, file.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_same_model_and_settings_give_the_same_bytes(folder: Path) -> None:
    write_recipe(folder, SETTINGS)
    first = (folder / RECIPE_FILE).read_bytes()
    write_recipe(folder, SETTINGS)
    assert (folder / RECIPE_FILE).read_bytes() == first
    (folder / "model.onnx.data").write_bytes(b"other weights")
    write_recipe(folder, SETTINGS)
    assert (folder / RECIPE_FILE).read_bytes() != first


def test_script_knows_every_setting() -> None:
    assert set(Settings.__struct_fields__) == set(KNOWN_SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensorrt_min": "12.1"}, "no TensorRT is at least 12.1 and below 12"),
        ({"tensorrt_min": "ten"}, "impossible"),
        ({"name": "../tiny"}, "impossible"),
        ({"optimization_level": 6}, "impossible"),
        ({"strongly_typed": False}, "impossible"),
        ({"profiles": ()}, "impossible"),
        ({"profiles": (Profile("decode", {"x": Shapes((1, 2), (1, 1), (1, 2))}),)}, "min <= opt <= max"),
        ({"profiles": (Profile("decode", {"x": Shapes((1,), (1, 1), (1, 2))}),)}, "of one rank"),
        ({"dla": Dla(0, gpu_fallback=True)}, "before 11.4.1"),
        ({"dla": Dla(0, gpu_fallback=True), "tensorrt_min": "11.4.1"}, "fixed shapes only"),
        ({"dla": Dla(0, gpu_fallback=True), "profiles": FIXED, "sm": (87, 110)}, "not all have a DLA"),
    ],
)
def test_impossible_settings_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        write_recipe(folder, msgspec.structs.replace(SETTINGS, **changes))
    assert not (folder / RECIPE_FILE).exists()


def test_dla_takes_fixed_shapes_from_tensorrt_11_4_1(folder: Path) -> None:
    dla = Dla(1, gpu_fallback=False)
    build = msgspec.structs.replace(SETTINGS, dla=dla, profiles=FIXED, tensorrt_min="11.4.1")
    assert write_recipe(folder, build).build.dla == dla


@pytest.mark.parametrize("key", ["format", "build", "files"])
def test_damaged_recipe_is_refused(folder: Path, key: str) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        read_recipe(folder)
    write_recipe(folder, SETTINGS)
    path = folder / RECIPE_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(BundleError, match="format 2"):
        read_recipe(folder)
    path.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
    with pytest.raises(BundleError, match=key):
        read_recipe(folder)
