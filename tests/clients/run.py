"""Runs the client tests against one bridge with simulated providers.

    scripts/test clients [WORD]      runs those whose name contains the word
"""

import sys
import time
import traceback

import agents
import sdks
from bridge import Bridge


def main():
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    tests = {name: test for name, test in {**sdks.TESTS, **agents.TESTS}.items() if word in name}
    failed = 0
    with Bridge() as bridge:
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
    print(f"{len(tests) - failed} passed, {failed} failed")
    return 1 if failed or not tests else 0


if __name__ == "__main__":
    sys.exit(main())
