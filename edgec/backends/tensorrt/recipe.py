"""The recipe that a Jetson builds its engine from: what the host decides, and the hash of every file it decided it for.

An artifact folder for Jetson holds the model (`model.onnx` and its external data), `recipe.json` and `build_engine.py`.
The hash of `recipe.json` stands for all of them: the engine on the device is rebuilt when it changes.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgec.bundle.manifest import File
from edgec.errors import BundleError, PlanError

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
RECIPE_FILE = "recipe.json"
SCRIPT_FILE = "build_engine.py"

_SCRIPT = Path(__file__).parent / "device" / SCRIPT_FILE
_FORMAT = 1
_DLA_SM = 87
_DLA_TENSORRT = (11, 4, 1)

Dims = tuple[Annotated[int, msgspec.Meta(ge=0)], ...]


class Shapes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The smallest, the most usual and the largest shape of one network input."""

    min: Dims
    opt: Dims
    max: Dims


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One optimization profile.

    Args:
        name: what it is for, such as "prefill" or "decode"; its place in the recipe is its index in the engine.
        shapes: input -> shapes, for every input that has a dynamic dimension.
    """

    name: str
    shapes: dict[str, Shapes]


class Dla(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which deep learning accelerator runs the network, and whether the GPU takes the layers that it cannot run."""

    core: Annotated[int, msgspec.Meta(ge=0)]
    gpu_fallback: bool


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the device needs to know to build the engine.

    Args:
        name: of the model; the device keeps its engines in a folder of this name.
        precision: the data types of weights and activations, for people. The network itself decides them.
        strongly_typed: always: TensorRT must not change the data types that edgec chose and verified.
        profiles: at least one, in the order of their indices in the engine.
        tensorrt_min: lowest TensorRT version that takes the graph, such as "10.3".
        tensorrt_below: first version that the graph is not meant for, such as "12".
        sm: the GPUs that the graph is meant for, such as 87 for Orin and 110 for Thor.
        workspace_bytes: most scratch memory that one layer may use; None: all of the device's.
        optimization_level: how long the builder searches, 0 to 5; 3 is TensorRT's own default.
        dla: None: the network runs on the GPU alone. TensorRT runs strongly typed networks on a DLA only since 11.4.1,
            on AGX Orin, and only with fixed shapes; so decoders never run there.
        timing_cache: keep measured kernel times in the cache folder, to make the next build faster.
        sparse_weights: let TensorRT time kernels that skip zeros of the 2:4 pattern, too, and take them where they are
            faster.

    Source: TensorRT 11.4.1 documentation, "Working with DLA", "Strongly Typed Networks for DLA", "Structured Sparsity".
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    precision: str
    profiles: Annotated[tuple[Profile, ...], msgspec.Meta(min_length=1)]
    tensorrt_min: Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+)*$")]
    tensorrt_below: Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+)*$")]
    sm: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]
    strongly_typed: Literal[True] = True
    workspace_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] = 3
    dla: Dla | None = None
    timing_cache: bool = True
    sparse_weights: bool = False


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `recipe.json`.

    Args:
        format: version of this structure.
        build: how to build the engine.
        files: name -> size and hash of each file that the build reads, the script itself included.
    """

    format: int
    build: Settings
    files: dict[str, File]


def write_recipe(folder: Path, build: Settings, model_files: tuple[str, ...] = (MODEL_FILE, DATA_FILE)) -> Recipe:
    """Add the recipe and the script that follows it to a folder that holds the model; the same input, the same bytes.

    Raises:
        PlanError: no device can follow the recipe.
    """
    _check(build)
    (folder / SCRIPT_FILE).write_bytes(_SCRIPT.read_bytes())
    recipe = Recipe(_FORMAT, build, {name: File.of(folder / name) for name in (*model_files, SCRIPT_FILE)})
    content = msgspec.json.format(msgspec.json.encode(recipe, order="sorted"), indent=2)
    (folder / RECIPE_FILE).write_bytes(content + b"\n")
    return recipe


def read_recipe(folder: Path) -> Recipe:
    """Return the recipe of an artifact folder, without checking the files.

    Raises:
        BundleError: there is none, or it is not one.
    """
    path = folder / RECIPE_FILE
    try:
        recipe = msgspec.json.decode(path.read_bytes(), type=Recipe)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(
            f"the recipe cannot be read: {error}", where=str(path), hint="build the bundle again"
        ) from error
    if recipe.format != _FORMAT:
        raise BundleError(
            f"the recipe has format {recipe.format}, this edgec reads format {_FORMAT}",
            where=str(path),
            hint="update edgec, or build the bundle again",
        )
    return recipe


def _check(build: Settings) -> None:
    try:
        msgspec.convert(msgspec.to_builtins(build), Settings)  # structs do not check their fields when they are made
    except msgspec.ValidationError as error:
        raise PlanError(f"the recipe of '{build.name}' is impossible: {error}") from error
    if _version(build.tensorrt_min) >= _version(build.tensorrt_below):
        raise PlanError(f"no TensorRT is at least {build.tensorrt_min} and below {build.tensorrt_below}")
    for profile in build.profiles:
        for name, shapes in profile.shapes.items():
            _check_shapes(f"input '{name}', profile '{profile.name}'", shapes)
    if build.dla is not None:
        _check_dla(build)


def _check_shapes(where: str, shapes: Shapes) -> None:
    ranks = {len(shapes.min), len(shapes.opt), len(shapes.max)}
    ordered = all(low <= usual <= high for low, usual, high in zip(shapes.min, shapes.opt, shapes.max, strict=False))
    if len(ranks) > 1 or not ordered:
        raise PlanError("the shapes of an optimization profile must be of one rank and min <= opt <= max", where=where)


def _check_dla(build: Settings) -> None:
    hint = "leave `dla` out: the GPU runs the network"
    if build.sm != (_DLA_SM,):
        raise PlanError(f"of the GPUs {build.sm} not all have a DLA beside them", where="dla", hint=hint)
    if _version(build.tensorrt_min) < _DLA_TENSORRT:
        raise PlanError("TensorRT before 11.4.1 runs no strongly typed network on a DLA", where="dla", hint=hint)
    for profile in build.profiles:
        for name, shapes in profile.shapes.items():
            if shapes.min != shapes.max:
                raise PlanError(f"a DLA runs fixed shapes only, '{name}' has dynamic ones", where="dla", hint=hint)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
