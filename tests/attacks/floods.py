"""Floods of HTTP/2 frames: memory stays small, and others are served meanwhile."""

import itertools
import json
import threading
import time

import http2
from arena import Footprint, check_served, request_body
from http2 import END_HEADERS, END_STREAM, Connection, frame, header_block, headers, integer, literal

# The growth that is allowed in MiB; the connections of a flood together took 43 at most.
GROWTH = 96
FLOOD_SECONDS, FULL_FLOOD_SECONDS = 2, 60
CONNECTIONS = 4
# Requests per connection whose responses nobody takes.
UNREAD_STREAMS = 200


def flood(arena, batches, reads=True, settings=b""):
    """Sends batches of frames over a few connections at a time, which are opened again when they are
    closed, while somebody else is served."""
    seconds = FULL_FLOOD_SECONDS if arena.full else FLOOD_SECONDS
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    check_served(bridge, token)
    footprint, end = Footprint(bridge), time.monotonic() + seconds
    sent, opened, calmed = itertools.count(), itertools.count(), itertools.count()

    def client():
        while time.monotonic() < end:
            try:
                connection = Connection(bridge.url, settings)
            except OSError:
                continue
            next(opened)
            for batch in batches(token):
                if time.monotonic() > end or not connection.send(batch, reads=reads):
                    break
                next(sent)
            if any(kind == http2.GOAWAY for kind, *_ in connection.frames):
                next(calmed)
            connection.close()

    clients = [threading.Thread(target=client, daemon=True) for _ in range(CONNECTIONS)]
    for thread in clients:
        thread.start()
    slowest = 0.0
    while time.monotonic() < end:
        slowest = max(slowest, check_served(bridge, token))
        time.sleep(0.1)
    for thread in clients:
        thread.join()
    check_served(bridge, token)
    footprint.check(GROWTH)
    assert bridge.running.process.poll() is None
    return (f"{footprint}; {next(sent)} batches over {next(opened)} connections, "
            f"{next(calmed)} with GOAWAY; others served in {slowest:.2f} s")


def rapid_reset(arena):
    """Requests that are reset at once (CVE-2023-44487)."""
    def batches(token):
        block = header_block(token)
        body = json.dumps(request_body("messages", "reset", True)).encode()
        for first in range(1, 1 << 30, 200):
            yield b"".join(
                headers(stream, block) + frame(http2.DATA, END_STREAM, stream, body)
                + frame(http2.RST_STREAM, 0, stream, b"\0\0\0\x08")
                for stream in range(first, first + 200, 2))
    return flood(arena, batches)


def made_resets(arena):
    """Requests that make the server reset its own streams (CVE-2025-8671)."""
    def batches(token):
        block = header_block(token)
        for first in range(1, 1 << 30, 200):
            # An increment of zero is an error of the stream.
            yield b"".join(
                headers(stream, block) + frame(http2.WINDOW_UPDATE, 0, stream, b"\0\0\0\0")
                for stream in range(first, first + 200, 2))
    return flood(arena, batches)


def continuations(arena):
    """A header block that never ends (CVE-2024-27316)."""
    def batches(token):
        yield headers(1, header_block(token), 0)
        piece = frame(http2.CONTINUATION, 0, 1, literal("x-flood", "a" * 4000))
        while True:
            yield piece * 16
    return flood(arena, batches)


def empty_continuations(arena):
    """Endless frames without a byte of header."""
    def batches(token):
        yield headers(1, header_block(token), 0)
        while True:
            yield frame(http2.CONTINUATION, 0, 1) * 2000
    return flood(arena, batches)


def settings_flood(arena):
    """SETTINGS frames whose acknowledgements nobody reads (CVE-2019-9515)."""
    def batches(_token):
        piece = frame(http2.SETTINGS, 0, 0, b"\0\x04\0\1\0\0" * 6)
        while True:
            yield piece * 500
    return flood(arena, batches, reads=False)


def ping_flood(arena):
    """PING frames whose acknowledgements nobody reads (CVE-2019-9512)."""
    def batches(_token):
        while True:
            yield frame(http2.PING, 0, 0, b"attacker") * 1000
    return flood(arena, batches, reads=False)


def header_bombs(arena):
    """Headers that the table of HPACK makes four thousand times larger."""
    def batches(token):
        value = "a" * (http2.HEADER_TABLE_SIZE - 100)
        first = header_block(token) + literal("x-bomb", value, first=0x40)
        bomb = header_block(token) + integer(62, 7, first=0x80) * 15_000
        yield headers(1, first, END_HEADERS)
        for stream in range(3, 1 << 30, 2):
            yield headers(stream, bomb[:16_000], 0) + frame(
                http2.CONTINUATION, END_HEADERS, stream, bomb[16_000:])
    return flood(arena, batches)


