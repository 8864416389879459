"""Tier B: what keybridge costs beside nginx and a relay of bytes, in interleaved rounds on one core.

CPU is that of the threads that serve. What the ledger's own threads use, which commit to disk while the
request waits, is told beside it as `recording`.
"""

import contextlib
import http.client
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

from arithmetic import Goal, Spread, ratios
from targets import Bench, Keybridge, Load, Nginx, Target, pinned, used

EVENT = Goal(1, "CPU per event, 1 stream", "nginx", 1.25, 1.15)
EVENT_8 = Goal(4, "CPU per event, 8 streams", "nginx", 1.4, 1.2)
BUNCHED = Goal(5, "CPU per stream of 30 bunched events", "nginx", 3.0, 1.5)
REQUEST = Goal(7, "CPU per request of 1 KB", "nginx", 2.0, 1.5)
ADDED = Goal(9, "added latency, p50", "nginx's", 2.0, 1.4)
ADDED_99 = Goal(10, "added latency, p99", "nginx's", 3.0, 1.5)
TTFT = Goal(11, "added time to the first event, p50", "nginx's", 2.0, 1.4)
GAP_99 = Goal(12, "delay of events at 5 ms, p99 (ms)", "absolute", 1.0, 0.2)
GAP_MAX = Goal(12, "delay of events at 5 ms, longest (ms)", "absolute", 5.0, 5.0)
IDLE = Goal(13, "memory per idle stream, 1 KB prompt", "nginx", 2.2, 1.5)
IDLE_LONG = Goal(15, "the same after a 200 KB prompt", "after 1 KB", 1.3, 1.05)
LONG = Goal(16, "CPU per request of 200 KB", "nginx", 7.0, 4.5)
HEAD_OF_LINE = Goal(28, "event p99 beside prompts of 1 MB, added (ms)", "itself", 1.0, 0.5)
RECORDS = Goal(22, "requests recorded per second, SQLite", "autocommit", 12, 25, more=True)
RECORD = Goal(23, "CPU per recorded request, SQLite", "a thousand a commit", 2.0, 1.3)
ROWS = Goal(24, "rows per second, PostgreSQL", "single rows", 10, 14, more=True)
MEMORY = Goal(29, "resident memory at the start (MiB)", "absolute", 20, 12)
MEMORY_AFTER = Goal(29, "the same after the load", "before it", 1.3, 1.15)
START = Goal(30, "start to the first answer (ms)", "absolute", 100, 30)


@dataclass
class Figure:
    """A goal and what was measured."""

    goal: Goal
    spread: Spread
    verdict: str
    # What each target came to, in the unit of `unit`.
    values: dict = field(default_factory=dict)
    unit: str = ""


def load(bench, target, mock, **options):
    """A run; gives the target's nanoseconds and what the load generator saw."""
    running = Load(bench, target, mock.address, **options)
    before = target.process.cpu()
    running.begin()
    running.done()
    spent = used(before, target.process.cpu())
    recording = sum(nanos for name, nanos in spent.items() if name.startswith("ledger-"))
    return {"serving": sum(spent.values()) - recording, "recording": recording}, running.result()


class Rounds:
    """Measurements of all targets, round by round; the first round is forgotten."""

    def __init__(self, bench, mock, targets, rounds, say):
        self.bench, self.mock, self.targets = bench, mock, targets
        self.rounds, self.say = rounds, say

    def run(self, what, units, **options):
        """Of each target the microseconds per unit, and the load generator's results, by round."""
        cpu = {name: [] for name in [*(target.name for target in self.targets), "recording"]}
        seen = {target.name: [] for target in self.targets}
        for number in range(self.rounds + 1):
            for target in self.targets:
                spent, result = load(self.bench, target, self.mock, **options)
                if number > 0:
                    cpu[target.name].append(spent["serving"] / units / 1000)
                    if target.name == "keybridge":
                        cpu["recording"].append(spent["recording"] / units / 1000)
                    seen[target.name].append(result)
        self.say(what + ": " + ", ".join(
            f"{name} {statistics.median(values):.2f} µs" for name, values in cpu.items()))
        return cpu, seen


def compared_cpu(goal, cpu):
    others = {name: cpu[name] for name in ("recording", "relay", "direct")}
    return compared(goal, cpu["keybridge"], cpu["nginx"], "µs", **others)


def compared(goal, ours, theirs, unit, **others):
    spread = ratios(ours, theirs)
    values = {"keybridge": Spread.of(ours), "nginx": Spread.of(theirs),
              **{name: Spread.of(values) for name, values in others.items()}}
    return Figure(goal, spread, goal.verdict(spread.median, Spread.of(theirs).relative), values, unit)


