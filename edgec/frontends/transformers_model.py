"""A Hugging Face directory that holds no decoder language model: loaded by transformers, and traced."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from optimum.exporters.tasks import TasksManager
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from edgec.calibrate.preparation import find_audio, read_preprocessor
from edgec.checkpoint.files import exists, read_bytes, read_json_object, sha256_file
from edgec.checkpoint.huggingface import TOKENIZER_FILES, open_huggingface
from edgec.errors import CheckpointError, UsageError, first_line
from edgec.frontends.network import Network
from edgec.frontends.quiet import quiet
from edgec.frontends.sentence import Pooling, read_pooling
from edgec.frontends.trace_inputs import Argument, axes_of, draw, parse_arguments, tracing_sizes
from edgec.frontends.traced import named_tensors, trace
from edgec.frontends.transformers_inputs import describe_inputs, describe_pictures

_ATTENTION = "edgec"
_SAME = 1e-5
_PICKLED = "pytorch_model.bin"
_POOLER = ".pooler."
_ENCODER = "feature-extraction"
# Its outputs are for CTC: the characters that they stand for are in a file of their own.
_SPEECH = "automatic-speech-recognition"
_VOCABULARY = "vocab.json"


def trace_transformers(directory: Path, task: str | None = None, inputs: Iterable[str] = ()) -> Network:
    """Trace the model in a Hugging Face directory; Python files in it are ignored, pickles may hold tensors only.

    Args:
        directory: with config.json and weights, or with the modules.json of sentence-transformers.
        task: by optimum's name; by default that of the architecture in config.json.
        inputs: inputs that shall be other than the config says, as `trace_inputs.SPELLING` says.

    Raises:
        CheckpointError: a file is missing, damaged or unsafe, weights are missing, or the model cannot be traced.
        UsageError: the model has no such task, or an input is written wrongly.
    """
    pooling = read_pooling(directory)
    folder = directory / pooling.model if pooling else directory
    raw = read_json_object(folder / "config.json")
    config = _read_config(folder, raw)
    chosen, remarks = _choose_task(config, task or (_ENCODER if pooling else None), folder)
    pooling = pooling if chosen == _ENCODER else None
    preprocessor, files = read_preprocessor(folder)
    files |= _files(folder) | (dict(pooling.files) if pooling else {})
    model, missing = _load(folder, config, chosen)
    arguments = describe_inputs(model, chosen, preprocessor, parse_arguments(inputs))
    _broadcast_masks(model, arguments)
    traced = trace(_Outputs(model, pooling), arguments, root="module.")
    pictures = describe_pictures(arguments, preprocessor)
    text = any(argument.name == "input_ids" for argument in arguments)
    if chosen == _SPEECH and exists(folder / _VOCABULARY):
        files[_VOCABULARY] = folder / _VOCABULARY
    texts = (*TOKENIZER_FILES, _VOCABULARY) if text or chosen == _SPEECH else ()
    if text and "tokenizer.json" not in files:
        remarks.append("there is no tokenizer.json: samples must be token ids")
    if pictures is not None and not preprocessor:
        remarks.append("there is no preprocessor_config.json: pictures get ImageNet's mean and standard deviation")
    return Network(
        name=directory.name,
        format="huggingface",
        family=config.model_type,
        model=traced.model,
        inputs=traced.inputs,
        outputs=traced.outputs,
        files={name: sha256_file(files[name]) for name in sorted(files)},
        task=chosen,
        labels=_labels(raw, chosen),
        tokenizer_files={name: read_bytes(files[name]) for name in texts if name in files},
        pictures=pictures,
        audio=find_audio(preprocessor),
        remarks=(*remarks, *missing, *(pooling.remarks if pooling else ()), *traced.remarks),
    )


class _Outputs(torch.nn.Module):
    """A transformers model that returns the tensors of its output alone, or what sentence-transformers makes of them.

    Args:
        module: the model.
        pooling: how its hidden states become the embedding of a sentence, if they do.
    """

    def __init__(self, module: PreTrainedModel, pooling: Pooling | None) -> None:
        super().__init__()
        self.module = module
        self.pooling = pooling if pooling and pooling.mode else None

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the model."""
        outputs = self.module(**inputs)
        if self.pooling:
            return self.pooling.embed(outputs["last_hidden_state"], inputs["attention_mask"])
        return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def _read_config(folder: Path, raw: dict[str, Any]) -> PretrainedConfig:
    if "quantization_config" in raw:
        raise CheckpointError(
            "the checkpoint is quantized already", where=str(folder / "config.json"), hint="give the float checkpoint"
        )
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as many kinds as configs have readers
        raise CheckpointError(
            f"transformers does not know the model in config.json: {first_line(error)}",
            where=str(folder / "config.json"),
            hint="models that bring their own code: export to ONNX or to .pt2 where you trust it, and give that file",
        ) from error
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    return config


def _choose_task(config: PretrainedConfig, wanted: str | None, folder: Path) -> tuple[str, list[str]]:
    """Return the task by optimum's name, and what to say about it."""
    known = {task: classes for task in TasksManager.get_all_tasks() if (classes := _classes(config, task))}
    if config.is_encoder_decoder:
        known = {task: classes for task, classes in known.items() if task == _ENCODER}
    task = TasksManager.map_from_synonym(wanted) if wanted else _infer_task(config, known)
    if config.is_encoder_decoder and known and not wanted and task != _ENCODER:
        return _ENCODER, ["the encoder alone: what the whole model is for takes a decoder too"]
    if task is None or task not in known:
        what = f"'{wanted}' is no task of a traced {config.model_type}" if wanted else "no task fits its architecture"
        hint = f"a traced {config.model_type} can have {', '.join(sorted(known))}" if known else "give another model"
        raise UsageError(what, where=str(folder), hint=hint)
    return task, []


