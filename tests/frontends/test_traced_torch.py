"""Modules from a factory with their weights, and .pt2 programs: proven graphs; nothing in a file is executed."""

import io
import json
import os
import pickle
import sys
import zipfile

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file

from edgec.errors import CheckpointError, OutputError, UsageError
from edgec.frontends.network import Port
from edgec.frontends.program_file import open_program
from edgec.frontends.torch_sources import read_state, trace_module
from edgec.frontends.trace_inputs import Axis, parse_argument, parse_arguments
from edgec.frontends.traced import trace
from edgec.frontends.traced_program import trace_program

SOURCE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image):
        print("talking")
        hidden = torch.relu(self.norm(self.conv(image)))
        return {"scores": self.head(hidden.mean((2, 3))), "hidden": hidden}

def make():
    return Net()

def dummy_inputs():
    return torch.zeros(4, 3, 8, 8)

def broken():
    raise KeyError("no such thing")

class Branchy(torch.nn.Module):
    def forward(self, image):
        if image.sum() > 0:
            return image
        return -image

three = 3
"""
IMAGE = "image:float32[batch,3,8,8]"


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A working directory with the module `tinynet`, and an instance of its class with other weights."""
    (tmp_path / "tinynet.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tinynet", raising=False)
    torch.set_num_threads(1)
    scope: dict[str, object] = {}
    exec(compile(SOURCE, "tinynet.py", "exec"), scope)
    model = scope["Net"]().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    yield model
    sys.modules.pop("tinynet", None)


def run(network, feed, folder):
    ir.save(network.model, folder / "traced.onnx")
    session = ort.InferenceSession(folder / "traced.onnx", providers=["CPUExecutionProvider"])
    return dict(zip([port.name for port in network.outputs], session.run(None, feed), strict=True))


def close(found, wanted):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted.detach().numpy()).max() <= 1e-4 * np.abs(wanted.detach().numpy()).max()


def test_factory_and_state(net, tmp_path, capsys):
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, tmp_path / "w.pth")
    network = trace_module("tinynet:make", [IMAGE], tmp_path / "w.pth")
    assert network.inputs == (Port("image", "float32", ("batch", 3, 8, 8)),)
    assert [port.name for port in network.outputs] == ["scores", "hidden"]
    assert set(network.files) == {"w.pth", "tinynet.py"}
    assert capsys.readouterr().out == ""
    image = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    found = run(network, {"image": image}, tmp_path)
    for name, wanted in net(torch.from_numpy(image)).items():
        close(found[name], wanted)
    again = trace_module("tinynet:make", [IMAGE], tmp_path / "w.pth").model
    assert ir.to_proto(again).SerializeToString() == ir.to_proto(network.model).SerializeToString()


def test_dummy_inputs_and_safetensors(net, tmp_path):
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    network = trace_module("tinynet:Net", state=tmp_path / "weights.safetensors")
    assert network.inputs == (Port("image", "float32", ("batch", 3, 8, 8)),)
    assert network.name == "weights"
    assert np.array_equal(network.model.graph.initializers["head.weight"].const_value.numpy(), net.head.weight.detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.bias"), "lacks head.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "too much: extra"),
        (lambda state: state.update({"head.bias": torch.zeros(6)}), r"head.bias \(\[6\], the model has \[5\]\)"),
        (lambda state: state["head.weight"].fill_(float("nan")), "'head.weight' holds 40"),
    ],
)
def test_wrong_state(net, tmp_path, change, message):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message):
        trace_module("tinynet:make", [IMAGE], tmp_path / "w.pt")


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickle_is_not_executed(tmp_path):
    torch.save({"a": torch.zeros(1), "b": Attack(tmp_path / "owned")}, tmp_path / "w.pt")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    for name in ("w.pt", "old.pth"):
        with pytest.raises(CheckpointError, match="more than tensors"):
            read_state(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_damaged_state(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    (tmp_path / "w.safetensors").write_bytes(content)
    for name in ("w.pt", "w.safetensors"):
        with pytest.raises(CheckpointError):
            read_state(tmp_path / name)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tinynet", "names no factory"),
        ("nowhere:make", "No module named 'nowhere'"),
        ("tinynet:nothing", "nothing"),
        ("tinynet:broken", "KeyError"),
        ("tinynet:three", "fails"),
        ("tinynet:SOURCE", "fails"),
    ],
)
def test_wrong_factory(net, factory, message):
    with pytest.raises(UsageError, match=message):
        trace_module(factory, [IMAGE])


