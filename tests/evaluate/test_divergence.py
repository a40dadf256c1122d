import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.errors import UsageError
from edgec.evaluate import divergence
from edgec.evaluate.divergence import Accumulator, Divergence

RNG = np.random.default_rng(0)
COUNT, VOCAB = 60, 37
REFERENCE = (3 * RNG.standard_normal((COUNT, VOCAB)) + 50).astype(np.float32)
TEST = (REFERENCE + 0.4 * RNG.standard_normal((COUNT, VOCAB)) - 80).astype(np.float32)
TARGETS = RNG.integers(0, VOCAB, COUNT)
WINDOWS = np.repeat([5, 2, 9], 20)


def measure(chunks: list[slice], reference: np.ndarray = REFERENCE, test: np.ndarray = TEST) -> Divergence:
    accumulator = Accumulator()
    for rows in chunks:
        accumulator.add(reference[rows], test[rows], TARGETS[rows], WINDOWS[rows])
    return accumulator.result()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_is_the_definition():
    p, q = log_softmax(REFERENCE), log_softmax(TEST)
    rows = np.arange(COUNT)
    nll_p, nll_q = -p[rows, TARGETS], -q[rows, TARGETS]
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    agrees = p.argmax(axis=1) == q.argmax(axis=1)
    share, root = agrees.mean(), np.sqrt(COUNT)
    covariance = np.cov(nll_q, nll_p)
    ratio = np.exp(nll_q.mean() - nll_p.mean())
    residuals = (nll_q - nll_p) - (nll_q - nll_p).mean()
    sums = [residuals[window == WINDOWS].sum() for window in (5, 2, 9)]
    expected = Divergence(
        tokens=COUNT,
        windows=3,
        reference_perplexity=np.exp(nll_p.mean()),
        reference_perplexity_se=np.exp(nll_p.mean()) * nll_p.std(ddof=1) / root,
        test_perplexity=np.exp(nll_q.mean()),
        test_perplexity_se=np.exp(nll_q.mean()) * nll_q.std(ddof=1) / root,
        perplexity_ratio=ratio,
        perplexity_ratio_se=ratio * np.sqrt((covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / COUNT),
        perplexity_ratio_clustered_se=ratio * np.sqrt(3 / 2 * np.square(sums).sum()) / COUNT,
        mean_kl=kl.mean(),
        mean_kl_se=kl.std(ddof=1) / root,
        median_kl=np.median(kl),
        p99_kl=np.quantile(kl, 0.99),
        top1_agreement=share,
        top1_agreement_se=np.sqrt(share * (1 - share) / (COUNT - 1)),
    )
    found = measure([slice(None)])
    assert 0 < share < 1
    assert msgspec.structs.asdict(found) == pytest.approx(msgspec.structs.asdict(expected), rel=1e-10)


@given(st.lists(st.integers(1, COUNT - 1), unique=True).map(sorted), st.integers(1, 8))
def test_chunks_do_not_matter(cuts: list[int], at_once: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "_AT_ONCE", at_once * VOCAB)
        found = measure([slice(a, b) for a, b in zip([0, *cuts], [*cuts, COUNT], strict=True)])
    whole = msgspec.structs.asdict(measure([slice(None)]))
    assert msgspec.structs.asdict(found) == pytest.approx(whole, rel=1e-12)


def test_a_model_does_not_diverge_from_itself():
    found = measure([slice(None)], test=REFERENCE + np.float32(4))
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert (found.perplexity_ratio, found.top1_agreement, found.top1_agreement_se) == (pytest.approx(1), 1, 0)


def test_sees_a_divergence_that_float32_would_drown():
    found = measure([slice(None)], test=np.nextafter(REFERENCE, np.float32(np.inf)) * np.float32(1 + 1e-5))
    p, q = log_softmax(REFERENCE), log_softmax(np.nextafter(REFERENCE, np.float32(np.inf)) * np.float32(1 + 1e-5))
    assert found.mean_kl == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-3)
    assert 0 < found.mean_kl < 1e-8


def test_excluded_tokens():
    reference, test = REFERENCE.copy(), TEST.copy()
    free = np.setdiff1d(np.arange(VOCAB), TARGETS)[0]
    reference[:, free] = -np.inf
    assert np.isfinite(measure([slice(None)], reference, test).mean_kl)
    test[:, free] = -np.inf
    excluded = measure([slice(None)], reference, test)
    assert np.isfinite(excluded.mean_kl)
    kept = np.delete(reference, free, axis=1), np.delete(test, free, axis=1)
    p, q = map(log_softmax, kept)
    assert excluded.mean_kl == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-10)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_logits_are_no_good_result(broken: float):
    test = TEST.copy()
    test[7, 3] = broken
    found = measure([slice(None)], test=test)
    assert np.isnan(found.mean_kl)
    assert np.isnan(found.test_perplexity)


def test_one_window_has_no_clustered_error_and_json_keeps_it():
    accumulator = Accumulator()
    accumulator.add(REFERENCE, TEST, TARGETS, np.zeros(COUNT, np.int64))
    found = accumulator.result()
    assert found.perplexity_ratio_clustered_se is None
    assert msgspec.json.decode(msgspec.json.encode(found), type=Divergence) == found


def test_refuses_what_it_cannot_compare():
    with pytest.raises(UsageError, match="different vocabularies"):
        Accumulator().add(REFERENCE, TEST[:, 1:], TARGETS, WINDOWS)
    with pytest.raises(UsageError, match="at least two"):
        Accumulator().result()
