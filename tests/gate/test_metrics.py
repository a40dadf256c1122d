"""What processes tell of, and what is gated of it."""

import numpy as np
import pytest

from edgec.gate.metrics import Measured, measured, needed, values
from edgec.measure.query import Slice
from edgec.measure.race import Process


def process(tokens=10, turns=3, **more):
    slices = tuple(
        Slice({"ttft_ms": [5.0 + turn], "token_ms": list(np.arange(1.0, tokens + 1) + turn)}, 2.0, tokens, **more)
        for turn in range(turns)
    )
    return Process((30.0, 20.0), 1000, (slices,), 50, (1,))


def names(process):
    return [metric.name for metric in measured(process)]


def test_tails_are_told_where_the_sample_is_large_enough():
    assert "token_p50_ms" in names(process(tokens=4))
    assert "token_p50_ms" not in names(process(tokens=3))
    assert "token_p90_ms" in names(process(tokens=22))
    assert "token_p90_ms" not in names(process(tokens=21))
    assert "token_p99_ms" in names(process(tokens=221))
    assert "ttft_p50_ms" not in names(process(tokens=221))  # one for each turn


def test_values_are_of_turns_loads_or_processes():
    found = process()
    assert values(found, Measured("load_ms", None)).tolist() == [30, 20]
    assert values(found, Measured("size_bytes", None)).tolist() == [50]
    assert values(found, Measured("token_ms", 0)).tolist() == [5.5, 6.5, 7.5]
    assert values(found, Measured("tokens_per_s", 0)).tolist() == [5, 5, 5]
    assert values(found, Measured("token_p50_ms", 0)).tolist() == [6.5]


def test_energy_is_told_where_the_machine_tells():
    assert "energy_mj" not in names(process())
    found = process(energy_j=0.5)
    assert values(found, Measured("energy_mj", 0)).tolist() == [50, 50, 50]
    assert Measured("energy_mj", 0).unit == "mJ"


def test_rates_are_better_the_higher():
    assert Measured("tokens_per_s", 0).higher_is_better
    assert not Measured("token_ms", 0).higher_is_better
    assert [Measured(name, 0).unit for name in ("tokens_per_s", "token_ms", "size_bytes")] == ["/s", "ms", "bytes"]


def test_gated_percentiles_ask_for_their_sample():
    assert needed(["token_p99_ms", "token_p90_ms", "ttft_p50_ms", "load_ms"]) == {"token_ms": 662, "ttft_ms": 11}


def test_rates_of_queries_in_pieces_are_of_whole_queries():
    prompt = Slice({"ttft_ms": [90.0]}, 0.09, 1)
    tokens = [Slice({"token_ms": [5.0, 5.0]}, 0.01, 2), Slice({"token_ms": [7.0]}, 0.01, 1)]
    found = Process((1.0,), 1, ((prompt, *tokens, prompt, *tokens),), 1, (3,))
    assert {"ttft_ms", "token_ms", "tokens_per_s"} <= set(names(found))
    assert values(found, Measured("tokens_per_s", 0)) == pytest.approx([4 / 0.11] * 2)
    assert values(found, Measured("ttft_ms", 0)).tolist() == [90, 90]
    assert values(found, Measured("token_ms", 0)).tolist() == [5, 7, 5, 7]
