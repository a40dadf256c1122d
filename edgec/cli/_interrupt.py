"""Ctrl-C and SIGTERM end a command after it has cleaned up, wherever they strike."""

import signal
from types import FrameType
from typing import Final

# An exception between two of their lines can leave a lock held for ever (threading's locks are opened and closed by
# functions written in Python), and one in the callback of a weak reference is printed and lost.
_NOT_INSIDE: Final = ("threading", "concurrent.futures", "weakref", "_weakrefset")
_LATER: Final = 0.02  # seconds


def install() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, but not while it is inside a pool of threads.

    There the signal waits until the pool returns, as the clean-up would have to: a pool ends when what its threads work
    on has. A second signal does not wait. What is ignored (`nohup`, a shell's background jobs) stays ignored.
    """
    waits = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal waits
        is_second = waits and number != signal.SIGALRM
        waits = _is_inside(frame) and not is_second
        signal.setitimer(signal.ITIMER_REAL, _LATER if waits else 0)
        if not waits:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        if number == signal.SIGALRM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _is_inside(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_NOT_INSIDE):
            return True
        frame = frame.f_back
    return False
