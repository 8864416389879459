"""Runs keybridge under strace and reads the system calls of its serving thread."""

import pathlib
import re
import signal
import tempfile

from measure import load, messages_of
from targets import Bench, Keybridge


def by_thread(text):
    """The calls of each thread, with their durations in seconds where known (`-T`)."""
    threads = {}
    for line in text.splitlines():
        thread, _, call = line.partition(" ")
        call = call.lstrip()
        calls = threads.setdefault(thread, [])
        seconds = re.search(r"<(\d+\.\d+)>$", call)
        seconds = float(seconds[1]) if seconds else None
        if "resumed>" in call:
            # Its start was on an earlier line.
            if calls:
                calls[-1] = calls[-1][0], seconds
        elif not call.startswith(("+++", "---")):
            calls.append((call.split("(")[0], seconds))
    return threads


def serving(options, *flags, **load_options):
    """The system calls of a load, including keybridge's start and the warm-up."""
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = pathlib.Path(name)
        bench = Bench(options.bench)
        mock = bench.mock()
        bridge = Keybridge.fresh(options.keybridge, folder / "keybridge", mock.address,
                                 ["strace", "-f", "-q", "-T", "-o", str(folder / "out"), *flags])
        load(bench, messages_of(bridge), mock, **load_options)
        bridge.process.send_signal(signal.SIGTERM)
        bridge.stop()
        mock.kill()
        threads = by_thread((folder / "out").read_text(errors="replace"))
    return max(threads.values(), key=lambda calls: sum(name.startswith("epoll") for name, _ in calls))
