"""The report of the figures."""

import hashlib
import json
import os
import pathlib
import platform
import resource
import time

from targets import Keybridge

HEAD = ("| # | figure | baseline | measured: median (min–max) | must | aim | reached | medians |\n"
        "|---|---|---|---|--:|--:|---|---|")


def surroundings(binary):
    """The environment, without which a figure means nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "binary_sha256": hashlib.sha256(pathlib.Path(binary).read_bytes()).hexdigest()[:16],
        "kernel": platform.release(), "processor": processor(), "cores": os.cpu_count(),
        "load_average": os.getloadavg(), "open_files": {"soft": soft, "hard": hard},
        "features": Keybridge.FEATURES, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")


def row(figure):
    goal = figure.goal
    values = ", ".join(f"{name} {spread.median:.1f}" for name, spread in figure.values.items())
    limits = ["" if limit is None else f"{limit:.3g}" for limit in (goal.must, goal.aim)]
    return (f"| {goal.number or ''} | {goal.what} | {goal.versus} | {figure.spread.text()} | {limits[0]} "
            f"| {limits[1]} | {figure.verdict} | {values} {figure.unit} |")


def table(figures):
    ordered = sorted(figures, key=lambda figure: figure.goal.number or 99)
    return "\n".join([HEAD, *map(row, ordered)])


def room_table(rooms):
    """How much faster the provider and the load generator are without each target."""
    names = list(dict.fromkeys(name for of in rooms.values() for name in of))
    lines = ["| headroom: rate of direct relative to | " + " | ".join(names) + " |",
             "|---|" + "--:|" * len(names)]
    for what, of in rooms.items():
        lines.append(f"| {what} | " + " | ".join(
            of[name].text() if name in of else "" for name in names) + " |")
    return "\n".join(lines)


def footer(started, ended, rounds):
    files = started["open_files"]
    return (f"kernel {started['kernel']}, {started['processor']}, {started['cores']} cores, {rounds} rounds, "
            f"load average {started['load_average'][0]:.1f} → {ended['load_average'][0]:.1f}, "
            f"ulimit -n {files['soft']}, binary {started['binary_sha256']}, {started['at']}\n"
            f"on in keybridge: {', '.join(started['features'])}; TLS only where a line says so")


def written(started, ended, figures, rooms):
    """The complete report as JSON, including the values of each round."""
    rows = [{"goal": figure.goal.number, "what": figure.goal.what, "against": figure.goal.versus,
             "ratio": vars(figure.spread), "must": figure.goal.must, "aim": figure.goal.aim,
             "verdict": figure.verdict, "unit": figure.unit,
             "values": {name: vars(spread) for name, spread in figure.values.items()}}
            for figure in figures]
    room = {what: {name: vars(spread) for name, spread in of.items()} for what, of in rooms.items()}
    return json.dumps({"begin": started, "end": ended, "figures": rows, "head_room": room}, indent=1)
