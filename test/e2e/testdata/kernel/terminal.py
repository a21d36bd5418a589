"""Checks of pseudoterminals: editing, end of file, signals, flow, ioctls."""

import array
import errno
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import threading
import time

from check import check, equal, eventually, events, fails, main

# What Python's termios has no names for, or not in all versions.
TIOCGEXCL, TIOCGPTLCK, TIOCSPTLCK, TIOCGPTN, TIOCGSID = 0x80045440, 0x80045439, 0x40045431, 0x80045430, 0x5429
IUTF8 = 0o40000
READABLE, WRITABLE = select.POLLIN, select.POLLOUT
FOREVER = 50  # seconds; what waits so long has failed


class Terminal:
    """A pseudoterminal: its master m and its replica r."""

    def __init__(self, **flags):
        self.m, self.r = os.openpty()
        if flags:
            self.set(**flags)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for fd in (self.r, self.m):
            if fd is not None:
                os.close(fd)

    def set(self, when=termios.TCSANOW, on=0, off=0, iflag=0, **cc):
        t = termios.tcgetattr(self.r)
        t[0] |= iflag
        t[3] = t[3] & ~off | on
        for name, value in cc.items():
            t[6][getattr(termios, name)] = value
        termios.tcsetattr(self.r, when, t)

    def type(self, data, echo=None):
        """Types data and reads its echo, after which all of it has been processed."""
        os.write(self.m, data)
        if echo is not None:
            got = b""
            while len(got) < len(echo):
                if not events(self.m, READABLE, FOREVER):
                    raise AssertionError(f"echo of {data!r}: {got!r}, want {echo!r}")
                got += os.read(self.m, 4096)
            equal(f"echo of {data!r}", got, echo)

    def waiting(self):
        """How many bytes can be read."""
        n = array.array("i", [0])
        fcntl.ioctl(self.r, termios.FIONREAD, n)
        return n[0]

    def read(self, n=4096):
        if not events(self.r, READABLE, FOREVER):
            raise AssertionError("poll says that there is nothing to read")
        return os.read(self.r, n)


@check
def end_of_file_is_seen_by_poll():
    with Terminal(off=termios.ECHO) as t:
        e = select.epoll()
        e.register(t.r, select.EPOLLIN | select.EPOLLET)
        equal("epoll before", e.poll(0), [])
        t.type(b"\x04")
        equal("epoll", e.poll(FOREVER), [(t.r, select.EPOLLIN)])
        equal("bytes waiting", t.waiting(), 0)
        equal("read", t.read(), b"")
        equal("poll after it", events(t.r, READABLE), 0)
        os.set_blocking(t.r, False)
        fails("a second read", errno.EAGAIN, os.read, t.r, 10)


@check
def end_of_file_wakes_a_reader():
    with Terminal(off=termios.ECHO) as t:
        got = []
        reader = threading.Thread(target=lambda: got.append(os.read(t.r, 10)))
        reader.start()
        t.type(b"\x04")
        reader.join()
        equal("read", got, [b""])


@check
def end_of_file_after_typed_ahead_lines():
    with Terminal() as t:
        t.type(b"x\n\x04", echo=b"x\r\n")
        equal("the line", t.read(), b"x\n")
        equal("the end", t.read(), b"")
        t.type(b"one\ntwo\n\x04three\n", echo=b"one\r\ntwo\r\nthree\r\n")
        equal("bytes waiting", t.waiting(), 14)
        equal("lines", [t.read() for _ in range(4)], [b"one\n", b"two\n", b"", b"three\n"])


@check
def end_of_file_after_half_a_line():
    with Terminal() as t:
        t.type(b"ab\x04", echo=b"ab")
        equal("what was typed", t.read(), b"ab")
        t.type(b"cd\x04\x04e\n", echo=b"cde\r\n")
        equal("reads", [t.read() for _ in range(3)], [b"cd", b"", b"e\n"])


@check
def lines_are_read_in_pieces():
    with Terminal() as t:
        t.type(b"abc\x04d\n", echo=b"abcd\r\n")
        equal("reads", [t.read(2), t.read(2), t.read(1), t.read(1)], [b"ab", b"c", b"d", b"\n"])
        t.type(b"abc\x04d\n", echo=b"abcd\r\n")
        equal("reads", [t.read(3), t.read(3)], [b"abc", b"d\n"])


