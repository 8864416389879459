"""Tier C, for milestones: the load at which responses become late, hundreds of streams, a store that stalls,
and thousands of idle streams."""

import measure
import soak
import stall

# The request rates to try, and the p99 limits in milliseconds.
RATES = (100, 250, 500, 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 16_000)
LIMITS = (1, 5, 10, 50)
CONNECTIONS = 64
SECONDS = 4


def frontier(rounds, target):
    """The p99 at each rate, counted from when each request was due, until it is far beyond the limits."""
    found = {}
    for rate in RATES:
        count = max(rate * SECONDS // CONNECTIONS, 5)
        pace = CONNECTIONS * 1_000_000 // rate
        _, seen = rounds.load(target, kind="whole", streams=CONNECTIONS, count=count, warmup=2, pace_us=pace)
        found[rate] = seen["p99_us"] / 1000
        if found[rate] > 20 * LIMITS[-1]:
            break
    return found


def saturation(options):
    with measure.world(options) as environment:
        rounds = measure.Rounds(environment, 1, print)
        print("| target | maximum requests per second with a p99 under " +
              " | ".join(f"{limit} ms" for limit in LIMITS) + " |")
        print("|---|" + "--:|" * len(LIMITS))
        for target in environment.targets:
            late = frontier(rounds, target)
            best = [max((rate for rate, p99 in late.items() if p99 < limit), default=0)
                    for limit in LIMITS]
            print(f"| {target.name} | " + " | ".join(map(str, best)) + " |", flush=True)
        environment.bridge.stop()
        counts = environment.bridge.verify()
        print(f"\nthe records are complete: {counts['interceptions']} interceptions\n")


def many_streams(options):
    """The delay of the events of 400 streams, which are due one after the other."""
    print("| target | delay of events of 400 streams, one each 50 ms: p50 (ms) | p99 | longest |\n"
          "|---|--:|--:|--:|")
    with measure.world(options) as environment:
        rounds = measure.Rounds(environment, 1, print)
        for target in environment.targets:
            _, seen = rounds.load(target, kind="paced", streams=400, count=200, pace_us=50_000,
                                  staggered="true")
            print(f"| {target.name} | " + " | ".join(
                f"{seen[which] / 1000:.2f}" for which in ("p50_us", "p99_us", "max_us")) + " |", flush=True)
        environment.bridge.stop()
        environment.bridge.verify()
    print()


def idle(options):
    for streams in (1_000, 9_000):
        slopes = measure.idle_slopes(options, 1_000, streams)
        print(f"{streams} idle streams, KiB per stream: " + ", ".join(
            f"{name} {slope:.1f}" for name, slope in slopes.items()), flush=True)


PARTS = {"saturation": saturation, "streams": many_streams, "stall": stall.run, "idle": idle}


def run(options, say):
    if options.soak:
        soak.run(options, say)
        return 0
    for name, part in PARTS.items():
        if options.part in (None, name):
            part(options)
    return 0
