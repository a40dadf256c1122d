"""Resident memory of this process, in bytes."""

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
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


def _status(field: str) -> int | None:
    """Return a field of /proc/self/status in bytes; None where there is no /proc."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith(f"{field}:")), None)
