"""The parent's end of the processes of a race."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from edgec.errors import BundleError, EdgecError, InconclusiveError
from edgec.measure.worker import Answer, Begin, Failed, GoOn, Load, Loaded, Ran, Ready, Request, Run
from edgec.measure.workload import Workload

A = TypeVar("A", Ready, Loaded, Ran)

_WORKER = "edgec.measure.worker"
# Whoever ends processes ends them with these; all others are crashes.
_ENDED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A runtime may be in a deadlock: who says nothing for so long, and for so many times what it takes queries to arrive,
# never will.
_SILENCE_S, _PATIENCE = 600.0, 10
_LONGEST_POLL_MS = 2**31 - 1


class Worker:
    """The parent's end of a process; what the process says in place of an answer is raised."""

    def __init__(self) -> None:
        """Start it."""
        self._bundle = Load("", (), None, None)
        self._arrival_s = 0.0
        # -P: modules of the directory that the user happens to be in must not be imported.
        command = [sys.executable, "-P", "-m", _WORKER]
        # A session of its own: Ctrl-C is for the parent, which ends its processes.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def ready(self) -> None:
        """Wait until it is there."""
        self._expect(Ready)
        self._pause()

    def open(
        self, bundle: Path, workloads: tuple[Workload, ...], threads: int | None, cpus: tuple[int, ...] | None
    ) -> None:
        """Say what it is about; see `Load`."""
        self._bundle = Load(str(bundle), workloads, threads, cpus)
        self._arrival_s = max((1 / each.rate_per_s for each in workloads if each.rate_per_s), default=0.0)

    def load(self) -> float:
        """Load the bundle, once more if it is there already; return the time in ms."""
        self._send(self._bundle)
        loaded = self._expect(Loaded)
        self._pause()
        return loaded.load_ms

    def run(self, workload: int, queries: int, seed: int) -> Ran:
        """Run queries; see `Run`."""
        return self.take(Run(workload, queries, seed))

    def take(self, request: Run | Begin | GoOn) -> Ran:
        """Take a turn."""
        queries = request.queries if isinstance(request, Run) else 1
        self._send(request)
        ran = self._expect(Ran, _PATIENCE * queries * self._arrival_s)
        self._pause()
        return ran

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _pause(self) -> None:
        """Stop it until the next request: threads of a runtime spin for some ms after a run, in case of another one.

        Two of them on two CPUs made those whose turn it was three times as slow.
        """
        if sys.platform == "linux":  # where it ends with its parent, stopped or not
            self._process.send_signal(signal.SIGSTOP)

    def _send(self, request: Request) -> None:
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # what it says, or how it died, is read next
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()

    def _expect(self, kind: type[A], expected_s: float = 0.0) -> A:
        line = self._line(_SILENCE_S + expected_s)
        if not line.endswith(b"\n"):
            raise _died(self._process.wait(), self._bundle.bundle)
        answer = msgspec.json.decode(line, type=Answer)
        if isinstance(answer, Failed):
            raise _error(answer)
        assert isinstance(answer, kind)
        return answer

    def _line(self, silence_s: float) -> bytes:
        """Return a line of what the process says; it has no end where the process ended before it."""
        assert self._process.stdout
        out, poll, line = self._process.stdout.fileno(), select.poll(), b""
        poll.register(out, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(min(1e3 * silence_s, _LONGEST_POLL_MS)):
                self._process.kill()
                raise _silent(silence_s, self._bundle.bundle)
            part = os.read(out, 1 << 16)
            if not part:
                break
            line += part
        return line


@contextmanager
def workers(count: int) -> Iterator[list[Worker]]:
    """Start processes, wait until all are there, and end them."""
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            worker = Worker()
            stack.callback(worker.close)
            started.append(worker)
        for worker in started:
            worker.ready()
        yield started


def _error(failed: Failed) -> EdgecError:
    error = EdgecError(failed.what, where=failed.where, hint=failed.hint)
    error.exit_code = failed.exit_code
    return error


def _silent(silence_s: float, bundle: str) -> EdgecError:
    return BundleError(
        f"the process that ran the bundle has not answered for {silence_s / 60:.0f} minutes",
        where=bundle or None,
        hint="its runtime may be in a deadlock (try another number of threads), or a query takes longer than that",
    )


def _died(code: int, bundle: str) -> EdgecError:
    if -code in _ENDED:
        return InconclusiveError(
            "the process that timed a bundle was killed",
            where=bundle,
            hint="it may have taken more memory than there is" if -code == signal.SIGKILL else None,
        )
    how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return BundleError(f"the process that ran the bundle {how}", where=bundle)
