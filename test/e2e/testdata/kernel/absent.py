"""Checks of what docs/compatibility.md says is absent: the errors that programs see.

On Linux, and with a gVisor that has learnt more, they fail: the page is to be
changed then.
"""

import ctypes
import errno
import fcntl
import os
import socket

from check import check, equal, fails, main

libc = ctypes.CDLL(None, use_errno=True)


def syscall(number, *args):
    if libc.syscall(ctypes.c_long(number), *(a if isinstance(a, bytes) else ctypes.c_long(a) for a in args)) < 0:
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err))


ZEROS = bytes(256)


@check
def system_calls():
    for name, number, args, want in (
        ("io_uring_setup", 425, (4, ZEROS), errno.ENOSYS),
        ("landlock_create_ruleset", 444, (0, 0, 1), errno.ENOSYS),
        ("userfaultfd", 323, (0,), errno.ENOSYS),
        ("fanotify_init", 300, (0, 0), errno.ENOSYS),
        ("memfd_secret", 447, (0,), errno.ENOSYS),
        ("rseq", 334, (0, 0, 0, 0), errno.ENOSYS),
        ("futex_waitv", 449, (0, 0, 0, 0, 0), errno.ENOSYS),
        ("mount_setattr", 442, (-100, b"/tmp", 0, ZEROS, 32), errno.ENOSYS),
        ("statmount", 457, (ZEROS, ZEROS, 256, 0), errno.ENOSYS),
        ("perf_event_open", 298, (ZEROS, 0, -1, -1, 0), errno.ENODEV),
        ("seccomp with user notification", 317, (2, 0, (0x7FC00000).to_bytes(4, "little")), errno.EINVAL),
        ("sched_setscheduler", 144, (0, 1, (1).to_bytes(4, "little")), errno.EINVAL),
    ):
        fails(name, want, syscall, number, *args)


@check
def files():
    for folder, want in (("/tmp", errno.EISDIR), ("/dev/shm", errno.EOPNOTSUPP), ("/data", errno.EOPNOTSUPP)):
        fails("O_TMPFILE in " + folder, want, os.open, folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    with open("/tmp/file", "w+b") as f:
        f.truncate(1 << 20)
        fails("SEEK_DATA", errno.EINVAL, os.lseek, f.fileno(), 0, os.SEEK_DATA)
        fails("a hole", errno.EOPNOTSUPP, syscall, 285, f.fileno(), 3, 0, 4096)
        fails("FICLONE", errno.EOPNOTSUPP, fcntl.ioctl, f.fileno(), 0x40049409, f.fileno())
        fails("chattr", errno.ENOTTY, fcntl.ioctl, f.fileno(), 0x80086601, bytes(8))
    for device in ("/dev/kvm", "/dev/loop-control"):
        equal(device, os.path.exists(device), False)


@check
def sockets():
    for name, args, want in (
        ("AF_VSOCK", (40, 1, 0), errno.EAFNOSUPPORT),
        ("AF_ALG", (38, 5, 0), errno.EAFNOSUPPORT),
        ("SCTP", (2, 1, 132), errno.EINVAL),
        ("MPTCP", (2, 1, 262), errno.EINVAL),
        ("sock_diag", (16, 3, 4), errno.EPROTONOSUPPORT),
        ("nfnetlink", (16, 3, 12), errno.EPROTONOSUPPORT),
    ):
        fails(name, want, socket.socket, *args)


main()
