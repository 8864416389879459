"""Where an attack takes place: bridges, the simulator, hostile servers, and what must hold afterwards."""

import argparse
import contextlib
import http.client
import json
import pathlib
import socket
import sys
import time
import urllib.parse
from dataclasses import dataclass, field

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "ledger"))

from storm import memory, resident  # noqa: E402
from trail import CENTRALIZED_KEY, Bridge, ask, request_body  # noqa: E402, F401
from world import Cannot, World, until  # noqa: E402, F401

MIB = 1 << 20
# How long a request of somebody else may take while an attack runs, also on a busy machine.
SERVED_SECONDS = 20


class Arena(World):
    """A folder, a simulator, hostile servers, and bridges in front of them."""

    def __init__(self, options, servers):
        super().__init__(argparse.Namespace(soak=options.full, seed=1), servers)
        self.full = options.full

    def open(self, server):
        """Enters a hostile server, which stops with the arena."""
        return self._stack.enter_context(server)

    def serve(self, store="sqlite", upstream=None, more=(), provider=(), start=None, **settings):
        """Starts a bridge in front of the simulator, or of another server with its paths; `more` and, for
        each provider, `provider` are further lines of its configuration."""
        if store in ("sqlite", "postgres"):
            store = self.store(store)
        bridge = Bridge(self.dir, store, upstream or self.simulator,
                        name=f"bridge-{len(self.bridges)}", **settings)
        bridge.configure(more=more, provider=provider)
        self.bridges.append(bridge)
        return bridge.start(**(start or {}))


@dataclass
class Answer:
    """A response; the status is 0 if there was none."""

    status: int = 0
    headers: list = field(default_factory=list)
    body: bytes = b""
    error: str = ""

    def header(self, name):
        return next((value for key, value in self.headers if key.lower() == name), None)

    def json(self):
        return json.loads(self.body)


def request(url, method, path, token=None, body=None, headers=(), timeout=30):
    """Sends a request whose path and headers stay as they are."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)
    answer = Answer()
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if token:
            connection.putheader("authorization", f"Bearer {token}")
        for name, value in headers:
            connection.putheader(name, value)
        if isinstance(body, (dict, list)):
            connection.putheader("content-type", "application/json")
            body = json.dumps(body).encode()
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        answer.status, answer.headers = response.status, response.getheaders()
        answer.body = response.read()
    except (OSError, http.client.HTTPException) as error:
        answer.error = repr(error)
    finally:
        connection.close()
    return answer


def model_request(url, token, prompt, path="/anthropic/v1/messages", model="sim-text", headers=(),
                  timeout=30, **fields):
    """A request to a model, not streamed."""
    dialect = {"messages": "messages", "completions": "chat"}.get(path.rsplit("/", 1)[-1], "responses")
    body = {**request_body(dialect, prompt, False, model), **fields}
    return request(url, "POST", path, token, body, headers, timeout)


def session(name):
    """The headers of a client that says which session a request is part of."""
    return [("user-agent", "claude-cli/2.1"), ("x-claude-code-session-id", name)]


def connect(url, timeout=10):
    """A socket; a busy machine may refuse for a moment."""
    address = urllib.parse.urlsplit(url)
    for attempt in range(20):
        try:
            return socket.create_connection((address.hostname, address.port), timeout=timeout)
        except OSError:
            if attempt == 19:
                raise
            time.sleep(0.1)


def read_all(sock, timeout=10):
    """All bytes until the peer closes or has been silent for a time."""
    sock.settimeout(timeout)
    data = bytearray()
    with contextlib.suppress(OSError):
        while piece := sock.recv(65536):
            data += piece
    return bytes(data)


def check_served(bridge, token):
    """Checks that somebody is served; returns the seconds it took."""
    result = ask(bridge.url, token, "messages", "is anybody there?", False, timeout=SERVED_SECONDS)
    assert result.whole, f"somebody else is not served: {result}"
    return result.seconds


class Footprint:
    """The memory of a bridge, from when this is made."""

    def __init__(self, bridge):
        self._pid = bridge.running.process.pid
        self.before = resident(self._pid) / 1024

    @property
    def now(self):
        return resident(self._pid) / 1024

    @property
    def peak(self):
        """The maximum since the process started, in MiB."""
        return memory(self._pid, "VmHWM") / 1024

    def check(self, grows_by):
        """Checks that memory never grew by more than so many MiB."""
        assert self.peak < self.before + grows_by, f"memory grew: {self}"

    def __str__(self):
        return f"{self.before:.0f} → {self.now:.0f} MiB, peak {self.peak:.0f}"


def all_settled(bridge):
    """Waits until no record is in progress."""
    until(lambda: all(item["outcome"] != "in_progress" for item in records(bridge)), "all is settled")


def records(bridge, **filters):
    """The records as they are listed, newest first."""
    words = [word for name, value in filters.items() for word in (f"--{name}", value)]
    return bridge.cli("interceptions", "--limit", "500", *words)


def record(bridge, interception):
    """A record with all its rows, once it is settled."""
    shown = {}

    def settled():
        with contextlib.suppress(RuntimeError):
            # It may not be committed yet.
            shown.update(bridge.cli("interceptions", "show", interception)[0])
        return shown.get("outcome", "in_progress") != "in_progress"
    until(settled, f"{interception} is settled")
    return shown


def stored_bytes(bridge):
    """All bytes that a bridge wrote: its SQLite store, its spool and whatever else is in its folder, save
    its configuration."""
    store = pathlib.Path(bridge.store.removeprefix("sqlite://"))
    files = [*store.parent.glob(store.name + "*"), *bridge.dir.rglob("*")]
    return b"".join(file.read_bytes() for file in files
                    if file.is_file() and file.name != "keybridge.toml")


def log_text(bridge):
    return "".join(bridge.running.log)
