"""A store that stalls while streams are open and requests arrive: how streams and new requests are affected,
how far the queue grows, and whether the records are complete afterwards."""

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
    """Holds SQLite's write lock in another connection."""
    with contextlib.closing(sqlite3.connect(bridge.dir / "bench.db", isolation_level=None, timeout=10)) as held:
        held.execute("BEGIN EXCLUSIVE")
        yield
        held.execute("ROLLBACK")


@contextlib.contextmanager
def stopped(postgres):
    """Suspends PostgreSQL's processes."""
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
    """Sends new requests at a steady rate, independently of earlier ones."""

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

    def _ask(self, start):
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
        self.answers.append((start, status, time.monotonic() - start))

    def stop(self):
        self.ended.set()
        self.pacer.join()
        for thread in self.threads:
            thread.join()
        return self.answers


def queue_depth(bridge):
    """The number of queued writes, from keybridge's metrics."""
    connection = http.client.HTTPConnection(bridge.address, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return int(float(re.search(r"^keybridge_ledger_queue_depth (\S+)", text, re.MULTILINE)[1]))


def watched(bridge, seconds):
    """The maximum queue depth and memory (MiB) during some seconds."""
    ended, depths, sizes = time.monotonic() + seconds, [], []
    while time.monotonic() < ended:
        depths.append(queue_depth(bridge))
        sizes.append(bridge.memory() / 1024)
        time.sleep(0.1)
    return max(depths), max(sizes)


def streams(environment, seconds):
    """Paced streams through keybridge, and as many through nginx, which has no store: a delay of both is
    caused by the machine."""
    return {name: Load(environment.bench, environment.target(name), environment.mock.address, kind="paced",
                       streams=STREAMS, count=seconds * 1_000_000 // PACE_US, pace_us=PACE_US, staggered="true")
            for name in ("keybridge", "nginx")}


@contextlib.contextmanager
def opened(what, loads):
    """Runs loads and prints their delays at the end."""
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
    """Summarises the statuses and times of the requests sent between two points in time."""
    times = {}
    for start, status, seconds in answers:
        if begin <= start < end:
            times.setdefault(status, []).append(seconds)
    most_first = sorted(times.items(), key=lambda item: -len(item[1]))
    return ", ".join(f"{len(of)} × {status} after {statistics.median(of):.2f} s (longest {max(of):.2f})"
                     for status, of in most_first) or "none"


def scenario(what, environment, stalled):
    """Runs the scenario with one store."""
    with opened(f"{what}: events of {STREAMS} streams, nothing else", streams(environment, 4)):
        pass
    size = environment.bridge.memory() / 1024
    with opened(f"{what}: the same through a stall of {STALL} s", streams(environment, BEFORE + STALL + AFTER)):
        clients = Clients(environment.bridge)
        time.sleep(BEFORE)
        with stalled(environment.bridge):
            start = time.monotonic()
            depth, most = watched(environment.bridge, STALL)
            ended = time.monotonic()
        time.sleep(AFTER)
        answers = clients.stop()
    print(f"{what}: requests sent during the stall: {answered(answers, start, ended)}")
    print(f"{what}: requests sent after it: {answered(answers, ended, ended + 60)}")
    until_settled(environment.bridge)
    print(f"{what}: writes that waited: {depth} at most, {queue_depth(environment.bridge)} afterwards; "
          f"memory {size:.0f} → {most:.0f} MiB")
    environment.bridge.stop()
    counts = environment.bridge.verify()
    print(f"{what}: the records are complete: {counts['interceptions']} interceptions\n", flush=True)


def run(options):
    with world(options) as environment:
        scenario("SQLite", environment, locked)
    if options.no_postgres:
        return
    with Postgres() as postgres:
        url = postgres.create_database("stall")
        with world(options, store=url) as environment:
            scenario("PostgreSQL", environment, lambda _: stopped(postgres))
