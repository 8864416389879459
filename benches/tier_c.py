"""Tier C, at milestones: how much can be asked until answers come late, and thousands of idle streams."""

import measure

# Requests per second that are tried, and the longest p99 that counts as in time, in milliseconds.
RATES = (100, 250, 500, 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 16_000)
LIMITS = (1, 5, 10, 50)
CONNECTIONS = 64
SECONDS = 4


def frontier(rounds, target):
    """The p99 at each rate, counted from when each request was due, until it is far too late."""
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
    with measure.world(options) as made:
        rounds = measure.Rounds(made, 1, print)
        print("| target | most requests per second with a p99 under " +
              " | ".join(f"{limit} ms" for limit in LIMITS) + " |")
        print("|---|" + "--:|" * len(LIMITS))
        for target in made.targets:
            late = frontier(rounds, target)
            best = [max((rate for rate, p99 in late.items() if p99 < limit), default=0)
                    for limit in LIMITS]
            print(f"| {target.name} | " + " | ".join(map(str, best)) + " |", flush=True)
        made.bridge.stop()
        counts = made.bridge.verify()
        print(f"\nthe trail is sound: {counts['interceptions']} interceptions\n")


def run(options):
    saturation(options)
    for streams in (1_000, 9_000):
        slopes = measure.idle_slopes(options, 1_000, streams)
        print(f"{streams} idle streams, KiB for each: " + ", ".join(
            f"{name} {slope:.1f}" for name, slope in slopes.items()), flush=True)
    return 0
