"""Measures keybridge beside nginx and a relay of bytes. `scripts/bench` builds and calls this.

    scripts/bench                  tier B: ratios against nginx in interleaved rounds
    scripts/bench --tier c         tier C: how much can be asked, and 9,000 idle streams
    scripts/bench --tier a         tier A: exact counts, compared with benches/baseline.json
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import resource
import sys
import tempfile
import time

import measure
import tier_a
import tier_c
from targets import ROOT

sys.path.insert(0, str(ROOT / "tests/ledger"))
from postgres import Postgres  # noqa: E402, the ledger's tests know how to start one

BASELINE = ROOT / "benches/baseline.json"


def surroundings(binary):
    """What a figure is worth nothing without."""
    return {
        "binary_sha256": hashlib.sha256(pathlib.Path(binary).read_bytes()).hexdigest()[:16],
        "kernel": platform.release(), "cores": os.cpu_count(),
        "load_average": os.getloadavg(), "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def figures(options, say):
    """All figures of tier B; ends with the recount of what was recorded meanwhile."""
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-") as name:
        folder = pathlib.Path(name)
        with measure.world(options.bench, options.keybridge, folder) as made:
            bench, mock, targets, bridge = made
            with contextlib.ExitStack() as stack:
                postgres = None if options.no_postgres else stack.enter_context(Postgres())
                yield from measure.store_figures(options.bench, folder, options.rounds, postgres)
            yield from measure.start_figures(options.keybridge, folder / "start", mock.address,
                                             options.rounds)
            rounds = measure.Rounds(bench, mock, targets, options.rounds, say)
            before = bridge.memory()
            yield from measure.cpu_figures(rounds, options.quick)
            yield from measure.delay_figures(rounds)
            yield measure.absolute(measure.MEMORY_AFTER, [bridge.memory() / before], "× at start")
            bridge.stop()
            counts = bridge.verify()
            say(f"the trail is sound: {counts['interceptions']} interceptions, "
                f"{counts['in_progress']} open, {counts['interrupted']} interrupted")
    yield from measure.memory_figures(options.bench, options.keybridge, options.dir,
                                      1 if options.quick else 3)


def row(figure):
    goal = figure.goal
    values = ", ".join(f"{name} {spread.median:.1f}" for name, spread in figure.values.items())
    return (f"| {goal.number} | {goal.what} | {goal.versus} | {figure.spread.text()} | {goal.must:g} "
            f"| {goal.aim:g} | {figure.verdict} | {values} {figure.unit} |")


HEAD = ("| # | figure | against | measured: median (least–most) | must | aim | reached | medians |\n"
        "|---|---|---|---|--:|--:|---|---|")


def tier_b(options):
    lines, found = [], []
    started = surroundings(options.keybridge)
    for figure in figures(options, lambda text: print(f"  {text}", file=sys.stderr, flush=True)):
        found.append(figure)
        lines.append((figure.goal.number, row(figure)))
        print(row(figure), file=sys.stderr, flush=True)
    print(HEAD)
    for _, line in sorted(lines, key=lambda line: line[0]):
        print(line)
    ended = surroundings(options.keybridge)
    print(f"\nkernel {started['kernel']}, {started['cores']} cores, {options.rounds} rounds, load average "
          f"{started['load_average'][0]:.1f} → {ended['load_average'][0]:.1f}, binary "
          f"{started['binary_sha256']}, {started['at']}")
    if options.json:
        rows = [{"goal": figure.goal.number, "what": figure.goal.what, "against": figure.goal.versus,
                 "ratio": vars(figure.spread), "must": figure.goal.must, "aim": figure.goal.aim,
                 "verdict": figure.verdict, "unit": figure.unit,
                 "values": {name: vars(spread) for name, spread in figure.values.items()}}
                for figure in found]
        options.json.write_text(json.dumps({"begin": started, "end": ended, "figures": rows}, indent=1))
    return 0


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--tier", choices=["a", "b", "c"], default="b")
    arguments.add_argument("--keybridge", type=pathlib.Path, required=True)
    arguments.add_argument("--bench", type=pathlib.Path, required=True)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--quick", action="store_true", help="a quarter of the work, for a look")
    arguments.add_argument("--write", action="store_true", help="make tier A's counts the table")
    arguments.add_argument("--no-postgres", action="store_true")
    arguments.add_argument("--json", type=pathlib.Path)
    # Not /tmp, which may be no disk.
    arguments.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/var/tmp"))
    options = arguments.parse_args()
    with contextlib.suppress(ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.tier == "a":
        return tier_a.run(options, BASELINE)
    if options.tier == "c":
        return tier_c.run(options)
    return tier_b(options)


if __name__ == "__main__":
    sys.exit(main())
