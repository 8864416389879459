"""What recording costs those who wait (goal 25). It cannot be switched off: compared is the same keybridge
while it has nothing to record, and a store that is written to memory, where no commit waits for a disk."""

import contextlib
import tempfile

from arithmetic import Goal, Spread
from measure import Rounds, compared, messages_of
from targets import Keybridge

EVENTS = Goal(25, "event p99 beside 200 recorded requests a second", "nothing recorded meanwhile", 1.10, 1.03)
FIRST = Goal(25, "time to the first event, p50, with the store on disk", "store in memory", 1.10, 1.03)
MEMORY = "/dev/shm"


def figures(options, rounds):
    yield events_beside_requests(rounds, 4 if options.quick else 1)
    yield first_events(options, rounds)


def events_beside_requests(rounds, scale):
    """The p99 of events of a stream, alone and beside requests that are recorded. Requests cost the core more
    than their record: beside the same through nginx, which records nothing, is told, too."""
    bridge, nginx = rounds.world.target("keybridge"), rounds.world.target("nginx")
    requests = {"kind": "whole", "count": 300 // scale, "pace_us": 5_000}
    events = {"kind": "pingpong", "count": 40_000 // scale}
    alone, recorded, unrecorded = [], [], []
    for _ in range(rounds.rounds):
        _, seen = rounds.load(bridge, **events)
        alone.append(seen["p99_us"])
        for other, p99s in ((nginx, unrecorded), (bridge, recorded)):
            p99s.append(rounds.beside(bridge, events, other, requests)["p99_us"])
    figure = compared(EVENTS, recorded, alone, "µs", yardstick="alone")
    figure.values["beside requests through nginx"] = Spread.of(unrecorded)
    return figure


def first_events(options, rounds):
    """The time to the first event of a stream with both stores."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY, prefix="bench-"))
        bridge = Keybridge.fresh(options.keybridge, folder, rounds.world.mock.address)
        stack.callback(bridge.kill)
        targets = [rounds.world.target("direct"), rounds.world.target("keybridge"),
                   messages_of(bridge, "store in memory")]
        both = Rounds(rounds.world, rounds.rounds, rounds.say, targets)
        count = 1_000 // (4 if options.quick else 1)
        _, seen = both.run("bunched stream, two stores", count, kind="bunched", count=count)
        rounds.head_room.update(both.head_room)
        bridge.stop()
        bridge.verify()

    def p50(name):
        return [result["p50_us"] for result in seen[name]]
    return compared(FIRST, p50("keybridge"), p50("store in memory"), "µs", yardstick="store in memory",
                    direct=p50("direct"))
