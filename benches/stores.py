"""The rate of the ledger alone, compared with the simplest ways to write the same rows."""

import json
import os
import pathlib
import subprocess
import tempfile

from arithmetic import Goal, Spread, ratios
from measure import Figure
from targets import pinned

RECORDS = Goal(22, "requests recorded per second, SQLite", "autocommit", 12, 25, more=True)
RECORD = Goal(23, "CPU per recorded request, SQLite", "a thousand a commit", 2.0, 1.3)
ROWS = Goal(24, "rows per second, PostgreSQL", "single rows", 10, 14, more=True)


def store(bench_binary, method, address, count, *options):
    command = pinned([bench_binary, "store", "--method", method, "--store", address, "--count", count, *options])
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(finished.stdout)


def figures(options, postgres):
    """Measures all figures; those of PostgreSQL only if there is a server."""
    found = {name: [] for name in ("ledger", "autocommit", "batches", "ledger-pg", "rows")}
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-") as name:
        folder = pathlib.Path(name)
        for number in range(options.rounds):
            def run(method, address, count, key=None):
                found[key or method].append(store(options.bench, method, address, count))

            def file(name):
                return folder / f"{name}-{number}.db"
            run("autocommit", file("autocommit"), 500)
            run("batches", file("batches"), 20_000)
            run("ledger", f"sqlite://{file('ledger')}", 20_000)
            if postgres:
                names = [f"bench_{os.getpid()}_{number}_{part}" for part in ("ledger", "rows")]
                ledger, rows = (postgres.create_database(name) for name in names)
                # The client of the baseline has no TLS.
                run("rows", rows.split("?")[0], 1_000)
                run("ledger", ledger, 20_000, key="ledger-pg")

    def of(name, key):
        return [result[key] for result in found[name]]
    rate, cpu, rows = "requests_per_second", "cpu_us", "rows_per_second"
    yield beside(RECORDS, {name: of(name, rate) for name in ("ledger", "autocommit", "batches")}, "/s")
    yield beside(RECORD, {name: of(name, cpu) for name in ("ledger", "batches")}, "µs")
    if postgres:
        yield beside(ROWS, {"ledger": of("ledger-pg", rows), "single rows": of("rows", rows)}, "/s")


def beside(goal, values, unit):
    """Compares the first with the second."""
    ours, theirs, *_ = values.values()
    spread = ratios(ours, theirs)
    return Figure(goal, spread, goal.verdict(spread.median),
                  {name: Spread.of(of) for name, of in values.items()}, unit)
