"""Ctrl-C, wherever it strikes."""

import subprocess
import sys

# Sends the signal when the main thread calls or leaves its first function inside of a pool, then its second, and so on.
_EVERYWHERE = """
import signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from edgec.cli import _interrupt

def run(at):
    seen = 0
    def strike(frame, event, _):
        nonlocal seen
        if event in ("call", "return"):
            seen += 1
            if seen == at:
                signal.raise_signal(signal.SIGINT)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(int)
        sys.setprofile(strike)
        try:
            list(pool.map(int, range(2)))
            pool.submit(int).result()
        finally:
            sys.setprofile(None)
    return seen

_interrupt.install()
places = run(0)
for at in range(1, places + 1):
    try:
        run(at)
        time.sleep(10)
        sys.exit(f"lost at {at}")
    except KeyboardInterrupt:
        pass
    if threading.active_count() > 1:
        sys.exit(f"threads were left at {at}")
print(places)
"""


def test_an_interrupt_ends_a_pool_of_threads_wherever_it_strikes():
    done = subprocess.run([sys.executable, "-c", _EVERYWHERE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_a_second_interrupt_does_not_wait():
    script = """
import os, signal, threading, time
from edgec.cli import _interrupt
_interrupt.install()
started = time.monotonic()
for after in (0.1, 0.5):
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    threading.Event().wait(30)
except KeyboardInterrupt:
    print(time.monotonic() - started)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert 0.4 < float(done.stdout) < 10
    assert done.stderr == ""
