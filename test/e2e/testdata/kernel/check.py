"""What the checks of a sandbox's kernel share.

Each program beside this one (but for absent.py and limits.py) runs on Linux as it runs in a
sandbox, so what a check expects can be held against a real kernel.
"""

import os
import select
import signal
import sys
import termios
import traceback

PATIENCE = 60  # seconds until what should not block is taken to hang

_checks = []


def check(f):
    """Registers a function as a check; it returns when all is as on Linux."""
    _checks.append(f)
    return f


def equal(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, want {want!r}")


def fails(what, errno, f, *args):
    """Asserts that a call fails with errno."""
    try:
        got = f(*args)
    except (OSError, termios.error) as e:
        if e.args[0] != errno:
            raise AssertionError(f"{what}: {e}, want {os.strerror(errno)}") from None
        return
    raise AssertionError(f"{what}: {got!r}, want {os.strerror(errno)}")


def events(fd, mask=select.POLLIN | select.POLLOUT, timeout=0):
    """What poll says about fd, after timeout seconds at the latest."""
    p = select.poll()
    p.register(fd, mask)
    got = p.poll(timeout * 1000)
    return got[0][1] if got else 0


def eventually(what, f):
    """Waits for what a kernel may do a moment later than the call."""
    while not f():
        select.select([], [], [], 0.001)
        # The alarm of the check ends this.


def _hung(*_):
    raise TimeoutError(f"hung for {PATIENCE} s")


def main():
    """Runs the checks named in the arguments, or all; prints a line for each."""
    signal.signal(signal.SIGALRM, _hung)
    for f in _checks:
        if len(sys.argv) > 1 and f.__name__ not in sys.argv[1:]:
            continue
        signal.alarm(PATIENCE)
        try:
            f()
            print(f"ok {f.__name__}", flush=True)
        except BaseException as e:
            at = traceback.extract_tb(e.__traceback__)[1].lineno
            print(f"FAIL {f.__name__} line {at}: {type(e).__name__}: {e}", flush=True)
        finally:
            signal.alarm(0)
    print("end", flush=True)
