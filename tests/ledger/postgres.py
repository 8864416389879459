"""A throw-away PostgreSQL server.

    python3 tests/ledger/postgres.py -- COMMAND…

starts one, runs the command with KEYBRIDGE_TEST_POSTGRES (its address without a database) and
KEYBRIDGE_TEST_POSTGRES_CA (the authority of its certificate), and stops it.
"""

import glob
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.parse

USER, PASSWORD = "keybridge", "secret-of-the-test-server"


def binaries():
    """The directory of the server's programs, which is not in the PATH on Debian."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
    if found:
        return pathlib.Path(found[-1])
    if program := shutil.which("initdb"):
        return pathlib.Path(program).resolve().parent
    raise RuntimeError("PostgreSQL is not installed")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def unprivileged():
    """An account other than root."""
    names = {account.pw_name for account in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


class Postgres:
    """A server that starts and stops with the context."""

    def __init__(self, **settings):
        self.settings = settings
        self.port = free_port()
        self.bin = binaries()
        # The server refuses to run as root; any other user works.
        self.account = unprivileged() if os.geteuid() == 0 else None

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="keybridge-postgres-")
        self.dir = pathlib.Path(self.folder.name)
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop("immediate", check=False)
        self.folder.cleanup()

    def _make(self):
        self._own(self.dir)
        (self.dir / "password").write_text(PASSWORD)
        self._own(self.dir / "password")
        self._run("initdb", "-D", self.dir / "data", "-U", USER, "-A", "scram-sha-256",
                  f"--pwfile={self.dir / 'password'}", "--no-locale", "-E", "UTF8")
        self._certificates()
        settings = {
            "port": self.port, "listen_addresses": "'127.0.0.1'", "max_connections": 200,
            "unix_socket_directories": f"'{self.dir}'", "ssl": "on",
            "ssl_cert_file": f"'{self.dir / 'server.pem'}'",
            "ssl_key_file": f"'{self.dir / 'server.key'}'", **self.settings,
        }
        with open(self.dir / "data/postgresql.conf", "a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def start(self):
        self._run("pg_ctl", "-D", self.dir / "data", "-l", self.dir / "log", "-w", "start")

    def stop(self, mode="fast", check=True):
        self._run("pg_ctl", "-D", self.dir / "data", "-m", mode, "-w", "stop", check=check)

    @property
    def authority(self):
        """The authority's certificate for `sslrootcert`; the server's certificate is for `localhost`."""
        return self.dir / "ca.pem"

    def url(self, database="", host="127.0.0.1", **params):
        end = f"/{database}" if database else ""
        query = f"?{urllib.parse.urlencode(params)}" if params else ""
        return f"postgres://{USER}:{PASSWORD}@{host}:{self.port}{end}{query}"

    def create_database(self, database):
        """Creates a database and returns its URL."""
        self.psql(f"CREATE DATABASE {database}")
        return self.url(database)

    def psql(self, sql, database="postgres"):
        done = subprocess.run(
            [self.bin / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", self.url(database), "-c", sql],
            text=True, capture_output=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr}")
        return done.stdout.split()

    def setting(self, name, value):
        self.psql(f"ALTER SYSTEM SET {name} = {value}")
        self.psql("SELECT pg_reload_conf()")

    def _certificates(self):
        def openssl(*words):
            subprocess.run(["openssl", *words], cwd=self.dir, check=True, capture_output=True)
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key",
                "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority of a test")
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key",
                "-out", "server.csr", "-subj", "/CN=localhost")
        (self.dir / "extensions").write_text(
            "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
        openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", "server.pem")
        for name in ("server.key", "server.pem"):
            self._own(self.dir / name)
        (self.dir / "server.key").chmod(0o600)
        # The user who runs the tests must be able to read the authority's certificate.
        self.dir.chmod(0o755)

    def _own(self, path):
        if self.account:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def _run(self, program, *words, check=True):
        account = {}
        if self.account:
            account = {"user": self.account.pw_uid, "group": self.account.pw_gid,
                       "extra_groups": []}
        done = subprocess.run(
            [self.bin / program, *words], cwd=self.dir, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE if program != "pg_ctl" else None,
            timeout=120, **account)
        if check and done.returncode != 0:
            log = self.dir / "log"
            output = (done.stderr or b"").decode() + (log.read_text() if log.exists() else "")
            raise RuntimeError(f"{program} ended with {done.returncode}:\n{output[-2000:]}")


class Servers:
    """One server for many tests, started when first needed."""

    def __init__(self, stack):
        self._stack, self._server = stack, None

    def get(self):
        if self._server is None:
            self._server = self._stack.enter_context(Postgres())
        return self._server

    def ensure_running(self):
        """Restarts the server if a test has stopped it."""
        if self._server is None:
            return
        try:
            self._server.psql("SELECT 1")
        except RuntimeError:
            self._server.start()


def end_in_order():
    """Makes SIGTERM end this program like Ctrl-C, so that every context is closed."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def main():
    command = sys.argv[sys.argv.index("--") + 1:] if "--" in sys.argv else []
    if not command:
        sys.exit(__doc__)
    end_in_order()
    with Postgres() as server:
        env = {**os.environ, "KEYBRIDGE_TEST_POSTGRES": server.url(),
               "KEYBRIDGE_TEST_POSTGRES_CA": str(server.authority)}
        return subprocess.run(command, env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
