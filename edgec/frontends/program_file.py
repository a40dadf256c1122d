"""Open a .pt2 file without running what it contains.

`torch.export.load` unpickles, evaluates the expressions of sizes and guards, looks up any function that nodes name and
writes names into Python source that it runs. So everything in the file is looked at before torch sees it: pickles may
hold tensors alone, nodes may call tensor operators, expressions may compute with sizes, and names are made of letters.

Source: torch 2.13, torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py
"""

import ast
import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import PT2ArchiveReader

from edgec.checkpoint.files import MAX_JSON_BYTES, size_bytes
from edgec.errors import CheckpointError, first_line
from edgec.frontends.quiet import quiet

_MODEL = "models/model.json"
_EXAMPLE = "data/sample_inputs/model.pt"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_RECORD = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|extra/.*|data/weights/weight_\d+"
    r"|data/constants/tensor_\d+"
)
_PLAIN = re.compile(r"[\w.+-]*")
_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims)\.(?!__|from_file)\w+(?:\.(?!__)\w+)?"
    r"|torch\.ops\.aten\.__(?:and|or|xor|lshift|rshift)__\.\w+"
    r"|torch\.ops\.higher_order\.(?:cond|while_loop|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\._?sym_\w+|math\.(?!__)\w+"
    r"|_operator\.(?:abs|add|and_|eq|floordiv|ge|getitem|gt|invert|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow"
    r"|rshift|sub|truediv|xor)"
)
_STRUCTURES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
# Functions of sizes, as sympy and torch spell them.
_FUNCTIONS = frozenset(
    {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "And", "Or", "Not"}
    | {"Equality", "Unequality", "LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan", "Eq", "Ne", "Lt"}
    | {"Le", "Gt", "Ge", "FloorDiv", "ModularIndexing", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv"}
    | {"PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToInt", "TruncToFloat", "RoundToInt", "ToFloat"}
    | {"Identity", "Where", "max", "min", "abs", "int", "float"}
)
_METHODS = {"size", "stride", "storage_offset"}
_ARITHMETIC = (
    ast.Expression, ast.Constant, ast.Load, ast.keyword, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.unaryop,
    ast.operator, ast.boolop, ast.cmpop,
)  # fmt: skip


def open_program(path: Path) -> torch.export.ExportedProgram:
    """Return the program that `torch.export.save` wrote to a file.

    Raises:
        CheckpointError: the file is damaged, or something in it could run code.
    """
    size_bytes(path)
    try:
        with quiet(), PT2ArchiveReader(str(path)) as archive:
            _check_archive(archive, path)
    except (RuntimeError, ValueError, RecursionError) as error:  # what torch raises for archives, and json for text
        raise CheckpointError(
            f"{path.name} is no archive of torch.export.save: {first_line(error)}",
            where=str(path),
            hint="save the program again, with torch 2.9 or later",
        ) from error
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # whatever deserializing meets
        raise CheckpointError(
            f"torch cannot load {path.name}: {type(error).__name__}: {first_line(error)}",
            where=str(path),
            hint="save the program again, with the torch that is installed here",
        ) from error


def _check_archive(archive: Any, path: Path) -> None:
    names = set(archive.get_file_names())
    wanted = {_MODEL, _EXAMPLE, _WEIGHTS, _CONSTANTS}
    if missing := sorted(wanted - names):
        raise CheckpointError(
            f"{path.name} holds no {missing[0]}",
            where=str(path),
            hint="save the program again, with torch 2.9 or later",
        )
    if foreign := sorted(name for name in names - wanted if not _RECORD.fullmatch(name)):
        raise _unsafe(path, f"it holds {foreign[0]!r}, which torch would unpickle or run")
    for name in (_WEIGHTS, _CONSTANTS):
        for tensor, entry in _read_json(archive, name, path)["config"].items():
            if entry["use_pickle"] is not False:
                raise _unsafe(path, f"tensor '{tensor}' is pickled")
    try:
        torch.load(io.BytesIO(archive.read_bytes(_EXAMPLE)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, "its example inputs are a pickle of more than tensors") from error
    _check(_read_json(archive, _MODEL, path), "model", path)


def _read_json(archive: Any, name: str, path: Path) -> dict[str, Any]:
    data = archive.read_bytes(name)
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(f"{name} holds {len(data)} bytes, at most {MAX_JSON_BYTES} are accepted", where=str(path))
    value = json.loads(data)
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds no JSON object", where=str(path))
    return value


def _check(value: Any, place: str, path: Path) -> None:
    """Check a value of the model's JSON, and all that is in it; `place` is the key that it was found under."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not _PLAIN.fullmatch(key):
                raise _unsafe(path, f"it has a key {key[:80]!r}")
            if key != "metadata":  # notes, which torch reads and does not run
                _check(item, key, path)
    elif isinstance(value, list):
        for item in value:
            _check(item, place, path)
    elif isinstance(value, str) and not _is_harmless(value, place):
        raise _unsafe(path, f"{value[:80]!r} is not a {place} that edgec accepts")


def _is_harmless(text: str, place: str) -> bool:
    """Say whether torch may see a text that was found under the key `place`."""
    if place in {"as_string", "as_strings"}:  # arguments of operators, which stay texts
        return True
    if place in {"target", "as_operator"}:
        return _OPERATOR.fullmatch(text) is not None
    if place in {"expr_str", "guards_code"}:
        return _is_arithmetic(text)
    if place in {"in_spec", "out_spec"}:
        return _is_structure(json.loads(text))
    return _PLAIN.fullmatch(text) is not None


def _is_arithmetic(text: str) -> bool:
    """Say whether an expression does nothing but compute with sizes."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError):
        return False
    return all(_is_arithmetic_node(node) for node in ast.walk(tree))


def _is_arithmetic_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        function = node.func
        return isinstance(function, ast.Attribute) or (isinstance(function, ast.Name) and function.id in _FUNCTIONS)
    if isinstance(node, ast.Attribute):  # the size of an input, or a function of numbers
        is_math = isinstance(node.value, ast.Name) and node.value.id == "math"
        return node.attr in _METHODS or (is_math and not node.attr.startswith("_"))
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or re.fullmatch(r"L|math|true|false|oo|int_oo|[suz]f?\d+", node.id) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.fullmatch(r"\w+", node.value) is not None
    return isinstance(node, (*_ARITHMETIC, ast.Subscript))


def _is_structure(value: Any) -> bool:
    """Say whether inputs or outputs are nested as tuples, lists and dicts with plain keys."""
    return isinstance(value, list) and len(value) == 2 and value[0] == 1 and all(_are_plain(value[1]))


def _are_plain(spec: Any) -> Iterator[bool]:
    keys = json.loads(spec["context"]) if spec["context"] is not None else None
    yield spec["type"] in _STRUCTURES
    yield keys is None or all(isinstance(key, str) and _PLAIN.fullmatch(key) for key in keys)
    for child in spec["children_spec"]:
        yield from _are_plain(child)


def _unsafe(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} may run code when torch loads it: {what}",
        where=str(path),
        hint="where you trust it, load it in Python and save it as ONNX: torch.onnx.export(program, (), 'model.onnx')",
    )
