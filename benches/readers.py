"""Model requests beside people who read: a store with many records, 200 model requests a second, and 16
readers in a loop on every reading call. No request may be refused, and the first byte may not come late."""

import collections
import contextlib
import http.client
import pathlib
import tempfile
import threading
import time

import reads
import seed
from postgres import Postgres
from targets import Bench, Load
from measure import messages_of, until_settled

READERS = 16
REQUESTS_PER_SECOND, CONNECTIONS = 200, 20
SECONDS = 15
# The first byte may take so much longer with readers, or this long.
MAX_RATIO, MAX_MS = 1.5, 25.0
# Figures of a recount that model requests do not change.
UNCHANGED = ("in_progress", "interrupted", "without_end", "usages_without_interception", "duplicate_response_ids",
             "spool_leftovers")


class Readers:
    """Clients of the API, each of which makes one call after another."""

    def __init__(self, api, targets):
        self.api, self.targets = api, targets
        self.statuses, self.stopped = collections.Counter(), threading.Event()
        self.threads = [threading.Thread(target=self._read, args=(number,)) for number in range(READERS)]
        for thread in self.threads:
            thread.start()

    def _read(self, number):
        while not self.stopped.is_set():
            target, role = self.targets[number % len(self.targets)]
            connection = http.client.HTTPConnection(self.api.bridge.address, timeout=60)
            connection.request("GET", target,
                               headers={"authorization": f"Bearer {self.api.tokens[role]}"})
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


def targets_of(api):
    """The target and the role of each call that the binary has; a slow one may time out, as others will."""
    targets = []
    for call in reads.known_calls(api):
        try:
            target = api.target(call)
        except (reads.Refused, reads.OnePage) as reason:
            print(f"not read: {call.what}: {reason}", flush=True)
            continue
        if api.get(target, call.role).status in (400, 404):
            print(f"not read: {call.what}: not there", flush=True)
        else:
            targets.append((target, call.role))
    return targets


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


def measured(what, options, api, mock, bench):
    """Prints each round; gives whether all of them were as they must be."""
    fine, made, targets = True, api.bridge, targets_of(api)
    for number in range(1, options.rounds + 1):
        alone = requests(made, mock, bench)
        print(f"{what} {number}: no readers: {in_words(alone)}", flush=True)
        readers = Readers(api, targets)
        time.sleep(1)
        beside = requests(made, mock, bench)
        statuses = readers.stop()
        limit = max(MAX_RATIO * alone["p99_us"] / 1000, MAX_MS)
        is_fine = beside["refused"] == 0 and beside["p99_us"] / 1000 <= limit
        fine &= is_fine
        print(f"{what} {number}: {READERS} readers: {in_words(beside)}; reads by status: {statuses}; "
              f"p99 may be {limit:.1f} ms: {'reached' if is_fine else 'MISSED'}", flush=True)
    return fine


def beside_readers(what, options, folder, mock, url):
    """Measures on a seeded store; the requests must leave complete records."""
    with reads.api_of(options, folder, url, mock.address) as api:
        api.bridge.token = api.tokens["admin"]
        before = api.bridge.recount()
        fine = measured(what, options, api, mock, Bench(options.bench))
        until_settled(api.bridge)
        after = api.bridge.recount()
    changed = {figure: after[figure] for figure in UNCHANGED if after[figure] != before[figure]}
    if changed:
        raise RuntimeError(f"the records are incomplete or wrong: {changed}")
    return fine


def seeded(options, url):
    """Fills a new store."""
    if seed.fill(options, url, options.interceptions) != 0:
        raise RuntimeError(f"{url} was not filled")
    return url


def run(options):
    """Exit code 1 if a goal is missed."""
    fine = True
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(
            tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-")))
        mock = Bench(options.bench).mock()
        stack.callback(mock.kill)
        if "://" in options.readers:
            return 0 if beside_readers("store", options, folder / "store", mock, options.readers) else 1
        if options.readers in ("sqlite", "both"):
            url = seeded(options, f"sqlite://{folder}/records.db")
            fine &= beside_readers("SQLite", options, folder / "sqlite", mock, url)
        if options.readers in ("postgres", "both"):
            server = stack.enter_context(Postgres())
            url = seeded(options, server.create_database("readers"))
            fine &= beside_readers("PostgreSQL", options, folder / "postgres", mock, url)
    return 0 if fine else 1
