"""Attacks of one person on another: their records, their sessions, their tokens."""

import json
import re
import subprocess
import threading
import time

from arena import (Cannot, ask, check_served, connect, model_request, record, records, request,
                   request_body, session, until)
from trail import BINARY, ENV

# How soon a revocation must be seen, on a busy machine too; usually it is milliseconds.
REVOKED_SECONDS = 10
# How soon an open stream must end when its token is revoked or its user suspended.
STREAM_END_SECONDS = 20


def others_records(arena):
    """Many tries of a member to read the records of another, and to change their account or his own role."""
    bridge = arena.serve()
    ada, adas_id = bridge.user("ada")
    bob, _ = bridge.user("bob")
    secret = "adas-secret-prompt"
    sent = model_request(bridge.url, ada, secret, headers=session("s-ada"))
    interception = sent.header("x-keybridge-interception-id")
    shown = record(bridge, interception)
    user, thread = shown["user_id"], shown["thread_id"]
    model_request(bridge.url, bob, "bobs own")
    upper = interception.upper()
    filters = [f"user={name}" for name in ("ada", user, "ADA", "%61da", "*", "%25", "ada%00", "ada,bob",
                                           "ada'--", "ada&user=bob", "bob&user=ada")]
    filters += [f"session={name}" for name in ("s-ada", "s%2dada", "*")]
    filters += [f"thread={thread}", f"q={secret}", f"q={secret[:5]}", "provider=anthropic", "model=sim-text",
                "limit=500", "limit=-1", "limit=500&user_id=" + user, "user_id=" + user, "since=1970-01-01",
                "role=admin", "all=true", "cursor=" + interception, "cursor=eyJ1c2VyIjoiYWRhIn0",
                "outcome=completed", "credential_kind=centralized"]
    paths = [f"/api/v1/interceptions?{words}" for words in filters]
    paths += [f"/api/v1/sessions?{words}" for words in filters[:14]]
    paths += [f"/api/v1/interceptions/{text}" for text in (
        interception, upper, interception.replace("-", ""), f"%7b{interception}%7d", f"{interception}/",
        f"./{interception}", f"..%2finterceptions%2f{interception}", f"urn:uuid:{interception}",
        interception + "?user=ada")]
    paths += [f"/api/v1/sessions/{text}" for text in ("s-ada", "s%2dada", thread, "s-ada?user=ada",
                                                      f"s-ada?user_id={user}", "s-ada?user=bob")]
    paths += ["/api/v1/providers", "/api/v1/mcp", "/api/v1/users", "/api/v1/users/ada/tokens",
              "/api/v1/export?format=jsonl", "/api/v1/usage?user=ada", f"/api/v2/interceptions/{interception}"]
    tries = 0
    for path in paths:
        for headers in ([], [("x-forwarded-user", "ada")], [("x-ai-bridge-actor-id", user)]):
            answered = request(bridge.url, "GET", path, bob, headers=headers)
            tries += 1
            told = answered.body.decode(errors="replace")
            for word in (secret, interception, user):
                # An error may quote what was asked for.
                assert word not in told or answered.status >= 400 and word in path, \
                    f"{path} shows a record of ada: {told[:200]}"
            assert 0 < answered.status < 500, (path, answered)
    for method, path in (("POST", "/api/v1/config/reload"), ("DELETE", f"/api/v1/interceptions/{interception}"),
                         ("DELETE", f"/api/v1/tokens/{adas_id}"), ("DELETE", f"/api/v1/tokens/{adas_id.upper()}"),
                         ("POST", "/api/v1/users/ada/tokens"), ("PATCH", "/api/v1/users/ada"),
                         ("PATCH", "/api/v1/users/bob"), ("POST", "/api/v1/users"), ("PUT", f"/api/v1/interceptions/{interception}")):
        answered = request(bridge.url, method, path, bob, {"role": "admin"})
        assert answered.status in (403, 404, 405), (method, path, answered)
        tries += 1
    assert request(bridge.url, "GET", f"/api/v1/interceptions/{interception}", ada).status == 200
    return f"{tries} tries"


def borrowed_session(arena):
    """A member who sends the session id of another hides nothing from an administrator."""
    bridge = arena.serve()
    ada, _ = bridge.user("ada")
    bob, _ = bridge.user("bob")
    boss, _ = bridge.user("boss", "admin")
    made = {}
    for name, token in (("ada", ada), ("bob", bob)):
        answered = model_request(bridge.url, token, f"prompt of {name}", headers=session("shared-session"))
        made[name] = answered.header("x-keybridge-interception-id")
        record(bridge, made[name])
    listed = request(bridge.url, "GET", "/api/v1/sessions", boss).json()["items"]
    assert len(listed) == 2, f"each user has a session: {listed}"
    shown = request(bridge.url, "GET", "/api/v1/sessions/shared-session", boss).body.decode()
    for name in made:
        shown += request(bridge.url, "GET", f"/api/v1/sessions/shared-session?user={name}",
                         boss).body.decode()
    hidden = [name for name, interception in made.items() if interception not in shown]
    assert not hidden, f"an administrator does not see the session of {hidden}"
    own = request(bridge.url, "GET", "/api/v1/sessions/shared-session", ada).body.decode()
    assert made["ada"] in own and made["bob"] not in own, "a member sees their own part alone"
    return "both users' sessions are shown"