@check
def reads_and_writes_of_nothing_return():
    with Terminal() as t:
        equal("write to the replica", os.write(t.r, b""), 0)
        equal("write to the master", os.write(t.m, b""), 0)
        equal("read of the replica", os.read(t.r, 0), b"")
        equal("read of the master", os.read(t.m, 0), b"")
        t.type(b"\x04x\n", echo=b"x\r\n")
        equal("read of nothing", os.read(t.r, 0), b"")
        equal("reads", [t.read(), t.read()], [b"", b"x\n"])


@check
def long_lines_are_cut():
    with Terminal(off=termios.ECHO) as t:
        t.type(b"x" * 5000 + b"\n")
        equal("the line", (len(t.read()), events(t.r, READABLE)), (4096, 0))
        t.type(b"y" * 3000 + b"\n" + b"z" * 3000 + b"\n")
        equal("two lines", [len(t.read()), len(t.read())], [3001, 3001])


@check
def a_line_can_be_killed():
    with Terminal() as t:
        t.type(b"abc\x15de\n", echo=b"abc" + b"\b \b" * 3 + b"de\r\n")
        equal("read", t.read(), b"de\n")
        t.type(b"one\ntwo\x15\n", echo=b"one\r\ntwo" + b"\b \b" * 3 + b"\r\n")
        equal("only the last line goes", [t.read(), t.read()], [b"one\n", b"\n"])
        t.set(off=termios.ECHOKE)
        t.type(b"abc\x15de\n", echo=b"abc^U\r\nde\r\n")
        equal("read", t.read(), b"de\n")


@check
def words_and_characters_can_be_erased():
    with Terminal(iflag=IUTF8) as t:
        t.type(b"foo bar-b_z  \x17x\n", echo=b"foo bar-b_z  " + b"\b \b" * 5 + b"x\r\n")
        equal("read", t.read(), b"foo bar-x\n")
        t.type("aé\x7f\x7f\x7fb\n".encode(), echo="aé".encode() + b"\b \b" * 2 + b"b\r\n")
        equal("read", t.read(), b"b\n")
        t.type(b"one\n\x7f\x17two\n", echo=b"one\r\ntwo\r\n")
        equal("lines that are complete stay", [t.read(), t.read()], [b"one\n", b"two\n"])


@check
def the_next_character_can_be_quoted():
    with Terminal() as t:
        t.type(b"\x16\x03\x16\x15\x16\x7f\x16\x04\x16\x16a\n", echo=b"^\b^C^\b^U^\b^?^\b^D^\b^Va\r\n")
        equal("read", t.read(), b"\x03\x15\x7f\x04\x16a\n")
        t.set(off=termios.IEXTEN)
        t.type(b"\x16a\n", echo=b"^Va\r\n")
        equal("read without IEXTEN", t.read(), b"\x16a\n")


@check
def the_line_can_be_shown_again():
    with Terminal() as t:
        t.type(b"a\x01b\x12\n", echo=b"a^Ab^R\r\na^Ab\r\n")
        equal("read", t.read(), b"a\x01b\n")


@check
def control_characters_are_echoed_readably():
    with Terminal() as t:
        t.type(b"\x01\t\x1b[A\n", echo=b"^A\t^[[A\r\n")
        t.read()
        t.type(b"\x01\x7f\n", echo=b"^A\b \b\b \b\r\n")
        equal("read", t.read(), b"\n")
        t.set(off=termios.ECHOCTL)
        t.type(b"\x01\n", echo=b"\x01\r\n")
        t.read()
        t.set(off=termios.ECHO, on=termios.ECHONL)
        t.type(b"a\n", echo=b"\r\n")


@check
def a_character_that_is_switched_off_is_data():
    with Terminal(VINTR=0, VERASE=0, VEOF=0, VEOL=0) as t:
        t.type(b"a\x00\x04\n", echo=b"a^@^D\r\n")
        equal("read", t.read(), b"a\x00\x04\n")


