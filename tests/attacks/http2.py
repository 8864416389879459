"""HTTP/2 frames (RFC 9113) and header blocks (RFC 7541) made by hand, without a library's good manners."""

import select
import struct
import time

from arena import connect

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
ENHANCE_YOUR_CALM = 11
HEADER_TABLE_SIZE = 4096


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(value, prefix, first=0):
    """An integer with a prefix of so many bits (RFC 7541, section 5.1)."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def literal(name, value, first=0):
    """A header that is not indexed; with `first=0x40` it is added to the table."""
    return bytes([first]) + b"".join(
        integer(len(text), 7) + text for text in (name.encode(), value.encode()))


def header_block(token, path="/anthropic/v1/messages", method="POST", more=()):
    fields = [(":method", method), (":scheme", "http"), (":authority", "keybridge"), (":path", path),
              ("authorization", f"Bearer {token}"), ("content-type", "application/json"), *more]
    return b"".join(literal(name, value) for name, value in fields)


def headers(stream, block, flags=END_HEADERS):
    return frame(HEADERS, flags, stream, block)


class Connection:
    """A connection that has sent its preface; `read` takes what came in."""

    def __init__(self, url, settings=b""):
        self.sock = connect(url)
        self.sock.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        self.sock.setblocking(False)
        self.frames, self.is_closed, self._data = [], False, b""

    def close(self):
        self.sock.close()

    def send(self, data, timeout=0.5, reads=True):
        """Sends bytes as far as the peer takes them in time; whether it took all."""
        view, end = memoryview(data), time.monotonic() + timeout
        while view and not self.is_closed and time.monotonic() < end:
            readable, writable, _ = select.select(
                [self.sock] if reads else [], [self.sock], [], 0.05)
            try:
                if readable:
                    self._read()
                if writable:
                    view = view[self.sock.send(view):]
            except BlockingIOError:
                continue
            except OSError:
                self.is_closed = True
        return not view

    def wait_for(self, kind, stream=None, timeout=15):
        """Waits for a frame; `None` if the connection ends before."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for found in self.frames:
                if found[0] == kind and stream in (None, found[2]):
                    return found
            if self.is_closed:
                return None
            select.select([self.sock], [], [], 0.1)
            try:
                self._read()
            except BlockingIOError:
                continue
            except OSError:
                self.is_closed = True
        return None

    def _read(self):
        data = self.sock.recv(1 << 20)
        if not data:
            self.is_closed = True
            return
        self._data += data
        while len(self._data) >= 9:
            length = int.from_bytes(self._data[:3], "big")
            if len(self._data) < 9 + length:
                return
            kind, flags, stream = struct.unpack(">BBI", self._data[3:9])
            # Of what a flood is answered with, only the last is kept.
            self.frames = [*self.frames[-200:], (kind, flags, stream, self._data[9:9 + length])]
            self._data = self._data[9 + length:]
