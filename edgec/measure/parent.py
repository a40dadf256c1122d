"""The parent's end of the processes of a race."""

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


class Worker:
    """The parent's end of a process; what the process says in place of an answer is raised."""

    def __init__(self) -> None:
        """Start it."""
        self._bundle = Load("", (), None, None)
        # -P: modules of the directory that the user happens to be in must not be imported.
        command = [sys.executable, "-P", "-m", _WORKER]
        # A session of its own: Ctrl-C is for the parent, which ends its processes.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def ready(self) -> None:
        """Wait until it is there."""
        self._expect(Ready)

    def open(
        self, bundle: Path, workloads: tuple[Workload, ...], threads: int | None, cpus: tuple[int, ...] | None
    ) -> None:
        """Say what it is about; see `Load`."""
        self._bundle = Load(str(bundle), workloads, threads, cpus)

    def load(self) -> float:
        """Load the bundle, once more if it is there already; return the time in ms."""
        self._send(self._bundle)
        return self._expect(Loaded).load_ms

    def run(self, workload: int, queries: int, seed: int) -> Ran:
        """Run queries; see `Run`."""
        return self.take(Run(workload, queries, seed))

    def take(self, request: Run | Begin | GoOn) -> Ran:
        """Take a turn."""
        self._send(request)
        return self._expect(Ran)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _send(self, request: Request) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # what it says, or how it died, is read next
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()

    def _expect(self, kind: type[A]) -> A:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise _died(self._process.wait(), self._bundle.bundle)
        answer = msgspec.json.decode(line, type=Answer)
        if isinstance(answer, Failed):
            raise _error(answer)
        assert isinstance(answer, kind)
        return answer


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


def _died(code: int, bundle: str) -> EdgecError:
    if -code in _ENDED:
        return InconclusiveError(
            "the process that timed a bundle was killed",
            where=bundle,
            hint="it may have taken more memory than there is" if -code == signal.SIGKILL else None,
        )
    how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return BundleError(f"the process that ran the bundle {how}", where=bundle)
