"""The processes of a measurement, all pinned to one core, and what they use."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The ledger's tests know how to start a PostgreSQL server.
sys.path.insert(0, str(ROOT / "tests/ledger"))
START_SECONDS = 60
ENV = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
CENTRAL_KEY = "sk-central-key-of-the-benchmark-01"


def pinned(words, core=1):
    """On one core, so that no wake-up crosses to another; `None` is any."""
    if core is None:
        return [str(word) for word in words]
    return ["taskset", "-c", str(core if (os.cpu_count() or 1) > core else 0), *map(str, words)]


class Process:
    """A program that says where it listens."""

    def __init__(self, words, says=r"^(\S+:\d+)$", env=None, patience=START_SECONDS, **options):
        self.log = []
        self.process = subprocess.Popen(
            words, env={**ENV, **(env or {})}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options)
        self._found, self._ready = None, threading.Event()
        threading.Thread(target=self._read, args=(re.compile(says),), daemon=True).start()
        if not self._ready.wait(patience) or not self._found:
            self.kill()
            raise RuntimeError(f"{words} did not start:\n" + "".join(self.log[-30:]))
        self.address = self._found

    def _read(self, says):
        for line in self.process.stdout:
            self.log.append(line)
            if not self._found and (found := says.search(line)):
                self._found = found[1]
                self._ready.set()
        self._ready.set()

    def pids(self):
        """The process and those that it has started."""
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    waiting += [int(child) for child in task.read_text().split()]
        return found

    def cpu(self):
        """Nanoseconds of each thread so far, by its number and name."""
        used = {}
        for pid in self.pids():
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
                with contextlib.suppress(OSError):
                    name = (task / "comm").read_text().strip()
                    used[task.name, name] = int((task / "schedstat").read_text().split()[0])
        return used

    def memory(self):
        """Resident KiB."""
        pages = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                pages += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self):
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def used(before, after):
    """Nanoseconds between two readings, by threads' names; threads that ended are left out."""
    names = {}
    for thread, now in after.items():
        names[thread[1]] = names.get(thread[1], 0) + now - before.get(thread, 0)
    return names


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Bench:
    """The benchmark's own program."""

    def __init__(self, binary):
        self.binary = binary

    def mock(self):
        return Process(pinned([self.binary, "mock"]))

    def relay(self, to):
        return Process(pinned([self.binary, "relay", "--to", to]))


