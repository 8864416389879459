"""Attacks on the choice of the endpoint: methods, spellings, and tokens in odd places."""

import urllib.parse

from arena import CENTRALIZED_KEY, all_settled, connect, read_all, records, request
from upstream import Upstream, answer, message

# What only reads.
SAFE = ("GET", "HEAD", "OPTIONS")
BODY = {"model": "m", "input": "hi", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


def echo(received):
    """A provider that answers TRACE as RFC 9110 says: with the request."""
    if received.method == "TRACE":
        return answer(200, received.head, [("content-type", "message/http")])
    return message()


def methods(arena):
    """Methods beside GET on side endpoints: not one passes unrecorded, and none shows the central key."""
    upstream = arena.open(Upstream(echo))
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    paths = ["/openai/v1/models", "/openai/v1/models/ft:gpt-4o:acme::1", "/anthropic/v1/models",
             "/openai/v1/responses/resp_1", "/openai/v1/conversations",
             "/openai/v1/conversations/conv_1", "/anthropic/v1/messages/count_tokens",
             "/anthropic/v1/messages", "/openai/v1/responses"]
    tries = 0
    for path in paths:
        for method in ("GET", "TRACE", "PUT", "PATCH", "DELETE", "POST", "PURGE", "PROPFIND", "CONNECT"):
            answered = request(bridge.url, method, path, token, BODY if method != "TRACE" else None)
            assert CENTRALIZED_KEY.encode() not in answered.body + str(answered.headers).encode(), \
                f"{method} {path} hands the central key to the caller"
            tries += 1
    for line in (b"CONNECT keybridge:443 HTTP/1.1", b"TRACE * HTTP/1.1", b"OPTIONS * HTTP/1.1",
                 b"trace /openai/v1/models HTTP/1.1"):
        with connect(bridge.url) as sock:
            sock.sendall(line + b"\r\nHost: keybridge\r\nConnection: close\r\nAuthorization: Bearer "
                         + token.encode() + b"\r\n\r\n")
            assert CENTRALIZED_KEY.encode() not in read_all(sock, timeout=2), line
        tries += 1
    received = upstream.take()
    sent = [f"{each.method} {each.target}" for each in received]
    forbidden = [line for line in sent if line.split()[0].upper() in
                 ("TRACE", "CONNECT", "PUT", "PATCH", "PURGE", "PROPFIND")]
    assert not forbidden, f"methods that no client needs are passed on: {forbidden}"
    models = [line for line in sent if "/models" in line and line.split()[0] not in SAFE]
    assert not models, f"models can be changed with the central key: {models}"
    changing = [line for line in sent
                if line.split()[0] not in SAFE and not line.endswith("/count_tokens")]
    all_settled(bridge)
    recorded = [item for item in records(bridge) if item["upstream_status"]]
    assert len(recorded) >= len(changing), f"{len(changing)} requests that change something went to " \
        f"the provider, {len(recorded)} are recorded: {changing}"
    return f"{tries} tries, {len(sent)} passed on, {len(changing)} of them change something, all recorded"


SPELLINGS = [
    "/openai/v1/responses/%63ompact", "/openai/v1/responses/compact/", "/openai/v1/responses/COMPACT",
    "/openai/v1/responses//compact", "/openai/v1/responses/", "/openai/v1/responses//",
    "/openai/v1/responses/%2fcompact", "/openai/v1/responses/./compact", "/openai/v1/responses/compact%20",
    "/openai/v1/responses/compact%00", "/openai/v1/responses/compact;x", "/openai/v1/responses/compact%3b",
    "/openai/v1/responses/x/../compact", "/openai/v1/responses/x/%2e%2e/compact",
    "/openai/v1/responses/compact?", "/openai/v1/responses/compact%3f", "/openai/v1/responses/compact#x",
    "/openai/v1/Responses", "/openai/V1/responses", "/openai/v1//responses", "//openai/v1/responses",
    "/openai//v1/responses", "/openai/v1/%72esponses", "/openai/v1/v1/responses", "/openai/responses",
    "/openai/v1/chat//completions", "/openai/v1/chat/completions/", "/openai/v1/chat/%63ompletions",
    "/openai/v1/chat%2fcompletions", "/openai/v1/models/../responses", "/openai/v1/models/%2e%2e/responses",
    "/openai/v1/conversations/../responses", "/openai/v1/conversations/%2e%2e%2fresponses",
    "/anthropic/v1/messages/", "/anthropic/v1//messages", "/anthropic/v1/messages/count_tokens/../",
    "/anthropic/v1/%6dessages", "/anthropic/v1/MESSAGES", "/anthropic/v1/messages%20",
    "/anthropic/v1/messages/batches", "/anthropic/v1/models/../messages",
    "/api/v2/aibridge/openai/v1/responses/%63ompact", "/api/v2/ai-gateway/openai/v1/responses/compact/",
]


def spellings(arena):
    """Odd spellings of paid endpoints are refused or recorded, and never reach the provider as they are."""
    upstream = arena.open(Upstream())
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    unrecorded, passed = [], 0
    for path in SPELLINGS:
        answered = request(bridge.url, "POST", path, token, BODY)
        received = upstream.take()
        passed += len(received)
        interception = answered.header("x-keybridge-interception-id")
        if received and not (interception and is_recorded(bridge, interception)):
            unrecorded.append(path)
        odd = [each.target for each in received if is_odd(each.target)]
        assert not odd, f"{path} reaches the provider as {odd}"
    assert not unrecorded, f"paid requests were passed on unrecorded: {unrecorded}"
    compacted = request(bridge.url, "POST", "/openai/v1/responses/compact", token, BODY)
    assert compacted.status == 200 and upstream.take(), f"the usual spelling is served: {compacted}"
    return f"{len(SPELLINGS)} spellings: {passed} passed on and recorded, the rest refused"


def is_recorded(bridge, interception):
    return any(item["id"] == interception for item in records(bridge))


def is_odd(target):
    """Whether a server may read a target as another path."""
    path = urllib.parse.unquote(target.split("?")[0])
    return urllib.parse.unquote(path) != path or any(mark in path for mark in ";\\#\0") or any(
        segment in ("", ".", "..") for segment in path[1:].split("/"))


TRICKS = [
    "/openai/v1/models/..;/files", "/openai/v1/models/%00", "/openai/v1/models/x%00y",
    "/openai/v1/models/%25252e%25252e/files", "/openai/v1/models/%252e%252e/files",
    "/openai/v1/models/%2e%2e/files", "/openai/v1/models/../files", "/openai/v1/models/.%2e/files",
    "/openai/v1/models/%c0%ae%c0%ae/files", "/openai/v1/models/%c0%af..%c0%affiles",
    "/openai/v1/models/%e0%80%ae%e0%80%ae/files", "/openai/v1/models//files", "/openai/v1/models//",
    "/openai/v1/models/x//y", "/openai/v1/models/%2f..%2ffiles", "/openai/v1/models/..%2ffiles",
    "/openai/v1/models/..%5cfiles", "/openai/v1/models/..\\files", "/openai/v1/models/%5c..%5cfiles",
    "/openai/v1/models/x;../../files", "/openai/v1/models/x%3b..%2f..%2ffiles",
    "/openai/v1/models/%ff", "/openai/v1/models/%0d%0aX-Smuggled:%20a", "/openai/v1/models/x%0a",
    "/openai/v1/models/%7f", "/openai/v1/models/%u002e%u002e/files", "/openai/v1/models/%2",
    "/openai/v1/models/%zz", "/openai/v1/models/.", "/openai/v1/models/%2e",
    "/openai/v1/models/x/.%00./files", "/openai/v1/conversations/..;/files",
    "/openai/v1/responses/%25252e%25252e/files", "/anthropic/v1/models/..;/files",
    "/anthropic/v1/models/%2e%2e;/files", "/anthropic/api/event_logging/..%00/x",
    "/openai/v1/files", "/openai/v1/models/../../../files", "/openai/../openai/v1/models/../files",
]


def path_tricks(arena):
    """Paths that a server behind the provider may resolve to another one never leave the bridge."""
    upstream = arena.open(Upstream())
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    passed = []
    for path in TRICKS:
        with connect(bridge.url) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: keybridge\r\nConnection: close\r\n"
                         f"Authorization: Bearer {token}\r\n\r\n".encode())
            status = read_all(sock, timeout=5)[:15].decode("latin-1")
        received = upstream.take()
        if received:
            passed.append(f"{path} → {received[0].target}")
        assert " 4" in status or received, f"{path}: {status}"
    assert not passed, f"{len(passed)} reach the provider: {passed}"
    for path in ("/openai/v1/models/gpt-4o", "/openai//v1/models", "/openai/v1/v1/models"):
        request(bridge.url, "GET", path, token)
        assert upstream.take(), f"{path} is served"
    return f"{len(TRICKS)} paths refused"


