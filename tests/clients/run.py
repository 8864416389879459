"""Runs the client tests against a bridge with simulated providers, then with injected tools.

    scripts/test clients [WORD]      runs those whose name contains the word
"""

import sys
import time
import traceback

import agents
import sdks
import tools
from bridge import Bridge


def main():
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    count = failed = 0
    plain = chosen({**sdks.TESTS, **agents.TESTS}, word)
    if plain:
        with Bridge() as bridge:
            failed += run(plain, bridge)
        count += len(plain)
    injected = chosen(tools.TESTS, word)
    if injected:
        with tools.Everything() as server, Bridge(server.url) as bridge:
            failed += run(injected, bridge)
        count += len(injected)
    print(f"{count - failed} passed, {failed} failed")
    return 1 if failed or not count else 0


def chosen(tests, word):
    return {name: test for name, test in tests.items() if word in name}


def run(tests, bridge):
    """Every test is run, whatever became of the one before; gives the number that failed."""
    failed = 0
    for name, test in tests.items():
        began = time.monotonic()
        try:
            bridge.exchanges()
            test(bridge)
            print(f"ok      {name} ({time.monotonic() - began:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
    if failed:
        print("the bridge's log:", "".join(bridge.log[-40:]), sep="\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