def revocation(arena):
    """A revoked token, and a suspended user, are refused at once, on connections that are open, too."""
    bridge = arena.serve()
    ada, ada_id = bridge.user("ada")
    bob, _ = bridge.user("bob")
    times = {}
    for name, token, words in (("token revoked", ada, ["token", "revoke", ada_id]),
                               ("user suspended", bob, ["user", "suspend", "bob"])):
        check_served(bridge, token)
        bridge.cli(*words)
        times[name] = until(lambda token=token: model_request(bridge.url, token, "hi").status == 401,
                            f"{name}: refused", REVOKED_SECONDS)
        assert request(bridge.url, "GET", "/api/v1/interceptions", token).status == 401
    return ", ".join(f"{name}: {seconds * 1000:.0f} ms" for name, seconds in times.items())


def open_streams(arena):
    """A stream that is open when its token is revoked, or its user suspended, ends with an error and is
    settled."""
    bridge = arena.serve()
    ends = {}
    for name, revoke in (("ada", lambda token_id: ["token", "revoke", token_id]),
                         ("bob", lambda _: ["user", "suspend", "bob"])):
        for dialect in ("messages", "chat", "responses"):
            user = f"{name}-{dialect}"
            token, token_id = bridge.user(user)
            result = {}

            def read(token=token, dialect=dialect, result=result):
                result["it"] = ask(bridge.url, token, dialect, "long", delay_ms=500, tokens=200, timeout=120)
            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            until(lambda user=user: records(bridge, user=user), "the stream is open", 20)
            time.sleep(0.5)
            words = revoke(token_id)
            bridge.cli(*(words[:2] + [user] if words[0] == "user" else words))
            began = time.monotonic()
            thread.join(STREAM_END_SECONDS)
            assert not thread.is_alive(), f"{user}: the stream goes on after {' '.join(words[:2])}"
            ends[user] = time.monotonic() - began
            assert "error" in result["it"].body, f"{user}: no error in the dialect: {result['it']}"
            until(lambda user=user: records(bridge, user=user)[0]["outcome"] != "in_progress",
                  "the stream is settled")
    return f"{len(ends)} streams ended within {max(ends.values()):.1f} s"


def first_token(arena):
    """The token of the first administrator is not in an output that outlives the terminal, but in a file
    for its owner alone."""
    folder = arena.dir / "first"
    folder.mkdir()
    output = arena.dir / "output"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [BINARY, "serve", "--simulate", "--store", f"sqlite://{folder}/keybridge.db",
             "--listen", "127.0.0.1:0"], cwd=folder, env=ENV, stdin=subprocess.DEVNULL, stdout=file,
            stderr=file)
    try:
        until(lambda: "admin" in output.read_text(), "the administrator is announced", 30)
        time.sleep(0.5)
    finally:
        process.terminate()
        process.wait(timeout=60)
    text, token = output.read_text(), re.compile(rb"kb_[0-9A-Za-z_-]{40,}")
    assert not token.search(text.encode()), "the token is in the output"
    holding = [file for file in folder.rglob("*") if file.is_file() and token.search(file.read_bytes())]
    assert len(holding) == 1, f"one file has the token: {holding}"
    mode = holding[0].stat().st_mode & 0o777
    assert mode == 0o600 and holding[0].name in text, (oct(mode), text[-500:])
    return f"{holding[0].name}, mode 0600, named in the output"


def guessed_tokens(arena):
    """Thousands of guessed tokens are refused, change nothing, and keep nobody out."""
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    count = 5000 if arena.full else 1000
    body = json.dumps(request_body("messages", "hi", False)).encode()
    began = time.monotonic()
    refused = 0
    with connect(bridge.url) as sock:
        stream = sock.makefile("rb")
        for number in range(count):
            guess = (token[:-12] + f"{number:012d}")
            try:
                sock.sendall((f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                              f"{guess}\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body)
                status, length = read_head(stream)
            except (OSError, ValueError):
                # The bridge may close the connection of somebody who is refused so often.
                sock.close()
                break
            stream.read(length)
            assert status in (401, 429), status
            refused += 1
    seconds = check_served(bridge, token)
    assert len(records(bridge)) == 1, "guesses leave no records"
    return f"{refused} refused in {time.monotonic() - began:.1f} s, ada was served in {seconds:.2f} s"


def read_head(stream):
    """The status and the length of a response."""
    status = int(stream.readline().split()[1])
    length = 0
    while (line := stream.readline().strip()):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, length


def local_metrics(arena):
    """Other programs of the machine do not read the metrics, if they are told not to."""
    try:
        bridge = arena.serve(more=["[telemetry]", "metrics_local = false"])
    except RuntimeError as error:
        raise Cannot("this binary has no telemetry.metrics_local") from error
    token, _ = bridge.user("ada")
    boss, _ = bridge.user("boss", "admin")
    check_served(bridge, token)
    statuses = [request(bridge.url, "GET", "/metrics", who).status for who in (None, token, boss)]
    assert statuses[0] in (401, 403) and statuses[1] in (401, 403) and statuses[2] == 200, statuses
    return f"without a token {statuses[0]}, a member {statuses[1]}, an administrator {statuses[2]}"


ATTACKS = {"others-records": others_records, "borrowed-session": borrowed_session,
           "revocation": revocation, "revoked-streams": open_streams, "first-token": first_token,
           "guessed-tokens": guessed_tokens, "local-metrics": local_metrics}
