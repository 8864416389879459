"""The environment of a scenario: a folder, a simulator, stores, and the checks at its end."""

import contextlib
import math
import os
import pathlib
import subprocess
import tempfile
import time

from trail import Bridge, Simulator, recorded

# How long a scenario may take to settle; a process counts as dead after 15 s.
SETTLE_TIMEOUT = 60
# On a busy machine, the end of a response this long before a kill may not be committed yet: it waited for
# one commit and was part of the next. Its record is then interrupted.
LAST_COMMIT_SECONDS = 0.25


class Cannot(Exception):
    """This machine cannot run a scenario."""


class World:
    """A folder, a simulator, and stores for bridges."""

    def __init__(self, options, servers):
        self.soak, self.seed, self._servers = options.soak, options.seed, servers

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        folder = tempfile.TemporaryDirectory(prefix="keybridge-trail-")
        self.dir = pathlib.Path(self._stack.enter_context(folder))
        # Some processes run as another user.
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
        """Starts a bridge; `start` has the options of its process."""
        bridge = Bridge(self.dir, store, self.simulator, name=f"bridge-{len(self.bridges)}",
                        **settings)
        self.bridges.append(bridge)
        return bridge.start(**(start or {}))

    def recorded(self, store):
        return recorded(store, None if store.startswith("sqlite://") else self.server)

    def check_whole(self, store, results):
        """Checks that every response that a client received completely is recorded once, as completed,
        with exact usage; returns the responses, and how long before a kill an end was lost at most."""
        found = self.recorded(store)
        whole = [result for result in results if result.whole]
        kills = {url: at for bridge in self.bridges for url, at in bridge.kills.items()}
        longest = 0.0
        without_id = {outcome for outcome, _ in found.get("", [])}
        assert "completed" not in without_id, "a completed record has no response id"
        for result in whole:
            rows = found.get(result.response_id, [])
            if rows == [("completed", "exact")]:
                continue
            before = kills.get(result.url, math.inf) - result.ended_at
            assert before < LAST_COMMIT_SECONDS, (before, result, rows)
            assert [outcome for outcome, _ in rows] in ([], ["interrupted"]), (result, rows)
            longest = max(longest, before)
        return whole, longest


def until(condition, what, timeout=SETTLE_TIMEOUT):
    """Waits for a condition; returns the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, f"not within {timeout} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


def at_rest(bridge, leftovers=False):
    """Waits until no record is in progress and the spool is empty, except for `leftovers`."""
    def quiet():
        counts = bridge.cli("ledger", "verify", check=False)[0]
        waiting = 0 if leftovers else counts["spool_leftovers"]
        return counts["in_progress"] + counts["without_end"] + waiting == 0
    until(quiet, "all records have an end")


def summary(verified, **more):
    against = verified["against"]
    counts = {
        "interceptions": verified["interceptions"], "interrupted": verified["interrupted"],
        "sums": verified["compared_sums"], "different": verified["different_sums"],
        "handed out": against["response_ids"], "found": against["found"],
        "by request": against["found_by_request"], "missing": len(against["missing"]),
        "doubled": len(against["doubled"]), **more,
    }
    return ", ".join(f"{name} {value}" for name, value in counts.items())


class SmallDisk:
    """A file system of a few MiB, and a file that fills it."""

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
        # Remounts the mount, not the file system, which is also allowed in a user namespace.
        self._mount("-o", "remount,bind,ro", self.dir)

    def fill(self):
        """Fills the file system to the last byte."""
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
