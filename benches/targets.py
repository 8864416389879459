"""The processes of a measurement, all pinned to one core, and their resource usage."""

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
# The ledger tests can start a PostgreSQL server.
sys.path.insert(0, str(ROOT / "tests/ledger"))
START_SECONDS = 60
ENV = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
CENTRALIZED_KEY = "sk-centralized-key-of-the-benchmark"


def pinned(command, core=1):
    """Pins a command to one core, so that no wake-up crosses cores; `None` means any core."""
    if core is None:
        return [str(word) for word in command]
    return ["taskset", "-c", str(core if (os.cpu_count() or 1) > core else 0), *map(str, command)]


class Process:
    """A program that prints the address it listens on."""

    def __init__(self, command, says=r"^(\S+:\d+)$", env=None, timeout=START_SECONDS, **options):
        self.log = []
        self.process = subprocess.Popen(
            command, env={**ENV, **(env or {})}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options)
        self._found, self._ready = None, threading.Event()
        threading.Thread(target=self._read, args=(re.compile(says),), daemon=True).start()
        if not self._ready.wait(timeout) or not self._found:
            self.kill()
            raise RuntimeError(f"{command} did not start:\n" + "".join(self.log[-30:]))
        self.address = self._found

    def _read(self, says):
        for line in self.process.stdout:
            self.log.append(line)
            if not self._found and (found := says.search(line)):
                self._found = found[1]
                self._ready.set()
        self._ready.set()

    def pids(self):
        """The process and its descendants."""
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    waiting += [int(child) for child in task.read_text().split()]
        return found

    def cpu(self):
        """The CPU time of each thread in nanoseconds, by id and name."""
        used = {}
        for pid in self.pids():
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
                with contextlib.suppress(OSError):
                    name = (task / "comm").read_text().strip()
                    used[task.name, name] = int((task / "schedstat").read_text().split()[0])
        return used

    def memory(self):
        """The resident memory in KiB."""
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
    """The CPU time in nanoseconds between two readings, by thread name, without threads that ended."""
    names = {}
    for thread, now in after.items():
        names[thread[1]] = names.get(thread[1], 0) + now - before.get(thread, 0)
    return names


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Bench:
    """The benchmark program."""

    def __init__(self, binary):
        self.binary = binary

    def mock(self):
        return Process(pinned([self.binary, "mock"]))

    def relay(self, to):
        return Process(pinned([self.binary, "relay", "--to", to]))


class Keybridge(Process):
    """The real binary with a store on a real disk; authentication, observation and recording are on, as
    always."""

    # The features that every figure includes.
    FEATURES = ("token authentication", "observation of requests and events", "recording before the upstream request")

    def __init__(self, binary, folder, wrapper=(), core=1):
        """Starts keybridge in a configured folder."""
        self.binary, self.dir = binary, pathlib.Path(folder)
        super().__init__(pinned([*wrapper, binary, "serve"], core),
                         r"keybridge is listening on https?://(\S+)", cwd=self.dir)

    @classmethod
    def fresh(cls, binary, folder, mock, wrapper=(), **settings):
        """Starts keybridge in a new folder, with a token."""
        configure(pathlib.Path(folder), mock, **settings)
        bridge = cls(binary, folder, wrapper)
        time.sleep(0.1)
        bridge.token = bridge._cli("token", "create", "--user", "admin")["token"]
        return bridge

    def _cli(self, *command):
        finished = subprocess.run([self.binary, "--json", *command], cwd=self.dir, env=ENV, text=True,
                              capture_output=True, timeout=120)
        if finished.returncode != 0:
            raise RuntimeError(f"keybridge {' '.join(command)}: {finished.stdout}{finished.stderr}")
        return json.loads(finished.stdout.splitlines()[0])

    def recount(self):
        """Counts and verifies the records."""
        return self._cli("ledger", "verify")

    def verify(self):
        """Verifies the records after the end; raises an error unless they are complete."""
        counts = self.recount()
        for figure in ("in_progress", "interrupted", "without_end", "spool_leftovers",
                       "duplicate_response_ids", "usages_without_interception"):
            if counts[figure]:
                raise RuntimeError(f"the records are incomplete or wrong: {counts}")
        return counts


def configure(folder, mock, store="sqlite://bench.db", tls=None, durability="disk", read_timeout="5s"):
    """Writes keybridge's configuration; `tls` is the paths of a certificate and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    secured = ["[server.tls]", f'certificate = "{tls[0]}"', f'key = "{tls[1]}"'] if tls else []
    (folder / "keybridge.toml").write_text("\n".join([
        "[server]", 'listen = "127.0.0.1:0"', "[store]", f'url = "{store}"', f'read_timeout = "{read_timeout}"',
        "[limits]", "max_connections_per_address = 0",
        "[ledger]", f'durability = "{durability}"',
        "[telemetry.log]", 'level = "warn"', "[[providers]]", 'type = "anthropic"',
        f'base_url = "http://{mock}"', f'keys = [{{ value = "{CENTRALIZED_KEY}" }}]',
        "[[providers]]", 'type = "openai"', f'base_url = "http://{mock}/v1"',
        f'keys = [{{ value = "{CENTRALIZED_KEY}" }}]', *secured]) + "\n")


class Nginx(Process):
    """Debian's nginx as a streaming proxy."""

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
    """nginx's `listen` directive, with the TLS version that the load generator and keybridge use."""
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
    """A run of the load generator against a target, in steps."""

    def __init__(self, bench, target, mock, **options):
        command = [bench.binary, "load", "--to", target.address, "--mock", mock,
                 "--path", target.path, "--token", target.token, "--model", target.model]
        if target.certificate:
            command += ["--certificate", str(target.certificate)]
        for name, value in options.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        self.process = subprocess.Popen(pinned(command), env=ENV, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._next("ready")

    def _next(self, word):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read())
        result = json.loads(line)
        if word not in result:
            raise RuntimeError(f"expected {word}, got {result}")
        return result

    def _go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def begin(self):
        self._go()

    def done(self):
        return self._next("done")["seconds"]

    def result(self):
        self._go()
        result = self._next("kind")
        if self.process.wait(timeout=60) != 0:
            raise RuntimeError(self.process.stderr.read())
        return result


class Target:
    """The target of a load."""

    def __init__(self, name, process, path="/v1/messages", token="none", model="bench-1", certificate=None):
        self.name, self.process, self.path, self.token = name, process, path, token
        self.model, self.certificate = model, certificate
        self.address = process.address


def cache():
    """The directory for programs that only some measurements need; shared with scripts/test."""
    base = os.environ.get("XDG_CACHE_HOME") or f"{ENV['HOME']}/.cache"
    return pathlib.Path(os.environ.get("KEYBRIDGE_TEST_CACHE") or f"{base}/keybridge-tests")
