"""edgec: trained checkpoint + target + profile -> verified bundle that runs on the device."""

__version__ = "0.1.0"
