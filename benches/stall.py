"""A store that stalls while streams are open and requests come: what the streams notice, what new requests
get, how long the queue grows, and that the trail is sound afterwards."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import sqlite3
import statistics
import threading
import time

from measure import until_settled, world
from postgres import Postgres
from targets import Load

STREAMS, PACE_US = 50, 20_000
# Longer than a request waits for its record.
BEFORE, STALL, AFTER = 1, 8, 3
REQUESTS_PER_SECOND = 50
BODY = json.dumps({"model": "bench-1", "max_tokens": 9, "messages": [{"role": "user", "content": "Who?"}]})


@contextlib.contextmanager
def locked(bridge):
    """Another process holds SQLite's lock for writing."""
    with contextlib.closing(sqlite3.connect(bridge.dir / "bench.db", isolation_level=None, timeout=10)) as held:
        held.execute("BEGIN EXCLUSIVE")
        yield
        held.execute("ROLLBACK")


@contextlib.contextmanager
def stopped(postgres):
    """PostgreSQL's processes stand still."""
    pids = [int((postgres.dir / "data/postmaster.pid").read_text().split()[0])]
    for child in pathlib.Path(f"/proc/{pids[0]}/task").glob("*/children"):
        pids += map(int, child.read_text().split())

    def send(number):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


class Clients:
    """New requests at a steady rate, each by itself, whatever became of the one before."""

    def __init__(self, bridge):
        self.bridge, self.answers, self.threads = bridge, [], []
        self.ended = threading.Event()
        self.pacer = threading.Thread(target=self._pace)
        self.pacer.start()

    def _pace(self):
        due = time.monotonic()
        while not self.ended.wait(max(due - time.monotonic(), 0)):
            self.threads.append(threading.Thread(target=self._ask, args=(time.monotonic(),)))
            self.threads[-1].start()
            due += 1 / REQUESTS_PER_SECOND

    def _ask(self, began):
        try:
            connection = http.client.HTTPConnection(self.bridge.address, timeout=60)
            connection.request("POST", "/anthropic/v1/messages", BODY, {
                "content-type": "application/json", "x-bench": "mode=whole",
                "authorization": f"Bearer {self.bridge.token}"})
            answer = connection.getresponse()
            answer.read()
            status = str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
        self.answers.append((began, status, time.monotonic() - began))

    def stop(self):
        self.ended.set()
        self.pacer.join()
        for thread in self.threads:
            thread.join()
        return self.answers


def queue_depth(bridge):
    """Writes that wait for a commit, as keybridge says."""
    connection = http.client.HTTPConnection(bridge.address, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return int(float(re.search(r"^keybridge_ledger_queue_depth (\S+)", text, re.MULTILINE)[1]))


def watched(bridge, seconds):
    """The longest queue and the most memory (MiB) in so many seconds."""
    ended, depths, sizes = time.monotonic() + seconds, [], []
    while time.monotonic() < ended:
        depths.append(queue_depth(bridge))
        sizes.append(bridge.memory() / 1024)
        time.sleep(0.1)
    return max(depths), max(sizes)


def streams(made, seconds):
    """Paced streams that are open for so long, through keybridge, and as many through nginx, which has no
    store: what delays both is the machine."""
    return {name: Load(made.bench, made.target(name), made.mock.address, kind="paced", streams=STREAMS,
                       count=seconds * 1_000_000 // PACE_US, pace_us=PACE_US, staggered="true")
            for name in ("keybridge", "nginx")}


@contextlib.contextmanager
def opened(what, loads):
    """Prints the delays at the end."""
    for load in loads.values():
        load.begin()
    yield
    for load in loads.values():
        load.done()
    for name, load in loads.items():
        print(f"{what}, {name}: {delays(load.result())}", flush=True)


def delays(seen):
    p50, p99, longest = (seen[which] / 1000 for which in ("p50_us", "p99_us", "max_us"))
    return f"p50 {p50:.2f}, p99 {p99:.2f}, longest {longest:.1f} ms"


def answered(answers, begin, end):
    """How those that were asked between two times were answered, and how long that took."""
    times = {}
    for began, status, seconds in answers:
        if begin <= began < end:
            times.setdefault(status, []).append(seconds)
    most_first = sorted(times.items(), key=lambda item: -len(item[1]))
    return ", ".join(f"{len(of)} × {status} after {statistics.median(of):.2f} s (longest {max(of):.2f})"
                     for status, of in most_first) or "none"


def scenario(what, made, stalled):
    """One store."""
    with opened(f"{what}: events of {STREAMS} streams, nothing else", streams(made, 4)):
        pass
    size = made.bridge.memory() / 1024
    with opened(f"{what}: the same through a stall of {STALL} s", streams(made, BEFORE + STALL + AFTER)):
        clients = Clients(made.bridge)
        time.sleep(BEFORE)
        with stalled(made.bridge):
            began = time.monotonic()
            depth, most = watched(made.bridge, STALL)
            ended = time.monotonic()
        time.sleep(AFTER)
        answers = clients.stop()
    print(f"{what}: asked during the stall: {answered(answers, began, ended)}")
    print(f"{what}: asked after it: {answered(answers, ended, ended + 60)}")
    until_settled(made.bridge)
    print(f"{what}: writes that waited: {depth} at most, {queue_depth(made.bridge)} afterwards; "
          f"memory {size:.0f} → {most:.0f} MiB")
    made.bridge.stop()
    counts = made.bridge.verify()
    print(f"{what}: the trail is sound: {counts['interceptions']} interceptions\n", flush=True)


def run(options):
    with world(options) as made:
        scenario("SQLite", made, locked)
    if options.no_postgres:
        return
    with Postgres() as postgres:
        url = postgres.create_database("stall")
        with world(options, store=url) as made:
            scenario("PostgreSQL", made, lambda _: stopped(postgres))
