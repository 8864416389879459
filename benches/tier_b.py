"""Tier B: the cost of keybridge compared with nginx and a relay of bytes, in interleaved rounds on one core."""

import contextlib
import dataclasses
import http.client
import pathlib
import tempfile
import time

import recording
import stores
from arithmetic import Goal, Spread
from measure import JOURNALING, KEYBRIDGE, Rounds, absolute, added, compared, compared_cpu, idle_slopes, world
from postgres import Postgres
from targets import Keybridge

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
MEMORY = Goal(29, "resident memory at the start (MiB)", "absolute", 20, 12)
MEMORY_AFTER = Goal(29, "the same after the load", "before it", 1.3, 1.15)
START = Goal(30, "start to the first response (ms)", "absolute", 100, 30)


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
    yield from in_both(BUNCHED, compared_cpu, streams)
    yield from in_both(TTFT, added, seen, "p50_us")
    requests, seen = rounds.run("request of 1 KB", count, kind="whole", count=count)
    yield from in_both(REQUEST, compared_cpu, requests)
    yield from in_both(ADDED, added, seen, "p50_us")
    yield from in_both(ADDED_99, added, seen, "p99_us")
    count = 400 // scale
    requests, _ = rounds.run("request of 200 KB", count, kind="whole", count=count, warmup=20,
                             prompt_bytes=200_000)
    yield from in_both(LONG, compared_cpu, requests)


def in_both(goal, figure, *measured):
    """A figure of requests with both durabilities: waiting for the disk, and not waiting."""
    for durability, name in (("disk", KEYBRIDGE), ("process", JOURNALING)):
        yield figure(dataclasses.replace(goal, what=f"{goal.what}; `{durability}`"), *measured, name=name)


def delay_figures(rounds):
    """Absolute figures of keybridge alone, with the direct connection in the same round."""
    _, seen = rounds.run("paced events", 4_000, kind="paced", streams=10, count=400, pace_us=5_000)
    ours = seen["keybridge"]
    yield absolute(GAP_99, [result["p99_us"] / 1000 for result in ours], "ms")
    yield absolute(GAP_MAX, [result["max_us"] / 1000 for result in ours], "ms")
    bridge = rounds.world.target("keybridge")
    differences, longest = [], []
    for _ in range(rounds.rounds):
        _, alone = rounds.load(bridge, kind="pingpong", count=10_000)
        beside = rounds.beside(bridge, {"kind": "pingpong", "count": 30_000}, bridge, {
            "kind": "whole", "count": 40, "warmup": 2, "prompt_bytes": 1_000_000, "pace_us": 50_000})
        differences.append((beside["p99_us"] - alone["p99_us"]) / 1000)
        longest.append(beside["max_us"] / 1000)
    figure = absolute(HEAD_OF_LINE, differences, "ms")
    # Few events coincide with a prompt, so the longest delay is reported too.
    figure.values["longest delay"] = Spread.of(longest)
    yield figure


def memory_figures(options, rounds, streams=1_000):
    short = [idle_slopes(options, 1_000, streams) for _ in range(rounds)]
    ours = [slope["keybridge"] for slope in short]
    yield compared(IDLE, ours, [slope["nginx"] for slope in short], "KiB")
    long = [idle_slopes(options, 200_000, streams)["keybridge"] for _ in range(rounds)]
    yield compared(IDLE_LONG, long, ours, "KiB", reference="after 1 KB")


def start_figures(options, mock):
    """Starts a process on an existing store."""
    times, sizes = [], []
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-") as name:
        folder = pathlib.Path(name)
        Keybridge.fresh(options.keybridge, folder, mock.address).stop()
        for _ in range(options.rounds):
            start = time.monotonic()
            bridge = Keybridge(options.keybridge, folder, core=None)
            connection = http.client.HTTPConnection(bridge.address, timeout=10)
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
            times.append((time.monotonic() - start) * 1000)
            time.sleep(0.3)
            sizes.append(bridge.memory() / 1024)
            bridge.stop()
    yield absolute(START, times, "ms")
    yield absolute(MEMORY, sizes, "MiB")


def figures(options, say, head_room):
    """Measures all figures and verifies the records at the end. The headroom of each measurement goes into
    `head_room`."""
    with contextlib.ExitStack() as stack:
        postgres = None if options.no_postgres else stack.enter_context(Postgres())
        yield from stores.figures(options, postgres)
    with world(options, journaling=True) as environment:
        yield from start_figures(options, environment.mock)
        rounds = Rounds(environment, options.rounds, say)
        before = environment.bridge.memory()
        yield from cpu_figures(rounds, options.quick)
        yield from delay_figures(rounds)
        yield from recording.figures(options, rounds)
        yield absolute(MEMORY_AFTER, [environment.bridge.memory() / before], "× at start")
        for bridge, durability in zip(environment.bridges, ("disk", "process"), strict=True):
            bridge.stop()
            counts = bridge.verify()
            say(f"the trail is sound ({durability}): {counts['interceptions']} interceptions, "
                f"{counts['in_progress']} open, {counts['interrupted']} interrupted")
        head_room.update(rounds.head_room)
    yield from memory_figures(options, 1 if options.quick else 3)
