"""Keep torch from splitting small operations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let each operation run on one thread: this one, and threads that are started inside.

    On a busy machine threads that wait for each other cost ten times the work. And how an operation is split decides
    how its sums are rounded: results that are computed inside do not depend on the number of cores. The number is the
    process's: threads that run side by side use this only inside of another use of it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
