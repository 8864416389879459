"""Tier A: counts that are the same on every machine, as slopes between two sizes: instructions and
allocations (callgrind) and system calls (strace); and a check that nothing is lost."""

import json
import pathlib
import tempfile

import callgrind
import strace
from arithmetic import regressions, slope
from measure import load, messages_of
from targets import Bench, Keybridge

# The options of each load, with a small and a large count.
LOADS = {
    "event": ({"kind": "pingpong", "warmup": 50}, (1_000, 3_000)),
    "bunched_event": ({"kind": "bunched", "count": 1, "warmup": 1}, (100, 1_100)),
    "request": ({"kind": "whole", "warmup": 5}, (50, 150)),
    "request_200k": ({"kind": "whole", "warmup": 2, "prompt_bytes": 200_000}, (5, 15)),
}
# The allowed excess over the baseline; libraries choose other code paths on other processors.
ALLOWED, OTHER_PROCESSOR = 0.05, 0.25
TRACED = ("trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,epoll_wait,epoll_pwait,epoll_ctl,"
          "futex")
# How often each count is taken.
REPEATED = 2


def processor():
    """The processor features by which libraries choose code paths."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n")[0].split()
    return [flag for flag in ("sse4_2", "avx", "avx2", "bmi2", "erms", "fsrm") if flag in flags]


def sizes_of(kind):
    return LOADS[kind][1]


def options_of(kind, count):
    options, _ = LOADS[kind]
    # The number of events is that of the single stream.
    return {**options, "events" if kind == "bunched_event" else "count": count}


def instructions(options):
    """Measures the instructions and allocations per unit of each load."""
    found = {}
    with callgrind.observed(options) as seen:
        for kind in LOADS:
            points = [(size, [profile for _ in range(REPEATED)
                              for profile in seen.profiles(**options_of(kind, size))])
                      for size in sizes_of(kind)]
            for what, count in (("instructions", "total"), ("allocations", "allocations")):
                # Background work of the process, now and then, can only add to a count.
                found[f"{what}_per_{kind}"] = slope(*(
                    (size, min(getattr(profile, count) for profile in profiles)) for size, profiles in points))
    return found


def system_calls(options):
    """Measures the system calls of the serving thread per event and request, without the store's threads."""
    found = {}
    for kind in ("event", "bunched_event", "request"):
        points = [(size, len(strace.serving(options, "-e", TRACED, **options_of(kind, size))))
                  for size in sizes_of(kind)]
        found[f"system_calls_per_{kind}"] = slope(*points)
    return found


def parity(options):
    """Checks that events out equal events in, and records equal requests."""
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        bench = Bench(options.bench)
        mock = bench.mock()
        bridge = Keybridge.fresh(options.keybridge, pathlib.Path(name) / "keybridge", mock.address)
        target = messages_of(bridge)
        _, seen = load(bench, target, mock, kind="bunched", count=90, warmup=10, streams=4)
        bridge.stop()
        mock.kill()
        lost_events = 4 * 90 * 35 - seen["events"]
        lost_records = 4 * 100 - bridge.verify()["interceptions"]
        return {"events_lost": abs(lost_events), "records_lost": abs(lost_records)}


def run(options, table):
    measured = {**parity(options), **system_calls(options), **instructions(options)}
    measured = {name: round(value, 3) for name, value in measured.items()}
    if options.write:
        table.write_text(json.dumps({"processor": processor(), "figures": measured}, indent=1,
                                    sort_keys=True) + "\n")
    written = json.loads(table.read_text()) if table.exists() else {"processor": [], "figures": {}}
    baseline = written["figures"]
    for name, value in sorted(measured.items()):
        print(f"{name:40} {value:12.2f}   baseline {baseline.get(name, float('nan')):12.2f}")
    allowed = ALLOWED
    if written["processor"] != processor():
        print(f"the baseline was measured on a processor with {written['processor']}, this one has {processor()}: "
              f"{OTHER_PROCESSOR:.0%} more is allowed")
        allowed = OTHER_PROCESSOR
    problems = regressions(baseline, measured, allowed)
    for problem in problems:
        print(f"above the baseline: {problem}")
    return 1 if problems else 0
