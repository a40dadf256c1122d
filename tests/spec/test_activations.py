"""What profiles say of activations and the cache: read, resolved, checked against backends, and named in kernels."""

import pytest

from edgec.checkpoint.open import open_checkpoint
from edgec.errors import PlanError, UsageError
from edgec.frontends.families import describe
from edgec.report.page import describe_activations
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve
from edgec.spec.preflight import preflight

HEAD = 'title = "t"\n[verify]\nmax_perplexity_ratio = 2\nmax_mean_kl = 1\nmin_top1_agreement = 0.5\n'
INT8, INT4 = '[weights]\ndtype = "int8"\n', '[weights]\ndtype = "int4"\ngroup_size = 32\n'
STATIC, TEXT = '[activations]\nmode = "static"\n', "[calibration]\n"
CACHE = '[runtime]\nkv_cache = "int8"\n'


@pytest.fixture
def profile(tmp_path):
    def write(*parts):
        path = tmp_path / "mine.toml"
        path.write_text("".join((HEAD, *parts)))
        return load_profile(str(path))

    return write


@pytest.fixture
def planned(tiny_llama, profile):
    def make(*parts, target="x86-avx512-vnni", backend=None):
        checkpoint = open_checkpoint(tiny_llama)
        decoder, device = describe(checkpoint), load_target(target)
        plan = resolve(checkpoint, decoder, device, profile(*parts), backend)
        kernels = {f"{row.block}.{row.operation.split()[0]}": row for row in preflight(decoder, plan, device).rows}
        return plan, kernels

    return make


@pytest.mark.parametrize(
    ("parts", "level"),
    [
        ("", 4),
        ("[activations]\n", 4),
        ('[activations]\nmode = "dynamic"\n', 4),
        ('[activations]\ndtype = "float"\n', 1),
        ("[runtime]\naccuracy_level = 1\n", 1),
        ('[activations]\ndtype = "float"\n[runtime]\naccuracy_level = 1\n', 1),
        (STATIC + TEXT, 4),
    ],
)
def test_activations_and_accuracy_level_are_one_setting(parts, level, planned):
    assert planned(INT8, parts)[0].accuracy_level == level


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("[activations]\n[runtime]\naccuracy_level = 1\n", "says accuracy_level = 4, .runtime. 1"),
        ('[activations]\ndtype = "float"\nmode = "static"\n', 'dtype = "int8"'),
        ('[activations]\nskip = ["*"]\n', 'mode = "static"'),
        (STATIC, "give the profile a .calibration."),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_read(parts, message, profile):
    with pytest.raises(UsageError, match=message):
        profile(INT8, parts)


def test_static_matrices(planned):
    plan, kernels = planned(INT8, STATIC, TEXT)
    assert len(plan.static.matrices) == 3 * 7
    assert plan.is_static("layers.2.mlp.down")
    assert not plan.is_static("lm_head")
    assert kernels["layers.0.mlp.down"].kernel == "MatMulIntegerToFloat, uint8 x int8, calibrated scales"
    assert kernels["head.output"].kernel.startswith("MatMulNBits")
    assert describe_activations(plan).startswith("int8, calibrated scales (mse): attention.q 0-2; attention.k 0-2")


def test_what_skips_one_matrix_skips_those_that_read_the_same(planned):
    skip = 'skip = ["layers.*.mlp.down", "layers.1.attention.k", "layers.2.mlp.up"]\n'
    plan, kernels = planned(INT8, STATIC, skip, TEXT)
    assert [name for name in plan.static.matrices if ".1." in name or ".2." in name] == [
        *("layers.1.attention.o", "layers.1.mlp.gate", "layers.1.mlp.up"),
        *("layers.2.attention.q", "layers.2.attention.k", "layers.2.attention.v", "layers.2.attention.o"),
    ]
    assert kernels["layers.1.attention.q"].kernel.startswith("MatMulNBits")


