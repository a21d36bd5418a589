"""Checks of processes: arguments, tracing, limits in /proc/sys."""

import ctypes
import errno
import os
import signal

from check import check, equal, fails, main

PTRACE_TRACEME, PTRACE_PEEKUSER, PTRACE_POKEUSER, PTRACE_ATTACH, PTRACE_DETACH = 0, 3, 6, 16, 17
DEBUGREG = 848  # offset of u_debugreg in struct user

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, pid, addr=0, data=0):
    ctypes.set_errno(0)
    got = libc.ptrace(request, pid, addr, data)
    if err := ctypes.get_errno():
        raise OSError(err, os.strerror(err))
    return got


def run(*args, env=None):
    """Executes a program, which never returns if it could."""
    pid = os.posix_spawn("/bin/true", ["true", *args], env or {})
    equal("the program", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)


@check
def arguments_that_are_too_long():
    run("x" * (131072 - 1))
    fails("a longer one", errno.E2BIG, run, "x" * 131072)
    fails("a longer variable", errno.E2BIG, lambda: run(env={"x": "x" * 131072}))
    run(*["x" * 100000] * 10, env={str(i): "x" * 100000 for i in range(5)})
    fails("many", errno.E2BIG, run, *["x" * 100000] * 22)
    fails("many with the environment", errno.E2BIG, lambda: run(*["x" * 100000] * 15, env={str(i): "x" * 100000 for i in range(15)}))
    fails("a long path", errno.ENAMETOOLONG, os.execv, "x" * 5000, ["x"])


@check
def own_processes_can_be_traced():
    # Not a descendant: the child of a child that has ended.
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os.write(into, b"%d" % os.getpid())
            signal.pause()
        os._exit(0)
    os.waitpid(child, 0)
    pid = int(os.read(out, 20))
    try:
        ptrace(PTRACE_ATTACH, pid)
        equal("it stops", os.waitpid(pid, 0x40000000)[0], pid)
        ptrace(PTRACE_DETACH, pid)
    finally:
        os.kill(pid, signal.SIGKILL)


@check
def watchpoints_are_kept_or_refused():
    pid = os.fork()
    if pid == 0:
        ptrace(PTRACE_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, 0)
    try:
        ptrace(PTRACE_POKEUSER, pid, DEBUGREG + 7 * 8, 0)
        address = 0x10000
        try:
            ptrace(PTRACE_POKEUSER, pid, DEBUGREG, address)
        except OSError as e:
            equal("the error", e.errno, errno.EIO)
        else:
            equal("the register", ptrace(PTRACE_PEEKUSER, pid, DEBUGREG), address)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@check
def limits_are_in_proc_sys():
    for name in ("kernel/threads-max", "fs/file-max", "fs/inotify/max_queued_events", "fs/inotify/max_user_instances", "fs/inotify/max_user_watches"):
        with open("/proc/sys/" + name) as f:
            equal(name, int(f.read()) >= 128, True)


main()
