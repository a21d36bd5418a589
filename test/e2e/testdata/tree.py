"""Makes a hard tree of files in a sandbox, or prints what is in it.

tree.py make      changes and makes files of every kind, as root
tree.py list DIR… prints a line for each file below the folders: everything
                  that a snapshot has to keep
"""
import hashlib
import os
import shutil
import stat
import sys

ROOT = "/opt/hard"


def write(name, data=b"", mode=0o644):
    path = os.path.join(os.fsencode(ROOT), name if isinstance(name, bytes) else name.encode())
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)
    return path


def make():
    os.makedirs(ROOT)
    # Names
    for name in ["plain", "space and\ttab", "line\nbreak", "ünïcode", "x" * 255, "-rf", "a=b", ".hidden", "\u202e"]:
        write(name, name.encode())
    write(b"not-utf8-\xff\xfe", b"bytes")
    deep = ROOT + "/deep" * 60
    os.makedirs(deep)
    write("deep/" * 60 + "file", b"deep down")
    # Contents
    write("empty")
    write("page", b"p" * 4096)
    write("odd", os.urandom(12345))
    write("big", os.urandom(20_000_000))
    with open(ROOT + "/sparse", "wb") as f:
        f.write(b"begin")
        f.seek(5_000_000_000)
        f.write(b"middle")
        f.truncate(9_000_000_000)
    with open(ROOT + "/hole", "wb") as f:
        f.truncate(1_000_000)
    # Kinds
    os.symlink("plain", ROOT + "/link")
    os.symlink("/nowhere/at/all", ROOT + "/dangling")
    os.symlink("y" * 3000, ROOT + "/long-link")
    os.link(ROOT + "/plain", ROOT + "/hard-link")
    os.mkdir(ROOT + "/dir")
    os.link(ROOT + "/plain", ROOT + "/dir/hard-link-elsewhere")
    os.mkfifo(ROOT + "/fifo", 0o620)
    os.mknod(ROOT + "/char", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(ROOT + "/block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    # Owners and modes
    for i, mode in enumerate([0o000, 0o4755, 0o2755, 0o1644, 0o7777, 0o400]):
        path = write(f"mode-{mode:o}", b"m")
        os.chown(path, 1000 + i, 60000 + i)
        os.chmod(path, mode)
    os.mkdir(ROOT + "/sticky")
    os.chmod(ROOT + "/sticky", 0o3777)
    os.lchown(ROOT + "/link", 12, 34)
    # Attributes
    os.setxattr(write("xattr-text"), "user.colour", b"blue")
    os.setxattr(write("xattr-binary"), "user.bytes", b"\x00\xff\xfe")
    os.setxattr(write("xattr-long"), "user.long", b"v" * 4000)
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(write("xattr-capability", b"#!/bin/sh\n", 0o755), "security.capability", capability)
    # What the image has
    os.remove("/etc/debian_version")
    shutil.rmtree("/usr/share/zoneinfo/Europe")
    shutil.rmtree("/usr/share/zoneinfo/Asia")
    os.mkdir("/usr/share/zoneinfo/Asia")
    write("../../usr/share/zoneinfo/Asia/Atlantis", b"new in an old folder")
    shutil.rmtree("/usr/share/zoneinfo/Africa")
    write("../../usr/share/zoneinfo/Africa", b"a file where a folder was")
    os.remove("/etc/issue")
    os.mkdir("/etc/issue")
    os.chmod("/usr/share/zoneinfo/Etc/UTC", 0o600)
    os.truncate("/etc/services", 100)
    with open("/etc/protocols", "ab") as f:
        f.write(b"appended\n")
    os.chown("/etc/rpc" if os.path.exists("/etc/rpc") else "/etc/shells", 77, 78)
    shutil.move("/usr/share/zoneinfo/America", "/usr/share/zoneinfo/Moved")
    os.link("/etc/login.defs", ROOT + "/link-to-image")
    # Many
    os.mkdir(ROOT + "/many")
    for i in range(5000):
        write(f"many/{i}", str(i).encode())
    # Times, at the end, since all of the above changes them
    # gVisor itself garbles fractions of seconds before 1970.
    times = [0, 1, -86400 * 10**9, 1_234_567_890_123_456_789, 4_102_444_800_999_999_999, 1_700_000_000_500_000_000, 1_700_000_000_499_999_999]
    for i, ns in enumerate(times):
        path = write(f"time-{i}", b"t")
        os.utime(path, ns=(ns, ns))
    os.utime(ROOT + "/dangling", ns=(5, 1_600_000_000_000_000_007), follow_symlinks=False)
    os.utime(ROOT + "/sticky", ns=(5, 1_600_000_000_000_000_001))


def describe(path):
    st = os.lstat(path)
    fields = [oct(st.st_mode), st.st_uid, st.st_gid, st.st_nlink, st.st_mtime_ns]
    if stat.S_ISREG(st.st_mode):
        fields += [st.st_size, digest(path, st)]
    if stat.S_ISLNK(st.st_mode):
        fields.append(os.readlink(path))
    if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        fields.append(st.st_rdev)
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        fields.append(f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}")
    return fields


def digest(path, st):
    """The hash of the contents; of a large sparse file that of its data."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        if st.st_size < 100_000_000:
            h.update(f.read())
        else:
            at = 0
            while at < st.st_size:
                try:
                    at = os.lseek(f.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
                f.seek(at)
                data = f.read(end - at).rstrip(b"\0")
                h.update(data)
                at = end
    return h.hexdigest()


def listing(dirs):
    for top in dirs:
        for folder, names, files in os.walk(top):
            names.sort()
            for path in [folder] + [os.path.join(folder, n) for n in sorted(files) + [d for d in names if os.path.islink(os.path.join(folder, d))]]:
                print(repr(os.fsencode(path)), *describe(path))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make()
    else:
        listing(sys.argv[2:])
