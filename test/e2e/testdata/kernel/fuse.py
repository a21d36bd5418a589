"""Checks of FUSE, as root: a filesystem with one file, served by this program."""

import ctypes
import errno
import os
import struct
import threading

from check import check, equal, fails, main

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS = 1, 2, 3, 14, 15, 18, 25, 26, 27, 28, 29, 34
ROOT, FILE, CONTENT = 1, 2, b"hello"
libc = ctypes.CDLL(None, use_errno=True)


def attributes(node):
    mode, size = (0o40755, 0) if node == ROOT else (0o100644, len(CONTENT))
    return struct.pack("=6Q10I", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(op, node, body):
    """The answer to a request, or None if it is not implemented."""
    if op == INIT:
        return struct.pack("=IIIIHHIIHHI7I", 7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, 0, *[0] * 7)
    if op == LOOKUP and body.split(b"\0")[0] == b"file":
        return struct.pack("=4QII", FILE, 0, 0, 0, 0, 0) + attributes(FILE)
    if op == GETATTR:
        return struct.pack("=QII", 0, 0, 0) + attributes(node)
    if op in (OPEN, OPENDIR):
        return struct.pack("=QII", 7, 0, 0)
    if op == READ:
        return CONTENT[struct.unpack_from("=QQ", body)[1]:]
    if op == READDIR:
        return b"" if struct.unpack_from("=QQ", body)[1] else struct.pack("=QQII8s", FILE, 1, 4, 8, b"file")
    if op in (FLUSH, RELEASE, RELEASEDIR):
        return b""
    return None


def serve(fd, asked):
    while True:
        try:
            request = os.read(fd, 1 << 17)
        except OSError:  # unmounted
            return
        _, op, unique, node = struct.unpack_from("=IIQQ", request)
        asked.add(op)
        if op == FORGET:
            continue
        body = answer(op, node, request[40:])
        error = 0 if body is not None else -errno.ENOENT if op == LOOKUP else -errno.ENOSYS
        os.write(fd, struct.pack("=IiQ", 16 + len(body or b""), error, unique) + (body or b""))


@check
def a_filesystem_without_access():
    fd, asked = os.open("/dev/fuse", os.O_RDWR), set()
    os.makedirs("/tmp/mount", exist_ok=True)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fd
    equal("mount", libc.mount(b"check", b"/tmp/mount", b"fuse", 0, options), 0)
    threading.Thread(target=serve, args=(fd, asked), daemon=True).start()
    try:
        equal("access", os.access("/tmp/mount", os.R_OK), True)
        equal("files", os.listdir("/tmp/mount"), ["file"])
        with open("/tmp/mount/file", "rb") as f:
            equal("content", f.read(), CONTENT)
        fails("another", errno.ENOENT, os.stat, "/tmp/mount/none")
        equal("it was asked for access", ACCESS in asked, True)
    finally:
        libc.umount2(b"/tmp/mount", 2)


main()
