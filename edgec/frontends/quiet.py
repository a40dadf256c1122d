"""Silence while torch, its exporter and models work, and where in a model they failed."""

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path


@contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings and logs below errors, and send prints to stderr: results alone go to stdout."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def place_of(error: BaseException) -> str | None:
    """Return the line of a model's code, `file:line in function`, in which an error came up; None for torch's own."""
    homes = [spec.origin for name in ("torch", "edgec", "importlib") if (spec := find_spec(name)) and spec.origin]
    foreign = tuple(f"{Path(home).parent}/" for home in homes)
    frames = traceback.extract_tb(error.__traceback__)
    found = [frame for frame in frames if not frame.filename.startswith((*foreign, "<"))]
    return f"{found[-1].filename}:{found[-1].lineno} in {found[-1].name}" if found else None
