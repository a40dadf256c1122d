"""Trace a torch module: one graph of standard operators, proven to compute what the module computes."""

import inspect
import io
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from edgec.errors import CheckpointError, first_line
from edgec.frontends.network import Port
from edgec.frontends.quiet import place_of, quiet
from edgec.frontends.trace_inputs import BATCH, Argument, Axis, Feed, axes_of, draw, pin, tracing_sizes, trial_sizes
from edgec.frontends.traced_graph import canonicalise, rename_sizes
from edgec.frontends.traced_proof import prove

OPSET = 23

_OTHERWISE = "give it other example inputs, or export it to ONNX yourself and give the .onnx file"
_BRANCHES = "what it does there depends on its numbers: write it with torch.where, or export it to ONNX yourself"
_ON_NUMBERS = {"GuardOnDataDependentSymNode"}


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph that computes what a module computes.

    Args:
        model: canonical; weights have the names of the module's state dict.
        inputs: in the order of the arguments.
        outputs: named by the keys or the order in which `forward` returns them.
        remarks: sizes that could not stay open, and bounds of those that did.
    """

    model: ir.Model
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    remarks: tuple[str, ...]


def trace(module: torch.nn.Module, arguments: tuple[Argument, ...], root: str = "") -> Traced:
    """Trace a module in float32, and run the graph in ONNX Runtime on inputs of other sizes than it was traced with.

    Sizes that torch cannot leave open are fixed: first all but the batch, then that too.

    Args:
        module: becomes float32 and is put into evaluation mode.
        arguments: what `forward` takes, by keyword where it has parameters of these names.
        root: what the names of weights and nodes start with and should not, such as "model.".

    Raises:
        CheckpointError: the module does not run on such inputs, cannot be exported, or the graph computes something
            else.
    """
    flat = _Flat(module.float(), arguments).eval()
    check_numbers(flat.module)
    axes = axes_of(arguments)
    attempts = dict.fromkeys([frozenset(axes), frozenset(axes) & {BATCH}, frozenset()])
    reasons: list[str] = []
    for opened in attempts:
        fixed = {name: _pinned(name, largest) for name, largest in axes.items() if name not in opened}
        remarks = [f"{name} is fixed to {size}: {reasons[0]}" for name, size in fixed.items()]
        try:
            return _trace(flat, pin(arguments, fixed), root, remarks)
        except CheckpointError as error:
            reasons.append(error.what)
            last = error
    raise last


def check_numbers(module: torch.nn.Module) -> None:
    """Refuse weights that are no numbers; an infinity may be meant in a buffer, such as a mask, but not in a parameter.

    Raises:
        CheckpointError: a tensor holds such values; the message names it and counts them.
    """
    parameters = dict(module.named_parameters())
    for name, tensor in module.state_dict().items():
        bad = ~tensor.isfinite() if name in parameters else tensor.isnan()
        if count := int(bad.sum()):
            raise CheckpointError(
                f"tensor '{name}' holds {count} of {tensor.numel()} values that are NaN or infinite",
                hint="training diverged or the conversion overflowed; take an earlier or a wider checkpoint",
            )


def named_tensors(output: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors in what a module returned, named by the keys and positions that lead to them."""
    if isinstance(output, torch.Tensor):
        return {name or "output": output}
    if isinstance(output, Mapping):
        items = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        items = list(zip(output._fields, output, strict=True))
    elif isinstance(output, list | tuple):
        items = [(str(index), value) for index, value in enumerate(output)]
        name = name or "output"
    else:
        return {}
    found: dict[str, torch.Tensor] = {}
    for key, value in items:
        found |= named_tensors(value, f"{name}_{key}" if name else key)
    return found


def export_program(
    program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str], root: str = ""
) -> ir.Model:
    """Write an exported program as a canonical graph; its sizes keep torch's names for them.

    Raises:
        CheckpointError: it uses an operator that ONNX has no words for.
    """
    try:
        with quiet(), torch.no_grad():
            written = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=inputs, optimize=False, verbose=False
            )
    except Exception as error:
        raise cannot(error, "torch cannot export it to ONNX") from error
    assert written is not None
    model: ir.Model = written.model
    with quiet():
        canonicalise(model, inputs, outputs, root)
    return model


def bounds_of(program: torch.export.ExportedProgram, names: dict[str, str]) -> list[str]:
    """Say how large open sizes may be, where tables and the like bound them."""
    bounds = {
        names[str(symbol)]: str(r.upper) for symbol, r in program.range_constraints.items() if str(symbol) in names
    }
    return [f"{name} is at most {upper}" for name, upper in bounds.items() if upper.isdigit()]


def same_as_torch(apart: float, count: int) -> str:
    """Say what has been proven."""
    return f"outputs are torch's within {apart:.1g} of the largest, on {count} made-up inputs"