class Keybridge(Process):
    """The real binary with a store on a real disk; authentication, observing and recording are on, as
    always."""

    # The features that a figure of it includes.
    FEATURES = ("token checked", "requests and events observed", "recorded before the provider is asked")

    def __init__(self, binary, folder, wrapper=(), core=1):
        """Starts in a folder that was configured."""
        self.binary, self.dir = binary, pathlib.Path(folder)
        super().__init__(pinned([*wrapper, binary, "serve"], core),
                         r"keybridge listens on https?://(\S+)", cwd=self.dir)

    @classmethod
    def fresh(cls, binary, folder, mock, wrapper=(), **settings):
        """In a new folder, with a token."""
        configure(pathlib.Path(folder), mock, **settings)
        bridge = cls(binary, folder, wrapper)
        time.sleep(0.1)
        bridge.token = bridge._cli("token", "create", "--user", "admin")["token"]
        return bridge

    def _cli(self, *words):
        done = subprocess.run([self.binary, "--json", *words], cwd=self.dir, env=ENV, text=True,
                              capture_output=True, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"keybridge {' '.join(words)}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout.splitlines()[0])

    def recount(self):
        """What the trail holds, counted anew."""
        return self._cli("ledger", "verify")

    def verify(self):
        """The recount after the end; raises unless the trail is sound."""
        counts = self.recount()
        for figure in ("in_progress", "interrupted", "without_end", "spool_leftovers",
                       "duplicate_response_ids", "usages_without_interception"):
            if counts[figure]:
                raise RuntimeError(f"the trail is not sound: {counts}")
        return counts


def configure(folder, mock, store="sqlite://bench.db", tls=None, durability="disk"):
    """Writes keybridge's configuration into a folder; `tls` is the files of a certificate and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    secured = ["[server.tls]", f'certificate = "{tls[0]}"', f'key = "{tls[1]}"'] if tls else []
    (folder / "keybridge.toml").write_text("\n".join([
        "[server]", 'listen = "127.0.0.1:0"', "[store]", f'url = "{store}"',
        "[ledger]", f'durability = "{durability}"',
        "[telemetry.log]", 'level = "warn"', "[[providers]]", 'type = "anthropic"',
        f'base_url = "http://{mock}"', f'keys = [{{ value = "{CENTRAL_KEY}" }}]',
        "[[providers]]", 'type = "openai"', f'base_url = "http://{mock}/v1"',
        f'keys = [{{ value = "{CENTRAL_KEY}" }}]', *secured]) + "\n")


class Nginx(Process):
    """Debian's, as a streaming proxy."""

    def __init__(self, folder, mock, tls=None):
        self.dir = pathlib.Path(folder)
        self.dir.mkdir(parents=True, exist_ok=True)
        port = free_port()
        binary = shutil.which("nginx") or "/usr/sbin/nginx"
        (self.dir / "nginx.conf").write_text(f"""
daemon off;
worker_processes 1;
pid {self.dir}/nginx.pid;
error_log {self.dir}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  client_body_temp_path {self.dir}/body;
  proxy_temp_path {self.dir}/proxy;
  fastcgi_temp_path {self.dir}/f; uwsgi_temp_path {self.dir}/u; scgi_temp_path {self.dir}/s;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  keepalive_requests 1000000;
  upstream mock {{ server {mock}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen {listening(port, tls)};
    location / {{
      proxy_pass http://mock;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
""")
        super().__init__([*pinned(["sh", "-c", f"echo 127.0.0.1:{port}; exec {binary} -c "
                                   f"{self.dir}/nginx.conf"])])
        until_listening(self.address)


def listening(port, tls):
    """What nginx shall listen on, with TLS in the version that the load and keybridge agree on."""
    if not tls:
        return f"127.0.0.1:{port}"
    certificate, key = tls
    return (f"127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key}; "
            "ssl_protocols TLSv1.3")


def until_listening(address):
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


class Load:
    """A run of the load generator against one target, in steps."""

    def __init__(self, bench, target, mock, **options):
        words = [bench.binary, "load", "--to", target.address, "--mock", mock,
                 "--path", target.path, "--token", target.token, "--model", target.model]
        if target.certificate:
            words += ["--certificate", str(target.certificate)]
        for name, value in options.items():
            words += ["--" + name.replace("_", "-"), str(value)]
        self.process = subprocess.Popen(pinned(words), env=ENV, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._next("ready")

    def _next(self, word):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read())
        told = json.loads(line)
        if word not in told:
            raise RuntimeError(f"instead of {word}: {told}")
        return told

    def _go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def begin(self):
        self._go()

    def done(self):
        return self._next("done")["seconds"]

    def result(self):
        self._go()
        told = self._next("kind")
        if self.process.wait(timeout=60) != 0:
            raise RuntimeError(self.process.stderr.read())
        return told


class Target:
    """What a load is sent to."""

    def __init__(self, name, process, path="/v1/messages", token="none", model="bench-1", certificate=None):
        self.name, self.process, self.path, self.token = name, process, path, token
        self.model, self.certificate = model, certificate
        self.address = process.address


def cache():
    """Where programs are installed that only some measurements need; that of scripts/test."""
    base = os.environ.get("XDG_CACHE_HOME") or f"{ENV['HOME']}/.cache"
    return pathlib.Path(os.environ.get("KEYBRIDGE_TEST_CACHE") or f"{base}/keybridge-tests")
