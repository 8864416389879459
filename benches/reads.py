"""Every reading call of the API on a seeded store, over HTTP: time, CPU, rows and size."""

import contextlib
import dataclasses
import datetime
import glob
import http.client
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import time
import urllib.parse

import report
from arithmetic import percentile
from targets import ENV, Keybridge, configure

# What `keybridge-bench seed` puts into every store (crates/bench/src/seed/plan.rs and words.rs).
USER, OTHER_USER = "user-3", "user-1"
LONG_SESSION = "session-of-5000-steps"
RARE, COMMON, TWO_WORDS = "zanzibar", "function", "pipeline latency"
MODEL, CLIENT = "claude-haiku-4-5", "Claude Code"
ZONES = ("Europe/Berlin", "Asia/Kolkata", "America/Los_Angeles")
ADMIN, AUDITOR = "bench-admin", "bench-auditor"

WARM_UPS = 3
# A slow call is repeated no longer than this, but a few times.
MAX_SECONDS, MIN_REPETITIONS = 60, 5
TIMEOUT_SECONDS = 60
# How long a read may take whose plan is printed.
PLAN_SECONDS = 50
ONE_PAGE = "the answer is one page"
# In an entry of the log: the statement, which may have several lines, and the plan.
PLAN = r"duration: \S+ ms  plan:\n\s*Query Text: (.*?)\n(\t[A-Z][^\n]*\(cost=.*)"
HEAD = ("| call | by | n | wall p50 | p95 | CPU p50 | p95 | server CPU p50 | p95 | rows | KiB |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")


@dataclasses.dataclass
class Call:
    """A reading call: the path with its parameters, and who makes it."""

    what: str
    path: str
    params: dict = dataclasses.field(default_factory=dict)
    role: str = "auditor"
    # A call or a parameter that only some releases have.
    is_optional: bool = False
    # Which page is measured, the pages before it being read first: 0 is the first, -1 the last.
    page: int = 0

    def target(self, **more):
        query = urllib.parse.urlencode({**self.params, **more})
        return self.path + (f"?{query}" if query else "")


@dataclasses.dataclass
class Answer:
    status: int
    body: bytes

    def json(self):
        return json.loads(self.body)

    def rows(self):
        """The length of the longest list in the answer; an answer without any is one row."""
        lists = [value for value in self.json().values() if isinstance(value, list)]
        return max(map(len, lists)) if lists else 1

    def failure(self):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return f"{self.status} {self.json()['error']['kind']}: {self.json()['error']['message']}"
        return str(self.status)


class Refused(Exception):
    """An answer that is none of a successful call."""

    def __init__(self, answer):
        super().__init__(answer.failure())
        self.answer = answer


class OnePage(Exception):
    """There is no later page."""


class Api:
    """The API, with the tokens of each role."""

    def __init__(self, bridge, tokens):
        self.bridge, self.tokens = bridge, tokens
        self.connection = http.client.HTTPConnection(bridge.address, timeout=TIMEOUT_SECONDS)

    def get(self, target, role):
        self.connection.request("GET", target, headers={"authorization": f"Bearer {self.tokens[role]}"})
        response = self.connection.getresponse()
        return Answer(response.status, response.read())

    def expect(self, target, role="auditor"):
        answer = self.get(target, role)
        if answer.status != 200:
            raise Refused(answer)
        return answer

    def target(self, call):
        """The target of a call: of one for a later page, with the cursor of that page."""
        target, pages = call.target(), 0
        while call.page != pages:
            cursor = self.expect(target, call.role).json().get("next_cursor")
            if cursor is None and pages == 0:
                raise OnePage(ONE_PAGE)
            if cursor is None:
                break
            target, pages = call.target(cursor=cursor), pages + 1
        return target


def calls(newest, middle):
    """Every call; `newest` is the time of the latest record, `middle` the id of some record."""
    def before(**length):
        return (newest - datetime.timedelta(**length)).strftime("%Y-%m-%dT%H:%M:%SZ")

    records, sessions, usage = "/api/v1/interceptions", "/api/v1/sessions", "/api/v1/usage"
    long_session = f"{sessions}/{LONG_SESSION}"
    month, day = {"since": before(days=30)}, {"since": before(hours=24)}
    return [
        Call("interceptions, newest", records),
        Call("interceptions, page 3", records, page=2),
        Call("interceptions, one user", records, {"user": OTHER_USER}),
        Call("interceptions, outcome=refused", records, {"outcome": "refused"}),
        Call("interceptions, user and model", records, {"user": OTHER_USER, "model": MODEL}),
        Call("interceptions, a filter that nothing meets", records, {"model": "a-model-of-nobody"}),
        Call("interceptions, since=1h, nothing new", records, {"since": "1h"}),
        Call("interceptions, q rare", records, {"q": RARE}),
        Call("interceptions, q common", records, {"q": COMMON}),
        Call("interceptions, q that nothing meets", records, {"q": "nowhere-to-be-found"}),
        Call("interceptions, q two words of one member", records, {"q": TWO_WORDS}, "member"),
        Call("interceptions, newest of one member", records, role="member"),
        Call("interceptions/{id}", f"{records}/{middle}", role="admin"),
        Call("sessions, newest", sessions),
        Call("sessions, one user, page 3", sessions, {"user": OTHER_USER}, page=2),
        Call("sessions, last 24 h", sessions, day),
        Call("sessions, newest of one member", sessions, role="member"),
        Call("sessions, client", sessions, {"client": CLIENT}, is_optional=True),
        Call("sessions, model", sessions, {"model": MODEL}, is_optional=True),
        Call("sessions/{id} of 5,000 steps, first page", long_session),
        Call("sessions/{id} of 5,000 steps, last page", long_session, page=-1),
        *[Call(f"usage by day, 30 d, {zone}", usage, {"group_by": "day", "time_zone": zone, **month},
               is_optional=True) for zone in ZONES],
        *[Call(f"usage by {what}, 30 d", usage, {"group_by": what, **month}, is_optional=True)
          for what in ("model", "user")],
        Call("usage by hour, 24 h", usage, {"group_by": "hour", **day}, is_optional=True),
        Call("usage by day, 30 d, one member", usage, {"group_by": "day", **month}, "member", is_optional=True),
    ]


