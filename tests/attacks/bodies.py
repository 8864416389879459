"""Attacks by the body of a request: bombs, deep nesting, endless lists, and bodies that never end."""

import functools
import gzip
import json
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import memory as body_floods
from arena import (MIB, Footprint, all_settled, ask, check_served, connect, model_request, read_all,
                   record, records, request, request_body, until)
from upstream import Upstream, answer, message

PATH = "/anthropic/v1/messages"
MAX_BODY = 64 * MIB
# What a bridge may need for a refused body and its decoding, in MiB.
DECODING_MEMORY = 256
# The least that `limits.body_memory` can be.
LEAST_BODY_MEMORY = 64
# How soon memory must be given back after a flood at full size, and after a smaller one.
FULL_BACK_SECONDS, BACK_SECONDS = 60, 20
TOOL_RESULTS = 400_000


def bomb(size, compress=lambda plain: gzip.compress(plain, 1)):
    """A body with a prompt of this size, compressed."""
    return compress(b'{"model":"sim-text","max_tokens":5,"messages":[{"role":"user","content":"'
                    + b"a" * size + b'"}]}')


def bombs(arena):
    """Compressed bodies over the limit are refused with 413, and are not held in memory."""
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    check_served(bridge, token)
    footprint = Footprint(bridge)
    once = bomb(200 * MIB)
    bodies = [("gzip", bomb(MAX_BODY)), ("gzip", once), ("deflate", bomb(100 * MIB, zlib.compress)),
              ("gzip, gzip", gzip.compress(once)), (", ".join(["gzip"] * 10), nested(once, 9))]
    number, rounds = 0, 4 if arena.full else 1
    with ThreadPoolExecutor(8) as pool:
        asked = [(coding, pool.submit(request, bridge.url, "POST", PATH, token, body,
                                      [("content-encoding", coding)], 120))
                 for _ in range(rounds) for coding, body in bodies]
        for coding, sent in asked:
            answered, number = sent.result(), number + 1
            expected = (413,) if "," not in coding else (400, 413, 415)
            assert answered.status in expected, (coding, answered)
    check_served(bridge, token)
    footprint.check(DECODING_MEMORY)
    return f"{number} refused; {footprint}"


def nested(body, times):
    for _ in range(times):
        body = gzip.compress(body)
    return body


def flooded(arena, flood):
    """Runs a flood of bodies, at full size with the default memory for bodies, else with the least. A small
    flood may leave the memory of one body."""
    limit = body_floods.BODY_MEMORY if arena.full else LEAST_BODY_MEMORY
    seconds, left = (FULL_BACK_SECONDS, 0) if arena.full else (BACK_SECONDS, LEAST_BODY_MEMORY)
    bridge = arena.serve(more=["[limits]", f'body_memory = "{limit} MiB"'])
    tokens = [bridge.user(f"user-{number}")[0] for number in range(4)]
    for _ in range(50):
        check_served(bridge, tokens[0])
    before, peak, after, answered = body_floods.measure(bridge, tokens, flood, seconds)
    waited = until(lambda: ask(bridge.url, tokens[0], "messages", "afterwards").whole, "others are served", 60)
    figures = (f"{before:.0f} → {after:.0f} MiB, peak {peak:.0f}; {answered}; "
               f"others served after {waited:.1f} s")
    assert peak <= before + limit + body_floods.OTHER_MEMORY, figures
    assert after <= before * body_floods.MAY_KEEP + left, f"memory is not given back: {figures}"
    return figures


def compressed_prompts(arena):
    """Tiny bodies that decode to the largest prompts that are allowed stay within the memory for bodies."""
    count = 40 if arena.full else 12
    figures = flooded(arena, functools.partial(body_floods.bombs, requests=count))
    return f"{count} bodies of {len(body_floods.BROTLI_BOMB)} bytes: {figures}"


def large_prompts(arena):
    """The largest prompts that are allowed keep nobody waiting, and are cut to 16 MiB before they are
    stored, once in the write-ahead log and once in the store."""
    count = 40 if arena.full else 4
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    other, _ = bridge.user("bob")
    footprint, body, slowest = Footprint(bridge), bomb(MAX_BODY - MIB), 0.0
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(request, bridge.url, "POST", PATH, token, body,
                             [("content-encoding", "gzip")], 180) for _ in range(count)]
        while not all(sent.done() for sent in asked):
            slowest = max(slowest, check_served(bridge, other))
            time.sleep(0.1)
    answers = [sent.result() for sent in asked]
    assert {each.status for each in answers} <= {200, 429, 503}, [(a.status, a.error) for a in answers]
    all_settled(bridge)
    stored = sum(file.stat().st_size for file in arena.dir.glob("*.db*")) / MIB
    figures = (f"{sum(each.status == 200 for each in answers)} of {count} prompts of 63 MiB served, "
               f"{stored:.0f} MiB stored, others served in {slowest:.1f} s; {footprint}")
    assert stored < 16 + 34 * count, f"prompts fill the store: {figures}"
    return figures


