"""Checks of the loopback interface, also of new network namespaces."""

import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys

from check import check, equal, fails, main

RTM_NEWLINK, RTM_DELADDR, RTM_NEWADDR = 16, 21, 20
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x200, 0x400
IFF_UP, IFF_LOOPBACK, LO = 1, 8, 1
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914


def netlink(kind, flags, body):
    """Sends a request to rtnetlink; fails with its error."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.bind((0, 0))
        s.send(struct.pack("=IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
        err = -struct.unpack_from("=i", s.recv(4096), 16)[0]
    if err:
        raise OSError(err, os.strerror(err))


def add_address(*addr):
    attr = struct.pack("=HH4B", 8, 2, *addr) + struct.pack("=HH4B", 8, 1, *addr)
    netlink(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, struct.pack("=BBBBI", socket.AF_INET, 8, 0x80, 254, LO) + attr)


def set_link(up):
    netlink(RTM_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, LO, IFF_UP if up else 0, IFF_UP))


def flags(new=None):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        if new is not None:
            fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", new))
        return struct.unpack("16sH22x", fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0)))[1]


def talk(family, host):
    """Says something to itself over TCP."""
    with socket.create_server((host, 0), family=family) as server:
        with socket.create_connection(server.getsockname()[:2]) as a:
            b, _ = server.accept()
            with b:
                b.sendall(b"hello")
                equal("what came over " + host, a.recv(10), b"hello")


def isolated(f):
    """Makes a check of f that runs it in a network namespace of its own."""

    def outside():
        user = ["-U", "-r"] if os.geteuid() else []
        args = ["unshare", *user, "-n", sys.executable, sys.argv[0], "--inside", f.__name__]
        equal(f.__name__, subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout, "done\n")

    outside.__name__ = f.__name__
    inside[f.__name__] = f
    return check(outside)


inside = {}


@check
def both_families_work():
    talk(socket.AF_INET, "127.0.0.1")
    talk(socket.AF_INET6, "::1")


@isolated
def a_new_namespace_begins_down():
    equal("up", flags() & (IFF_UP | IFF_LOOPBACK), IFF_LOOPBACK)
    with socket.socket(socket.AF_INET6) as s:
        fails("bind", errno.EADDRNOTAVAIL, s.bind, ("::1", 0))
    with socket.socket() as s:
        fails("connect", errno.ENETUNREACH, s.connect, ("127.0.0.1", 9))


@isolated
def netlink_sets_it_up():
    set_link(True)
    equal("up", flags() & IFF_UP, IFF_UP)
    talk(socket.AF_INET, "127.0.0.1")
    talk(socket.AF_INET6, "::1")
    fails("another address", errno.EEXIST, add_address, 127, 0, 0, 1)
    set_link(False)
    equal("up", flags() & IFF_UP, 0)
    set_link(True)
    talk(socket.AF_INET, "127.0.0.1")


@isolated
def an_address_can_come_before_it_is_up():
    add_address(127, 0, 0, 1)  # as bubblewrap does
    set_link(True)
    talk(socket.AF_INET, "127.0.0.1")
    talk(socket.AF_INET6, "::1")


@isolated
def an_ioctl_sets_it_up():
    flags(IFF_UP | IFF_LOOPBACK)
    talk(socket.AF_INET, "127.0.0.1")
    equal("up", flags(0) & IFF_UP, 0)


if sys.argv[1:2] == ["--inside"]:
    inside[sys.argv[2]]()
    print("done")
else:
    main()
