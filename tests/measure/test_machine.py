import json

import numpy as np
import onnxruntime
import pytest

from edgec.measure.bandwidth import read_bandwidth_gb_per_s
from edgec.measure.fingerprint import fingerprint
from edgec.measure.memory import peak_rss_bytes, reset_peak_rss, rss_bytes

MIB = 2**20


def test_memory_follows_an_allocation():
    before = rss_bytes()
    block = np.ones(64 * MIB, np.uint8)
    assert rss_bytes() - before > 60 * MIB
    peak = peak_rss_bytes()
    assert peak >= before + 60 * MIB
    del block
    assert peak_rss_bytes() > peak - MIB  # the kernel counts in batches
    if not reset_peak_rss():
        pytest.skip("the kernel does not let this process reset its peak")
    assert peak_rss_bytes() < peak - 50 * MIB


def test_bandwidth_is_that_of_a_memory():
    for threads in (None, 1):
        assert 0.2 < read_bandwidth_gb_per_s(threads, 32 * MIB) < 5000


def test_fingerprint_names_machine_and_versions():
    found = fingerprint()
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["numpy"] == np.__version__
    assert float(found["memory_gib"]) > 0.1
    assert int(found["cpus"]) >= int(found["usable_cpus"]) >= 1
    assert found == fingerprint() == json.loads(json.dumps(found))
