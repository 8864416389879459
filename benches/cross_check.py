"""A cross-check of one figure: requests of 1 KB, one at a time, measured by this project's load generator and
by `oha` in the same rounds."""

import json
import subprocess
import sys

from arithmetic import Spread, ratios
from measure import Rounds, world
from targets import ENV, cache, pinned

OHA = "1.16.0"
COUNT = 4_000
TARGETS = ("direct", "nginx", "keybridge")


def oha_program():
    """Builds oha unless it is installed, which takes some minutes."""
    folder = cache() / f"oha-{OHA}"
    if not (folder / "bin/oha").exists():
        print(f"building oha {OHA} into {folder}", file=sys.stderr, flush=True)
        subprocess.run(["cargo", "install", "oha", "--version", OHA, "--locked", "--root", folder], check=True)
    return folder / "bin/oha"


def by_oha(program, target, body, count):
    """Measures the requests per second and the median latency in microseconds."""
    command = [program, "--no-tui", "--output-format", "json", "-c", 1, "-n", count, "-m", "POST", "-d", body,
             "-H", f"authorization: Bearer {target.token}", "-H", "content-type: application/json",
             "-H", "anthropic-version: 2023-06-01", "-H", "x-bench: mode=whole",
             f"http://{target.address}{target.path}"]
    finished = subprocess.run(pinned(command), env=ENV, capture_output=True, text=True, timeout=300, check=True)
    return of_oha(json.loads(finished.stdout), count)


def of_oha(result, count):
    """Reads oha's JSON; raises an error unless every request succeeded."""
    if result["statusCodeDistribution"] != {"200": count}:
        raise RuntimeError(f"oha: {result['statusCodeDistribution']}, {result['errorDistribution']}")
    return {"rate": result["summary"]["requestsPerSec"], "p50": result["latencyPercentiles"]["p50"] * 1e6}


def by_load(rounds, target, count):
    _, seen = rounds.load(target, kind="whole", count=count)
    return {"rate": count / seen["seconds"], "p50": seen["p50_us"]}


def run(options, say):
    program, count = oha_program(), COUNT // (4 if options.quick else 1)
    body = subprocess.run([options.bench, "prompt", "--bytes", "1000"], capture_output=True, text=True,
                          check=True).stdout.strip()
    found = {(name, witness): [] for name in TARGETS for witness in ("load", "oha")}
    with world(options) as environment:
        rounds = Rounds(environment, options.rounds, say)
        # The first round is discarded.
        for number in range(options.rounds + 1):
            for name in TARGETS:
                target = environment.target(name)
                both = by_load(rounds, target, count), by_oha(program, target, body, count)
                if number > 0:
                    found[name, "load"].append(both[0])
                    found[name, "oha"].append(both[1])
        environment.bridge.stop()
        environment.bridge.verify()
    print(table(found))
    return 0


def table(found):
    lines = ["| request of 1 KB, one at a time | requests/s: this load | oha | oha to this | p50 (µs): this load "
             "| oha | oha to this |", "|---|" + "--:|" * 6]
    for name in TARGETS:
        cells = [cell for what in ("rate", "p50") for cell in beside(
            [seen[what] for seen in found[name, "load"]], [seen[what] for seen in found[name, "oha"]])]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    def to_nginx(witness, what):
        return ratios(*([seen[what] for seen in found[name, witness]] for name in ("keybridge", "nginx")))
    cells = [cell for what in ("rate", "p50") for cell in (
        to_nginx("load", what).text(), to_nginx("oha", what).text(), "")]
    return "\n".join([*lines, "| keybridge to nginx | " + " | ".join(cells) + " |"])


def beside(ours, theirs):
    """Both spreads, and the ratio of theirs to ours within a round."""
    return Spread.of(ours).text(0), Spread.of(theirs).text(0), ratios(theirs, ours).text()
