"""The instruments: a load against one target, interleaved rounds over all targets, and the figures computed
from them.

CPU is that of the serving threads. The CPU of the ledger's own threads, which commit to disk while the
request waits, is reported separately as `recording`.
"""

import contextlib
import pathlib
import statistics
import tempfile
import time
from dataclasses import dataclass, field

from arithmetic import Goal, Spread, ratios
from targets import Bench, Keybridge, Load, Nginx, Target, used

KEYBRIDGE = "keybridge"
# The keybridge whose requests do not wait for the disk.
JOURNALING = "keybridge (process)"
# With less headroom, the provider or the load generator may be the bottleneck.
HEAD_ROOM = 3


@dataclass
class Figure:
    """A goal and its measurement."""

    goal: Goal
    spread: Spread
    verdict: str
    # The values of each target, in the unit `unit`.
    values: dict = field(default_factory=dict)
    unit: str = ""


def load(bench, target, mock, **options):
    """Runs a load; returns the CPU time of the target in nanoseconds and the load generator's result."""
    running = Load(bench, target, mock.address, **options)
    before = target.process.cpu()
    running.begin()
    seconds = running.done()
    spent = used(before, target.process.cpu())
    recording = sum(nanos for name, nanos in spent.items() if name.startswith("ledger-"))
    serving = sum(spent.values()) - recording
    return {"serving": serving, "recording": recording}, {**running.result(), "seconds": seconds}


class Rounds:
    """Measures all targets round by round; the first round is discarded."""

    def __init__(self, world, rounds, say, targets=None):
        self.world, self.rounds, self.say = world, rounds, say
        self.targets = targets or world.targets
        # For each measurement, how much faster the provider and the load generator are without each target.
        self.head_room = {}

    def load(self, target, **options):
        return load(self.world.bench, target, self.world.mock, **options)

    def beside(self, target, options, other, other_options):
        """Measures a load while another one runs."""
        behind = Load(self.world.bench, other, self.world.mock.address, **other_options)
        behind.begin()
        _, seen = self.load(target, **options)
        behind.done()
        behind.result()
        return seen

    def run(self, what, units, **options):
        """The microseconds per unit and the load generator's results of each target, by round."""
        cpu = {target.name: [] for target in self.targets}
        cpu |= {recording(target.name): [] for target in self.targets if is_keybridge(target.name)}
        seen = {target.name: [] for target in self.targets}
        for number in range(self.rounds + 1):
            for target in self.targets:
                spent, result = self.load(target, **options)
                if number > 0:
                    cpu[target.name].append(spent["serving"] / units / 1000)
                    if is_keybridge(target.name):
                        cpu[recording(target.name)].append(spent["recording"] / units / 1000)
                    seen[target.name].append(result)
        self.say(what + ": " + ", ".join(
            f"{name} {statistics.median(values):.2f} µs" for name, values in cpu.items()))
        # A paced load has the same rate with every target.
        if "pace_us" not in options:
            self.head_room[what] = head_room(seen)
            self.say(in_words(self.head_room[what]))
        return cpu, seen


def head_room(seen):
    """How much faster the direct connection is than each target, per round."""
    direct = [result["seconds"] for result in seen["direct"]]
    return {name: ratios([result["seconds"] for result in results], direct)
            for name, results in seen.items() if name != "direct"}


def in_words(rooms):
    """Describes the headroom, with a warning where it is low."""
    command = "headroom: the provider and the load generator alone reach " + ", ".join(
        f"{room.median:.2f} × the rate of {name}" for name, room in rooms.items())
    little = [name for name, room in rooms.items() if room.median < HEAD_ROOM]
    return command + (f"; under {HEAD_ROOM}: {', '.join(little)}" if little else "")


def is_keybridge(name):
    return name.startswith(KEYBRIDGE)


def recording(name):
    """The name under which the CPU of the ledger's threads is reported."""
    return name.replace(KEYBRIDGE, "recording")


