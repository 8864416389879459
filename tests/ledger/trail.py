"""The processes under test: a simulator with a journal, bridges, and clients under load."""

import http.client
import json
import os
import pathlib
import random
import re
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("KEYBRIDGE", ROOT / "target/debug/keybridge"))
START_SECONDS = 30
# The environment of the tests does not reach a process under test.
ENV = {"PATH": os.environ["PATH"]}
# The company's keys, which the simulated providers accept.
CENTRALIZED_KEY = "sk-centralized-key-of-the-tests1"
SPARE_KEY = "sk-spare-key-of-the-tests-01234567"
RESPONSE_ID = re.compile(r'"id":\s*"((?:msg_|chatcmpl-|resp_)[0-9a-f]{16})"')


class Process:
    """A program that prints the address it listens on to standard error."""

    def __init__(self, words, says, **options):
        self.log = []
        self.url = None
        self.process = subprocess.Popen(
            words, env=ENV, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, **options)
        self._ready = threading.Event()
        threading.Thread(target=self._read, args=(says,), daemon=True).start()
        if not self._ready.wait(START_SECONDS) or not self.url:
            raise RuntimeError(f"{words} did not start:\n" + "".join(self.log[-30:]))

    def _read(self, says):
        for line in self.process.stderr:
            self.log.append(line)
            if not self.url and (found := re.search(says + r" (https?://\S+)", line)):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def stop(self):
        """Stops the program gracefully; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=90)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Simulator(Process):
    """The simulated providers, whose journal lists the responses that they sent."""

    def __init__(self, folder):
        self.file = pathlib.Path(folder) / "handed-out.jsonl"
        super().__init__([BINARY, "sim", "--log", self.file], "simulated providers are listening on")


class Bridge:
    """A bridge that can be restarted on the same store and spool."""

    def __init__(self, folder, store, simulator, on_outage="refuse", name="bridge", tools=False,
                 spare_key=False, server=None, **ledger):
        self.dir = pathlib.Path(folder) / name
        self.dir.mkdir()
        self.store, self.simulator = store, simulator
        self.spool = pathlib.Path(ledger.pop("spool_dir", self.dir / "spool"))
        settings = {"on_outage": on_outage, "spool_dir": str(self.spool),
                    "spool_max_bytes": "1 GiB", "spool_max_age": "1h", **ledger}
        self._ledger = settings
        self._server = {"listen": "127.0.0.1:0", "shutdown_grace": "60s", **(server or {})}
        self.configure(tools, spare_key)
        self.running = None
        # The time at which the process at an address was killed.
        self.kills = {}

    def configure(self, tools=False, spare_key=False, more=(), provider=()):
        """Writes the configuration: with the lines `provider` for each, followed by the lines `more`."""
        def settings(table):
            return [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        lines = ["[server]", *settings(self._server), "[store]", *settings({"url": self.store}),
                 "[ledger]", *settings(self._ledger)]
        for kind, mount in (("anthropic", "/anthropic"), ("openai", "/openai/v1")):
            lines += ["[[providers]]", f'type = "{kind}"',
                      f'base_url = "{self.simulator.url}{mount}"',
                      f'keys = [{{ name = "main", value = "{CENTRALIZED_KEY}" }}'
                      + (f', {{ name = "spare", value = "{SPARE_KEY}" }}]' if spare_key else "]"),
                      *provider]
        if tools:
            lines += ["[[mcp_servers]]", 'name = "sim"', f'url = "{self.simulator.url}/mcp"']
        (self.dir / "keybridge.toml").write_text("\n".join([*lines, *more]) + "\n")

    def start(self, words=(BINARY, "serve"), **options):
        self.running = Process(list(words), "keybridge is listening on", cwd=self.dir, **options)
        return self

    @property
    def url(self):
        return self.running.url

    def stop(self):
        code = self.running.stop()
        assert code == 0, f"the bridge ended with {code}:\n" + "".join(self.running.log[-20:])

    def kill(self):
        self.kills[self.url] = time.monotonic()
        self.running.kill()

    def cli(self, *words, check=True):
        done = subprocess.run([BINARY, "--json", *words], cwd=self.dir, env=ENV, text=True,
                              capture_output=True, timeout=120)
        if check and done.returncode != 0:
            raise RuntimeError(f"keybridge {words}: {done.stdout}{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def user(self, name, role="member"):
        """Creates a user; returns its token and the id of the token."""
        self.cli("user", "create", name, "--role", role)
        token = self.cli("token", "create", "--user", name)[0]
        return token["token"], token["id"]

    def recount(self, simulator):
        """Verifies the records; returns the exit code and the counts."""
        done = subprocess.run(
            [BINARY, "--json", "ledger", "verify", "--against", simulator.file], cwd=self.dir,
            env=ENV, text=True, capture_output=True, timeout=300)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def verify(self, simulator):
        """Verifies the records; fails unless they are complete."""
        code, counts = self.recount(simulator)
        assert code == 0, f"the records are incomplete or wrong: {counts}"
        return counts

    def metrics(self):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix("keybridge_ledger_"): float(value) for name, value in pairs}

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=10) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as error:
            return error.code == 200


def recorded(store, server=None):
    """The outcomes and qualities of the records of every response id in the store. Records without an
    id are listed under the empty one."""
    sql = ("SELECT coalesce(u.provider_response_id, ''), i.outcome, coalesce(u.quality, '')"
           " FROM interceptions i LEFT JOIN token_usages u ON i.id = u.interception_id")
    if store.startswith("sqlite://"):
        with sqlite3.connect(store.removeprefix("sqlite://")) as database:
            rows = database.execute(sql).fetchall()
    else:
        rows = [line.split("|") for line in server.psql(sql, store.rsplit("/", 1)[1])]
    found = {}
    for response, outcome, quality in rows:
        found.setdefault(response, []).append((outcome, quality))
    return found


@dataclass
class Result:
    """A request and its result."""

    url: str = ""
    status: int = 0
    whole: bool = False
    left: bool = False
    response_id: str = ""
    seconds: float = 0.0
    ended_at: float = 0.0
    body: str = ""
    headers: dict = field(default_factory=dict)
    error: str = ""


DIALECTS = {
    "messages": ("/anthropic/v1/messages", "message_stop"),
    "chat": ("/openai/v1/chat/completions", "[DONE]"),
    "responses": ("/openai/v1/responses", "response.completed"),
}


def request_body(dialect, prompt, stream, model="sim-text"):
    body = {"model": model, "stream": stream}
    if dialect == "responses":
        return {**body, "input": prompt}
    body["messages"] = [{"role": "user", "content": prompt}]
    if dialect == "messages":
        body["max_tokens"] = 100
    elif stream:
        body["stream_options"] = {"include_usage": True}
    return body


def ask(url, token, dialect, prompt, stream=True, delay_ms=0, tokens=3, leave_after=None,
        timeout=60, turns=None, model="sim-text", first=None, padding=None, agent=None):
    """One request; `leave_after` closes the connection after so many seconds, `turns` scripts what
    the model does, `first` what the provider answers to the first attempts; `padding` makes the body
    large; `agent` is the user agent."""
    path, last = DIALECTS[dialect]
    result = Result(url)
    began = time.monotonic()
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=timeout)
    pieces = []
    body = json.dumps({**request_body(dialect, prompt, stream, model),
                       **({"padding": padding} if padding else {})})
    try:
        connection.request("POST", path, body, {
            "content-type": "application/json", "authorization": f"Bearer {token}",
            "x-sim-delay-ms": str(delay_ms), "x-sim-tokens": str(tokens),
            **({"x-sim-turns": json.dumps(turns)} if turns else {}),
            **({"x-sim-first": first} if first else {}),
            **({"user-agent": agent} if agent else {})})
        if leave_after is not None:
            connection.sock.settimeout(max(leave_after, 0.001))
        answer = connection.getresponse()
        result.status, result.headers = answer.status, dict(answer.headers)
        while True:
            if leave_after is not None and time.monotonic() - began >= leave_after:
                result.left = True
                break
            piece = answer.read1(65536)
            if not piece:
                break
            pieces.append(piece)
    except TimeoutError:
        result.left = leave_after is not None
        result.error = "" if result.left else "timeout"
    except (OSError, http.client.HTTPException) as error:
        result.error = repr(error)
    finally:
        connection.close()
    result.body = b"".join(pieces).decode(errors="replace")
    found = RESPONSE_ID.search(result.body)
    result.response_id = found[1] if found else ""
    result.whole = not result.left and not result.error and result.status == 200 and (
        last in result.body if stream else bool(found))
    result.ended_at = time.monotonic()
    result.seconds = result.ended_at - began
    return result


def post(url, token, path, body):
    """Sends a request; returns the id of its interception and the complete JSON response."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("POST", path, json.dumps(body), {
        "content-type": "application/json", "authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    try:
        return answer.headers["x-keybridge-interception-id"], json.loads(answer.read())
    finally:
        connection.close()


