"""Attacks a running bridge over real sockets, each on a bridge of its own, and checks what must hold.

    scripts/test attacks [NAME…] [--full]                   the released profile, as CI runs it
    python3 tests/attacks/run.py --keybridge PATH [NAME…]   another binary

A NAME selects the attack of that name, or those whose name contains it. Each prints one line: the verdict, its name, the time,
and figures such as the resident memory before and after. `--full` runs the floods at full size.
"""

import argparse
import contextlib
import os
import pathlib
import resource
import sys
import time
import traceback

FOLDER = pathlib.Path(__file__).resolve().parent
CANNOT = 77


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*", metavar="NAME")
    arguments.add_argument("--full", action="store_true", help="floods at full size")
    arguments.add_argument("--keybridge", metavar="PATH", help="the binary under attack")
    arguments.add_argument("--list", action="store_true", help="only list the attacks")
    options = arguments.parse_args()
    if options.keybridge:
        # The modules read it when they are imported.
        os.environ["KEYBRIDGE"] = str(pathlib.Path(options.keybridge).resolve())
    allow_many_sockets()
    sys.path.append(str(FOLDER.parent / "ledger"))
    from postgres import Servers, end_in_order
    from suite import ATTACKS
    chosen = [name for name in ATTACKS if not options.names or any(
        word == name or word not in ATTACKS and word in name for word in options.names)]
    if options.list:
        print("\n".join(f"{name:28} {ATTACKS[name].__doc__.splitlines()[0]}" for name in chosen))
        return 0
    end_in_order()
    counts = {"held": 0, "FAILED": 0, "cannot": 0}
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        servers = Servers(stack)
        for name in chosen:
            outcome = run(name, ATTACKS[name], options, servers)
            counts[outcome] += 1
    print(f"{counts['held']} held, {counts['FAILED']} failed, {counts['cannot']} not possible here, "
          f"in {time.monotonic() - began:.0f} s")
    if counts["FAILED"] or not chosen:
        return 1
    return CANNOT if counts["cannot"] else 0


def run(name, attack, options, servers):
    """Runs an attack and prints its line; the next ones run whatever happens in it."""
    from arena import Arena, Cannot
    began, details = time.monotonic(), ""
    with Arena(options, servers) as arena:
        try:
            outcome, figures = "held", attack(arena)
        except Cannot as error:
            outcome, figures = "cannot", str(error)
        except Exception as error:
            outcome, figures = "FAILED", " ".join(str(error).split())[:300] or repr(error)
            logs = [line for bridge in arena.bridges if bridge.running
                    for line in bridge.running.log[-6:]]
            details = traceback.format_exc()[-3000:] + "the bridges' logs:\n" + "".join(
                line[:300] + ("" if len(line) <= 300 else "…\n") for line in logs)
    servers.ensure_running()
    print(f"{outcome:6} {name:28} {time.monotonic() - began:5.1f} s  {figures}", flush=True)
    if details:
        print(details, file=sys.stderr, flush=True)
    return outcome


def allow_many_sockets():
    """Raises the limit of open files to what is allowed; the bridges inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
