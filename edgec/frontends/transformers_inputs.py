"""What a transformers model takes: its inputs with their sizes, by optimum's generators, and how it takes pictures."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from optimum.utils import input_generators as generators
from optimum.utils.normalized_config import (
    NormalizedConfig,
    NormalizedConfigManager,
    NormalizedTextConfig,
    NormalizedVisionConfig,
)
from transformers import PretrainedConfig, PreTrainedModel

from edgec.calibrate.images import Pictures
from edgec.calibrate.preparation import normalised
from edgec.errors import UsageError
from edgec.frontends.trace_inputs import BATCH, SPELLING, Argument, Axis

_SOUND = ("input_values", "input_features")
# The largest sizes that a traced model is tried with, where its tables have room.
_TOKENS = 64
_SAMPLES = 16_000  # a second of sound
_PIXELS = 224
_RESERVED_POSITIONS = 2  # RoBERTa counts positions from there
_GENERATORS = {
    "audio-spectrogram-transformer": generators.ASTDummyAudioInputGenerator,
    "speech_to_text": generators.Speech2TextDummyAudioInputGenerator,
    "mctct": generators.MCTCTDummyAudioInputGenerator,
}


def describe_inputs(
    model: PreTrainedModel, task: str, preprocessor: dict[str, Any], wanted: tuple[Argument, ...]
) -> tuple[Argument, ...]:
    """Return the inputs of a model, in the order of `forward`.

    Args:
        model: says by its signature and config what it takes.
        task: by optimum's name.
        preprocessor: as `edgec.calibrate.preparation.read_preprocessor` returns it.
        wanted: these are taken as they are.

    Raises:
        UsageError: the model takes something that edgec does not know, or not what the user wants to give it.
    """
    config = model.config
    parameters = list(inspect.signature(model.forward).parameters)
    found = {argument.name: argument for argument in _known(parameters, config, task, preprocessor)}
    found |= {argument.name: argument for argument in wanted}
    if foreign := [name for name in found if name not in parameters]:
        raise UsageError(f"the model has no input '{foreign[0]}'", hint=f"it has {', '.join(parameters)}")
    if not found:
        raise UsageError(f"the inputs of a {config.model_type} are not known ({', '.join(parameters)})", hint=SPELLING)
    return tuple(found[name] for name in parameters if name in found)


def describe_pictures(arguments: tuple[Argument, ...], preprocessor: dict[str, Any]) -> Pictures | None:
    """Return how the model takes pictures, or None where it does not."""
    argument = next((a for a in arguments if a.name == "pixel_values"), None)
    if argument is None or len(argument.shape) != 4 or argument.shape[1] != 3:
        return None
    height, width = (size.largest if isinstance(size, Axis) else size for size in argument.shape[2:])
    return normalised(Pictures(input=argument.name, height=height, width=width), preprocessor)


def _known(
    parameters: list[str], config: PretrainedConfig, task: str, preprocessor: dict[str, Any]
) -> Iterator[Argument]:
    """Yield what edgec can describe of the parameters of `forward`."""
    if sound := next((name for name in _SOUND if name in parameters), None):
        shape = _sound_shape(sound, config, task)
        yield Argument(name=sound, dtype="float32", shape=shape)
        if preprocessor.get("return_attention_mask") and len(shape) == 2:
            yield Argument(name="attention_mask", dtype="int64", shape=shape, mask=True)
        return
    if "input_ids" in parameters:
        text = config.get_text_config()
        shape = _text_shape(text, task)
        yield Argument(name="input_ids", dtype="int64", shape=shape, below=text.vocab_size)
        if "attention_mask" in parameters:
            yield Argument(name="attention_mask", dtype="int64", shape=shape, mask=True)
        types = getattr(text, "type_vocab_size", 0)
        if "token_type_ids" in parameters and types > 1:
            yield Argument(name="token_type_ids", dtype="int64", shape=shape, below=types)
    if "pixel_values" in parameters:
        yield Argument(name="pixel_values", dtype="float32", shape=_picture_shape(config, task, preprocessor))


def _text_shape(config: PretrainedConfig, task: str) -> tuple[int | Axis, ...]:
    """Return the shape of token ids, and with it that of their mask."""
    positions = getattr(config, "max_position_embeddings", None) or _TOKENS
    window = getattr(config, "local_attention", None) or getattr(config, "sliding_window", None) or 0
    largest = max(1, min(max(_TOKENS, 2 * window), positions - _RESERVED_POSITIONS))
    return _shape(
        generators.DummyTextInputGenerator, "input_ids", _normalise(config, NormalizedTextConfig), task,
        {"sequence_length": Axis("sequence", largest)},
    )  # fmt: skip


def _sound_shape(name: str, config: PretrainedConfig, task: str) -> tuple[int | Axis, ...]:
    kind = _GENERATORS.get(config.model_type, generators.DummyAudioInputGenerator)
    frames = {}
    if hasattr(config, "max_source_positions"):  # Whisper's spectrograms have one size, two frames for each position
        frames = {"nb_max_frames": 2 * config.max_source_positions, "feature_size": config.num_mel_bins}
    normal = _normalise(config, NormalizedConfig)
    return _shape(kind, name, normal, task, {"audio_sequence_length": Axis("samples", _SAMPLES)}, **frames)


def _picture_shape(config: PretrainedConfig, task: str, preprocessor: dict[str, Any]) -> tuple[int | Axis, ...]:
    """Return the shape of pictures: what the preprocessor makes, else what the config says, else ImageNet's."""
    vision = getattr(config, "vision_config", config)
    height, width = _picture_size(preprocessor) or (None, None)
    shape = _shape(
        generators.DummyVisionInputGenerator, "pixel_values", _normalise(vision, NormalizedVisionConfig), task, {},
        height=height or _PIXELS, width=width or _PIXELS,
    )  # fmt: skip
    return (*shape[:2], height, width) if height and width else shape