def absolute(goal, values, unit):
    spread = Spread.of(values)
    return Figure(goal, spread, goal.verdict(spread.median), {"keybridge": spread}, unit)


def added(goal, seen, quantile):
    """What each adds to the direct way, per round."""
    direct = [result[quantile] for result in seen["direct"]]
    def over(name):
        return [max(result[quantile] - base, 0.1)
                for result, base in zip(seen[name], direct, strict=True)]
    return compared(goal, over("keybridge"), over("nginx"), "µs", relay=over("relay"), direct=direct)


@contextlib.contextmanager
def world(bench_binary, keybridge_binary, folder):
    """The mock, and fresh processes of each target around it."""
    bench = Bench(bench_binary)
    with contextlib.ExitStack() as stack:
        def started(process):
            stack.callback(process.kill)
            return process
        mock = started(bench.mock())
        relay = started(bench.relay(mock.address))
        nginx = started(Nginx(folder / "nginx", mock.address))
        bridge = started(Keybridge(keybridge_binary, folder / "keybridge", mock.address))
        targets = [Target("direct", mock), Target("relay", relay), Target("nginx", nginx),
                   Target("keybridge", bridge, "/anthropic/v1/messages", bridge.token)]
        yield bench, mock, targets, bridge


def cpu_figures(rounds, quick):
    scale = 4 if quick else 1
    count = 40_000 // scale
    events, _ = rounds.run("event, 1 stream", count, kind="pingpong", count=count, warmup=1_000)
    yield compared_cpu(EVENT, events)
    count = 6_000 // scale
    events, _ = rounds.run("event, 8 streams", 8 * count, kind="pingpong", streams=8, count=count)
    yield compared_cpu(EVENT_8, events)
    count = 2_000 // scale
    streams, seen = rounds.run("bunched stream", count, kind="bunched", count=count)
    for name, results in seen.items():
        wrong = [result for result in results if result["events"] != count * 35]
        assert not wrong, (name, wrong)
    yield compared_cpu(BUNCHED, streams)
    yield added(TTFT, seen, "p50_us")
    requests, seen = rounds.run("request of 1 KB", count, kind="whole", count=count)
    yield compared_cpu(REQUEST, requests)
    yield added(ADDED, seen, "p50_us")
    yield added(ADDED_99, seen, "p99_us")
    count = 400 // scale
    requests, _ = rounds.run("request of 200 KB", count, kind="whole", count=count, warmup=20,
                             prompt_bytes=200_000)
    yield compared_cpu(LONG, requests)


def delay_figures(rounds):
    """Absolute figures of keybridge alone, beside the direct way in the same round."""
    _, seen = rounds.run("paced events", 4_000, kind="paced", streams=10, count=400, pace_us=5_000)
    ours = seen["keybridge"]
    yield absolute(GAP_99, [result["p99_us"] / 1000 for result in ours], "ms")
    yield absolute(GAP_MAX, [result["max_us"] / 1000 for result in ours], "ms")
    bridge = next(target for target in rounds.targets if target.name == "keybridge")
    differences, longest = [], []
    for _ in range(rounds.rounds):
        _, alone = load(rounds.bench, bridge, rounds.mock, kind="pingpong", count=10_000)
        prompts = Load(rounds.bench, bridge, rounds.mock.address, kind="whole", count=40, warmup=2,
                       prompt_bytes=1_000_000, pace_us=50_000)
        prompts.begin()
        _, beside = load(rounds.bench, bridge, rounds.mock, kind="pingpong", count=30_000)
        prompts.done()
        prompts.result()
        differences.append((beside["p99_us"] - alone["p99_us"]) / 1000)
        longest.append(beside["max_us"] / 1000)
    figure = absolute(HEAD_OF_LINE, differences, "ms")
    # Few events meet a prompt: the longest delay is told, too.
    figure.values["longest delay"] = Spread.of(longest)
    yield figure


