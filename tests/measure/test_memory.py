"""How much memory there is, on machines and in containers that are written down here."""

import pytest

from edgec.measure import memory
from edgec.measure.memory import available_bytes


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that describes a machine: free KiB, and files of groups."""

    def describe(free, group="/", **files):
        for name, text in {"_MEMINFO": f"MemTotal: 9 kB\n{free}", "_CGROUP": f"9:cpu:/other\n0::{group}\n"}.items():
            (tmp_path / name).write_text(text)
            monkeypatch.setattr(memory, name, tmp_path / name)
        monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
        for folder, (limit, current, inactive) in files.items():
            path = tmp_path / "cgroup" / folder.replace("_", "/").strip("/")
            path.mkdir(parents=True, exist_ok=True)
            (path / "memory.max").write_text(f"{limit}\n")
            (path / "memory.current").write_text(f"{current}\n")
            (path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")

    return describe


def test_this_machine_has_some():
    assert available_bytes() > 2**20


def test_what_the_kernel_says_is_free(machine):
    machine("MemAvailable: 64 kB\n")
    assert available_bytes() == 64 * 1024


def test_a_container_leaves_less(machine):
    machine("MemAvailable: 64 kB\n", _=(30_000, 20_000, 5_000))
    assert available_bytes() == 15_000


def test_limits_of_all_groups_above_hold(machine):
    machine("MemAvailable: 64 kB\n", "/pod/job", pod=(9_000, 1_000, 0), pod_job=("max", 500, 0))
    assert available_bytes() == 8_000


def test_a_group_may_have_taken_more_than_it_may(machine):
    machine("MemAvailable: 64 kB\n", "/pod", pod=(1_000, 2_000, 0))
    assert available_bytes() == 0


def test_machines_that_do_not_tell(machine, tmp_path):
    machine("")
    assert available_bytes() is None
    for name in ("_MEMINFO", "_CGROUP"):
        (tmp_path / name).unlink()
    assert available_bytes() is None
