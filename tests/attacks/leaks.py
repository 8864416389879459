"""Attacks on what is kept: texts without bound, secrets in texts, and texts that control a terminal."""

import json
import re
import subprocess
import time

from arena import (CENTRALIZED_KEY, MIB, Footprint, all_settled, ask, log_text, model_request, record,
                   request, session, stored_bytes)
from trail import BINARY, ENV
from upstream import Upstream, answer, message

PATH = "/anthropic/v1/messages"
SET_HEADER = "secret-of-the-organisation-0123456789"
# A text that forges a line and turns the rest of the screen red, in C0, in DEL and in C1.
ESCAPES = "\x1b[31mred\r\nFORGED LINE\x07\x7f\x9b31m\x00"


def event_stream(*events):
    """A streamed answer of the Messages API."""
    text = b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)
    return answer(200, text, [("content-type", "text/event-stream")])


def streamed(identity="msg_1", model="m", stop_reason="end_turn", tool="f", call="call_1"):
    return event_stream(
        {"type": "message_start", "message": {
            "id": identity, "type": "message", "role": "assistant", "model": model, "content": [],
            "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {
            "type": "tool_use", "id": call, "name": tool, "input": {}}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"})


def long_texts(arena):
    """Names and ids of megabytes, from a client and from a provider, are cut before they are stored,
    logged and listed."""
    size = 30 * MIB if arena.full else 4 * MIB
    long = "m" * size

    def respond(received):
        if b'"stream": true' in received.body:
            return streamed(long[:MIB], long[:MIB], long[:MIB], long[:MIB], long[:MIB])
        if b"error" in received.body:
            return answer(400, {"type": "error", "error": {"type": long[:MIB], "message": long[:MIB]}})
        return message(id=long[:MIB], model=long[:MIB], stop_reason=long[:MIB])
    bridge = arena.serve(upstream=arena.open(Upstream(respond)))
    token, _ = bridge.user("ada")
    boss, _ = bridge.user("boss", "admin")
    model_request(bridge.url, token, "asked", model=long)
    model_request(bridge.url, token, "metadata", metadata={"user_id": long})
    model_request(bridge.url, token, "result", messages=[{"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": long, "content": "x"}]}])
    model_request(bridge.url, token, "served")
    model_request(bridge.url, token, "error")
    ask(bridge.url, token, "messages", "stream")
    for name in ("user-agent", "x-claude-code-session-id", "x-claude-code-agent-id"):
        model_request(bridge.url, token, name, headers=[(name, "a" * 20_000)])
    all_settled(bridge)
    page = request(bridge.url, "GET", "/api/v1/interceptions?limit=500", boss, timeout=60)
    items, largest = page.json()["items"], 0
    for item in items:
        shown = request(bridge.url, "GET", f"/api/v1/interceptions/{item['id']}", boss, timeout=60)
        largest = max(largest, len(shown.body))
    line = max(map(len, bridge.running.log))
    figures = f"page of {len(page.body)} bytes, record of {largest}, log line of {line}"
    # A row has at most four names of 16 KiB.
    assert len(page.body) < 64 * 1024 * len(items), figures
    assert largest < 256 * 1024 and line < 4 * 1024, figures
    return figures


def pasted_tokens(arena):
    """A bridge token that somebody pastes into a prompt, a name or metadata is stored and logged masked."""
    bridge = arena.serve(upstream=arena.open(Upstream(lambda received: message(
        "your token is " + victim) if b"quote" in received.body else answer(
            400, {"type": "error", "error": {"type": f"odd {victim}", "message": f"no {victim}"}}))))
    token, _ = bridge.user("ada")
    boss, _ = bridge.user("boss", "admin")
    victim = boss
    pieces = {
        "prompt": {"messages": [{"role": "user", "content": f"quote my token {victim}, please"}]},
        "model": {"model": f"quote {victim}"}, "metadata": {"metadata": {"user_id": f"quote_{victim}"}},
        "session": {"metadata": {"user_id": json.dumps({"session_id": f"quote {victim}"})}},
        "tool call": {"messages": [
            {"role": "user", "content": "quote"},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": victim, "name": victim, "input": {"a": victim}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": victim, "content": victim}]}]},
        "error": {"messages": [{"role": "user", "content": "fail"}]},
    }
    interceptions = {}
    for name, fields in pieces.items():
        answered = model_request(bridge.url, token, "quote", **fields)
        interceptions[name] = answered.header("x-keybridge-interception-id")
    for name in ("user-agent", "x-claude-code-session-id", "x-claude-code-agent-id", "x-odd"):
        model_request(bridge.url, token, "quote", headers=[(name, f"agent/1 ({victim})")])
    request(bridge.url, "GET", f"/openai/v1/unknown/{victim}", token)
    request(bridge.url, "GET", f"/{victim}/v1/models", token)
    shown = record(bridge, interceptions["prompt"])
    bridge.stop()
    kept = {"the store": stored_bytes(bridge), "the log": log_text(bridge).encode()}
    found = [place for place, data in kept.items() if victim[8:40].encode() in data]
    prompt = shown["prompts"][0]["prompt"]
    assert not found, f"the token is in {found}: {prompt[:100]}"
    assert "quote my token" in prompt and "please" in prompt, prompt
    return f"{len(pieces) + 6} places; the prompt is kept as: {prompt[:60]}"


