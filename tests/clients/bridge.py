"""A bridge with simulated providers, on a free port and with its own store."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("KEYBRIDGE", ROOT / "target/debug/keybridge"))
START_SECONDS = 30
# The company's key for the simulated providers.
CENTRALIZED_KEY = "sk-simulated-company-key-0123456789"


class Bridge:
    """A bridge that starts with the context and is shut down with it."""

    def __init__(self, config=""):
        self.config = config

    def __enter__(self):
        self.dir = tempfile.TemporaryDirectory()
        (pathlib.Path(self.dir.name) / "keybridge.toml").write_text(self.config)
        self.env = {
            "PATH": os.environ["PATH"],
            "KEYBRIDGE_STORE__URL": f"sqlite://{self.dir.name}/keybridge.db",
            "KEYBRIDGE_SERVER__LISTEN": "127.0.0.1:0",
            "KEYBRIDGE_TELEMETRY__LOG__FORMAT": "json",
        }
        self.log = []
        self.process = subprocess.Popen(
            [BINARY, "serve", "--simulate"],
            env=self.env, cwd=self.dir.name, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        self._ready = threading.Event()
        self.url = self.sim = None
        threading.Thread(target=self._read_log, daemon=True).start()
        if not self._ready.wait(START_SECONDS) or not self.sim:
            raise RuntimeError("the bridge did not start:\n" + "".join(self.log))
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.dir.cleanup()

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"keybridge is listening on (http://\S+)", line):
                self.url = found[1]
            if found := re.search(r"simulated: (http://[^/]+)/", line):
                self.sim = found[1]
                self._ready.set()
        self._ready.set()

    def cli(self, *words):
        done = subprocess.run(
            [BINARY, "--json", *words], env=self.env, cwd=self.dir.name, text=True,
            capture_output=True, timeout=60,
        )
        if done.returncode != 0:
            raise RuntimeError(f"keybridge {' '.join(words)}: {done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def user(self, name, role="member"):
        """Creates a user; returns its token."""
        self.cli("user", "create", name, "--role", role)
        return self.cli("token", "create", "--user", name)[0]["token"]

    def records(self, user):
        """The settled records of a user with all their rows, oldest first."""
        idle = 0
        for _ in range(200):
            # A record is written just after its response has ended, and waits to be committed together
            # with others.
            idle = idle + 1 if self._waiting_writes() == 0 else 0
            items = self.cli("interceptions", "--user", user, "--limit", "500")
            if idle > 1 and all(item["outcome"] != "in_progress" for item in items):
                break
        items.reverse()
        return [self.cli("interceptions", "show", item["id"])[0] for item in items]

    def _waiting_writes(self):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        (depth,) = [line for line in lines if line.startswith("keybridge_ledger_queue_depth ")]
        return int(depth.split()[1])

    def rest(self, token, path):
        """The response of the REST API to the holder of a token."""
        ask = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(ask, timeout=30) as answer:
            return json.load(answer)

    def exchanges(self):
        """Takes what the simulated providers received."""
        with urllib.request.urlopen(f"{self.sim}/_sim/exchanges", timeout=30) as answer:
            exchanges = json.load(answer)
        forget = urllib.request.Request(f"{self.sim}/_sim/exchanges", method="DELETE")
        urllib.request.urlopen(forget, timeout=30).close()
        return exchanges

    def release(self, name):
        """Releases a hold of the simulated provider."""
        ask = urllib.request.Request(f"{self.sim}/_sim/release/{name}", method="POST")
        urllib.request.urlopen(ask, timeout=30).close()

    def check_exchanges(self, token, credential=None):
        """Checks that no token was passed on, no problem was found, and the credential is the expected one."""
        exchanges = self.exchanges()
        assert exchanges, "nothing reached the provider"
        for exchange in exchanges:
            assert exchange["problems"] == [], (exchange["path"], exchange["problems"])
            # A header with a bridge token is a problem; whatever else there is, is shown as received.
            assert token not in json.dumps(exchange), "the token was passed on"
            values = [value for name, value in exchange["credentials"]
                      if name in ("authorization", "x-api-key")]
            allowed = [credential] if credential else [CENTRALIZED_KEY, f"Bearer {CENTRALIZED_KEY}"]
            assert len(values) == 1 and values[0] in map(sha256, allowed), exchange["headers"]
        return exchanges

    def check_log(self, *secrets):
        text = "".join(self.log)
        for secret in secrets:
            assert secret not in text, "a secret stands in the log"


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def mask(text):
    return f"{text[:4]}...{text[-4:]}"


def check_record(record, *, client, kind, hint, provider, dialect):
    """Checks what every completed record of a client has."""
    assert record["outcome"] == "completed", record
    assert record["client"] == client, record["client"]
    assert record["credential_kind"] == kind, record["credential_kind"]
    assert hint is None or record["credential_hint"] == hint, record["credential_hint"]
    assert record["provider"] == provider and record["dialect"] == dialect
    assert record["status_code"] == record["upstream_status"] == 200
    assert record["first_byte_at"] and record["ended_at"]
    assert bool(record["request_sha256"]) == (record["request_bytes"] > 0), record
    usages = record["token_usages"]
    assert len(usages) == 1 + record["inner_turns"], usages
    for usage in usages:
        assert usage["quality"] == "exact", usages
        assert (usage["input_tokens"], usage["output_tokens"]) == (25, 12), usages