def test_only_int8_weights_with_one_scale_per_output_are_static(planned):
    some = '[[layers]]\nmatch = ["*.q", "*.k", "*.v", "*.down"]\ndtype = "int8"\n'
    assert set(planned(INT4, STATIC, TEXT, some)[0].static.matrices) == {
        f"layers.{i}.{name}" for i in range(3) for name in ("attention.q", "attention.k", "attention.v", "mlp.down")
    }
    grouped = '[weights]\ndtype = "int8"\ngroup_size = 32\n'
    asymmetric = INT8 + "symmetric = false\n"
    for weights in (INT4, grouped, asymmetric, '[weights]\ndtype = "fp16"\n'):
        with pytest.raises(PlanError, match="no matrix takes them") as error:
            planned(weights, STATIC, TEXT)
        assert error.value.exit_code == 4


def test_a_pattern_that_matches_nothing_is_refused(planned):
    with pytest.raises(UsageError, match=r"'layers\.9\.\*' matches no matrix") as error:
        planned(INT8, STATIC, 'skip = ["layers.9.*"]\n', TEXT)
    assert error.value.where == "profile 'mine': activations.skip"


@pytest.mark.parametrize(
    ("target", "backend", "kernel", "caveat"),
    [
        ("x86-avx512-vnni", "onnx_cpu", "MatMulIntegerToFloat, uint8 x int8, calibrated scales", None),
        ("x86-avx2", "onnx_cpu", "MatMulIntegerToFloat, uint8 x uint8, calibrated scales", None),
        ("raspberry-pi-5", "onnx_cpu", "MatMulIntegerToFloat, uint8 x int8, calibrated scales", None),
        ("x86-avx512-vnni", "openvino", "FullyConnected, int8 x int8, calibrated scales", None),
        ("x86-avx2", "openvino", "FullyConnected, int8 x int8, calibrated scales", "without VNNI"),
        ("rtx-4060", "tensorrt", "MatMul, int8 x int8, calibrated scales", None),
        ("jetson-orin-nano", "tensorrt", "MatMul, int8 x int8, calibrated scales", "what the device's own TensorRT"),
    ],
)
def test_kernels(target, backend, kernel, caveat, planned):
    row = planned(INT8, STATIC, TEXT, target=target, backend=backend)[1]["layers.1.attention.o"]
    assert (row.kernel, row.fallback) == (kernel, None)
    assert (row.caveat or "") == "" if caveat is None else caveat in row.caveat


def test_tensorrt_finds_no_scales_as_it_runs(planned):
    with pytest.raises(PlanError, match="tensorrt backend has no dynamic activations") as error:
        planned(INT8, "[activations]\n", target="rtx-4060")
    assert error.value.hint == "it has: float, static"
    assert planned(INT8, '[activations]\ndtype = "float"\n', target="rtx-4060")[0].static is None


def test_the_scales_of_an_int8_cache(planned):
    plan, kernels = planned(INT8, CACHE, TEXT, backend="onnx_cpu")
    assert "int8 cache, one scale for each head" in kernels["layers.0.attention.attention"].kernel
    floats = planned(INT8, backend="onnx_cpu")[0].estimate.kv_cache_bytes
    assert plan.estimate.kv_cache_bytes == floats / 4
    with pytest.raises(PlanError, match="takes the scales of an int8 key-value cache from a text"):
        planned(INT8, CACHE, backend="onnx_cpu")
    assert planned(INT8, CACHE, backend="openvino")[0].kv_cache == "int8"  # finds them as it runs
    _, kernels = planned(INT8, CACHE, TEXT, target="rtx-4060")
    assert (
        "int8 cache with one scale for each head, which is widened first"
        in kernels["layers.0.attention.attention"].kernel
    )
    with pytest.raises(PlanError, match="builds its own engine"):
        planned(INT8, CACHE, TEXT, target="jetson-orin-nano", backend="tensorrt")