def compared_cpu(goal, cpu, name="keybridge"):
    others = {"recording": cpu[recording(name)], "relay": cpu["relay"], "direct": cpu["direct"]}
    return compared(goal, cpu[name], cpu["nginx"], "µs", **others)


def compared(goal, ours, theirs, unit, reference="nginx", **others):
    spread = ratios(ours, theirs)
    values = {"keybridge": Spread.of(ours), reference: Spread.of(theirs),
              **{name: Spread.of(values) for name, values in others.items()}}
    return Figure(goal, spread, goal.verdict(spread.median, Spread.of(theirs).relative), values, unit)


def absolute(goal, values, unit):
    spread = Spread.of(values)
    return Figure(goal, spread, goal.verdict(spread.median), {"keybridge": spread}, unit)


def over_direct(seen, name, quantile):
    """What a target adds to the direct connection, per round."""
    return [max(result[quantile] - base[quantile], 0.1)
            for result, base in zip(seen[name], seen["direct"], strict=True)]


def added(goal, seen, quantile, name="keybridge"):
    """What each target adds to the direct connection, per round."""
    return compared(goal, over_direct(seen, name, quantile), over_direct(seen, "nginx", quantile),
                    "µs", relay=over_direct(seen, "relay", quantile),
                    direct=[result[quantile] for result in seen["direct"]])


@dataclass
class World:
    """The mock provider and a fresh process of each target."""

    bench: Bench
    mock: object
    targets: list
    # All keybridge processes, the one with the default durability first.
    bridges: list

    @property
    def bridge(self):
        return self.bridges[0]

    def target(self, name):
        return next(target for target in self.targets if target.name == name)


@contextlib.contextmanager
def world(options, tls=None, journaling=False, **settings):
    """A world in its own folder in `options.dir`; `settings` are those of keybridge. With `tls`, a
    certificate and its key, nginx and keybridge use TLS; with `journaling` there is a second keybridge with
    the durability `process`."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(
            tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-")))

        def started(process):
            stack.callback(process.kill)
            return process
        bench = Bench(options.bench)
        mock = started(bench.mock())
        relay = started(bench.relay(mock.address))
        nginx = started(Nginx(folder / "nginx", mock.address, tls))
        bridges = [started(Keybridge.fresh(options.keybridge, folder / durability, mock.address, tls=tls,
                                           durability=durability, **settings))
                   for durability in ("disk", "process")[:2 if journaling else 1]]
        targets = [Target("direct", mock), Target("relay", relay), Target("nginx", nginx),
                   *map(messages_of, bridges, (KEYBRIDGE, JOURNALING))]
        if tls:
            for target in targets[2:]:
                target.certificate = tls[0]
        yield World(bench, mock, targets, bridges)


def messages_of(bridge, name="keybridge"):
    return Target(name, bridge, "/anthropic/v1/messages", bridge.token)


def until_settled(bridge):
    """Waits until the records of disconnected clients are settled."""
    deadline = time.monotonic() + 60
    while bridge.recount()["in_progress"]:
        assert time.monotonic() < deadline, "records are still open"
        time.sleep(0.2)


def idle_slopes(options, prompt_bytes, streams):
    """Measures the KiB per idle stream of keybridge and nginx, each in a fresh process."""
    with world(options) as environment:
        slopes = {}
        for target in environment.targets[2:]:
            held, sizes = [], []
            rest = streams - streams // 4
            for count in (streams // 4, rest):
                running = Load(environment.bench, target, environment.mock.address, kind="idle", count=count, warmup=0,
                               prompt_bytes=prompt_bytes)
                running.begin()
                running.done()
                held.append(running)
                time.sleep(0.5)
                sizes.append(target.process.memory())
            slopes[target.name] = (sizes[1] - sizes[0]) / rest
            for running in held:
                running.result()
        until_settled(environment.bridge)
        environment.bridge.stop()
        environment.bridge.verify()
        return slopes