def table_updates(arena):
    """Header blocks that only change the size of the table of HPACK."""
    def batches(token):
        updates = integer(0, 5, first=0x20) + integer(4096, 5, first=0x20)
        for stream in range(1, 1 << 30, 2):
            yield headers(stream, updates * 2000 + header_block(token), END_HEADERS | END_STREAM)
    return flood(arena, batches)


def unread_responses(arena):
    """Requests whose responses nobody takes: the window stays closed."""
    def batches(token):
        block = header_block(token, more=[("x-sim-scenario", "long")])
        body = json.dumps(request_body("messages", "unread", True, "sim-long")).encode()
        # As many as a provider bears; they are held to the end.
        for first in range(1, 2 * UNREAD_STREAMS, 20):
            yield b"".join(
                headers(stream, block) + frame(http2.DATA, END_STREAM, stream, body)
                for stream in range(first, first + 20, 2))
        while True:
            time.sleep(0.1)
            yield frame(http2.PING, 0, 0, b"waiting!")
    # SETTINGS_INITIAL_WINDOW_SIZE = 0
    return flood(arena, batches, settings=b"\0\x04\0\0\0\0")


def odd_frames(arena):
    """Frames that break the rules of HTTP/2 end their connection or their stream, and nothing else."""
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    block = header_block(token)
    body = json.dumps(request_body("messages", "odd", False)).encode()
    ok = Connection(bridge.url)
    ok.send(headers(1, block) + frame(http2.DATA, END_STREAM, 1, body))
    found = ok.wait_for(http2.HEADERS)
    assert found and found[3][:1] == b"\x88", f"HTTP/2 with prior knowledge is served: {found}"
    forms = {
        "DATA on stream 0": frame(http2.DATA, 0, 0, b"x"),
        "DATA on an idle stream": frame(http2.DATA, 0, 5, b"x"),
        "HEADERS on stream 0": headers(0, block),
        "HEADERS on an even stream": headers(2, block),
        "padding longer than the frame": frame(http2.HEADERS, END_HEADERS | 8, 1, b"\xff" + block[:20]),
        "SETTINGS of odd length": frame(http2.SETTINGS, 0, 0, b"\0\1\0"),
        "SETTINGS on a stream": frame(http2.SETTINGS, 0, 1),
        "a window beyond its limit": frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
        "a frame beyond its limit": frame(http2.DATA, 0, 1, b"x" * 100_000),
        "CONTINUATION without HEADERS": frame(http2.CONTINUATION, END_HEADERS, 1, block),
        "a header block with a wrong index": headers(1, integer(5000, 7, first=0x80)),
        "a header block that is cut": headers(1, block[:-5]),
        "PUSH_PROMISE from a client": frame(5, END_HEADERS, 1, b"\0\0\0\2" + block),
    }
    answers = {}
    for name, data in forms.items():
        connection = Connection(bridge.url)
        connection.send(data)
        ended = connection.wait_for(http2.GOAWAY, timeout=5) or connection.is_closed \
            or connection.wait_for(http2.RST_STREAM, timeout=1)
        answers[name] = bool(ended)
        connection.close()
    check_served(bridge, token)
    kept = [name for name, ended in answers.items() if not ended]
    assert not kept, f"these are tolerated: {kept}"
    pseudo = {
        "a header in upper case": block + literal("X-Upper", "x"),
        "a connection header": block + literal("connection", "close"),
        "a coding": block + literal("transfer-encoding", "chunked"),
        "a line break in a value": block + literal("x-odd", "a\r\nx-smuggled: b"),
        "a NUL in a value": block + literal("x-odd", "a\0b"),
        "two paths": block + literal(":path", "/healthz"),
        "a pseudo-header after the others": block + literal(":authority", "elsewhere"),
        "a wrong length": header_block(token, more=[("content-length", str(len(body) + 5))]),
    }
    before = len(bridge.cli("interceptions", "--limit", "500"))
    for name, odd in pseudo.items():
        connection = Connection(bridge.url)
        connection.send(headers(1, odd) + frame(http2.DATA, END_STREAM, 1, body))
        answer = connection.wait_for(http2.HEADERS, timeout=0.5)
        assert not answer or answer[3][:1] != b"\x88", f"{name} is served"
        connection.close()
    sent = len(bridge.cli("interceptions", "--limit", "500", "--user", "ada")) - before
    return f"{len(forms) + len(pseudo)} forms refused, {sent} recorded"


ATTACKS = {
    "http2-odd-frames": odd_frames, "http2-rapid-reset": rapid_reset, "http2-made-resets": made_resets,
    "http2-continuations": continuations, "http2-empty-continuations": empty_continuations,
    "http2-settings": settings_flood, "http2-pings": ping_flood, "http2-header-bombs": header_bombs,
    "http2-table-updates": table_updates, "http2-unread-responses": unread_responses,
}
