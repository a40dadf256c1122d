"""Energy that processors say they took; where they do not tell, nothing is guessed."""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Reads the counters of all processor packages.

    Source: Linux, Documentation/power/powercap/powercap.rst: `energy_uj` counts microjoules up to
    `max_energy_range_uj` and begins anew. Reading takes root on most machines.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        # Packages alone (intel-rapl:0): their cores and graphics (intel-rapl:0:1) are part of them.
        zones = sorted(powercap.glob("*-rapl:[0-9]*")) if powercap.is_dir() else []
        self._packages = [zone for zone in zones if zone.name.count(":") == 1 and _name(zone).startswith("package")]

    def read_j(self) -> tuple[float, ...] | None:
        """Return the counter of each package in joules; None where one cannot be read, or there is none."""
        found = [_microjoules(zone / "energy_uj") for zone in self._packages]
        if not found or None in found:
            return None
        return tuple(value / 1e6 for value in found if value is not None)

    def since_j(self, before: tuple[float, ...] | None) -> float | None:
        """Return the joules that all packages took since `before`, which `read_j` gave; None where they do not tell."""
        now = self.read_j()
        if before is None or now is None:
            return None
        taken = 0.0
        for zone, begin, end in zip(self._packages, before, now, strict=True):
            # Most machines never let a counter begin anew while one looks: where it ends is read when it did.
            wrap = 0 if end >= begin else _microjoules(zone / "max_energy_range_uj")
            if wrap is None:
                return None
            taken += end - begin + wrap / 1e6
        return taken


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _microjoules(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