def idle_slopes(bench_binary, keybridge_binary, base, prompt_bytes, streams):
    """KiB per idle stream of keybridge and nginx, each a fresh process."""
    with tempfile.TemporaryDirectory(dir=base, prefix="bench-") as folder:
        with world(bench_binary, keybridge_binary, pathlib.Path(folder)) as made:
            bench, mock, targets, bridge = made
            slopes = {}
            for target in targets[2:]:
                held, sizes = [], []
                rest = streams - streams // 4
                for count in (streams // 4, rest):
                    running = Load(bench, target, mock.address, kind="idle", count=count,
                                   warmup=0, prompt_bytes=prompt_bytes)
                    running.begin()
                    running.done()
                    held.append(running)
                    time.sleep(0.5)
                    sizes.append(target.process.memory())
                slopes[target.name] = (sizes[1] - sizes[0]) / rest
                for running in held:
                    running.result()
            until_settled(bridge)
            bridge.stop()
            bridge.verify()
            return slopes


def until_settled(bridge):
    """Clients that left are settled soon after."""
    deadline = time.monotonic() + 60
    while bridge._cli("ledger", "verify")["in_progress"]:
        assert time.monotonic() < deadline, "records are still open"
        time.sleep(0.2)


def memory_figures(bench_binary, keybridge_binary, base, rounds, streams=1_000):
    short = [idle_slopes(bench_binary, keybridge_binary, base, 1_000, streams)
             for _ in range(rounds)]
    ours = [slope["keybridge"] for slope in short]
    yield compared(IDLE, ours, [slope["nginx"] for slope in short], "KiB")
    long = [idle_slopes(bench_binary, keybridge_binary, base, 200_000, streams)["keybridge"]
            for _ in range(rounds)]
    spread = ratios(long, ours)
    yield Figure(IDLE_LONG, spread, IDLE_LONG.verdict(spread.median),
                 {"keybridge": Spread.of(long), "after 1 KB": Spread.of(ours)}, "KiB")


def start_figures(keybridge_binary, folder, mock, rounds):
    """A store that is there already, a process that is not."""
    times, sizes = [], []
    Keybridge(keybridge_binary, folder, mock).stop()
    for _ in range(rounds):
        began = time.monotonic()
        bridge = Keybridge.__new__(Keybridge)
        bridge.dir = folder
        super(Keybridge, bridge).__init__(
            [str(keybridge_binary), "serve"], r"keybridge listens on http://(\S+)", cwd=folder)
        connection = http.client.HTTPConnection(bridge.address, timeout=10)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        times.append((time.monotonic() - began) * 1000)
        time.sleep(0.3)
        sizes.append(bridge.memory() / 1024)
        bridge.stop()
    yield absolute(START, times, "ms")
    yield absolute(MEMORY, sizes, "MiB")


def store(bench_binary, way, address, count):
    words = pinned([bench_binary, "store", "--way", way, "--store", address, "--count", count])
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout)


def store_figures(bench_binary, folder, rounds, postgres):
    """What the ledger alone takes, beside the simplest ways to write the same rows; PostgreSQL where
    there is one."""
    found = {name: [] for name in ("ledger", "autocommit", "batches", "ledger-pg", "rows")}
    for number in range(rounds):
        def file(name):
            return folder / f"{name}-{number}.db"
        found["autocommit"].append(store(bench_binary, "autocommit", file("autocommit"), 500))
        found["batches"].append(store(bench_binary, "batches", file("batches"), 20_000))
        found["ledger"].append(store(bench_binary, "ledger", f"sqlite://{file('ledger')}", 20_000))
        if postgres:
            names = [f"bench_{os.getpid()}_{number}_{part}" for part in ("ledger", "rows")]
            ledger, rows = (postgres.create_database(name) for name in names)
            # The yardstick's client speaks no TLS.
            rows = rows.split("?")[0]
            found["rows"].append(store(bench_binary, "rows", rows, 1_000))
            found["ledger-pg"].append(store(bench_binary, "ledger", ledger, 20_000))

    def of(name, key):
        return [result[key] for result in found[name]]
    rate, cpu = "requests_per_second", "cpu_us"
    spread = ratios(of("ledger", rate), of("autocommit", rate))
    yield Figure(RECORDS, spread, RECORDS.verdict(spread.median), {
        name: Spread.of(of(name, rate)) for name in ("ledger", "autocommit", "batches")}, "/s")
    spread = ratios(of("ledger", cpu), of("batches", cpu))
    yield Figure(RECORD, spread, RECORD.verdict(spread.median), {
        name: Spread.of(of(name, cpu)) for name in ("ledger", "batches")}, "µs")
    if postgres:
        spread = ratios(of("ledger-pg", "rows_per_second"), of("rows", "rows_per_second"))
        yield Figure(ROWS, spread, ROWS.verdict(spread.median), {
            "ledger": Spread.of(of("ledger-pg", "rows_per_second")),
            "single rows": Spread.of(of("rows", "rows_per_second"))}, "/s")
