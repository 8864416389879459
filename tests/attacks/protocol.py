"""Attacks on the framing of HTTP/1.1: smuggled requests, and heads that never end."""

import collections
import json
import time
from concurrent.futures import ThreadPoolExecutor

from arena import check_served, connect, read_all, records, request_body, until
from upstream import Upstream

PATH = "/anthropic/v1/messages"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
# How many heads wait at the same time, and how long one may take until its connection is closed: the
# limit for heads is 10 s.
SLOW_HEADS, HEAD_SECONDS = 60, 40


class Forms:
    """Raw requests, each with marks by which the provider's copies are told apart."""

    def __init__(self, token):
        self.token = token.encode()

    def body(self, mark):
        return json.dumps(request_body("messages", mark, False)).encode()

    def head(self, *lines, method="POST", target=PATH, version="HTTP/1.1"):
        first = f"{method} {target} {version}\r\nHost: keybridge\r\n".encode()
        own = b"Authorization: Bearer " + self.token + b"\r\nContent-Type: application/json\r\n"
        return first + own + b"".join(lines) + b"\r\n"

    def length(self, number):
        return f"Content-Length: {number}\r\n".encode()

    def chunks(self, body, extension=b"", end=b"\r\n", last=b"0\r\n\r\n"):
        return f"{len(body):x}".encode() + extension + end + body + b"\r\n" + last

    def smuggled(self, name):
        """A second request, complete, which is another message only if the first ends before it."""
        body = self.body(f"{name}-smuggled")
        return self.head(self.length(len(body))) + body

    def refused(self):
        """Forms that must be refused as a whole: nothing of them reaches a provider."""
        body, own = self.body, self.head
        for name, lines in {
            "two different lengths": [self.length(5), self.length(60)],
            "a list of different lengths": [b"Content-Length: 5, 60\r\n"],
            "a length with a sign": [b"Content-Length: +5\r\n"],
            "a negative length": [b"Content-Length: -1\r\n"],
            "a hexadecimal length": [b"Content-Length: 0x5\r\n"],
            "a length with a space": [b"Content-Length: 5 5\r\n"],
            "a length beyond 64 bits": [b"Content-Length: 18446744073709551617\r\n"],
            "a length that is no number": [b"Content-Length: five\r\n"],
            "an empty length": [b"Content-Length: \r\n"],
            "a space before the colon": [b"Content-Length : 5\r\n"],
            "a tab before the colon": [b"Content-Length\t: 5\r\n"],
            "a name with a space": [b"X Content-Length: 5\r\n"],
            "a name with a control character": [b"Content\x01Length: 5\r\n"],
            "an empty name": [b": 5\r\n"],
            "a line without a colon": [b"Content-Length\r\n"],
            "a folded coding": [b"Transfer-Encoding:\r\n chunked\r\n"],
            "a folded length": [b"Content-Length:\r\n 5\r\n"],
            "a folded header": [b"X-Folded: a\r\n b\r\n", self.length(5)],
            "a NUL in a value": [b"X-Odd: a\0b\r\n", self.length(5)],
            "a bare CR in a value": [b"X-Odd: a\rContent-Length: 5\r\n"],
            "an unknown coding": [b"Transfer-Encoding: xchunked\r\n"],
            "chunked first, not last": [b"Transfer-Encoding: chunked, identity\r\n"],
            "a quoted coding": [b'Transfer-Encoding: "chunked"\r\n'],
            "a coding with a vertical tab": [b"Transfer-Encoding: \x0bchunked\r\n"],
            "identity": [b"Transfer-Encoding: identity\r\n"],
        }.items():
            yield name, own(*lines) + self.smuggled(name)
        yield "a space before the first header", (
            f"POST {PATH} HTTP/1.1\r\n Host: keybridge\r\n\r\n".encode() + self.smuggled("first"))
        for name, version in (("HTTP/0.9", "HTTP/0.9"), ("HTTP/1.2", "HTTP/1.2"), ("HTTP/2.0", "HTTP/2.0"),
                              ("a long version", "HTTP/1.10"), ("lower case", "http/1.1")):
            yield f"version {name}", self.head(
                self.length(5), version=version) + self.smuggled(f"version {name}")
        for name, target in (("a space in the target", PATH + " x"), ("a NUL in the target", PATH + "\0"),
                             ("an empty target", "")):
            yield name, self.head(self.length(5), target=target) + self.smuggled(name)
        for name, wrong in {
            "a chunk size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
            "a negative chunk size": b"-1\r\nhello\r\n0\r\n\r\n",
            "a chunk size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
            "a chunk size beyond 64 bits": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "a chunk size that wraps": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
            "an empty chunk size": b"\r\nhello\r\n0\r\n\r\n",
            "a chunk size that is no number": b"five\r\nhello\r\n0\r\n\r\n",
            "a chunk longer than its size": b"2\r\nhello\r\n0\r\n\r\n",
            "a chunk without its end": b"5\r\nhello0\r\n\r\n",
            "a chunk ended by LF": b"5\r\nhello\n0\r\n\r\n",
            "a chunk size ended by CR": b"5\rhello\r\n0\r\n\r\n",
            "a chunk extension with LF": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            "an endless chunk extension": b"5;" + b"a" * 200_000 + b"\r\nhello\r\n0\r\n\r\n",
        }.items():
            yield name, own(CHUNKED) + wrong + self.smuggled(name)
        yield "endless trailers", own(CHUNKED) + self.chunks(
            body("endless trailers"), last=b"0\r\n" + b"X-Trailer: a\r\n" * 20_000 + b"\r\n")
        yield "endless headers", own(*[b"X-Header: a\r\n"] * 20_000, self.length(5))
        yield "an endless header", own(b"X-Header: " + b"a" * 2_000_000 + b"\r\n", self.length(5))

    def one_message(self):
        """Forms that are one message: the provider gets it once, with this very body, or not at all."""
        for name, make in {
            "an exact length": lambda b: self.head(self.length(len(b))) + b,
            "the same length twice": lambda b: self.head(self.length(len(b)), self.length(len(b))) + b,
            "a list of equal lengths": lambda b: self.head(
                f"Content-Length: {len(b)}, {len(b)}\r\n".encode()) + b,
            "a length with leading zeros": lambda b: self.head(
                f"Content-Length: 000{len(b)}\r\n".encode()) + b,
            "chunks": lambda b: self.head(CHUNKED) + self.chunks(b),
            "a chunk extension": lambda b: self.head(CHUNKED) + self.chunks(b, b";a=b"),
            "a quoted chunk extension": lambda b: self.head(CHUNKED) + self.chunks(b, b';a="5;0"'),
            "a chunk size with leading zeros": lambda b: self.head(CHUNKED) + b"0000" + self.chunks(b),
            "a chunk size in upper case": lambda b: self.head(CHUNKED)
            + f"{len(b):X}\r\n".encode() + b + b"\r\n0\r\n\r\n",
            "one byte in each chunk": lambda b: self.head(CHUNKED) + b"".join(
                b"1\r\n" + bytes([byte]) + b"\r\n" for byte in b) + b"0\r\n\r\n",
            "trailers": lambda b: self.head(CHUNKED) + self.chunks(
                b, last=b"0\r\nContent-Length: 5\r\nAuthorization: Bearer x\r\n\r\n"),
            "a coding in upper case": lambda b: self.head(b"TRANSFER-ENCODING: CHUNKED\r\n")
            + self.chunks(b),
            "chunked twice": lambda b: self.head(CHUNKED, CHUNKED) + self.chunks(b),
            "chunked twice in a list": lambda b: self.head(b"Transfer-Encoding: chunked, chunked\r\n")
            + self.chunks(b),
            "empty codings": lambda b: self.head(b"Transfer-Encoding: , chunked\r\n") + self.chunks(b),
            "bare LF": lambda b: self.head(self.length(len(b))).replace(b"\r\n", b"\n") + b,
            "bare LF in chunks": lambda b: self.head(CHUNKED)
            + self.chunks(b).replace(b"\r\n", b"\n"),
            "empty lines before": lambda b: b"\r\n\r\n" + self.head(self.length(len(b))) + b,
            "an absolute target": lambda b: self.head(
                self.length(len(b)), target="http://elsewhere" + PATH) + b,
            "hop-by-hop names": lambda b: self.head(
                b"Connection: Content-Length, Authorization, Host\r\n", self.length(len(b))) + b,
            "an expectation": lambda b: self.head(b"Expect: 100-continue\r\n", self.length(len(b))) + b,
            "an unknown upgrade": lambda b: self.head(
                b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
                self.length(len(b))) + b,
            "a length in HTTP/1.0": lambda b: self.head(self.length(len(b)), version="HTTP/1.0") + b,
        }.items():
            yield name, make(self.body(name))

    def length_and_coding(self):
        """Both framings at once: the coding counts (RFC 9112, section 6.3), or all is refused."""
        for name, lines in {
            "a length before a coding": lambda n: [self.length(n), CHUNKED],
            "a coding before a length": lambda n: [CHUNKED, self.length(n)],
            "a length and a spaced coding": lambda n: [self.length(n), b"Transfer-Encoding:\tchunked\r\n"],
            "a length and a coding in HTTP/1.0": lambda n: [self.length(n), CHUNKED],
        }.items():
            for length in (0, 5, 100_000):
                full = f"{name}, {length}"
                version = "HTTP/1.0" if "1.0" in name else "HTTP/1.1"
                yield full, self.head(*lines(length), version=version) + self.chunks(self.body(full))


