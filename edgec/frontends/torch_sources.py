"""Torch models that are no Hugging Face directory: a factory in Python, with its weights in a file, or a .pt2 file."""

import importlib
import inspect
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from edgec.checkpoint.files import sha256_file, size_bytes
from edgec.checkpoint.safetensors_file import read_header
from edgec.errors import CheckpointError, UsageError, first_line
from edgec.frontends.network import Network
from edgec.frontends.quiet import place_of, quiet
from edgec.frontends.trace_inputs import SPELLING, Argument, arguments_of, parse_arguments
from edgec.frontends.traced import trace
from edgec.user_code import working_directory

# What training scripts wrap a state dict in, and what wrappers of modules put before its names.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 3


def trace_module(factory: str, inputs: Iterable[str] = (), state: Path | None = None) -> Network:
    """Import a module that the user names, let it build a model, and trace that.

    Args:
        factory: `package.module:name` of a function or class that makes an nn.Module from no arguments, or of one; the
            working directory is searched too. This runs the user's code.
        inputs: as `trace_inputs.SPELLING` says; by default those of `dummy_inputs` of the model or of its Python
            module: arrays or tensors by name or in order, or a function that returns them.
        state: its weights, as safetensors or as a pickle of tensors.

    Raises:
        UsageError: there is no such factory, it fails, or nothing says what the model takes.
        CheckpointError: the weights are not those of this model, or it cannot be traced.
    """
    with working_directory():
        home, made = _build(factory)
        if state is not None:
            _load_state(made, state)
        arguments = parse_arguments(inputs) or _examples(home, made)
        traced = trace(made, arguments)
    files = {} if state is None else {state.name: sha256_file(state)}
    if source := inspect.getsourcefile(home):
        files[Path(source).name] = sha256_file(Path(source))
    return Network(
        name=state.stem if state else factory.rpartition(":")[2],
        format="torch module",
        family=type(made).__name__,
        model=traced.model,
        inputs=traced.inputs,
        outputs=traced.outputs,
        files=dict(sorted(files.items())),
        remarks=traced.remarks,
    )


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict by name, without what training wrapped around it.

    Raises:
        CheckpointError: the file is damaged, holds no state dict, or is a pickle of more than tensors.
    """
    size_bytes(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        read_header(path)
        found: Any = load_file(path)
    else:
        found = _read_pickle(path)
    while isinstance(found, Mapping) and (inner := next((key for key in _WRAPPERS if key in found), None)):
        if isinstance(found[inner], torch.Tensor):
            break
        found = found[inner]
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise CheckpointError(
            f"{path.name} holds no state dict, which maps names to tensors",
            where=str(path),
            hint="save it with torch.save(model.state_dict(), path)",
        )
    tensors = {str(name): tensor for name, tensor in found.items()}
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} is a pickle of more than tensors, and to read it is to run whatever program it contains",
            where=str(path),
            hint="where you trust it, save it again: torch.save(torch.load(OLD, weights_only=False).state_dict(), NEW)",
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {first_line(error)}", where=str(path), hint="download the file again"
        ) from error


def _load_state(module: torch.nn.Module, path: Path) -> None:
    """Copy a state dict into a module; names and shapes must be the same."""
    tensors, own = read_state(path), module.state_dict()
    # A count of training steps, which old files do not have and which inference does not read.
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    shapes = [
        f"{name} ({list(tensors[name].shape)}, the model has {list(own[name].shape)})"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    for what, names in (("lacks", missing), ("has too much:", unexpected), ("has other shapes:", shapes)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise CheckpointError(
                f"{path.name} is no state dict of this model: it {what} {', '.join(names[:_SHOWN])}{more}",
                where=str(path),
                hint="let the factory build the model that was trained",
            )
    module.load_state_dict(tensors, strict=False)


def _build(factory: str) -> tuple[ModuleType, torch.nn.Module]:
    """Return the Python module that the user named, and the model that the factory in it makes."""
    name, _, attribute = factory.partition(":")
    if not name or not attribute:
        raise UsageError(f"{factory!r} names no factory", hint="write package.module:function")
    try:
        with quiet():
            home = importlib.import_module(name)
            made: Any = home
            for part in attribute.split("."):
                made = getattr(made, part)
            if not isinstance(made, torch.nn.Module):
                made = made()
    except Exception as error:  # whatever the user's code raises
        raise UsageError(
            f"{factory} fails: {type(error).__name__}: {first_line(error)}",
            where=place_of(error) or str(Path.cwd()),
            hint="it must be importable from here and make the model from no arguments",
        ) from error
    if not isinstance(made, torch.nn.Module):
        raise UsageError(
            f"{factory} makes a {type(made).__name__}, not an nn.Module",
            where=factory,
            hint="name a function or a class that makes an nn.Module",
        )
    return home, made


def _examples(home: ModuleType, module: torch.nn.Module) -> tuple[Argument, ...]:
    """Return the inputs that the model's author gave as examples."""
    given = next(
        (found for owner in (module, home) if (found := getattr(owner, "dummy_inputs", None)) is not None), None
    )
    examples = given() if callable(given) else given
    if isinstance(examples, torch.Tensor | np.ndarray):
        examples = (examples,)
    if isinstance(examples, tuple | list):
        examples = dict(zip(inspect.signature(module.forward).parameters, examples, strict=False))
    if not isinstance(examples, Mapping) or not examples:
        raise UsageError("nothing says what the model takes", hint=f"{SPELLING}; or let it have `dummy_inputs`")
    return arguments_of({str(name): np.asarray(value) for name, value in examples.items()})