def unfinished_bodies(arena):
    """Connections that send almost all of a body and then wait take no more memory than is allowed for
    bodies, and it is given back."""
    count, seconds = (2000, 12) if arena.full else (300, 4)
    figures = flooded(arena, functools.partial(
        body_floods.unfinished_bodies, connections=count, seconds=seconds))
    return f"{count} bodies of 1 MB: {figures}"


def deep_json(arena):
    """Values nested 100,000 deep, in a request and in a response, end in an error or pass, and the
    process lives."""
    depth, bridges = 100_000, []
    deep = "[" * depth + "]" * depth
    objects = '{"a":' * depth + "1" + "}" * depth
    bridges.append(arena.serve())
    bridge = bridges[0]
    token, _ = bridge.user("ada")
    statuses = []
    for value in (deep, objects, "[" * depth, '{"a":' * depth):
        for text in (value, f'{{"model":"m","max_tokens":5,"messages":{value}}}',
                     '{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}],"tools":'
                     + value + "}",
                     '{"model":"m","max_tokens":5,"metadata":{"user_id":"x","y":' + value + '},'
                     '"messages":[{"role":"user","content":"hi"}]}',
                     '{"model":' + value + ',"input":"hi"}'):
            for path in (PATH, "/openai/v1/responses", "/openai/v1/chat/completions"):
                answered = request(bridge.url, "POST", path, token, text.encode(),
                                   [("content-type", "application/json")])
                assert answered.status, (path, text[:100], answered)
                statuses.append(answered.status)
    check_served(bridge, token)
    whole = message().replace(b'"usage"', b'"x":' + deep.encode() + b',"usage"')
    whole = whole.partition(b"\r\n\r\n")[2]
    event = b'event: message_start\ndata: {"type":"message_start","message":' + deep.encode() + b"}\n\n"
    upstream = arena.open(Upstream(lambda received: answer(
        200, event, [("content-type", "text/event-stream")]) if b'"stream": true' in received.body
        else answer(200, whole)))
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    assert model_request(bridge.url, token, "deep answer").status == 200
    ask(bridge.url, token, "messages", "deep stream")
    ask(bridge.url, token, "responses", "deep stream")
    assert bridge.running.process.poll() is None
    assert model_request(bridge.url, token, "deep answer").status == 200
    return f"{len(statuses)} requests: " + ", ".join(
        f"{statuses.count(status)} × {status}" for status in sorted(set(statuses)))


def tool_results(count):
    """A body with so many results of tools, compressed."""
    results = ",".join(['{"type":"tool_result","tool_use_id":"0"}'] * count)
    return gzip.compress(
        b'{"model":"sim-text","max_tokens":5,"messages":[{"role":"user","content":['
        + results.encode() + b"]}]}")


def many_tool_results(arena):
    """Requests with 400,000 results of tools, one after the other, keep nobody waiting."""
    count = 8 if arena.full else 3
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    other, _ = bridge.user("bob")
    slowest, body = 0.0, tool_results(TOOL_RESULTS)
    footprint = Footprint(bridge)
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(request, bridge.url, "POST", PATH, token, body,
                             [("content-encoding", "gzip"), ("content-type", "application/json")], 120)
                 for _ in range(count)]
        while not all(sent.done() for sent in asked):
            slowest = max(slowest, check_served(bridge, other))
            time.sleep(0.1)
        slowest = max(slowest, check_served(bridge, other))
    statuses = [sent.result().status for sent in asked]
    assert 0 not in statuses, [sent.result() for sent in asked]
    all_settled(bridge)
    return (f"{count} bodies of {len(body)} bytes: {sorted(set(statuses))}, others served in "
            f"{slowest:.1f} s; {footprint}")


