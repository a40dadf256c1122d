"""A program of torch.export, from a .pt2 file, as a graph."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edgec.checkpoint.files import sha256_file
from edgec.errors import CheckpointError
from edgec.frontends.network import Network
from edgec.frontends.program_file import open_program
from edgec.frontends.quiet import quiet
from edgec.frontends.trace_inputs import BATCH, DTYPES, Argument, Axis, Feed, arguments_of, axes_of, draw
from edgec.frontends.traced import bounds_of, cannot, export_program, named_tensors, port, same_as_torch
from edgec.frontends.traced_graph import rename_sizes
from edgec.frontends.traced_proof import prove


def trace_program(path: Path) -> Network:
    """Write the program in a .pt2 file as a graph, and run both on the example inputs in the file and on other sizes.

    The first axis of inputs is called batch where it is open, other open ones after the first input that has them.

    Raises:
        CheckpointError: the file is damaged or could run code, the program is not in float32, or the graph computes
            something else.
    """
    program = open_program(path)
    _check_floats(program, path)
    arguments, names = _describe(program, path)
    feeds, outputs, reason = _observe(program, arguments, path)
    model = export_program(program, [argument.name for argument in arguments], list(outputs[0]))
    rename_sizes(model, names)
    apart = prove(model, feeds, [list(given.values()) for given in outputs])
    remarks = [*bounds_of(program, names), same_as_torch(apart, len(feeds))]
    if reason:
        remarks.append(f"sizes other than those of the example inputs were not tried: {reason}")
    return Network(
        name=path.stem,
        format="torch program",
        family="torch.export",
        model=model,
        inputs=tuple(port(value) for value in model.graph.inputs),
        outputs=tuple(port(value) for value in model.graph.outputs),
        files={path.name: sha256_file(path)},
        remarks=tuple(remarks),
    )


def _check_floats(program: torch.export.ExportedProgram, path: Path) -> None:
    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CheckpointError(
                f"weight '{name}' is {str(tensor.dtype).removeprefix('torch.')}",
                where=str(path),
                hint="export the program in float32: torch.export.export(model.float(), ...)",
            )


def _describe(program: torch.export.ExportedProgram, path: Path) -> tuple[tuple[Argument, ...], dict[str, str]]:
    """Return the inputs, with the sizes of the examples as the largest, and torch's name -> ours of open sizes."""
    names: dict[str, str] = {}
    found = []
    examples = dict(zip(program.graph_signature.user_inputs, _leaves(program.example_inputs), strict=True))
    tensors = {str(name): tensor for name, tensor in examples.items() if isinstance(tensor, torch.Tensor)}
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    if foreign := [n for n, t in tensors.items() if str(t.dtype).removeprefix("torch.") not in DTYPES]:
        raise CheckpointError(
            f"input '{foreign[0]}' is {str(tensors[foreign[0]].dtype).removeprefix('torch.')}",
            where=str(path),
            hint=f"export the program with {', '.join(DTYPES)}",
        )
    for argument in arguments_of({name: tensor.numpy() for name, tensor in tensors.items()}):
        shape: list[int | Axis] = []
        for index, (size, example) in enumerate(
            zip(nodes[argument.name].shape, tensors[argument.name].shape, strict=True)
        ):
            symbol = str(size)
            if isinstance(size, int) or not symbol.isidentifier():
                shape.append(example)
                continue
            names.setdefault(symbol, BATCH if index == 0 else f"{argument.name}_{index}")
            shape.append(Axis(names[symbol], example))
        found.append(msgspec.structs.replace(argument, shape=tuple(shape)))
    return tuple(found), names


def _observe(
    program: torch.export.ExportedProgram, arguments: tuple[Argument, ...], path: Path
) -> tuple[list[Feed], list[Feed], str]:
    """Run the program on sizes of the examples, and on one more of each open size where it runs on that.

    Returns:
        What it was run on, what it gave by name, and why it does not run on other sizes.
    """
    module = program.module(check_guards=False)
    sizes = axes_of(arguments)
    feeds: list[Feed] = []
    outputs: list[Feed] = []
    for tried in [sizes, {name: size + 1 for name, size in sizes.items()}][: 2 if sizes else 1]:
        feed = draw(arguments, tried, seed=len(feeds))
        positional, keywords = _fill(program.example_inputs, iter(feed.values()))
        try:
            with quiet(), torch.no_grad():
                given = named_tensors(module(*positional, **keywords))
        except Exception as error:
            failure = cannot(error, "the program does not run on inputs like its examples")
            if feeds:
                return feeds, outputs, failure.what
            failure.where = str(path)
            raise failure from error
        feeds.append(feed)
        outputs.append({name: tensor.numpy() for name, tensor in given.items()})
    return feeds, outputs, ""


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what is in nested tuples, lists and dicts, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _fill(value: Any, arrays: Iterator[np.ndarray[Any, Any]]) -> Any:
    """Return nested example inputs with the next array in place of each tensor."""
    if isinstance(value, torch.Tensor):
        return torch.from_numpy(next(arrays))
    if isinstance(value, dict):
        return {key: _fill(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_fill(item, arrays) for item in value)
    return value
