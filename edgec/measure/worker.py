"""A process of a race: loads one bundle, and times it when it is its turn (`python -m edgec.measure.worker`).

It reads requests and writes answers, a line of JSON each; what libraries print goes to stderr. Between its turns the
parent stops it.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from edgec.errors import EdgecError, explain
from edgec.measure.memory import peak_rss_bytes, reset_peak_rss
from edgec.measure.query import Model, Slice
from edgec.measure.workload import Workload

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Load(msgspec.Struct, tag=True, frozen=True):
    """Load a bundle, on some CPUs if they are named; the answer is `Loaded`."""

    bundle: str
    workloads: tuple[Workload, ...]
    threads: int | None
    cpus: tuple[int, ...] | None


class Run(msgspec.Struct, tag=True, frozen=True):
    """Run queries; the answer is a slice, with the peak of memory so far."""

    workload: int
    queries: int
    seed: int


class Begin(msgspec.Struct, tag=True, frozen=True):
    """Run the first steps of a query; the answer is as for `Run`."""

    workload: int
    steps: int
    seed: int


class GoOn(msgspec.Struct, tag=True, frozen=True):
    """Run some more steps of that query; the answer is as for `Run`."""

    steps: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The process is there."""


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """The bundle is there."""

    load_ms: float


class Ran(msgspec.Struct, tag=True, frozen=True):
    """Queries were run; `peak_rss_bytes` is of this process since it began to load."""

    slice: Slice
    peak_rss_bytes: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """What an error says, and the exit code that goes with it."""

    what: str
    where: str | None
    hint: str | None
    exit_code: int


Request = Load | Run | Begin | GoOn
Answer = Ready | Loaded | Ran | Failed


def main() -> None:
    """Answer requests until there are no more."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    gc.disable()

    def answer(value: Answer) -> None:
        answers.write(msgspec.json.encode(value) + b"\n")

    try:
        _serve(answer)
    except Exception as raised:  # noqa: BLE001 - the parent says what happened
        told = raised if isinstance(raised, EdgecError) else explain(raised)
        with suppress(BrokenPipeError):  # the parent is gone
            answer(Failed(told.what, told.where, told.hint, told.exit_code))
    os._exit(0)  # runtimes take their time to tear down


def _end_with_parent() -> None:
    """Let the kernel end this process when the parent ends, however that does: stopped, it would not notice."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(answer: Callable[[Answer], None]) -> None:
    model: Model | None = None
    answer(Ready())
    for line in sys.stdin.buffer:
        match msgspec.json.decode(line, type=Request):
            case Load() as load:
                if load.cpus is not None:
                    os.sched_setaffinity(0, load.cpus)
                model = None  # of what was loaded before nothing is left
                reset_peak_rss()
                model = Model(Path(load.bundle), load.workloads, load.threads)
                answer(Loaded(model.load_ms))
            case other:
                assert model is not None
                answer(Ran(_run(model, other), peak_rss_bytes()))


def _run(model: Model, request: Run | Begin | GoOn) -> Slice:
    match request:
        case Run(workload, queries, seed):
            return model.run(workload, queries, seed)
        case Begin(workload, steps, seed):
            return model.begin(workload, steps, seed)
        case GoOn(steps):
            return model.go_on(steps)


if __name__ == "__main__":
    main()