def _infer_task(config: PretrainedConfig, known: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return the task of the architecture that config.json names."""
    for name in config.architectures or ():
        # optimum knows no architecture that shares its task with another of the same model.
        if task := next((task for task, classes in known.items() if name in classes), None):
            return task
        try:
            return str(TasksManager.infer_task_from_model(getattr(transformers, name)))
        except (AttributeError, ValueError):  # no such class, or a class of no task
            continue
    return None


def _classes(config: PretrainedConfig, task: str) -> tuple[str, ...]:
    """Return the names of the models that an encoder's task can have for this config."""
    auto = _auto_class(config, task)
    if auto is None or task == "text-generation" or (auto is transformers.AutoModel and task != _ENCODER):
        return ()
    models = auto._model_mapping[type(config)]  # noqa: SLF001 - transformers has no other way
    return tuple(model.__name__ for model in (models if isinstance(models, tuple) else (models,)))


def _auto_class(config: PretrainedConfig, task: str) -> Any:
    """Return the Auto class of a task if it has a model for this config, else None."""
    try:
        found = TasksManager.get_model_class_for_task(task, model_type=config.model_type, library="transformers")
    except (KeyError, ValueError, AttributeError):  # what optimum raises where there is none
        return None
    return found if type(config) in getattr(found, "_model_mapping", ()) else None


def _load(folder: Path, config: PretrainedConfig, task: str) -> tuple[PreTrainedModel, list[str]]:
    """Return the model with all its weights, and what to say of parts that the checkpoint does not have."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with quiet():
            model, info = _auto_class(config, task).from_pretrained(
                folder, config=config, dtype=torch.float32, weights_only=True, output_loading_info=True,
                local_files_only=True, trust_remote_code=False,
            )  # fmt: skip
    except Exception as error:  # as many kinds as models have loaders
        raise CheckpointError(
            f"transformers cannot load the weights: {first_line(error)}",
            where=str(folder),
            hint="take the config.json that came with the weights; pickles may hold nothing but tensors",
        ) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    if config.is_encoder_decoder:
        model = model.get_encoder()
    return model, _drop_missing(model, info["missing_keys"], folder)


def _drop_missing(model: PreTrainedModel, missing: Iterable[str], folder: Path) -> list[str]:
    """Remove a pooler that was not trained; refuse a model that lacks anything else."""
    absent = sorted(missing)
    poolers = {f".{name}".rpartition(_POOLER)[0] for name in absent if _POOLER in f".{name}"}
    if others := [name for name in absent if _POOLER not in f".{name}"]:
        raise CheckpointError(
            f"the checkpoint lacks {len(others)} weights of this model, the first is '{others[0]}'",
            where=str(folder),
            hint="take the task that the model was trained for",
        )
    for parent in poolers:
        model.get_submodule(parent.removeprefix(".")).pooler = None
    return ["pooler_output is left out: the checkpoint has no weights for it"] if poolers else []


def _broadcast_masks(model: PreTrainedModel, arguments: tuple[Argument, ...]) -> None:
    """Let the model make its masks by broadcasting instead of by indexing, where that changes nothing."""
    if model.config.get_text_config()._attn_implementation != "sdpa":  # noqa: SLF001 - transformers has no other way
        return
    feed = draw(arguments, tracing_sizes(axes_of(arguments)), seed=0)
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
    AttentionMaskInterface.register(_ATTENTION, _padding_mask)
    try:
        with quiet(), torch.no_grad():
            before = named_tensors(dict(model.eval()(**tensors)))
            model.set_attn_implementation(_ATTENTION)
            after = named_tensors(dict(model(**tensors)))
        same = all(torch.allclose(before[name], after[name], atol=_SAME, rtol=_SAME) for name in before)
    except Exception:  # noqa: BLE001 - whatever models raise; tracing says more of a model that does not run at all
        same = False
    if not same:
        model.set_attn_implementation("sdpa")


def _padding_mask(*, attention_mask: torch.Tensor | None = None, mask_function: Any, **settings: Any) -> Any:
    """Make the mask of an attention.

    Returns:
        True where a key is attended to, as (batch, 1, 1 or queries, keys); None where every key is.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return sdpa_mask(attention_mask=attention_mask, mask_function=mask_function, **settings)
    padding = attention_mask[:, None, None, :].to(torch.bool)
    if mask_function is bidirectional_mask_function:
        return padding
    whole = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(attention_mask=None, mask_function=mask_function, **(settings | whole)) & padding


def _labels(raw: dict[str, Any], task: str) -> tuple[str, ...]:
    """Return the class names of config.json; those that transformers makes up say nothing."""
    names = raw.get("id2label")
    if "classification" not in task or not isinstance(names, dict):
        return ()
    labels = tuple(str(names.get(str(index), "")) for index in range(len(names)))
    return () if all(label in {"", f"LABEL_{index}"} for index, label in enumerate(labels)) else labels


def _files(folder: Path) -> dict[str, Path]:
    """Return name -> path of what goes into a build; safetensors are checked, pickles are read by torch alone."""
    if exists(folder / _PICKLED) and not any(folder.glob("*.safetensors")):
        names = ["config.json", _PICKLED, *(name for name in TOKENIZER_FILES if exists(folder / name))]
        return {name: folder / name for name in names}
    return dict(open_huggingface(folder).files)