def cannot(error: Exception, what: str) -> CheckpointError:
    """Return the error for a module that failed; modules and torch raise whatever they like."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    assert isinstance(root, Exception)
    return CheckpointError(
        f"{what}: {type(root).__name__}: {first_line(root)}",
        where=place_of(root),
        hint=_BRANCHES if type(root).__name__ in _ON_NUMBERS else _OTHERWISE,
    )


def port(value: ir.Value) -> Port:
    """Describe an input or output of a graph."""
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return Port(value.name, value.dtype.numpy().name, shape)


class _Flat(torch.nn.Module):
    """A module as a function from tensors, in the order of the arguments, to tensors."""

    def __init__(self, module: torch.nn.Module, arguments: tuple[Argument, ...]) -> None:
        super().__init__()
        self.module = module
        self.names = [argument.name for argument in arguments]
        parameters = inspect.signature(module.forward).parameters.values()
        known = {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
        self.by_name = known.issuperset(self.names) or any(p.kind == p.VAR_KEYWORD for p in parameters)

    def named(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the module and return its outputs by name."""
        if self.by_name:
            return named_tensors(self.module(**dict(zip(self.names, tensors, strict=True))))
        return named_tensors(self.module(*tensors))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module and return its outputs in order."""
        return tuple(self.named(*tensors).values())


def _trace(flat: _Flat, arguments: tuple[Argument, ...], root: str, remarks: list[str]) -> Traced:
    """Trace with the open sizes of `arguments`, less those that torch finds to be fixed."""
    feeds, outputs = _observe(flat, arguments)
    names = list(outputs[0])
    program = _export(flat, arguments)
    model = export_program(program, flat.names, names, f"module.{root}")
    if fixed := _fixed_axes(arguments, model.graph.inputs):
        axes = axes_of(arguments)
        sizes = {name: _pinned(name, axes[name]) for name in sorted(fixed)}
        more = [f"{name} is fixed to {size}: the model computes with the size itself" for name, size in sizes.items()]
        return _trace(flat, pin(arguments, sizes), root, remarks + more)
    symbols = _symbols(arguments, model.graph.inputs)
    rename_sizes(model, symbols)
    apart = prove(model, feeds, [list(given.values()) for given in outputs])
    remarks = [*remarks, *bounds_of(program, symbols), same_as_torch(apart, len(feeds))]
    inputs, results = ([port(value) for value in values] for values in (model.graph.inputs, model.graph.outputs))
    return Traced(model, tuple(inputs), tuple(results), tuple(remarks))


def _observe(flat: _Flat, arguments: tuple[Argument, ...]) -> tuple[list[Feed], list[Feed]]:
    """Run the module on all sizes that the graph will be tried with; return the inputs, and the outputs by name."""
    feeds = [draw(arguments, sizes, seed) for seed, sizes in enumerate(trial_sizes(axes_of(arguments)))]
    outputs = []
    for feed in feeds:
        try:
            with quiet(), torch.no_grad():
                given = flat.named(*(torch.from_numpy(array) for array in feed.values()))
        except Exception as error:
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
            raise cannot(error, f"the model does not run on {shapes}") from error
        if not given:
            raise CheckpointError("the model returns no tensor", hint="return a tensor, or a tuple or mapping of them")
        outputs.append({name: tensor.numpy() for name, tensor in given.items()})
    return feeds, outputs


def _export(flat: _Flat, arguments: tuple[Argument, ...]) -> torch.export.ExportedProgram:
    feed = draw(arguments, tracing_sizes(axes_of(arguments)), seed=len(arguments))
    auto = torch.export.Dim.AUTO
    opened = tuple({i: auto for i, size in enumerate(a.shape) if isinstance(size, Axis)} for a in arguments)
    try:
        with quiet(), redirect_stderr(io.StringIO()), torch.no_grad():  # where torch prints the graph that it gives up
            tensors = tuple(torch.from_numpy(array) for array in feed.values())
            return torch.export.export(flat, tensors, dynamic_shapes=(opened,), strict=False)
    except Exception as error:
        raise cannot(error, "torch cannot trace it") from error


def _pinned(name: str, largest: int) -> int:
    return 1 if name == BATCH else largest


def _fixed_axes(arguments: tuple[Argument, ...], inputs: Iterable[ir.Value]) -> set[str]:
    """Return the names of the open sizes that torch has fixed."""
    return {
        size.name
        for argument, value in zip(arguments, inputs, strict=True)
        for size, traced in zip(argument.shape, value.shape or (), strict=True)
        if isinstance(size, Axis) and isinstance(traced, int)
    }


def _symbols(arguments: tuple[Argument, ...], inputs: Iterable[ir.Value]) -> dict[str, str]:
    """Return torch's name -> ours of each open size; of two that must be equal, the first name."""
    names: dict[str, str] = {}
    for argument, value in zip(arguments, inputs, strict=True):
        for size, traced in zip(argument.shape, value.shape or (), strict=True):
            if isinstance(size, Axis) and isinstance(traced, ir.SymbolicDim) and str(traced.value).isidentifier():
                names.setdefault(str(traced.value), size.name)
    return names
