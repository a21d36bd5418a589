"""Checks of a filesystem that is mounted at /data."""

import ctypes
import errno
import os

from check import check, equal, fails, main

NOREPLACE, EXCHANGE = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def rename(old, new, flags):
    if libc.renameat2(-100, old.encode(), -100, new.encode(), flags):
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err))


def write(name):
    with open(name, "w") as f:
        f.write(name)


def read(name):
    with open(name) as f:
        return f.read()


@check
def renames_have_flags():
    os.chdir("/data")
    write("a")
    write("b")
    fails("rename onto another", errno.EEXIST, rename, "a", "b", NOREPLACE)
    rename("a", "c", NOREPLACE)
    equal("files", (read("c"), read("b")), ("a", "b"))
    rename("b", "c", EXCHANGE)
    equal("exchanged", (read("c"), read("b")), ("b", "a"))
    fails("exchange with nothing", errno.ENOENT, rename, "b", "none", EXCHANGE)
    fails("both", errno.EINVAL, rename, "b", "c", NOREPLACE | EXCHANGE)


main()
