"""The latency cost of recording (goal 25). Recording cannot be disabled, so it is compared with requests
through nginx, which records nothing, and with a store in memory, where no commit waits for a disk."""

import contextlib
import dataclasses
import tempfile

from arithmetic import Goal, Spread
from measure import JOURNALING, KEYBRIDGE, Rounds, compared, messages_of
from targets import Keybridge

EVENTS = Goal(25, "event p99 beside 200 recorded requests a second", "200 through nginx", 1.10, 1.03)
FIRST = Goal(25, "time to the first event, p50, with the store on disk", "store in memory", 1.10, 1.03)
MEMORY = "/dev/shm"


def figures(options, rounds):
    for durability, name in (("disk", KEYBRIDGE), ("process", JOURNALING)):
        for goal, figure in ((EVENTS, events_beside_requests), (FIRST, first_events)):
            result = dataclasses.replace(goal, what=f"{goal.what}; `{durability}`")
            yield figure(result, options, rounds, name, durability)


def events_beside_requests(goal, options, rounds, name, _durability):
    """The p99 of the events of a stream while requests are recorded, while the same requests go through
    nginx, and alone, because requests cost the core more than their records do."""
    scale = 4 if options.quick else 1
    bridge, nginx = rounds.world.target(name), rounds.world.target("nginx")
    requests = {"kind": "whole", "count": 300 // scale, "pace_us": 5_000}
    events = {"kind": "pingpong", "count": 40_000 // scale}
    alone, recorded, unrecorded = [], [], []
    for _ in range(rounds.rounds):
        _, seen = rounds.load(bridge, **events)
        alone.append(seen["p99_us"])
        for other, p99s in ((nginx, unrecorded), (bridge, recorded)):
            p99s.append(rounds.beside(bridge, events, other, requests)["p99_us"])
    figure = compared(goal, recorded, unrecorded, "µs", reference="beside requests through nginx")
    figure.values["alone"] = Spread.of(alone)
    return figure


def first_events(goal, options, rounds, name, durability):
    """Measures the time to the first event of a stream with both stores."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY, prefix="bench-"))
        bridge = Keybridge.fresh(options.keybridge, folder, rounds.world.mock.address,
                                 durability=durability)
        stack.callback(bridge.kill)
        targets = [rounds.world.target("direct"), rounds.world.target(name),
                   messages_of(bridge, "store in memory")]
        both = Rounds(rounds.world, rounds.rounds, rounds.say, targets)
        count = 1_000 // (4 if options.quick else 1)
        _, seen = both.run(f"bunched stream, two stores, {durability}", count, kind="bunched", count=count)
        rounds.head_room.update(both.head_room)
        bridge.stop()
        bridge.verify()

    def p50(name):
        return [result["p50_us"] for result in seen[name]]
    return compared(goal, p50(name), p50("store in memory"), "µs", reference="store in memory",
                    direct=p50("direct"))
