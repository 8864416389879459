"""Measures keybridge against nginx and a relay of bytes. `scripts/bench` builds and runs this.

    scripts/bench                  tier B: ratios against nginx in interleaved rounds
    scripts/bench --peer litellm   compared with LiteLLM's proxy, installed from PyPI
    scripts/bench --tls            events and requests with TLS to the client
    scripts/bench --cross-check    one figure also measured by oha
    scripts/bench --where          the breakdown of the cost of an event and a request
    scripts/bench --tier c         tier C: saturation, 400 streams, a store that stalls, and 9,000 idle
                                   streams; --part selects one of them
    scripts/bench --tier c --soak MINUTES
    scripts/bench --readers        model requests beside readers of a large store
    scripts/bench --seed URL       a store filled with generated interceptions
    scripts/bench --reads URL      every reading call on such a store
    scripts/bench --tier a         tier A: exact counts, compared with benches/baseline.json
"""

import argparse
import contextlib
import pathlib
import resource
import sys

import cross_check
import peers
import readers
import reads
import report
import seed
import tier_a
import tier_b
import tier_c
import tls
import where
from targets import ROOT

BASELINE = ROOT / "benches/baseline.json"


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def reported(options, figures):
    """Prints each figure as it is measured, then all as a table, and writes a file if requested; `figures`
    fills in the headroom."""
    started, rooms, found = report.surroundings(options.keybridge), {}, []
    for figure in figures(options, say, rooms):
        found.append(figure)
        print(report.row(figure), file=sys.stderr, flush=True)
    ended = report.surroundings(options.keybridge)
    print(report.table(found))
    if rooms:
        print("\n" + report.room_table(rooms))
    print("\n" + report.footer(started, ended, options.rounds))
    if options.json:
        options.json.write_text(report.written(started, ended, found, rooms))
    return 0


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tier", choices=["a", "b", "c"], default="b")
    parser.add_argument("--keybridge", type=pathlib.Path, required=True)
    parser.add_argument("--bench", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="run a quarter of the work, for a first look")
    parser.add_argument("--write", action="store_true", help="write tier A's counts as the new baseline")
    parser.add_argument("--peer", choices=["litellm"], help="compare with another gateway, which is installed")
    parser.add_argument("--tls", action="store_true", help="measure events and requests with TLS, without goals")
    parser.add_argument("--cross-check", action="store_true", help="measure one figure with oha too")
    parser.add_argument("--part", choices=tier_c.PARTS, help="run only this part of tier c")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="with tier c: run a load for this many minutes")
    parser.add_argument("--readers", nargs="?", const="both", metavar="sqlite|postgres|URL",
                        help="measure model requests beside readers of a large store, new or filled by --seed")
    parser.add_argument("--seed", metavar="URL", help="fill a store, which has no interceptions yet")
    parser.add_argument("--interceptions", type=int, default=1_000_000, help="with --seed, --readers: their number")
    parser.add_argument("--days", type=int, default=30, help="with --seed: the days over which they are distributed")
    parser.add_argument("--users", type=int, default=200, help="with --seed: the number of users")
    parser.add_argument("--reads", metavar="URL", help="measure every reading call on a store that --seed filled")
    parser.add_argument("--repetitions", type=int, default=50, help="with --reads: of each call")
    parser.add_argument("--plans", action="store_true", help="with --reads: print the plans of the statements")
    parser.add_argument("--where", action="store_true", help="break down the cost of an event and a request")
    parser.add_argument("--no-postgres", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    # Not /tmp, which may not be on a disk.
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/var/tmp"))
    options = parser.parse_args()
    if options.readers and options.readers not in ("sqlite", "postgres", "both") and "://" not in options.readers:
        parser.error(f"--readers: `{options.readers}` is neither sqlite nor postgres nor the URL of a store")
    return options


def main():
    options = arguments()
    with contextlib.suppress(ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.cross_check:
        return cross_check.run(options, say)
    if options.readers:
        return readers.run(options)
    if options.seed:
        return seed.run(options)
    if options.reads:
        return reads.run(options)
    if options.where:
        return where.run(options)
    if options.tier == "a":
        return tier_a.run(options, BASELINE)
    if options.tier == "c":
        return tier_c.run(options, say)
    if options.peer:
        return reported(options, peers.figures)
    if options.tls:
        return reported(options, tls.figures)
    return reported(options, tier_b.figures)


if __name__ == "__main__":
    sys.exit(main())
