"""Runs the client tests against bridges with simulated providers.

    scripts/test clients [WORD]      runs the tests whose name contains the word
"""

import sys
import time
import traceback

import agents
import everything
import sdks
import tools
import vendors
from bridge import Bridge

# The tests, and the bridge that they share.
GROUPS = [
    (Bridge, {**sdks.TESTS, **agents.TESTS}),
    (agents.bedrock_bridge, agents.BEDROCK),
    (vendors.bridge, vendors.TESTS),
    (everything.bridge, {**tools.TESTS, **agents.INJECTED}),
]


def run(start, tests):
    """Runs tests with a new bridge; returns how many fail."""
    failed = 0
    with start() as bridge:
        for name, test in tests.items():
            began = time.monotonic()
            try:
                bridge.exchanges()
                test(bridge)
                print(f"ok      {name} ({time.monotonic() - began:.1f} s)", flush=True)
            except Exception:  # Every test is run, whatever became of the one before.
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
        if failed:
            print("the bridge's log:", "".join(bridge.log[-40:]), sep="\n")
    return failed


def main():
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    total = failed = 0
    for start, tests in GROUPS:
        wanted = {name: test for name, test in tests.items() if word in name}
        total += len(wanted)
        if wanted:
            failed += run(start, wanted)
    print(f"{total - failed} passed, {failed} failed")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