def _picture_size(preprocessor: dict[str, Any]) -> tuple[int, int] | None:
    """Return height and width of what the preprocessor makes, where it says so."""
    crops = preprocessor.get("do_center_crop", "crop_size" in preprocessor)
    size = preprocessor.get("crop_size" if crops else "size", preprocessor.get("size"))
    if isinstance(size, int):
        return size, size
    if not isinstance(size, dict):
        return None
    height, width = (size.get(side, size.get("shortest_edge")) for side in ("height", "width"))
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _normalise(config: PretrainedConfig, default: type[NormalizedConfig]) -> NormalizedConfig:
    """Return the config with the names that optimum's generators look for."""
    try:
        kind = NormalizedConfigManager.get_normalized_config_class(config.model_type)
    except KeyError:  # optimum has no names for this model, which mostly has the usual ones
        kind = default
    return kind(config)


def _shape(
    kind: Any, name: str, config: NormalizedConfig, task: str, opened: dict[str, Axis], **sizes: int
) -> tuple[int | Axis, ...]:
    """Return the shape that a generator gives an input; sizes that follow its arguments are open.

    Args:
        kind: the generator's class.
        name: of the input.
        config: with the names that the generator looks for.
        task: by optimum's name.
        opened: argument of the generator -> the axis that it is the size of.
        sizes: further arguments.
    """

    def shape(changes: dict[str, int]) -> tuple[int, ...]:
        with torch.random.fork_rng(devices=[]):
            return tuple(kind(task, config, **(sizes | changes)).generate(name).shape)

    axes = {"batch_size": Axis(BATCH), **opened}
    plain = {argument: axis.largest for argument, axis in axes.items()}
    result: list[int | Axis] = list(shape(plain))
    for argument, axis in axes.items():
        other = shape(plain | {argument: axis.largest + 1})
        result = [
            axis if size != changed and isinstance(size, int) else size
            for size, changed in zip(result, other, strict=True)
        ]
    return tuple(result)