def smuggling(arena):
    """Raw requests whose end can be read in two ways never become two requests, or other ones."""
    upstream = arena.open(Upstream())
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    forms = Forms(token)
    refused, whole = dict(forms.refused()), {**dict(forms.one_message()),
                                             **dict(forms.length_and_coding())}
    with ThreadPoolExecutor(16) as pool:
        answers = dict(zip([*refused, *whole], pool.map(
            lambda raw: send_raw(bridge.url, raw), [*refused.values(), *whole.values()])))
    check_served(bridge, token)
    received = upstream.take()[:-1]
    faults = [(each.line, each.faults) for each in received if each.faults]
    assert not faults, f"the provider got malformed requests: {faults[:3]}"
    sent = collections.Counter()
    for each in received:
        prompt = json.loads(each.body)["messages"][0]["content"]
        assert each.body == forms.body(prompt), f"another body reached the provider: {each.body[:200]}"
        assert each.header("host") != "elsewhere", each.head
        sent[prompt] += 1
    smuggled = [prompt for prompt in sent if prompt.endswith("-smuggled")]
    assert not smuggled, f"requests were smuggled: {smuggled}"
    passed = [name for name in refused if sent[name]]
    assert not passed, f"malformed requests were passed on: {passed}"
    doubled = [prompt for prompt, count in sent.items() if count > 1]
    assert not doubled, f"requests were sent twice: {doubled}"
    served = [name for name in whole if answers[name].startswith(b"HTTP/1.1 200")
              or answers[name].startswith(b"HTTP/1.1 100") or answers[name].startswith(b"HTTP/1.0 200")]
    assert set(served) == set(sent), (set(served) ^ set(sent))
    assert {"an exact length", "chunks", "trailers"} <= set(sent), sent
    until(lambda: len(records(bridge, user="ada")) >= len(received) + 1, "all are recorded")
    return f"{len(refused) + len(whole)} forms: {len(sent)} passed on whole, the rest refused"


