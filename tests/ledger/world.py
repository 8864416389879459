"""What a scenario stands on: a folder, a simulator, stores, and the checks at its end."""

import contextlib
import math
import os
import pathlib
import subprocess
import tempfile
import time

from trail import Bridge, Simulator, recorded

# What a scenario may take to come to rest: a process counts as dead after 15 s.
PATIENCE = 60
# So long before a kill the end of an answer may not have been committed yet, on a busy machine: it
# waited for one commit and was in the next. Its record is then interrupted.
LAST_COMMIT_SECONDS = 0.25


class Cannot(Exception):
    """This machine cannot do what a scenario needs."""


class World:
    """A folder, a simulator, and stores for bridges."""

    def __init__(self, options, servers):
        self.soak, self.seed, self._servers = options.soak, options.seed, servers

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        folder = tempfile.TemporaryDirectory(prefix="keybridge-trail-")
        self.dir = pathlib.Path(self._stack.enter_context(folder))
        # Some processes run as somebody else.
        self.dir.chmod(0o755)
        self.bridges = []
        self.simulator = Simulator(self.dir)
        self._stack.callback(self.simulator.stop)
        return self

    def __exit__(self, *_):
        for bridge in self.bridges:
            if bridge.running and bridge.running.process.poll() is None:
                bridge.kill()
        self._stack.close()

    @property
    def server(self):
        return self._servers.get()

    def store(self, kind):
        name = f"trail_{os.getpid()}_{time.monotonic_ns()}"
        if kind == "postgres":
            return self.server.create_database(name)
        return f"sqlite://{self.dir}/{name}.db"

    def bridge(self, store, start=None, **settings):
        """A bridge that runs; `start` has the options of its start."""
        bridge = Bridge(self.dir, store, self.simulator, name=f"bridge-{len(self.bridges)}",
                        **settings)
        self.bridges.append(bridge)
        return bridge.start(**(start or {}))

    def recorded(self, store):
        return recorded(store, None if store.startswith("sqlite://") else self.server)

    def check_whole(self, store, results):
        """Every answer that a client got whole is recorded once, as completed, with exact usage;
        gives the answers, and how long before a kill the end of one was lost at most."""
        found = self.recorded(store)
        whole = [result for result in results if result.whole]
        kills = {url: at for bridge in self.bridges for url, at in bridge.kills.items()}
        longest = 0.0
        without_id = {outcome for outcome, _ in found.get("", [])}
        assert "completed" not in without_id, "a record lost what was answered"
        for result in whole:
            rows = found.get(result.response_id, [])
            if rows == [("completed", "exact")]:
                continue
            before = kills.get(result.url, math.inf) - result.ended_at
            assert before < LAST_COMMIT_SECONDS, (before, result, rows)
            assert [outcome for outcome, _ in rows] in ([], ["interrupted"]), (result, rows)
            longest = max(longest, before)
        return whole, longest


def until(condition, what, patience=PATIENCE):
    """Waits for a condition; gives the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < patience, f"not within {patience} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


def at_rest(bridge, leftovers=False):
    """Waits until no process is at a record and the spool is empty, but for `leftovers`."""
    def quiet():
        counts = bridge.cli("ledger", "verify", check=False)[0]
        waiting = 0 if leftovers else counts["spool_leftovers"]
        return counts["in_progress"] + counts["without_end"] + waiting == 0
    until(quiet, "all records have an end")


def summary(verified, **more):
    against = verified["against"]
    counts = {
        "interceptions": verified["interceptions"], "interrupted": verified["interrupted"],
        "handed out": against["response_ids"], "found": against["found"],
        "by request": against["found_by_request"], "missing": len(against["missing"]),
        "doubled": len(against["doubled"]), **more,
    }
    return ", ".join(f"{name} {value}" for name, value in counts.items())


class SmallDisk:
    """A file system of few MiB, and a file that fills it."""

    def __init__(self, folder, mib):
        self.dir, self.mib = pathlib.Path(folder), mib

    def __enter__(self):
        self.dir.mkdir()
        try:
            self._mount("-t", "tmpfs", "-o", f"size={self.mib}m", "tmpfs", self.dir)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Cannot("a small file system cannot be mounted") from error
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", self.dir], check=True)

    def make_read_only(self):
        # The mount and not the file system: that is allowed in a namespace, too.
        self._mount("-o", "remount,bind,ro", self.dir)

    def fill(self):
        """Down to the last byte."""
        with open(self.dir / "ballast", "ab", buffering=0) as file:
            for size in (65536, 512, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    def free(self):
        (self.dir / "ballast").unlink()

    @staticmethod
    def _mount(*words):
        subprocess.run(["mount", *words], check=True, capture_output=True)
