"""fp8 and nvfp4: the number formats, rounding to nearest, and what is refused."""

import ml_dtypes
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgec.checkpoint.open import open_checkpoint
from edgec.errors import PlanError, UsageError
from edgec.frontends.families import describe
from edgec.quantize.algorithms.rtn import quantize
from edgec.quantize.floats import decode_e2m1, decode_e4m3, encode_e2m1, encode_e4m3
from edgec.quantize.scheme import Scheme
from edgec.report.page import describe_storage
from edgec.spec.load import list_profiles, list_targets, load_profile, load_target
from edgec.spec.plan import resolve

FP8, NVFP4 = Scheme("fp8", None), Scheme("nvfp4", 16)
FORMATS = {
    "e4m3": (encode_e4m3, decode_e4m3, ml_dtypes.float8_e4m3fn, 256, 448.0),
    "e2m1": (encode_e2m1, decode_e2m1, ml_dtypes.float4_e2m1fn, 16, 6.0),
}
each_format = pytest.mark.parametrize("name", FORMATS)


def weight(rows=7, cols=90, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32))


def numbers(name):
    """Return all finite numbers of a format, in order, as float64."""
    _, _, dtype, count, _ = FORMATS[name]
    values = np.arange(count, dtype=np.uint8).view(dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


@each_format
def test_every_pattern_decodes_to_its_number_and_back(name):
    encode, decode, dtype, count, _ = FORMATS[name]
    codes = np.arange(count, dtype=np.uint8)
    expected = codes.view(dtype).astype(np.float32)
    finite = np.isfinite(expected)
    found = decode(torch.from_numpy(codes))
    np.testing.assert_array_equal(found.numpy(), expected)
    assert torch.equal(encode(found[finite]), torch.from_numpy(codes[finite]))


@each_format
def test_rounding_is_that_of_ml_dtypes_and_torch(name):
    encode, _, dtype, _, largest = FORMATS[name]
    all_numbers = numbers(name)
    middles = (all_numbers[1:] + all_numbers[:-1]) / 2
    beside = [np.nextafter(middles.astype(np.float32), np.float32(x)) for x in (-np.inf, np.inf)]
    values = np.concatenate([np.linspace(-largest, largest, 20001), middles, *beside]).astype(np.float32)
    found = encode(torch.from_numpy(values))
    np.testing.assert_array_equal(found.numpy(), values.astype(dtype).view(np.uint8))
    if name == "e4m3":
        assert torch.equal(found, torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8))


@each_format
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_no_number_of_the_format_is_nearer(name, values):
    encode, decode, _, _, largest = FORMATS[name]
    given_values = torch.tensor(values, dtype=torch.float32)
    found = decode(encode(given_values)).double().numpy()
    wanted = np.clip(given_values.double().numpy(), -largest, largest)
    nearest = np.abs(numbers(name)[None] - wanted[:, None]).min(axis=1)
    np.testing.assert_array_equal(np.abs(found - wanted), nearest)


def test_fp8_takes_the_largest_weight_of_a_row_to_the_largest_number():
    w = weight()
    q = quantize(w, None, FP8)
    assert q.codes.dtype == torch.uint8
    assert q.zero_points is None
    expected = (w.double().abs().amax(1, keepdim=True) / 448).half().float()
    assert torch.equal(q.scales, expected)
    assert (q.dequantize().abs().amax(1) == 448 * q.scales[:, 0]).all()


