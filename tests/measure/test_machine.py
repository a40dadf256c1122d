import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import onnxruntime
import pytest

from edgec.measure import fingerprint as module
from edgec.measure.bandwidth import read_bandwidth_gb_per_s
from edgec.measure.fingerprint import SPEED_FACTS, fingerprint, machine_hash, speed_facts
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


def test_fingerprint_names_runtimes_without_loading_them():
    code = (
        "import sys; from edgec.measure.fingerprint import fingerprint; print(fingerprint().get('openvino'));"
        "print({'openvino', 'onnxruntime', 'tensorrt_rtx_bindings'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [version("openvino"), "set()"]
    assert "no-such-runtime" not in fingerprint()


def test_gpus_are_named(tmp_path, monkeypatch):
    assert module._gpu() == {} or module._gpu().keys() == {"gpu", "gpu_driver"}
    monkeypatch.setattr(module, "_NVIDIA", tmp_path)
    assert module._gpu() == {}
    for bus in ("0000:0a:00.0", "0000:0b:00.0"):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
        (tmp_path / "gpus" / bus / "information").write_text(f"Model: \t\t NVIDIA RTX\nBus Location: \t {bus}\n")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX  535.1  Thu\nGCC version:  gcc 12\n")
    assert module._gpu() == {"gpu": "NVIDIA RTX, NVIDIA RTX", "gpu_driver": "NVIDIA UNIX  535.1  Thu"}
    assert fingerprint()["gpu"] == "NVIDIA RTX, NVIDIA RTX"


@pytest.mark.parametrize("name", ["edgec", "memory_gib", "cpus", "tokenizers", "what else there is"])
def test_what_does_not_decide_speed_is_not_in_the_hash(name):
    found = fingerprint()
    assert machine_hash({**found, name: "other"}) == machine_hash(found)


@pytest.mark.parametrize("name", sorted(SPEED_FACTS))
def test_what_decides_speed_is_in_the_hash(name):
    found = fingerprint()
    assert machine_hash({**found, name: "other"}) != machine_hash(found)
    assert name in speed_facts({**found, name: "other"})


def test_the_hash_is_short_and_of_no_order():
    found = fingerprint()
    assert machine_hash(dict(reversed(found.items()))) == machine_hash(found)
    assert len(machine_hash(found)) == len(machine_hash({})) == 8
    # Histories outlive versions of edgec: the same facts have to give the same hash for ever.
    assert machine_hash({"cpu_model": "a", "kernel": "Linux \u00e9", "edgec": "1"}) == "fc19eba0"