def test_where_a_model_fails(net, tmp_path, capfd):
    """The line of the user's code, and nothing of the graph that torch gives up."""
    line = 1 + SOURCE.splitlines().index("        if image.sum() > 0:")
    with pytest.raises(CheckpointError, match="data-dependent") as error:
        trace_module("tinynet:Branchy", [IMAGE])
    assert error.value.where == f"{tmp_path / 'tinynet.py'}:{line} in forward"
    assert "torch.where" in str(error.value.hint)
    assert "def forward" not in "".join(capfd.readouterr())
    with pytest.raises(UsageError) as refused:
        trace_module("tinynet:broken", [IMAGE])
    line = 1 + SOURCE.splitlines().index('    raise KeyError("no such thing")')
    assert refused.value.where == f"{tmp_path / 'tinynet.py'}:{line} in broken"
    with pytest.raises(UsageError) as missing:
        trace_module("no_such_module_at_all:make", [IMAGE])
    assert missing.value.where == str(tmp_path)


def test_no_room_for_the_copy_that_is_compared(net):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            trace_module("tinynet:make", [IMAGE])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_run_says_so(net):
    with pytest.raises(CheckpointError, match=r"does not run on image float32\[1, 4, 8, 8\]"):
        trace_module("tinynet:make", ["image:float32[batch,4,8,8]"])


class Fixed(torch.nn.Module):
    """Takes any batch, but one length only."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.linear(x)


class Looping(torch.nn.Module):
    """Computes with the length itself, so that torch fixes it."""

    def forward(self, x):
        for _ in range(x.shape[1]):
            x = x * 1.5
        return x


class Tokens(torch.nn.Module):
    """A mask that holds for every query, as scaled_dot_product_attention takes it."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(50, 8)
        self.out = torch.nn.Linear(8, 50, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids, mask):
        x = self.table(ids)[:, None]
        x = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask.bool()[:, None, None])
        return self.out(x[:, 0]), (ids.sum(1), None)


@pytest.mark.parametrize(("module", "reason"), [(Fixed, "does not run"), (Looping, "computes with the size")])
def test_sizes_that_cannot_stay_open_are_fixed(module, reason):
    torch.manual_seed(0)
    traced = trace(module(), parse_arguments(["x:float32[batch,length]"]))
    assert traced.inputs[0].shape == ("batch", 16)
    assert any(remark.startswith("length is fixed to 16") and reason in remark for remark in traced.remarks)


def test_masks_tied_tables_and_nested_outputs():
    torch.manual_seed(0)
    traced = trace(Tokens(), parse_arguments(["ids:int64[batch,length=12]<50", "mask:int64[batch,length=12]"]))
    assert [port.name for port in traced.outputs] == ["output_0", "output_1_0"]
    assert traced.outputs[1] == Port("output_1_0", "int64", ("batch",))
    tables = [v.name for v in traced.model.graph.initializers.values() if v.const_value.size == 400]
    assert tables in (["table.weight"], ["out.weight"])
    assert "Attention" in {node.op_type for node in traced.model.graph}


class Through(torch.nn.Module):
    """Returns an input as it is, a constant, one tensor twice, and takes a number."""

    def forward(self, x, scale):
        y = x * scale
        return {"x": x, "y": y, "again": y, "constant": torch.ones(2)}


def test_outputs_that_nothing_computes():
    traced = trace(Through(), parse_arguments(["x:float32[batch,3]", "scale:float32[]"]))
    assert [port.name for port in traced.inputs] == ["x", "scale"]
    assert [port.shape for port in traced.inputs] == [("batch", 3), ()]
    assert len({port.name for port in (*traced.inputs, *traced.outputs)}) == 6


def test_spellings():
    image = parse_argument("image: float32[batch, 3, height=224, 224]")
    assert image.shape == (Axis("batch"), 3, Axis("height", 224), 224)
    ids = parse_argument("ids:int64[batch,length]<30522")
    assert (ids.below, ids.mask) == (30522, False)
    assert parse_argument("attention_mask:int64[batch,length]").mask
    assert parse_argument("scale:float32[]").shape == ()


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x:float32",
        "x:float16[1]",
        "x:float32[0]",
        "x:float32[-1]",
        "x:float32[1,]",
        "x:float32[2]<3",
        "1x:bool[1]",
    ],
)
def test_wrong_spellings(text):
    with pytest.raises(UsageError):
        parse_argument(text)


def test_inputs_are_named_once():
    with pytest.raises(UsageError, match="twice"):
        parse_arguments(["x:bool[1]", "x:bool[2]"])