class Load:
    """Clients that send consecutive requests until they are stopped."""

    def __init__(self, urls, token, clients, seed, leave=0.0, pause=0.0, delay_ms=5, tokens=5,
                 turns=None, agents=()):
        self.turns = turns
        # One request in ten has one of these user agents.
        self.agents = agents
        self.urls, self.token, self.results = urls, token, []
        self.leave, self.pause, self.delay_ms, self.tokens = leave, pause, delay_ms, tokens
        self._number, self._stop, self._lock = 0, threading.Event(), threading.Lock()
        self.threads = [
            threading.Thread(target=self._client, args=(random.Random(seed + n),), daemon=True)
            for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self._stop.set()
        for thread in self.threads:
            thread.join()
        return self.results

    def _client(self, chance):
        while not self._stop.is_set():
            began = time.monotonic()
            with self._lock:
                self._number += 1
                number = self._number
            urls = self.urls() if callable(self.urls) else self.urls
            # Until three pieces of text have arrived, so that it happens anywhere in the response.
            span = 3 * self.delay_ms * self.tokens / 1000
            leave = chance.uniform(0, span) if chance.random() < self.leave else None
            agent = chance.choice(self.agents) if self.agents and chance.random() < 0.1 else None
            result = ask(
                urls[number % len(urls)], self.token, chance.choice(list(DIALECTS)),
                f"prompt {number} of {id(self)}", chance.random() < 0.7, self.delay_ms,
                self.tokens, leave, turns=self.turns, agent=agent)
            with self._lock:
                self.results.append(result)
            if not result.whole and not result.left:
                # A refused client does not retry in a busy loop.
                time.sleep(0.05)
            if (rest := began + self.pause - time.monotonic()) > 0:
                self._stop.wait(rest)
