"""Resident memory of this process, in bytes."""

import resource
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_KIB = 1024


def rss_bytes() -> int:
    """Return the memory that is resident now."""
    return _status("VmRSS") or peak_rss_bytes()


def peak_rss_bytes() -> int:
    """Return the most memory that was resident since `reset_peak_rss`, or since the process began."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def peak_rss_of_children_bytes() -> int:
    """Return the most memory that was resident in one of the child processes that have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _KIB


def reset_peak_rss() -> bool:
    """Begin a new peak; return whether the kernel let us.

    Source: proc_pid_clear_refs(5): writing 5 resets VmHWM to VmRSS.
    """
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def available_bytes() -> int | None:
    """Return the memory that may still be taken, by the machine and by the limits of a container; None if unknown.

    Source: proc_meminfo(5); the kernel's cgroup-v2.rst: limits of all groups above hold, and files that were read count
    until they are dropped (`inactive_file`).
    """
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * _KIB for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_left_in_groups()], default=None)


def _left_in_groups() -> list[int]:
    """Return what each group of this process leaves, where it has a limit."""
    found = []
    try:
        path = next((line[3:] for line in _CGROUP.read_text().splitlines() if line.startswith("0::")), "/")
    except OSError:
        return []
    group = _CGROUPS / path.strip("/")
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # no limit ("max"), or no such file: above the groups there are none
            limit = int((folder / "memory.max").read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text()) - int(stat.get("inactive_file", "0"))
            found.append(max(0, limit - used))
    return found


def _status(field: str) -> int | None:
    """Return a field of /proc/self/status in bytes; None where there is no /proc."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith(f"{field}:")), None)