def poisoned_spool(arena):
    """A request whose record takes long to commit ends neither the service nor a later start, and the
    records after it are stored."""
    bridge = arena.serve("postgres", on_outage="spool")
    token, _ = bridge.user("ada")
    other, _ = bridge.user("bob")
    body = tool_results(TOOL_RESULTS)
    poison = request(bridge.url, "POST", PATH, token, body,
                     [("content-encoding", "gzip"), ("content-type", "application/json")], 60)
    before = [ask(bridge.url, other, "messages", f"after the poison {n}") for n in range(5)]
    arena.server.stop()
    try:
        request(bridge.url, "POST", PATH, token, body,
                [("content-encoding", "gzip"), ("content-type", "application/json")], 60)
        spooled = [ask(bridge.url, other, "messages", f"in the outage {n}") for n in range(5)]
    finally:
        arena.server.start()
    back = until(lambda: ask(bridge.url, other, "messages", "after the outage").whole,
                 "somebody else is served after the outage", 60)
    assert all(result.whole for result in before + spooled), [
        (result.status, result.body[:200]) for result in before + spooled if not result.whole][:3]
    bridge.kill()
    bridge.start()
    check_served(bridge, other)
    until(lambda: all(found(arena, bridge, result) for result in before + spooled),
          "the records after the poison are stored", 60)
    stored = len(records(bridge, user="ada"))
    return (f"{len(body)} bytes: {poison.status}; served {back:.0f} s after the outage, restarted, "
            f"{len(before + spooled)} others stored, {stored} poisoned")


def found(arena, bridge, result):
    return ("completed", "exact") in arena.recorded(bridge.store).get(result.response_id, [])


def trickled_bodies(arena):
    """Bodies of a byte a second end."""
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    head = (f"POST {PATH} HTTP/1.1\r\nHost: keybridge\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n").encode()
    sockets = [connect(bridge.url) for _ in range(20)]
    for sock in sockets:
        sock.sendall(head)
    left, began = list(sockets), time.monotonic()
    while left:
        assert time.monotonic() - began < 75, f"{len(left)} of {len(sockets)} bodies are still read"
        left = [sock for sock in left if still_read(sock)]
        time.sleep(0.5)
    check_served(bridge, token)
    return f"{len(sockets)} bodies ended within {time.monotonic() - began:.0f} s"


def still_read(sock):
    """Sends a byte of a body; whether the peer has answered or closed."""
    sock.settimeout(0.01)
    try:
        sock.sendall(b" ")
        return not read_all(sock, timeout=0.01)
    except OSError:
        return False


def unauthenticated_bodies(arena):
    """Bodies without a valid token are not kept, however many arrive."""
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    check_served(bridge, token)
    footprint, body = Footprint(bridge), b" " * (30 * MIB)
    count = 200 if arena.full else 40
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(request, bridge.url, "POST", PATH, "kb_wrong", body) for _ in range(count)]
        slowest = check_served(bridge, token)
        statuses = [sent.result().status for sent in asked]
    # A client that is still sending may see a reset instead of the response.
    assert set(statuses) <= {401, 429, 503, 0}, statuses
    footprint.check(DECODING_MEMORY)
    return f"{count} refused; {footprint}; somebody else was served in {slowest:.2f} s"


def odd_bodies(arena):
    """Bodies that are no JSON object, or use a key twice, are refused before the provider sees them."""
    upstream = arena.open(Upstream())
    bridge = arena.serve(upstream=upstream)
    token, _ = bridge.user("ada")
    plain = json.dumps(request_body("messages", "hi", False)).encode()
    forms = [b"", b" ", b"[]", b"1", b"null", b'"x"', b"{", b"{}x", b"\xff\xfe{}", b"\xef\xbb\xbf{}",
             b'{"model":"a"' + b"," * 1000 + b"}", b'{"a":"\xff"}', b'{"a":"\\ud800"', b"{'a':1}",
             plain.replace(b'"model"', b'"model":"other","model"'),
             plain.replace(b'"model"', b'"model":"other","m\\u006fdel"'),
             plain.replace(b'"stream"', b'"stream":true,"\\u0073tream"')]
    for body in forms:
        answered = request(bridge.url, "POST", PATH, token, body, [("content-type", "application/json")])
        assert answered.status == 400, (body[:80], answered)
    for coding in ("br", "gzip", "zstd", "deflate", "compress", "x-unknown", "gzip, x-unknown"):
        answered = request(bridge.url, "POST", PATH, token, plain, [("content-encoding", coding)])
        assert answered.status in (400, 415), (coding, answered)
    assert not upstream.take()
    record_of_refusal = record(bridge, answered.header("x-keybridge-interception-id"))
    assert record_of_refusal["outcome"] == "refused", record_of_refusal
    return f"{len(forms) + 7} refused"


ATTACKS = {
    "bombs": bombs, "compressed-prompts": compressed_prompts, "deep-json": deep_json,
    "odd-bodies": odd_bodies, "large-prompts": large_prompts, "many-tool-results": many_tool_results,
    "poisoned-spool": poisoned_spool, "unfinished-bodies": unfinished_bodies,
    "trickled-bodies": trickled_bodies, "unauthenticated-bodies": unauthenticated_bodies,
}
