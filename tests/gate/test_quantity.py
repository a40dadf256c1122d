"""Numbers and their units, for people."""

import pytest

from edgec.gate.quantity import quantities, quantity

MIB = 2**20


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (None, "ms", "?"),
        (None, "bytes", "?"),
        (1.23456, "ms", "1.235 ms"),
        (1.23456, "", "1.235"),
        (123.456, "/s", "123.5/s"),
        (12345.6, "ms", "12,346 ms"),
        (1e20, "ms", "1e+20 ms"),
        (0, "bytes", "0 bytes"),
        (1023, "bytes", "1023 bytes"),
        (1024, "bytes", "1 KiB"),
        (40 * 2**10, "bytes", "40 KiB"),
        (3.14159 * MIB, "bytes", "3.142 MiB"),
        (1234.56 * MIB, "bytes", "1235 MiB"),
        (98765.4 * MIB, "bytes", "98,765 MiB"),
        (-2 * MIB, "bytes", "-2 MiB"),
    ],
)
def test_a_value_with_its_unit(value, unit, told):
    assert quantity(value, unit) == told


@pytest.mark.parametrize(
    ("values", "unit", "told"),
    [
        ((), "ms", ""),
        ((1.5,), "ms", "1.5 ms"),
        ((1.5, 2), "", "1.5 -> 2"),
        ((100, 90), "/s", "100 -> 90/s"),
        ((2.901 * MIB, 1.811 * MIB), "bytes", "2.901 -> 1.811 MiB"),
        ((1.5 * MIB, MIB / 2), "bytes", "1.5 MiB -> 512 KiB"),
    ],
)
def test_a_unit_is_said_once(values, unit, told):
    assert quantities(values, unit) == told
