"""Hostile providers: redirects, upgrades, floods of 1xx, broken framing, headers that are not theirs."""

import itertools
import time

from arena import Footprint, ask, check_served, connect, model_request, read_all, request
from upstream import Upstream, answer, message

FLOOD_SECONDS, FULL_FLOOD_SECONDS = 6, 60
STREAM_HEAD = (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
               b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
JSON_HEAD = STREAM_HEAD.replace(b"text/event-stream", b"application/json")


def redirects(arena):
    """A redirect of a provider is not followed: no key reaches another host."""
    elsewhere = arena.open(Upstream())
    statuses = (301, 302, 303, 307, 308, 300, 305)
    upstream = arena.open(Upstream(lambda received: answer(
        int(received.header("x-status")), b"{}", [("location", elsewhere.url + "/anthropic/v1/messages"),
                                                  ("refresh", f"0; url={elsewhere.url}")])))
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    for status in statuses:
        for path in ("/anthropic/v1/messages", "/openai/v1/responses"):
            answered = model_request(bridge.url, token, "hi", path, headers=[("x-status", str(status))])
            assert answered.status in (status, 502), (status, answered)
        request(bridge.url, "GET", "/openai/v1/models", token, headers=[("x-status", str(status))])
    assert not elsewhere.received, f"followed: {elsewhere.received[0]}"
    return f"{3 * len(statuses)} redirects not followed"


def unasked_upgrade(arena):
    """A provider cannot switch the protocol of a client that asked for nothing of the kind."""
    upstream = arena.open(Upstream(lambda _: (
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled")))
    bridge = arena.serve(upstream=upstream, provider=["max_retries = 0"])
    token, _ = bridge.user("ada")
    seen = set()
    for path in ("/anthropic/v1/messages", "/openai/v1/responses"):
        seen.add(model_request(bridge.url, token, "hi", path).status)
    raw = (f"GET /openai/v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
           "Connection: close\r\n\r\n").encode()
    with connect(bridge.url) as sock:
        sock.sendall(raw)
        data = read_all(sock, timeout=5)
    assert b" 101 " not in data[:20] and b"smuggled" not in data, data[:300]
    assert seen == {502}, f"the client sees {seen}"
    return "502 for each"


def transport_headers(arena):
    """Headers that are about the provider's own connection and host do not become the bridge's."""
    names = {"alt-svc": 'h3="evil.example:443"; ma=86400', "strict-transport-security": "max-age=31536000",
             "set-cookie": "session=1", "connection": "x-hop", "x-hop": "1", "keep-alive": "timeout=5",
             "proxy-authenticate": "Basic", "upgrade": "h2c", "trailer": "x", "public-key-pins": "x",
             "x-keybridge-interception-id": "forged"}
    upstream = arena.open(Upstream(lambda _: message(headers=names.items())))
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    passed = set()
    for answered in (model_request(bridge.url, token, "hi"),
                     request(bridge.url, "GET", "/openai/v1/models", token)):
        assert answered.status == 200, answered
        passed |= {name.lower() for name, value in answered.headers
                   if name.lower() in ("alt-svc", "strict-transport-security", "set-cookie", "keep-alive",
                                       "proxy-authenticate", "upgrade", "trailer") or value == "forged"}
    assert not passed, f"these pass: {sorted(passed)}"
    return f"{len(names)} headers"


BROKEN = {
    "a wrong chunk size": b"ZZ\r\nhello\r\n0\r\n\r\n", "no chunk at all": b"", "half a size": b"5",
    "a negative size": b"-5\r\nhello\r\n", "a size beyond 64 bits": b"fffffffffffffffff\r\nhello\r\n",
    "binary": bytes(range(256)), "a chunk that is cut": b"ff\r\nhello",
}


def broken_chunks(arena):
    """A response whose first chunk is broken is an error with a status, not an empty reply."""
    endings = iter(BROKEN.items())
    broken = {}
    upstream = arena.open(Upstream(lambda received: (
        STREAM_HEAD if b'"stream": true' in received.body else JSON_HEAD) + broken["now"]))
    bridge = arena.serve(upstream=upstream, provider=["max_retries = 0"])
    token, _ = bridge.user("ada")
    silent, number = [], 0
    for name, broken["now"] in endings:
        for dialect in ("messages", "chat", "responses"):
            for stream in (True, False):
                result = ask(bridge.url, token, dialect, name, stream, timeout=20)
                number += 1
                if not result.status:
                    silent.append(f"{name}, {dialect}, {'stream' if stream else 'whole'}: {result.error}")
                # What came before the break may be relayed, but never as a whole response.
                assert not result.whole or "error" in result.body, (name, result)
    assert not silent, f"{len(silent)} of {number} replies have no status: {silent[:4]}"
    return f"{number} answers with a status"


def informational_flood(arena):
    """A provider that sends 1xx responses without end is given up."""
    seconds = FULL_FLOOD_SECONDS if arena.full else FLOOD_SECONDS
    ended = []

    def respond(_):
        end, sent = time.monotonic() + seconds, 0
        early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n"
        try:
            while time.monotonic() < end:
                yield early * 100
                sent += 100
            yield message()
        finally:
            ended.append((time.monotonic() < end, sent))
    bridge = arena.serve(upstream=arena.open(Upstream(respond)), provider=["max_retries = 0"])
    token, _ = bridge.user("ada")
    footprint, used = Footprint(bridge), cpu_seconds(bridge)
    began = time.monotonic()
    answered = model_request(bridge.url, token, "hi", timeout=seconds + 30)
    took, used = time.monotonic() - began, cpu_seconds(bridge) - used
    request(bridge.url, "GET", "/openai/v1/models", token, timeout=seconds + 30)
    figures = f"{ended[0][1]} responses in {took:.1f} s, {used / took:.0%} of a core; {footprint}"
    assert all(was_cut for was_cut, _ in ended), f"the flood was read to its end: {figures}"
    assert answered.status == 502, (answered, figures)
    return figures


def cpu_seconds(bridge):
    with open(f"/proc/{bridge.running.process.pid}/stat", encoding="utf-8") as file:
        words = file.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / 100


def endless_responses(arena):
    """Endless heads, events and bodies of a provider end, or pass without being held."""
    def endless(head, piece):
        yield head
        for _ in range(2_000 if arena.full else 400):
            yield piece
    big = b"a" * 65536
    forms = {
        "head": lambda: endless(b"HTTP/1.1 200 OK\r\n", b"x-endless: " + big + b"\r\n"),
        "status": lambda: endless(b"HTTP/1.1 200 ", big),
        "event": lambda: endless(STREAM_HEAD.replace(b"transfer-encoding: chunked\r\n", b"") + b"data: ", big),
        "events": lambda: endless(STREAM_HEAD.replace(b"transfer-encoding: chunked\r\n", b""),
                                  b": comment\n\n" * 5000),
        "body": lambda: endless(JSON_HEAD.replace(b"transfer-encoding: chunked\r\n", b"") + b'{"a":"', big),
        "chunk extension": lambda: endless(STREAM_HEAD + b"5;", big),
    }
    form = {}
    bridge = arena.serve(upstream=arena.open(Upstream(lambda _: form["now"]())), provider=["max_retries = 0"])
    token, _ = bridge.user("ada")
    footprint, statuses = Footprint(bridge), {}
    for name, form["now"] in forms.items():
        result = ask(bridge.url, token, "messages", name, timeout=60)
        assert not result.whole, (name, result.status)
        statuses[name] = result.status
    footprint.check(256)
    assert bridge.running.process.poll() is None
    return f"{statuses}; {footprint}"


def slow_providers(arena):
    """Many requests that wait for a silent provider keep nobody from another one."""
    count = 500 if arena.full else 100
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    check_served(bridge, token)
    footprint = Footprint(bridge)
    body = b'{"model":"sim-no-head","max_tokens":5,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
    head = (f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode()
    sockets = [connect(bridge.url) for _ in range(count)]
    for sock in sockets:
        sock.sendall(head + body)
    slowest = max(check_served(bridge, token) for _ in itertools.repeat(None, 5))
    for sock in sockets:
        sock.close()
    footprint.check(128)
    return f"{count} waiting, others served in {slowest:.2f} s; {footprint}"


ATTACKS = {
    "redirects": redirects, "unasked-upgrade": unasked_upgrade, "transport-headers": transport_headers,
    "broken-chunks": broken_chunks, "informational-flood": informational_flood,
    "endless-responses": endless_responses, "silent-provider": slow_providers,
}
