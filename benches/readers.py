"""Model requests beside people who read: a store with many records, 200 model requests a second, and 16
readers in a loop on the slowest lists. No request may be refused, and the first byte may not come late."""

import collections
import contextlib
import http.client
import pathlib
import tempfile
import threading
import time

from postgres import Postgres
from stores import store
from targets import Bench, Keybridge, Load, configure
from measure import messages_of, until_settled

RECORDS, SESSION_REQUESTS = 300_000, 20
READERS = 16
# Each reads the whole store to show one page.
LISTS = ("/api/v1/sessions?limit=50", "/api/v1/interceptions?q=nowhere-to-be-found",
         "/api/v1/interceptions?outcome=failed&limit=500")
REQUESTS_PER_SECOND, CONNECTIONS = 200, 20
SECONDS = 15
# The first byte may take so much longer with readers, or this long.
MAX_RATIO, MAX_MS = 1.5, 25.0


class Readers:
    """Clients of the API, each of which reads one list after another."""

    def __init__(self, address, token):
        self.address, self.token = address, token
        self.statuses, self.stopped = collections.Counter(), threading.Event()
        self.threads = [threading.Thread(target=self._read, args=(number,)) for number in range(READERS)]
        for thread in self.threads:
            thread.start()

    def _read(self, number):
        while not self.stopped.is_set():
            connection = http.client.HTTPConnection(self.address, timeout=60)
            connection.request("GET", LISTS[number % len(LISTS)],
                               headers={"authorization": f"Bearer {self.token}"})
            response = connection.getresponse()
            response.read()
            self.statuses[response.status] += 1
            number += 1

    def stop(self):
        """How many reads were answered with each status."""
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        return dict(sorted(self.statuses.items()))


def requests(made, mock, bench):
    """What 200 model requests a second see, from when each was due to its first event."""
    load = Load(bench, messages_of(made), mock.address, kind="bunched", events=10, streams=CONNECTIONS,
                count=SECONDS * REQUESTS_PER_SECOND // CONNECTIONS, warmup=2,
                pace_us=CONNECTIONS * 1_000_000 // REQUESTS_PER_SECOND, count_refused="true")
    load.begin()
    load.done()
    return load.result()


def in_words(seen):
    p50, p99, longest = (seen[which] / 1000 for which in ("p50_us", "p99_us", "max_us"))
    return (f"{seen['requests']} requests, {seen['refused']} refused, first byte p50 {p50:.2f}, "
            f"p99 {p99:.2f}, longest {longest:.1f} ms")


def measured(what, options, made, mock, bench):
    """Prints each round; gives whether all of them were as they must be."""
    fine = True
    for number in range(1, options.rounds + 1):
        alone = requests(made, mock, bench)
        print(f"{what} {number}: no readers: {in_words(alone)}", flush=True)
        readers = Readers(made.address, made.reader_token)
        time.sleep(1)
        beside = requests(made, mock, bench)
        statuses = readers.stop()
        limit = max(MAX_RATIO * alone["p99_us"] / 1000, MAX_MS)
        is_fine = beside["refused"] == 0 and beside["p99_us"] / 1000 <= limit
        fine &= is_fine
        print(f"{what} {number}: {READERS} readers: {in_words(beside)}; reads by status: {statuses}; "
              f"p99 may be {limit:.1f} ms: {'reached' if is_fine else 'MISSED'}", flush=True)
    return fine


@contextlib.contextmanager
def bridge(options, folder, mock, url):
    """keybridge on any core, over a store with many records."""
    seeded = store(options.bench, "ledger", url, RECORDS, "--session-requests", str(SESSION_REQUESTS))
    print(f"{RECORDS} records, {seeded['requests_per_second']:.0f} a second", flush=True)
    configure(folder, mock.address, store=url)
    made = Keybridge(options.keybridge, folder, core=None)
    try:
        made.token = made._cli("token", "create", "--user", "bench")["token"]
        made._cli("user", "create", "auditor", "--role", "auditor")
        made.reader_token = made._cli("token", "create", "--user", "auditor")["token"]
        yield made
        until_settled(made)
        made.stop()
        made.verify()
    finally:
        made.kill()


def run(options):
    """Exit code 1 if a goal is missed."""
    bench, fine = Bench(options.bench), True
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(
            tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-")))
        mock = bench.mock()
        stack.callback(mock.kill)
        if options.readers in ("sqlite", "both"):
            url = f"sqlite://{folder}/records.db"
            with bridge(options, folder / "sqlite", mock, url) as made:
                fine &= measured("SQLite", options, made, mock, bench)
        if options.readers in ("postgres", "both"):
            server = stack.enter_context(Postgres())
            url = server.create_database("readers")
            with bridge(options, folder / "postgres", mock, url) as made:
                server.psql("ANALYZE", "readers")
                fine &= measured("PostgreSQL", options, made, mock, bench)
    return 0 if fine else 1