class Program(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x, extra):
        y = self.linear(x) * extra["scale"]
        return {"y": torch.cat([y, y], 1).reshape(x.shape[0], -1), "sum": y.sum((1, 2))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A .pt2 file with open sizes and nested inputs, and the module that it is from."""
    torch.set_num_threads(1)
    module = Program().eval()
    dims = {"x": {0: torch.export.Dim("n"), 1: torch.export.Dim("m", max=64)}, "extra": {"scale": None}}
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(2, 5, 4), {"scale": torch.ones(3)}), dynamic_shapes=dims)
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(program, path)
    return path, module


def test_program(saved, tmp_path):
    path, module = saved
    network = trace_program(path)
    assert network.inputs[0] == Port("x", "float32", ("batch", "x_1", 4))
    assert [port.name for port in network.outputs] == ["y", "sum"]
    assert network.outputs[1].shape == ("batch",)
    assert "linear.weight" in network.model.graph.initializers
    assert "x_1 is at most 64" in network.remarks
    feed = {
        "x": np.random.default_rng(0).standard_normal((3, 7, 4)).astype(np.float32),
        "extra_scale": np.ones(3, np.float32),
    }
    found = run(network, feed, tmp_path)
    wanted = module(torch.from_numpy(feed["x"]), {"scale": torch.from_numpy(feed["extra_scale"])})
    for name, array in found.items():
        close(array, wanted[name])


def rewrite(path, target, change, extra=None):
    """Copy a .pt2 file with its model's JSON changed, or with further records."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("models/model.json"):
                text = json.loads(data)
                change(text)
                data = json.dumps(text).encode()
            for ending, content in (extra or {}).items():
                if info.filename.endswith(ending):
                    data = content
            new.writestr(info.filename, data)
        for ending, content in (extra or {}).items():
            if not any(name.endswith(ending) for name in new.namelist()):
                new.writestr(f"{old.namelist()[0].split('/')[0]}/{ending}", content)


def _first_size(model):
    values = model["graph_module"]["graph"]["tensor_values"]
    return next(size["as_expr"] for size in values["x"]["sizes"] if "as_expr" in size)


def _set(path, value):
    def change(model):
        for key in path[:-1]:
            model = model[key]
        model[path[-1]] = value

    return change


CODE = "__import__('os').mkdir('owned')"
ATTACKS = {
    "size": lambda model: _first_size(model).update(expr_str=CODE),
    "symbol": lambda model: _first_size(model).update(expr_str="Symbol(str(print))"),
    "guard": _set(["guards_code"], [CODE]),
    "guard-attribute": _set(["guards_code"], ["L['x'].__class__ == 1"]),
    "function": _set(["graph_module", "graph", "nodes", 0, "target"], "torch.os.mkdir"),
    "operator": _set(["graph_module", "graph", "nodes", 0, "target"], "_operator.methodcaller"),
    "file": _set(["graph_module", "graph", "nodes", 0, "target"], "torch.ops.aten.from_file.default"),
    "name": _set(["graph_module", "graph", "nodes", 0, "name"], f"x\n{CODE}"),
    "argument": _set(["graph_module", "module_call_graph", 0, "signature", "forward_arg_names"], [f"x={CODE}"]),
    "type": _set(
        ["graph_module", "module_call_graph", 0, "signature", "in_spec"],
        '[1, {"type": "os.mkdir", "context": "null", "children_spec": []}]',
    ),
    "key": _set(["graph_module", "graph", "tensor_values", CODE], {}),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_program_that_would_run_code(saved, tmp_path, attack, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite(saved[0], tmp_path / "bad.pt2", ATTACKS[attack])
    with pytest.raises(CheckpointError, match="may run code"):
        trace_program(tmp_path / "bad.pt2")
    assert not (tmp_path / "owned").exists()


def _pickled(path):
    buffer = io.BytesIO()
    torch.save(((Attack(path),), {}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "record",
    ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/opaque_obj_0", "data/aotinductor/m/a.so"],
)
def test_program_with_pickles(saved, tmp_path, record):
    rewrite(saved[0], tmp_path / "bad.pt2", lambda model: None, {record: _pickled(tmp_path / "owned")})
    with pytest.raises(CheckpointError, match="may run code"):
        trace_program(tmp_path / "bad.pt2")
    assert not (tmp_path / "owned").exists()


def test_program_with_pickled_weight(saved, tmp_path):
    with zipfile.ZipFile(saved[0]) as archive:
        name = next(n for n in archive.namelist() if n.endswith("model_weights_config.json"))
        config = archive.read(name).replace(b'"use_pickle": false', b'"use_pickle": true')
    extra = {"model_weights_config.json": config, "data/weights/weight_0": _pickled(tmp_path / "owned")}
    rewrite(saved[0], tmp_path / "bad.pt2", lambda model: None, extra)
    with pytest.raises(CheckpointError, match="is pickled"):
        trace_program(tmp_path / "bad.pt2")
    assert not (tmp_path / "owned").exists()


def test_the_copies_are_what_the_check_sees(saved, tmp_path):
    rewrite(saved[0], tmp_path / "good.pt2", lambda model: None)
    assert str(open_program(tmp_path / "good.pt2").graph) == str(open_program(saved[0]).graph)


@pytest.mark.parametrize("size", [0, 10, 4000])
def test_damaged_program(saved, tmp_path, size):
    (tmp_path / "cut.pt2").write_bytes(saved[0].read_bytes()[:size])
    with pytest.raises(CheckpointError):
        trace_program(tmp_path / "cut.pt2")


def test_program_in_half_precision(tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 3).half(), (torch.ones(2, 4, dtype=torch.float16),))
    torch.export.save(program, tmp_path / "half.pt2")
    with pytest.raises(CheckpointError, match="float16"):
        trace_program(tmp_path / "half.pt2")