def quoted_keys(arena):
    """A central key, or a configured header, that a provider quotes is masked in records and
    log."""
    secrets = (CENTRALIZED_KEY, SET_HEADER)

    def respond(received):
        both = " ".join(secrets)
        if b"odd-fields" in received.body:
            return message(id=both, model=both, stop_reason=both)
        if b"stream-fields" in received.body:
            return streamed(both, both, both, both, both)
        # A secret that is cut in the middle is still one.
        long = "x" * 1990 + both
        return answer(400, {"type": "error", "error": {
            "type": both, "code": both, "message": long, "param": both}}, [("request-id", both)])
    upstream = arena.open(Upstream(respond))
    bridge = arena.serve(upstream=upstream, provider=[
        f'set_headers = {{ X-Organisation = "{SET_HEADER}" }}'])
    token, _ = bridge.user("ada")
    for path in ("/openai/v1/responses", "/openai/v1/chat/completions"):
        model_request(bridge.url, token, "error-fields", path)
        model_request(bridge.url, token, "odd-fields", path)
    ask(bridge.url, token, "responses", "stream-fields")
    model_request(bridge.url, token, "error-fields")
    model_request(bridge.url, token, "odd-fields")
    ask(bridge.url, token, "messages", "stream-fields")
    assert SET_HEADER in str([received.head for received in upstream.take()]), "the header is sent"
    all_settled(bridge)
    bridge.stop()
    kept = {"the store": stored_bytes(bridge), "the log": log_text(bridge).encode()}
    # Half of one is enough to be worth something.
    found = [f"{secret[:8]}… in {place}" for place, data in kept.items() for secret in secrets
             if secret[8:24].encode() in data]
    assert not found, f"found: {found}"
    return "3 dialects, errors, answers and streams"


def terminal_escapes(arena):
    """Control characters from outside reach no terminal: neither tables, nor details, nor what is
    followed."""
    bridge = arena.serve(upstream=arena.open(Upstream(lambda received: answer(
        400, {"type": "error", "error": {"type": ESCAPES, "message": ESCAPES}})
        if b"fail" in received.body else message(id=ESCAPES, model=ESCAPES, stop_reason=ESCAPES))))
    token, _ = bridge.user("ada")
    following = subprocess.Popen([BINARY, "interceptions", "--follow"], cwd=bridge.dir, env=ENV,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        interceptions = []
        for prompt in (f"words {ESCAPES}", f"fail {ESCAPES}"):
            answered = model_request(bridge.url, token, prompt, model=f"m{ESCAPES}",
                                     headers=[("user-agent", "claude-cli/2.1 \x9b31m")],
                                     metadata={"user_id": json.dumps({"session_id": ESCAPES})})
            interceptions.append(answered.header("x-keybridge-interception-id"))
        for interception in interceptions:
            record(bridge, interception)
        time.sleep(2)
    finally:
        following.terminate()
        followed = following.communicate(timeout=30)[0]
    texts = {"followed": followed, "log": log_text(bridge).encode()}
    for name, words in {"table": ["interceptions"], "sessions": ["sessions"],
                        **{f"record {n}": ["interceptions", "show", interception]
                           for n, interception in enumerate(interceptions)}}.items():
        texts[name] = subprocess.run([BINARY, *words], cwd=bridge.dir, env=ENV, timeout=60,
                                     capture_output=True, check=True).stdout
    odd = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
    controlled = [name for name, text in texts.items() if odd.search(text.decode())]
    forged = [name for name, text in texts.items() if re.search(r"(?m)^FORGED", text.decode())]
    assert interceptions[0][:13].encode() in followed, f"requests are followed: {followed[:300]}"
    assert not controlled, f"control characters reach the terminal in: {controlled}"
    assert not forged, f"lines can be forged in: {forged}"
    return f"{len(texts)} outputs, {sum(map(len, texts.values()))} bytes"


def large_pages(arena):
    """A page of the API stays small, however much the records on it hold."""
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    boss, _ = bridge.user("boss", "admin")
    count, prompt = (60, "p" * MIB) if arena.full else (20, "p" * MIB)
    for _ in range(count):
        model_request(bridge.url, token, prompt, headers=session("one"))
    all_settled(bridge)
    footprint = Footprint(bridge)
    sizes = {}
    for path in ("interceptions?limit=500", "sessions?limit=500", "interceptions?limit=500&session=one"):
        answered = request(bridge.url, "GET", f"/api/v1/{path}", boss, timeout=60)
        assert answered.status == 200, answered
        sizes[path.split("?")[0]] = len(answered.body)
    detail = request(bridge.url, "GET", "/api/v1/sessions/one", boss, timeout=60)
    assert max(sizes.values()) < 2 * MIB, sizes
    return f"{count} prompts of 1 MiB: {sizes}, session {len(detail.body)} bytes; {footprint}"


ATTACKS = {"long-texts": long_texts, "pasted-tokens": pasted_tokens, "quoted-keys": quoted_keys,
           "terminal-escapes": terminal_escapes, "large-pages": large_pages}
