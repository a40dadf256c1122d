"""Matrices quantized some rows at a time: on one thread each, with the same result for any number of them at once."""

import math
import pkgutil
import time
from importlib import import_module
from itertools import chain
from threading import Barrier, Thread, get_ident

import pytest
import torch
from random_matrices import normal

from edgec.calibrate.stats import Stats
from edgec.quantize import algorithms, pieces
from edgec.quantize.pieces import for_rows
from edgec.quantize.scheme import Scheme
from edgec.quantize.threads import one_thread

# Of `autoround` too rows are worked alone, to start with: it begins where `gptq` ends.
NAMES = [file.name for file in pkgutil.iter_modules(algorithms.__path__) if not file.name.startswith("_")]
SCHEMES = [Scheme("int4", 32), Scheme("int4", None, symmetric=False), Scheme("int8", 32, symmetric=False)]
ROWS, COLS = 70, 90


def in_new_thread(work):
    """Return what `work` returns in a thread of its own."""
    found = []
    thread = Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("three_threads")
def test_workers_have_one_thread_and_the_others_theirs_again():
    assert set(for_rows(8, pieces._ELEMENTS_AT_ONCE, lambda _: torch.get_num_threads())) == {1}
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3


def test_as_many_pieces_are_worked_on_at_once_as_it_says(monkeypatch):
    monkeypatch.setattr(pieces, "_AT_ONCE", 4)
    together = Barrier(4, timeout=60)
    idents = for_rows(4, pieces._ELEMENTS_AT_ONCE, lambda _: (together.wait(), get_ident())[1])
    assert len(set(idents)) == 4


def test_results_are_in_order_and_pieces_are_all_rows_once(monkeypatch):
    monkeypatch.setattr(pieces, "_AT_ONCE", 4)
    monkeypatch.setattr(pieces, "_ELEMENTS_AT_ONCE", 3 * COLS)

    def work(piece):
        time.sleep(0.01 if piece.start == 0 else 0)
        return list(range(ROWS))[piece]

    found = for_rows(ROWS, COLS, work)
    assert list(chain(*found)) == list(range(ROWS))
    assert len(found) == math.ceil(ROWS / 3)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_nothing(name, scheme, monkeypatch):
    monkeypatch.setattr(pieces, "_ELEMENTS_AT_ONCE", 3 * COLS)
    quantize, inputs, found = import_module(f"{algorithms.__name__}.{name}").quantize, normal(200, COLS, seed=1), []
    stats = Stats(inputs.square().mean(0), hessian=inputs.T @ inputs / len(inputs))
    for at_once, threads in ((1, 1), (4, 3)):
        monkeypatch.setattr(pieces, "_AT_ONCE", at_once)
        torch.set_num_threads(threads)
        tensor = quantize(normal(ROWS, COLS), stats, scheme)
        found.append((tensor.codes, tensor.scales, tensor.zero_points if not scheme.symmetric else tensor.codes))
    assert all(map(torch.equal, *found))


@pytest.mark.usefixtures("three_threads")
class TestOneThread:
    def test_inside_of_another(self):
        with one_thread():
            with one_thread():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 1
        assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3

    def test_an_error_ends_it(self):
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3