def test_nvfp4_has_the_scales_of_the_recipe():
    w = weight()
    q = quantize(w, None, NVFP4)
    assert q.scales.shape == (7, 6)
    assert q.global_scale == np.float32(w.abs().max() / np.float32(448 * 6))
    padded = torch.nn.functional.pad(w, (0, 6)).view(7, 6, 16).double()
    exact = (padded.abs().amax(-1) / 6 / q.global_scale).numpy()
    np.testing.assert_array_equal(q.scales.numpy(), exact.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    assert q.scales.max() == 448


@pytest.mark.parametrize("scheme", [FP8, NVFP4], ids=lambda s: s.dtype)
@pytest.mark.parametrize("shape", [(7, 90), (1, 1), (33, 48), (2, 17)])
def test_codes_are_the_nearest_by_a_search_in_float64(scheme, shape):
    w = weight(*shape, seed=3)
    q = quantize(w, None, scheme)
    width = scheme.group or shape[1]
    scales = (q.scales * q.global_scale).repeat_interleave(width, 1)[:, : shape[1]].double().numpy()
    choices = numbers("e4m3" if scheme == FP8 else "e2m1")[None, None] * scales[..., None]
    nearest = np.abs(choices - w.double().numpy()[..., None]).min(-1)
    found = np.abs(q.dequantize().double().numpy() - w.double().numpy())
    np.testing.assert_allclose(found, nearest, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", [FP8, NVFP4], ids=lambda s: s.dtype)
def test_zeros_stay_zero_and_no_scale_is(scheme):
    w = torch.zeros(3, 40)
    assert torch.equal(quantize(w, None, scheme).dequantize(), w)
    w[1, 20] = 3.0
    q = quantize(w, None, scheme)
    assert (q.scales > 0).all()
    assert torch.allclose(q.dequantize(), w, rtol=1e-3)


@pytest.mark.parametrize("scheme", [FP8, NVFP4], ids=lambda s: s.dtype)
@pytest.mark.parametrize("size", [1e-44, 1e-9, 1e5, 1e38])
def test_sizes_outside_float16_stay_finite(scheme, size):
    q = quantize(weight().clamp(-2, 2) * size, None, scheme)
    assert torch.isfinite(q.dequantize()).all()
    assert (q.scales * q.global_scale > 0).all()


def test_errors_stand_in_the_order_of_their_bits_and_scales():
    w = weight(64, 512)
    schemes = Scheme("int8", None), FP8, NVFP4, Scheme("int4", None)
    errors = [float((quantize(w, None, scheme).dequantize() - w).square().mean()) for scheme in schemes]
    assert errors == sorted(errors)


@pytest.mark.parametrize("scheme", [FP8, NVFP4], ids=lambda s: s.dtype)
def test_pieces_do_not_change_the_bytes(scheme, monkeypatch):
    w = weight(50, 128)
    whole = quantize(w, None, scheme)
    monkeypatch.setattr("edgec.quantize.pieces._ELEMENTS_AT_ONCE", 300)
    pieces = quantize(w, None, scheme)
    assert torch.equal(whole.codes, pieces.codes)
    assert torch.equal(whole.scales, pieces.scales)
    assert whole.global_scale == pieces.global_scale


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ('dtype = "fp8"\ngroup_size = 32', 'group_size = "channel"'),
        ('dtype = "nvfp4"', "group_size = 16"),
        ('dtype = "nvfp4"\ngroup_size = 32', "group_size = 16"),
        ('dtype = "fp8"\nsymmetric = false', "symmetric = true"),
        ('dtype = "nvfp4"\ngroup_size = 16\nsymmetric = false', "symmetric = true"),
    ],
)
def test_a_profile_with_an_impossible_float_is_refused(weights, message, tmp_path):
    path = tmp_path / "mine.toml"
    verify = "[verify]\nmax_perplexity_ratio = 2\nmax_mean_kl = 1\nmin_top1_agreement = 0.5\n"
    path.write_text(f'title = "mine"\n[weights]\n{weights}\n{verify}')
    with pytest.raises(UsageError) as caught:
        load_profile(str(path))
    assert message in caught.value.what
    assert caught.value.where == f"{path}: weights"


def test_shipped_profiles_in_words():
    found = {profile.name: describe_storage(profile.weights.storage()) for profile in list_profiles()}
    assert found["fp8"] == "fp8, one scale per output, rtn"
    assert found["nvfp4"] == "nvfp4, groups of 16, rtn"


@pytest.fixture
def plan(tiny_llama):
    def make(target, profile):
        checkpoint = open_checkpoint(tiny_llama)
        return resolve(checkpoint, describe(checkpoint), target, profile)

    return make


def test_targets_without_these_floats_refuse_them(plan):
    for target in list_targets():
        for profile in map(load_profile, ("fp8", "nvfp4")):
            wanted = {profile.weights.dtype, (profile.embedding or profile.weights).dtype}
            if wanted <= set(target.weight_dtypes):
                assert target.backends[0] == "tensorrt"
                continue
            with pytest.raises(PlanError, match="has no kernels for") as caught:
                plan(target, profile)
            assert caught.value.exit_code == 4


@pytest.mark.parametrize(("dtype", "group", "bits"), [("fp8", "channel", 8), ("nvfp4", 16, 4.5)])
def test_the_estimate_counts_codes_and_scales(plan, dtype, group, bits):
    profile = load_profile(dtype)
    weights = msgspec.structs.replace(profile.weights, dtype=dtype, group_size=group)
    profile = msgspec.structs.replace(profile, weights=weights, embedding=None)
    found = plan(load_target("rtx-5090"), profile).estimate.weight_bytes
    exact = plan(load_target("rtx-5090"), load_profile("fp16")).estimate.weight_bytes / 16 * bits
    assert exact < found < 1.1 * exact