def send_raw(url, raw):
    """Sends bytes and returns what comes back. The connection is closed after some silence."""
    with connect(url) as sock:
        try:
            sock.sendall(raw)
        except OSError:
            pass
        return read_all(sock, timeout=2)


def slow_heads(arena):
    """Clients that send a head byte by byte are disconnected, and keep nobody else out."""
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    began = time.monotonic()
    sockets = [connect(bridge.url) for _ in range(SLOW_HEADS)]
    left, served = list(sockets), 0
    head = iter(b"POST /anthropic/v1/messages HTTP/1.1\r\nX-Slow: " + b"a" * 1000)
    while left:
        assert time.monotonic() - began < HEAD_SECONDS, f"{len(left)} heads are still waited for"
        byte = bytes([next(head)])
        left = [sock for sock in left if is_open(sock, byte)]
        check_served(bridge, token)
        served += 1
        time.sleep(0.5)
    for sock in sockets:
        sock.close()
    return (f"{SLOW_HEADS} connections closed after {time.monotonic() - began:.0f} s at most, "
            f"{served} others served meanwhile")


def is_open(sock, byte):
    """Sends a byte; whether the peer still listens."""
    sock.settimeout(0.01)
    try:
        sock.sendall(byte)
        return sock.recv(4096) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


ATTACKS = {"smuggling": smuggling, "slow-heads": slow_heads}
