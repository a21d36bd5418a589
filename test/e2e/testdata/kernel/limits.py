"""Checks of the limits in docs/limits.md that a sandbox's kernel sets.

Linux has others, and most of these checks fail there.
"""

import errno
import os
import select
import struct
import termios

from check import check, equal, events, fails, main


def attributes(n, size):
    """Makes a file with n extended attributes of so many bytes each."""
    open("/tmp/attributes", "w").close()
    for i in range(n):
        os.setxattr("/tmp/attributes", f"user.{i:03}", b"x" * (size - len("user.000")))


@check
def extended_attributes():
    attributes(128, 1 << 10)
    equal("attributes", len(os.listxattr("/tmp/attributes")), 128)
    fails("one byte more of them", errno.ENOSPC, os.setxattr, "/tmp/attributes", "user.000", b"x" * ((1 << 10) - 7))
    os.remove("/tmp/attributes")
    attributes(128, 100)
    fails("one more", errno.ENOSPC, os.setxattr, "/tmp/attributes", "user.128", b"")
    os.removexattr("/tmp/attributes", "user.000")
    os.setxattr("/tmp/attributes", "user.128", b"")
    os.remove("/tmp/attributes")


def acl(users, groups):
    """An access control list with so many named users and groups."""
    user_obj, user, group_obj, group, mask, other = 1, 2, 4, 8, 16, 32
    entries = [(user_obj, -1), *((user, i) for i in range(users)), (group_obj, -1), *((group, i) for i in range(groups)), (mask, -1), (other, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", tag, 4, who) for tag, who in entries)


@check
def access_control_lists():
    for path in ("/tmp/listed", "/dev/shm/listed"):
        open(path, "w").close()
        for users, groups in ((64, 0), (32, 32)):
            os.setxattr(path, "system.posix_acl_access", acl(users, groups))
            fails("one more, " + path, errno.ENOSPC, os.setxattr, path, "system.posix_acl_access", acl(users, groups + 1))
        os.remove(path)


def fill(fd):
    """Writes to fd until it takes no more; returns how much it took."""
    os.set_blocking(fd, False)
    taken = 0
    try:
        while True:
            taken += os.write(fd, b"x" * 1000)
    except BlockingIOError:
        return taken


def terminal(off):
    m, r = os.openpty()
    t = termios.tcgetattr(r)
    t[3] &= ~off
    termios.tcsetattr(r, termios.TCSANOW, t)
    return m, r


@check
def unread_input_of_a_terminal_waits():
    m, r = terminal(termios.ICANON | termios.ECHO)
    taken = fill(m)
    # What can be read next is beside what waits.
    equal(f"{taken} bytes were taken", 128 << 10 <= taken <= (128 << 10) + 4096, True)
    equal("poll", events(m, select.POLLOUT), 0)
    got = 0
    while got < taken:
        got += len(os.read(r, 4096))
    equal("poll after all was read", events(m, select.POLLOUT), select.POLLOUT)
    equal("more", os.write(m, b"x"), 1)
    os.close(m)
    os.close(r)


@check
def unread_echo_of_a_terminal_is_dropped():
    m, r = terminal(termios.ICANON)
    for _ in range(300):
        equal("typed", os.write(m, b"x" * 1000), 1000)
        got = 0
        while got < 1000:
            got += len(os.read(r, 1000))
    os.set_blocking(m, False)
    echo = 0
    try:
        while True:
            echo += len(os.read(m, 4096))
    except BlockingIOError:
        pass
    equal(f"{echo} bytes of echo", 128 << 10 <= echo <= (128 << 10) + 2 * 4096, True)
    os.write(m, b"y")
    equal("what is typed after that", events(m, select.POLLIN, 50), select.POLLIN)
    equal("its echo", os.read(m, 10), b"y")
    os.close(m)
    os.close(r)


main()
