"""Make a process see the facts of a device, from facts.json beside this file; Python runs it from PYTHONPATH at start.

`sm` is the GPU's compute capability (null: no CUDA driver), `l4t` the first line of /etc/nv_tegra_release (null: none).
"""

import ctypes
import json
import pathlib

FACTS = json.loads((pathlib.Path(__file__).parent / "facts.json").read_text())
_load, _read_text = ctypes.CDLL, pathlib.Path.read_text


class _Driver:
    """The three functions of libcuda.so.1 that tell a compute capability."""

    started = False

    def cuInit(self, flags):
        self.started = flags == 0
        return FACTS.get("cuda_error", 0)

    def cuDeviceGet(self, device, ordinal):
        device._obj.value = 7
        return 0 if self.started and ordinal == 0 else 3

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: FACTS["sm"] // 10, 76: FACTS["sm"] % 10}[attribute]
        return 0 if self.started and device.value == 7 else 3


def _cdll(name, *args, **kwargs):
    if name != "libcuda.so.1":
        return _load(name, *args, **kwargs)
    if FACTS["sm"] is None:
        raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
    return _Driver()


def _text(self, *args, **kwargs):
    if str(self) != "/etc/nv_tegra_release":
        return _read_text(self, *args, **kwargs)
    if FACTS["l4t"] is None:
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return FACTS["l4t"]


ctypes.CDLL = _cdll
pathlib.Path.read_text = _text