class Server:
    """The processes of a PostgreSQL server that work for one database; of another machine, none."""

    def __init__(self, url):
        self.url = url.split("?")[0]
        self.database = urllib.parse.urlsplit(url).path.lstrip("/")
        self.postmaster = None
        with contextlib.suppress(RuntimeError, OSError):
            pid = int(self.psql("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)"))
            if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "postgres":
                self.postmaster = pid

    def psql(self, sql):
        done = subprocess.run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", self.url, "-c", sql], env=ENV,
                              text=True, capture_output=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr}")
        return done.stdout.strip()

    def _backends(self):
        for name in glob.glob("/proc/[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                pid = int(name.split("/")[2])
                words = pathlib.Path(name).read_bytes().decode(errors="replace").split(" ")
                if words[0] == "postgres:" and words[2:3] == [self.database] and parent(pid) == self.postmaster:
                    yield pid

    def cpu(self):
        """The CPU time of the backends in nanoseconds, and that of the parallel workers that have ended."""
        nanos = {pid: cpu(pid) for pid in self._backends()}
        nanos["ended"] = sum(stat(self.postmaster)[13:15]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        return nanos

    def log(self):
        """The file to which the server logs."""
        return pathlib.Path(os.readlink(f"/proc/{self.postmaster}/fd/2"))


def stat(pid):
    """The fields of /proc/PID/stat as numbers, with 0 for those that are none."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, 0, *(int(field) if field.lstrip("-").isdigit() else 0 for field in fields)]


def parent(pid):
    return stat(pid)[3]


def cpu(pid):
    """The CPU time of a process in nanoseconds, including its threads that have ended."""
    # The id of the CPU clock of another process, as clock_getcpuclockid(3) makes it.
    with contextlib.suppress(OSError):
        return time.clock_gettime_ns((~pid << 3) | 2)
    return 0


def spent(before, after):
    """The milliseconds of CPU between two readings by process."""
    return sum(now - before.get(which, 0) for which, now in after.items()) / 1e6


def server_cpu(server):
    return server.cpu() if server and server.postmaster else None


@dataclasses.dataclass
class Row:
    """What a call cost, or why it has no figures."""

    call: Call
    walls: list = dataclasses.field(default_factory=list)
    cpus: list = dataclasses.field(default_factory=list)
    server_cpus: list = dataclasses.field(default_factory=list)
    answer: Answer | None = None
    note: str = ""
    has_failed: bool = False

    def text(self):
        what, who = self.call.what, self.call.role
        if self.note:
            return f"| {what} | {who} | {len(self.walls)} | {self.note} |" + " |" * 7
        figures = [pair for values in (self.walls, self.cpus, self.server_cpus) for pair in quantiles(values)]
        return (f"| {what} | {who} | {len(self.walls)} | {' | '.join(figures)} | {self.answer.rows()} "
                f"| {len(self.answer.body) / 1024:.1f} |")


def quantiles(values):
    """p50 and p95 in milliseconds."""
    if not values:
        return "", ""
    return f"{statistics.median(values):.1f}", f"{percentile(values, 95):.1f}"


def measure(api, server, call, repetitions):
    """Makes a call several times."""
    row = Row(call)
    try:
        target = api.target(call)
        began = time.monotonic()
        for number in range(-WARM_UPS, repetitions):
            if number >= MIN_REPETITIONS and time.monotonic() - began > MAX_SECONDS:
                break
            before, server_before = cpu(api.bridge.process.pid), server_cpu(server)
            start = time.perf_counter()
            row.answer = api.expect(target, call.role)
            wall = (time.perf_counter() - start) * 1000
            if number >= 0:
                row.walls.append(wall)
                row.cpus.append((cpu(api.bridge.process.pid) - before) / 1e6)
                if server_before is not None:
                    row.server_cpus.append(spent(server_before, server.cpu()))
    except OnePage:
        row.note = f"not there: {ONE_PAGE}"
    except Refused as refused:
        note_refusal(row, refused.answer)
    return row


def note_refusal(row, answer):
    if answer.status == 404 and row.call.is_optional:
        row.note = "not there"
    elif answer.status == 400 and row.call.is_optional and b"unknown parameter" in answer.body:
        row.note = "not there: " + answer.failure()
    else:
        row.note, row.has_failed = "**FAILED** " + answer.failure(), True


@contextlib.contextmanager
def api_of(options, folder, url, provider="127.0.0.1:9", **settings):
    """keybridge over a seeded store, with a token for each role that is revoked at the end. Reads ask no
    provider, but a configuration needs one."""
    configure(folder, provider, store=url, **settings)
    bridge = Keybridge(options.keybridge, folder, core=None)
    tokens = {}
    try:
        known = {user["name"] for user in rows_of(bridge, "user", "list")}
        for role, name in (("admin", ADMIN), ("auditor", AUDITOR), ("member", USER)):
            if name not in known:
                bridge._cli("user", "create", name, "--role", role)
            tokens[role] = bridge._cli("token", "create", "--user", name, "--name", "reads")
        yield Api(bridge, {role: made["token"] for role, made in tokens.items()})
        for made in tokens.values():
            bridge._cli("token", "revoke", made["id"])
        bridge.stop()
    finally:
        bridge.kill()


def rows_of(bridge, *command):
    """What a command prints with `--json`, one value per line."""
    done = subprocess.run([bridge.binary, "--json", *command], cwd=bridge.dir, env=ENV, text=True,
                          capture_output=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def known_calls(api):
    """Every call, for the records of this store."""
    page = api.expect("/api/v1/interceptions").json()["items"]
    newest = datetime.datetime.fromisoformat(page[0]["started_at"].replace("Z", "+00:00"))
    return calls(newest, page[len(page) // 2]["id"])


def plans(server, options, folder):
    """Prints the plans of the statements of each call, which the server logs for the time of this."""
    settings = {"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": 0,
                "auto_explain.log_analyze": "on", "auto_explain.log_timing": "off",
                "auto_explain.log_verbose": "off"}
    try:
        # The settings of the library are known only where it is loaded.
        for name, value in settings.items():
            server.psql(f"LOAD 'auto_explain'; ALTER DATABASE {server.database} SET {name} = '{value}'")
        log = server.log()
        # The server logs no plan of a statement that is cancelled.
        with api_of(options, folder, server.url, read_timeout=f"{PLAN_SECONDS}s") as api:
            for call in known_calls(api):
                print(f"\n### {call.what}\n\n{plans_of(call, api, log)}", flush=True)
    finally:
        for name in settings:
            server.psql(f"LOAD 'auto_explain'; ALTER DATABASE {server.database} RESET {name}")


def plans_of(call, api, log):
    """The plans that the server logs while a call is made once."""
    try:
        target = api.target(call)
    except (Refused, OnePage) as reason:
        return f"no plan: {reason}"
    start = log.stat().st_size
    answer = api.get(target, call.role)
    if answer.status != 200:
        return f"no plan: {answer.failure()}"
    # The last statement may be logged after its rows were sent.
    time.sleep(0.2)
    with open(log, errors="replace") as file:
        file.seek(start)
        return in_words(logged_plans(file.read()))


def logged_plans(text):
    """The plans in a log of `auto_explain`: the statement, and the first plan of it with its count."""
    found = {}
    for entry in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        if match := re.search(PLAN, entry, re.DOTALL):
            statement = " ".join(match[1].split())
            plan = "\n".join(line.removeprefix("\t") for line in match[2].rstrip().splitlines())
            count, first = found.get(statement, (0, plan))
            found[statement] = (count + 1, first)
    return found


def in_words(found):
    if not found:
        return "no statement was logged"
    return "\n\n".join(f"{count} × `{statement}`\n```\n{plan}\n```" for statement, (count, plan) in found.items())


def run(options):
    """Exit code 1 if a call fails."""
    url = options.reads
    server = Server(url) if url.startswith("postgres") else None
    started, rows = report.surroundings(options.keybridge), []
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-") as name:
        folder = pathlib.Path(name)
        with api_of(options, folder, url) as api:
            print(HEAD, flush=True)
            for call in known_calls(api):
                rows.append(measure(api, server, call, options.repetitions))
                print(rows[-1].text(), flush=True)
        ended = report.surroundings(options.keybridge)
        print(f"\nms; n repetitions after {WARM_UPS} warm ones; CPU of the keybridge process"
              + (", and of the server's processes\n" if server else "\n")
              + report.footer(started, ended, options.repetitions).split("\n")[0])
        if options.plans and server:
            plans(server, options, folder)
        elif options.plans:
            print("\nplans: left out, because the binary cannot log the statements that it runs on SQLite")
    return 1 if any(row.has_failed for row in rows) else 0
