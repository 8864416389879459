"""Measures keybridge beside nginx and a relay of bytes. `scripts/bench` builds and calls this.

    scripts/bench                  tier B: ratios against nginx in interleaved rounds
    scripts/bench --peer litellm   beside LiteLLM's proxy, which is installed from PyPI
    scripts/bench --tls            events and requests with TLS towards the client
    scripts/bench --cross-check    one figure measured by oha, too
    scripts/bench --where          where the cost of an event and a request goes
    scripts/bench --tier c         tier C: how much can be asked, 400 streams, a store that stalls, and
                                   9,000 idle streams; --part has one of them
    scripts/bench --tier c --soak MINUTES
    scripts/bench --tier a         tier A: exact counts, compared with benches/baseline.json
"""

import argparse
import contextlib
import pathlib
import resource
import sys

import cross_check
import peers
import report
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
    """Figures as they come, then as a table and, where it is asked for, as a file; `figures` is given what
    is to hold the head-room."""
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
    parser.add_argument("--quick", action="store_true", help="a quarter of the work, for a look")
    parser.add_argument("--write", action="store_true", help="make tier A's counts the table")
    parser.add_argument("--peer", choices=["litellm"], help="beside another gateway, which is installed")
    parser.add_argument("--tls", action="store_true", help="events and requests with TLS, without goals")
    parser.add_argument("--cross-check", action="store_true", help="one figure by oha, too, which is built")
    parser.add_argument("--part", choices=tier_c.PARTS, help="of tier c, this alone")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="with tier c: so many minutes of load")
    parser.add_argument("--where", action="store_true", help="where an event's and a request's cost goes")
    parser.add_argument("--no-postgres", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    # Not /tmp, which may be no disk.
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/var/tmp"))
    return parser.parse_args()


def main():
    options = arguments()
    with contextlib.suppress(ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.cross_check:
        return cross_check.run(options, say)
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