def misplaced_tokens(arena):
    """A bridge token is not sent to a provider, wherever in the head of a request it is and however it
    is written."""
    upstream = arena.open(Upstream())
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    other, _ = bridge.user("bob")
    encoded = "".join(f"%{byte:02x}" for byte in other.encode())
    half = urllib.parse.quote(other[:2]) + f"%{ord(other[2]):02X}" + other[3:]
    spelled = {"plain": other, "after a letter": f"x{other}", "before a letter": f"{other}x",
               "after an underscore": f"a_{other}", "encoded": encoded, "half encoded": half,
               "quoted": f'"{other}"', "after a colon": f"user:{other}"}
    places = {
        "path": lambda text: (f"/openai/v1/models/{urllib.parse.quote(text, safe='%:')}", []),
        "query": lambda text: (f"/openai/v1/models?after={urllib.parse.quote(text, safe='%:')}", []),
        "name of a parameter": lambda text: (
            f"/openai/v1/models?{urllib.parse.quote(text, safe='%:')}=1", []),
        "header": lambda text: ("/openai/v1/models", [("x-trace", text)]),
        "user agent": lambda text: ("/openai/v1/models", [("user-agent", f"agent/1 {text}")]),
        "key header": lambda text: ("/openai/v1/models", [("x-api-key", text)]),
    }
    leaked = []
    for place, make in places.items():
        for how, text in spelled.items():
            path, headers = make(text)
            request(bridge.url, "GET", path, token, headers=headers)
            for received in upstream.take():
                plain = received.head.decode("latin-1")
                if other in plain or other in urllib.parse.unquote(plain):
                    leaked.append(f"{place}, {how}")
    assert not leaked, f"{len(leaked)} tokens reach the provider: {leaked}"
    return f"{len(places) * len(spelled)} places and spellings"


ATTACKS = {"methods": methods, "spellings": spellings, "path-tricks": path_tricks,
           "misplaced-tokens": misplaced_tokens}
