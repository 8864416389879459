"""Tier A: counts that are the same on every machine, as slopes between two sizes: instructions and
allocations (callgrind), system calls (strace), and that what goes in comes out and is recorded."""

import json
import pathlib
import re
import signal
import subprocess
import tempfile
import time

from arithmetic import regressions, slope
from measure import load, messages_of
from targets import Bench, Keybridge

# Of each load its options, and the small and the large count.
LOADS = {
    "event": ({"kind": "pingpong", "warmup": 50}, (1_000, 3_000)),
    "bunched_event": ({"kind": "bunched", "count": 1, "warmup": 1}, (100, 1_100)),
    "request": ({"kind": "whole", "warmup": 5}, (50, 150)),
    "request_200k": ({"kind": "whole", "warmup": 2, "prompt_bytes": 200_000}, (5, 15)),
}
# How much more than the table there may be; libraries take other ways on other processors.
ALLOWED, OTHER_PROCESSOR = 0.05, 0.25
ALLOCATORS = ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc")


def processor():
    """What libraries choose their ways by."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n")[0].split()
    return [flag for flag in ("sse4_2", "avx", "avx2", "bmi2", "erms", "fsrm") if flag in flags]


def options_of(kind, count):
    options, _ = LOADS[kind]
    # The number of events is that of the one stream.
    return {**options, "events" if kind == "bunched_event" else "count": count}


def counted_by_callgrind(text):
    """The instructions of a profile, and the calls of the allocator in it."""
    total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
    names, calls, callee = {}, 0, ""
    for line in text.splitlines():
        if line.startswith(("fn=", "cfn=")):
            found = re.match(r"c?fn=\((\d+)\)(?: (.*))?", line)
            if found and found[2]:
                names[found[1]] = found[2]
            if line.startswith("cfn=") and found:
                callee = names.get(found[1], "")
        elif line.startswith("calls=") and re.sub(r"['@].*", "", callee) in ALLOCATORS:
            calls += int(line.removeprefix("calls=").split()[0])
    if not total:
        raise RuntimeError("the profile has no sum")
    return int(total[1]), calls


def instructions(options, folder):
    """Instructions and allocations per unit of each load."""
    found = {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        dumps = pathlib.Path(name)
        wrapper = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={dumps}/out", "--quiet"]
        bench = Bench(options.bench)
        mock = bench.mock()
        bridge = Keybridge.fresh(options.keybridge, dumps / "keybridge", mock.address, wrapper)
        target = messages_of(bridge)
        pid = bridge.process.pid
        # The first requests of a process do what no other does.
        load(bench, target, mock, kind="whole", count=20, warmup=20)
        load(bench, target, mock, kind="bunched", count=20, warmup=20)
        for kind, (_, sizes) in LOADS.items():
            points = []
            for size in sizes:
                control(pid, "--zero")
                load(bench, target, mock, **options_of(kind, size))
                time.sleep(0.5)
                control(pid, "--dump")
                latest = max(dumps.glob("out.*"), key=lambda path: path.stat().st_mtime_ns)
                points.append((size, counted_by_callgrind(latest.read_text())))
                latest.unlink()
            for part, what in enumerate(("instructions", "allocations")):
                small, large = ((size, counts[part]) for size, counts in points)
                found[f"{what}_per_{kind}"] = slope(small, large)
        bridge.stop()
        mock.kill()
        bridge.verify()
    return found


def control(pid, what):
    subprocess.run(["callgrind_control", what, str(pid)], check=True, capture_output=True,
                   timeout=60)


def system_calls(options, folder):
    """System calls per event and request, of the process that relays."""
    found = {}
    for kind in ("event", "bunched_event", "request"):
        points = []
        for size in LOADS[kind][1]:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                out = pathlib.Path(name) / "strace"
                bench = Bench(options.bench)
                mock = bench.mock()
                bridge = Keybridge.fresh(options.keybridge, pathlib.Path(name) / "keybridge", mock.address,
                                         ["strace", "-f", "-q", "-o", str(out), "-e",
                                          "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,"
                                          "epoll_wait,epoll_pwait,epoll_ctl,futex"])
                target = messages_of(bridge)
                load(bench, target, mock, **options_of(kind, size))
                bridge.process.send_signal(signal.SIGTERM)
                bridge.stop()
                mock.kill()
                # Of the threads that serve: the store's do their own work.
                counts = {}
                for line in out.read_text(errors="replace").splitlines():
                    thread, _, call = line.partition(" ")
                    if "resumed>" not in call and "exited" not in call:
                        counts.setdefault(thread, []).append(call.lstrip().split("(")[0])
                serving = max(counts.values(), key=lambda calls: sum(
                    call.startswith("epoll") for call in calls))
                points.append((size, len(serving)))
        found[f"system_calls_per_{kind}"] = slope(*points)
    return found


def parity(options, folder):
    """Events in = events out, requests = records."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
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
    measured = {**parity(options, options.dir), **system_calls(options, options.dir),
                **instructions(options, options.dir)}
    measured = {name: round(value, 3) for name, value in measured.items()}
    if options.write:
        table.write_text(json.dumps({"processor": processor(), "figures": measured}, indent=1,
                                    sort_keys=True) + "\n")
    written = json.loads(table.read_text()) if table.exists() else {"processor": [], "figures": {}}
    baseline = written["figures"]
    for name, value in sorted(measured.items()):
        print(f"{name:40} {value:12.2f}   table {baseline.get(name, float('nan')):12.2f}")
    allowed = ALLOWED
    if written["processor"] != processor():
        print(f"the table is of a processor with {written['processor']}, this one has {processor()}: "
              f"{OTHER_PROCESSOR:.0%} more are allowed")
        allowed = OTHER_PROCESSOR
    problems = regressions(baseline, measured, allowed)
    for problem in problems:
        print(f"over the table: {problem}")
    return 1 if problems else 0