def controlled(t, body):
    """Runs body in a child whose terminal t is; returns its pid and a pipe from it."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(0)
            os.setsid()
            fcntl.ioctl(t.r, termios.TIOCSCTTY, 0)
            body(lambda data: os.write(into, data))
        finally:
            os._exit(0)
    os.close(into)
    return pid, out


@check
def signals_come_while_a_line_waits():
    with Terminal() as t:
        for key, echo, sig in ((b"\x03", b"^C", signal.SIGINT), (b"\x1c", b"^\\", signal.SIGQUIT), (b"\x1a", b"^Z", signal.SIGTSTP)):

            def body(say):
                signal.pthread_sigmask(signal.SIG_BLOCK, [sig])
                say(b"ready ")
                say(signal.sigwait([sig]).name.encode())

            pid, out = controlled(t, body)
            equal("the child", os.read(out, 6), b"ready ")
            t.type(b"not read\n", echo=b"not read\r\n")
            t.type(key + b"x\n", echo=echo + b"x\r\n")
            equal("the child", os.read(out, 10), sig.name.encode())
            equal("what is left to read", t.read(), b"x\n")
            os.waitpid(pid, 0)
            os.close(out)
        t.set(on=termios.NOFLSH)
        t.type(b"a\n\x03b\n", echo=b"a\r\n^Cb\r\n")
        equal("read with NOFLSH", [t.read(), t.read()], [b"a\n", b"b\n"])


@check
def output_can_be_stopped():
    with Terminal() as t:
        os.set_blocking(t.r, False)
        t.type(b"\x13")
        eventually("^S stops", lambda: not events(t.r, WRITABLE))
        fails("write", errno.EAGAIN, os.write, t.r, b"x")
        t.type(b"\x11")
        equal("poll after ^Q", events(t.r, WRITABLE, FOREVER), WRITABLE)
        equal("write", os.write(t.r, b"x"), 1)
        t.type(b"", echo=b"x")

        termios.tcflow(t.r, termios.TCOOFF)
        equal("poll after TCOOFF", events(t.r, WRITABLE), 0)
        fails("write after TCOOFF", errno.EAGAIN, os.write, t.r, b"x")
        t.type(b"\x11")
        equal("^Q is not TCOON", events(t.r, WRITABLE), 0)
        os.set_blocking(t.r, True)
        writer = threading.Thread(target=os.write, args=(t.r, b"y"))
        writer.start()
        termios.tcflow(t.r, termios.TCOON)
        writer.join()
        t.type(b"", echo=b"y")

        termios.tcflow(t.r, termios.TCIOFF)
        termios.tcflow(t.r, termios.TCION)
        t.type(b"", echo=b"\x13\x11")
        fails("tcflow", errno.EINVAL, termios.tcflow, t.r, 4)
        t.type(b"a\n", echo=b"a\r\n")
        equal("read", t.read(), b"a\n")


@check
def any_key_restarts_output_with_ixany():
    with Terminal(iflag=termios.IXANY) as t:
        t.type(b"\x13")
        eventually("^S stops", lambda: not events(t.r, WRITABLE))
        t.type(b"a")
        equal("poll", events(t.r, WRITABLE, FOREVER), WRITABLE)


@check
def output_queue_is_empty():
    with Terminal() as t:
        os.write(t.r, b"abc")
        n = array.array("i", [7])
        fcntl.ioctl(t.r, termios.TIOCOUTQ, n)
        equal("replica", n[0], 0)
        fcntl.ioctl(t.m, termios.TIOCOUTQ, n)
        equal("master", n[0], 0)


def ask(fd, request):
    return struct.unpack("i", fcntl.ioctl(fd, request, struct.pack("i", 7)))[0]


@check
def terminals_can_be_exclusive():
    with Terminal() as t:
        name = os.ttyname(t.r)
        equal("TIOCGEXCL", ask(t.r, TIOCGEXCL), 0)
        fcntl.ioctl(t.r, termios.TIOCEXCL)
        equal("TIOCGEXCL", ask(t.r, TIOCGEXCL), 1)
        fails("open", errno.EBUSY, os.open, name, os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(t.r, termios.TIOCNXCL)
        equal("TIOCGEXCL", ask(t.r, TIOCGEXCL), 0)
        os.close(os.open(name, os.O_RDWR | os.O_NOCTTY))


@check
def terminals_begin_locked():
    m = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    name = f"/dev/pts/{ask(m, TIOCGPTN)}"
    equal("TIOCGPTLCK", ask(m, TIOCGPTLCK), 1)
    fails("open", errno.EIO, os.open, name, os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(m, TIOCSPTLCK, struct.pack("i", 0))
    equal("TIOCGPTLCK", ask(m, TIOCGPTLCK), 0)
    os.close(os.open(name, os.O_RDWR | os.O_NOCTTY))
    os.close(m)


@check
def sessions_are_told():
    with Terminal() as t:
        def body(say):
            say(b"%d %d" % (os.tcgetpgrp(t.r), struct.unpack("i", fcntl.ioctl(t.r, TIOCGSID, b"1234"))[0]))
        pid, out = controlled(t, body)
        equal("the child", os.read(out, 100), b"%d %d" % (pid, pid))
        os.waitpid(pid, 0)
        os.close(out)
        pid, out = controlled(t, lambda say: (say(b"ready"), signal.pause()))
        equal("the child", os.read(out, 5), b"ready")
        equal("the master's foreground group", os.tcgetpgrp(t.m), pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(out)


@check
def settings_can_discard_input():
    with Terminal() as t:
        t.type(b"old\nhalf", echo=b"old\r\nhalf")
        t.set(termios.TCSAFLUSH, off=termios.ECHO)
        t.type(b"new\n")
        equal("read", t.read(), b"new\n")


@check
def input_stays_when_lines_are_switched_off_and_on():
    with Terminal() as t:
        t.type(b"a\nbc", echo=b"a\r\nbc")
        t.set(off=termios.ICANON)
        equal("raw", t.read(), b"a\nbc")
        t.type(b"de", echo=b"de")
        t.set(on=termios.ICANON)
        equal("in lines again", t.read(), b"de")
        t.type(b"f\x7fg\n", echo=b"f\b \bg\r\n")
        equal("and edited", t.read(), b"g\n")


@check
def raw_reads_keep_to_min_and_time():
    with Terminal(off=termios.ICANON | termios.ECHO, VMIN=0, VTIME=0) as t:
        equal("min 0, time 0", os.read(t.r, 10), b"")
        t.set(VMIN=0, VTIME=1)
        begin = time.monotonic()
        equal("min 0, time 1", os.read(t.r, 10), b"")
        equal("it waits", time.monotonic() - begin >= 0.09, True)
        t.set(VMIN=0, VTIME=255)
        t.type(b"a")
        equal("min 0, time 255", os.read(t.r, 10), b"a")
        t.set(VMIN=3, VTIME=0)
        t.type(b"ab")
        eventually("two bytes", lambda: t.waiting() == 2)
        equal("poll with 2 of 3", events(t.r, READABLE), 0)
        got = []
        reader = threading.Thread(target=lambda: got.append(os.read(t.r, 10)))
        reader.start()
        t.type(b"c")
        reader.join()
        equal("min 3", got, [b"abc"])
        t.type(b"abc")
        equal("min 3, two wanted", [os.read(t.r, 2), os.read(t.r, 1)], [b"ab", b"c"])
        t.type(b"ab")
        t.set(VMIN=3, VTIME=1)
        equal("min 3, time 1", os.read(t.r, 10), b"ab")
        os.set_blocking(t.r, False)
        fails("nothing there", errno.EAGAIN, os.read, t.r, 10)


@check
def closing_the_master_hangs_up():
    with Terminal() as t:
        os.close(t.m)
        t.m = None
        equal("poll", events(t.r, READABLE, FOREVER) & (READABLE | select.POLLHUP), READABLE | select.POLLHUP)
        equal("read", os.read(t.r, 10), b"")
        fails("write", errno.EIO, os.write, t.r, b"x")


def on_terminal(keys, *args):
    """What a program prints on a terminal of its own when keys are typed to it."""
    pid, m = pty.fork()
    if pid == 0:
        try:
            os.execvp(args[0], args)
        finally:
            os._exit(127)
    out = b""
    os.write(m, keys)
    try:
        while data := os.read(m, 4096):
            out += data
    except OSError:  # the program has ended
        pass
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(m)
    return code, out


@check
def programs_end_at_end_of_file():
    code, out = on_terminal(b"x\n\x04", "node", "-e", "process.stdin.on('data', d => console.log('got ' + d)).on('end', () => console.log('end'))")
    equal("node", (code, b"got x" in out, b"end" in out), (0, True, True))
    code, out = on_terminal(b"\x04", "bash", "-c", "read -t 50 x; echo code $?")
    equal("bash", (code, b"code 1\r\n" in out), (0, True))
    equal("cat", on_terminal(b"x\n\x04", "cat"), (0, b"x\r\nx\r\n"))


main()
