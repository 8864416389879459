"""A hostile provider: reads requests strictly, keeps them, and answers with whatever bytes it is told."""

import contextlib
import json
import re
import socket
import socketserver
import threading
from dataclasses import dataclass

READ_TIMEOUT = 20


@dataclass
class Received:
    """A request as it arrived."""

    head: bytes
    body: bytes
    # What is wrong with its framing.
    faults: list

    @property
    def line(self):
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def method(self):
        return self.line.split(" ", 1)[0]

    @property
    def target(self):
        return (self.line.split(" ") + [""])[1]

    def header(self, name):
        for name_and_value in self.head.split(b"\r\n")[1:]:
            key, _, value = name_and_value.partition(b":")
            if key.lower() == name.encode():
                return value.strip().decode("latin-1")
        return None


class Upstream:
    """A server that answers each request with what `respond(received)` returns: bytes, an iterable of
    bytes, or `None` to close without an answer. It closes the connection after each."""

    def __init__(self, respond=None):
        self.respond, self.received = respond or (lambda _: message()), []
        self._lock = threading.Lock()

    def __enter__(self):
        upstream = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    upstream._handle(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 1024

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self):
        """Takes what was received so far."""
        with self._lock:
            taken, self.received = self.received, []
        return taken

    def _handle(self, sock):
        sock.settimeout(READ_TIMEOUT)
        received = read_request(sock)
        if received is None:
            return
        with self._lock:
            self.received.append(received)
        answer = self.respond(received)
        if answer is None:
            return
        for piece in [answer] if isinstance(answer, bytes) else answer:
            sock.sendall(piece)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)


def read_request(sock):
    """Reads one request; `None` if the peer closed before it sent anything."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return Received(bytes(data), b"", ["the head is incomplete"]) if data else None
        data += piece
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    faults, length = check_head(head)
    if length is None:
        body, more = read_chunks(sock, rest, faults)
    else:
        while len(rest) < length and (piece := sock.recv(65536)):
            rest += piece
        body, more = rest[:length], rest[length:]
        if len(body) < length:
            faults.append("the body is shorter than its Content-Length")
    if more:
        faults.append(f"there are bytes after the request: {more[:80]}")
    return Received(head, body, faults)


def check_head(head):
    """What is wrong with a head; and the length of its body, `None` for chunks."""
    faults, fields = [], {}
    lines = head.split(b"\r\n")
    if not re.fullmatch(rb"[A-Z]+ /[!-~]* HTTP/1\.1", lines[0]):
        faults.append(f"odd request line {lines[0]}")
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) \
                or re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value):
            faults.append(f"odd header line {line}")
        fields.setdefault(name.lower(), []).append(value.strip())
    lengths, codings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
    if len(lengths) + len(codings) > 1:
        faults.append(f"ambiguous framing: {lengths} {codings}")
    if lengths and not lengths[0].isdigit():
        faults.append(f"odd Content-Length {lengths[0]}")
        return faults, 0
    if codings:
        if codings != [b"chunked"]:
            faults.append(f"odd Transfer-Encoding {codings}")
        return faults, None
    return faults, int(lengths[0]) if lengths else 0


def read_chunks(sock, rest, faults):
    """A body in chunks, read strictly; and the bytes after it."""
    body = b""
    while True:
        while b"\r\n" not in rest:
            piece = sock.recv(65536)
            if not piece:
                return body, b""
            rest += piece
        size, _, rest = rest.partition(b"\r\n")
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
            faults.append(f"odd chunk size {size[:40]}")
            return body, b""
        length = int(size, 16)
        while len(rest) < length + 2 and (piece := sock.recv(65536)):
            rest += piece
        body, rest = body + rest[:length], rest[length + 2:]
        if length == 0:
            return body, rest


def answer(status, body=b"", headers=(), reason="Reason"):
    """A response with a length, as bytes."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    fields = {"content-type": "application/json", **dict(headers),
              "content-length": len(body), "connection": "close"}
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def message(text="ok", headers=(), **fields):
    """A response of the Messages API."""
    return answer(200, {
        "id": "msg_0123456789abcdef", "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
        "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}, **fields}, headers)
