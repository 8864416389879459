"""Minutes of streams and requests through keybridge and nginx at once: whether memory use is steady and is
released afterwards."""

import statistics
import time

from measure import until_settled, world
from targets import Load

# The load on each target, and the seconds of a slice, after which the connections are new.
STREAMS, PACE_US, SLICE = 40, 50_000, 10
REQUESTS = {"kind": "whole", "streams": 8, "warmup": 1, "pace_us": 200_000, "prompt_bytes": 20_000}
REST = 10


def slice_of(environment, target):
    events = SLICE * 1_000_000 // PACE_US
    return [Load(environment.bench, target, environment.mock.address, kind="paced", streams=STREAMS, count=events,
                 pace_us=PACE_US, staggered="true"),
            Load(environment.bench, target, environment.mock.address, count=SLICE * 1_000_000 // REQUESTS["pace_us"],
                 **REQUESTS)]


def sizes(targets):
    return {target.name: target.process.memory() / 1024 for target in targets}


def samples(environment, targets, slices, say):
    """Samples the memory in the middle of each slice."""
    found = []
    for number in range(slices):
        loads = [load for target in targets for load in slice_of(environment, target)]
        for load in loads:
            load.begin()
        time.sleep(SLICE / 2)
        found.append(sizes(targets))
        for load in loads:
            load.done()
        for load in loads:
            load.result()
        say(f"{(number + 1) * SLICE} s: " + ", ".join(
            f"{name} {size:.1f} MiB" for name, size in found[-1].items()))
    return found


def run(options, say):
    with world(options) as environment:
        targets = [environment.target("nginx"), environment.target("keybridge")]
        start = sizes(targets)
        found = samples(environment, targets, max(round(options.soak * 60 / SLICE), 4), say)
        until_settled(environment.bridge)
        time.sleep(REST)
        rest = sizes(targets)
        environment.bridge.stop()
        counts = environment.bridge.verify()
    print(f"{options.soak:g} minutes of {STREAMS} streams with an event each {PACE_US / 1000:g} ms and "
          f"{REQUESTS['streams'] * 1_000_000 // REQUESTS['pace_us']} requests of 20 KB a second, of each target\n")
    print("| target, MiB | at the start | steady (median of the second half) | last quarter to second "
          f"| most | after {REST} s of rest | rest to steady | rest to start |\n|---|" + "--:|" * 7)
    for name in start:
        print(row(name, start[name], [sample[name] for sample in found], rest[name]))
    print(f"\nthe records are complete: {counts['interceptions']} interceptions")


def row(name, start, sizes, rest):
    quarter = max(len(sizes) // 4, 1)
    steady = statistics.median(sizes[len(sizes) // 2:])
    growth = statistics.median(sizes[-quarter:]) / statistics.median(sizes[quarter:2 * quarter])
    return (f"| {name} | {start:.1f} | {steady:.1f} | {growth:.2f} | {max(sizes):.1f} | {rest:.1f} "
            f"| {rest / steady:.2f} | {rest / start:.2f} |")
